// Batch norm before the neuron: the statistics of each channel, and the gradient through them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "neuron.hpp"

namespace {

// Two sums per channel. Each item of the partition has its own, which are added in order when all are done.
template <typename A>
struct ChannelSums {
    const Partition& partition;
    int64_t width;
    // [items][2][width]. In channels_last, what lies beyond C belongs to the first channels again, as in `cyclic`.
    std::vector<A> parts;

    explicit ChannelSums(const Partition& d)
        : partition(d), width(d.channels_last ? d.call.C + Pack<A>::N : 1), parts(d.items() * 2 * width) {}

    INLINE void add(int64_t item, const Span& s, const Pack<A>& first, const Pack<A>& second) {
        A *to = &parts[item * 2 * width], a[Pack<A>::N], b[Pack<A>::N];
        first.save(a), second.save(b);
        if (partition.channels_last)
            for (int64_t i = 0; i < s.n; i++) to[s.c + i] += a[i], to[width + s.c + i] += b[i];
        else
            for (int64_t i = 0; i < s.n; i++) to[0] += a[i], to[1] += b[i];
    }
    std::vector<double> total() const {  // [2][C]
        int64_t C = partition.call.C;
        std::vector<double> total(2 * C);
        for (int64_t item = 0; item < partition.items(); item++)
            for (int64_t i = 0; i < 2 * width; i++) {
                int64_t c = partition.channels_last ? i % width % C : partition.channel(item);
                total[i / width * C + c] += parts[item * 2 * width + i];
            }
        return total;
    }
};

// Mean and biased variance of each channel. The sums are of distances from its first number, to lose no digits.
template <typename X, typename A>
void statistics(const Call& call, const X* x, A* mean, A* var) {
    typedef Pack<A> P;
    Partition partition(call, P::N);
    ChannelSums<A> sums(partition);
    std::vector<A> first(call.C);
    for (int64_t c = 0; c < call.C; c++) first[c] = value(x[c * call.S]);
    std::vector<A> origins = cyclic(first.data(), call.C);
    parallel<X, A, true>(partition, [&](Neurons<X, A, true>& neurons, int64_t item) {
        partition.for_each_span(item, P::N, [&](const Span& s) {
            P origin = neurons.per_neuron(s, origins), sum = P::of(0), squares = P::of(0);
            for (int64_t t = 0; t < call.T; t++) {
                P pack;
                pack.load(x + t * call.x_stride + s.m, s.n);
                for (int i = 0; i < P::SIZE; i++) {
                    typename P::vec d = pack.at[i] - origin.at[i];
                    sum.at[i] += d, squares.at[i] += d * d;
                }
            }
            sums.add(item, s, sum, squares);
        });
    });
    std::vector<double> total = sums.total();
    double count = double(call.T) * call.rows * call.S;
    for (int64_t c = 0; c < call.C; c++) {
        double distance = total[c] / count;
        mean[c] = first[c] + distance, var[c] = std::max(total[call.C + c] / count - distance * distance, 0.0);
    }
}

// Gradients of x, of bias and weight as [2][C], and of tau if asked for.
// The first pass over memory sums the neuron's gradient per channel and keeps it in grad_x; the second completes grad_x
// with these sums. In half precision grad_x would round the gradient once more, so the second pass computes it again.
template <typename X, typename A, bool USUAL>
void bn_backward(const Call& call, const X* x, const A* scale, const A* shift, const A* mean, const A* rstd,
                 const X* grad, X* grad_x, A* grad_affine, A* grad_tau) {
    typedef Pack<A> P;
    constexpr bool KEEPS = std::is_same<X, A>::value;
    Partition partition(call, P::N);
    ChannelSums<A> sums(partition);
    std::vector<A> tau_parts(grad_tau ? partition.items() : 0);
    std::vector<A> scales = cyclic(scale, call.C), shifts = cyclic(shift, call.C), means = cyclic(mean, call.C),
                   rstds = cyclic(rstd, call.C);
    auto run = [&](Neurons<X, A, USUAL>& neurons, const Span& s, auto use) {
        neurons.set_scale(s, scales, shifts);
        neurons.run(s, x, nullptr);
        P back = P::of(0);
        return neurons.run_backward(s, grad, back, grad_tau, use);
    };
    auto centred = [&](const Span& s, int64_t t, const P& mean) {
        P pack;
        pack.load(x + t * call.x_stride + s.m, s.n);
        for (int i = 0; i < P::SIZE; i++) pack.at[i] -= mean.at[i];
        return pack;
    };
    parallel<X, A, USUAL>(partition, [&](Neurons<X, A, USUAL>& neurons, int64_t item) {
        partition.for_each_span(item, P::N, [&](const Span& s) {
            P b = P::of(0), w = P::of(0), m = neurons.per_neuron(s, means), r = neurons.per_neuron(s, rstds);
            A part = run(neurons, s, [&](int64_t t, const P& g) {
                P c = centred(s, t, m);
                for (int i = 0; i < P::SIZE; i++) b.at[i] += g.at[i], w.at[i] += g.at[i] * (c.at[i] * r.at[i]);
                if (KEEPS) g.save(grad_x + t * partition.size + s.m, s.n);
            });
            if (grad_tau) tau_parts[item] += part;
            sums.add(item, s, b, w);
        });
    });
    std::vector<double> total = sums.total();
    std::copy(total.begin(), total.end(), grad_affine);
    if (grad_tau) *grad_tau = sum(tau_parts);

    double count = double(call.T) * call.rows * call.S;
    std::vector<A> of_mean(call.C), of_x(call.C);  // the statistics' share of the gradient
    for (int64_t c = 0; c < call.C; c++) of_mean[c] = total[c] / count, of_x[c] = total[call.C + c] * rstd[c] / count;
    of_mean = cyclic(of_mean.data(), call.C), of_x = cyclic(of_x.data(), call.C);
    parallel<X, A, USUAL>(partition, [&](Neurons<X, A, USUAL>& neurons, int64_t item) {
        partition.for_each_span(item, P::N, [&](const Span& s) {
            P b = neurons.per_neuron(s, of_mean), w = neurons.per_neuron(s, of_x);
            P m = neurons.per_neuron(s, means), by = neurons.per_neuron(s, scales);
            auto finish = [&](int64_t t, P& g) {
                P c = centred(s, t, m);
                for (int i = 0; i < P::SIZE; i++) g.at[i] = by.at[i] * (g.at[i] - b.at[i] - c.at[i] * w.at[i]);
                g.save(grad_x + t * partition.size + s.m, s.n);
            };
            if (KEEPS)
                for (int64_t t = 0; t < call.T; t++) {
                    P g;
                    g.load(grad_x + t * partition.size + s.m, s.n);
                    finish(t, g);
                }
            else
                run(neurons, s, finish);
        });
    });
}

}  // namespace
