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

    explicit ChannelSums(const Partition& partition)
        : partition(partition), width(partition.channels_last ? partition.call.C + Pack<A>::N : 1),
          parts(partition.items() * 2 * width) {}

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

// What batch norm knows of each channel, [5][C]: mean, biased variance, 1 / standard deviation, and x as current:
// x * scale + shift
template <typename A>
struct Norm {
    A *mean, *var, *rstd, *scale, *shift;
    Norm(A* at, int64_t C) : mean(at), var(at + C), rstd(at + 2 * C), scale(at + 3 * C), shift(at + 4 * C) {}
};

// The sums are of distances from the first number of a channel, to lose no digits.
template <typename X, typename A>
void normalise(const Call& call, const X* x, const A* weight, const A* bias, const Norm<A>& norm) {
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
        norm.mean[c] = first[c] + distance;
        norm.var[c] = std::max(total[call.C + c] / count - distance * distance, 0.0);
        norm.rstd[c] = 1 / std::sqrt(norm.var[c] + A(call.eps));
        norm.scale[c] = weight[c] * norm.rstd[c];
        norm.shift[c] = bias[c] - norm.mean[c] * norm.scale[c];
    }
}

// Gradients of x, of bias and weight as [2][C], and of tau if asked for. With g, the gradient of the current:
//
//   grad_bias = sum g       grad_weight = sum g * xhat       xhat = (x - mean) * rstd
//   grad_x = scale * (g - grad_bias / count - xhat * grad_weight / count)
//
// The first pass over memory takes the sums and keeps g in grad_x; the second completes it. In half precision grad_x
// would round g once more, so the second pass computes g again.
template <typename X, typename A, bool USUAL>
void bn_backward(const Call& call, const X* x, const Norm<A>& norm, const X* grad, X* grad_x, A* grad_affine,
                 A* grad_tau) {
    typedef Pack<A> P;
    constexpr bool KEEPS = std::is_same<X, A>::value;
    Partition partition(call, P::N);
    ChannelSums<A> sums(partition);
    std::vector<A> tau_parts(grad_tau ? partition.items() : 0);
    std::vector<A> scales = cyclic(norm.scale, call.C), shifts = cyclic(norm.shift, call.C),
                   means = cyclic(norm.mean, call.C), rstds = cyclic(norm.rstd, call.C);
    auto run = [&](Neurons<X, A, USUAL>& neurons, const Span& s, auto use) {
        neurons.set_scale(s, scales, shifts);
        neurons.run(s, x, nullptr);
        P back = P::of(0), of_tau = P::of(0);
        neurons.run_backward(s, grad, back, grad_tau ? &of_tau : nullptr, use);
        return of_tau;
    };
    auto load_centred = [&](const Span& s, int64_t t, const P& mean) {  // x - mean
        P pack;
        pack.load(x + t * call.x_stride + s.m, s.n);
        for (int i = 0; i < P::SIZE; i++) pack.at[i] -= mean.at[i];
        return pack;
    };
    parallel<X, A, USUAL>(partition, [&](Neurons<X, A, USUAL>& neurons, int64_t item) {
        partition.for_each_span(item, P::N, [&](const Span& s) {
            P of_bias = P::of(0), of_weight = P::of(0);
            P mean = neurons.per_neuron(s, means), rstd = neurons.per_neuron(s, rstds);
            P of_tau = run(neurons, s, [&](int64_t t, const P& g) {
                P x = load_centred(s, t, mean);
                for (int i = 0; i < P::SIZE; i++)
                    of_bias.at[i] += g.at[i], of_weight.at[i] += g.at[i] * (x.at[i] * rstd.at[i]);
                if (KEEPS) g.save(grad_x + t * partition.size + s.m, s.n);
            });
            if (grad_tau) {
                A lanes[P::N];
                of_tau.save(lanes);
                for (int64_t i = 0; i < s.n; i++) tau_parts[item] += lanes[i];
            }
            sums.add(item, s, of_bias, of_weight);
        });
    });
    std::vector<double> total = sums.total();
    std::copy(total.begin(), total.end(), grad_affine);
    if (grad_tau) *grad_tau = sum(tau_parts);

    double count = double(call.T) * call.rows * call.S;
    std::vector<A> offsets(call.C), slopes(call.C);  // of what the statistics take from g, a line in x - mean
    for (int64_t c = 0; c < call.C; c++) {
        offsets[c] = total[c] / count, slopes[c] = total[call.C + c] * norm.rstd[c] / count;
    }
    offsets = cyclic(offsets.data(), call.C), slopes = cyclic(slopes.data(), call.C);
    parallel<X, A, USUAL>(partition, [&](Neurons<X, A, USUAL>& neurons, int64_t item) {
        partition.for_each_span(item, P::N, [&](const Span& s) {
            P offset = neurons.per_neuron(s, offsets), slope = neurons.per_neuron(s, slopes);
            P mean = neurons.per_neuron(s, means), scale = neurons.per_neuron(s, scales);
            auto complete = [&](int64_t t, P& g) {
                P x = load_centred(s, t, mean);
                for (int i = 0; i < P::SIZE; i++)
                    g.at[i] = scale.at[i] * (g.at[i] - offset.at[i] - x.at[i] * slope.at[i]);
                g.save(grad_x + t * partition.size + s.m, s.n);
            };
            if (KEEPS)
                for (int64_t t = 0; t < call.T; t++) {
                    P g;
                    g.load(grad_x + t * partition.size + s.m, s.n);
                    complete(t, g);
                }
            else
                run(neurons, s, complete);
        });
    });
}

}  // namespace
