// The neuron on a CPU, alone and behind a batch norm. Built by build.py, called by backends/cpp.py.
//
// A pack of neurons goes through all steps at a time, in registers and the first-level cache, so that every tensor is
// read or written once per pass. The spikes equal those of backends/reference.py to the bit, provided that the compiler
// fuses no product with a sum.
//
//   x       [T][rows][C][S], of type X: S = 1 in channels_last, otherwise the pixels of a channel
//   membrane, and all that is computed: of type A
//
// Read neuron.hpp first, then the two passes below; partition.hpp shares the work, vectors.hpp has the arithmetic and
// bn_lif.hpp the batch norm.

#include <vector>

#include "bn_lif.hpp"
#include "neuron.hpp"

namespace {

// Spikes of x * scale + shift (of x if there is no scale), and the last membrane if asked for; taus: one per channel
template <typename X, typename A, bool USUAL>
void fire(const Call& call, const X* x, const A* v, const A* scale, const A* shift, X* spikes, A* v_last,
          const A* taus) {
    typedef Pack<A> P;
    Partition partition(call, P::N);
    std::vector<A> scales, shifts, all_taus;
    if (scale) scales = cyclic(scale, call.C), shifts = cyclic(shift, call.C);
    if (taus) all_taus = cyclic(taus, call.C);
    parallel<X, A, USUAL>(partition, [&](Neurons<X, A, USUAL>& neurons, int64_t item) {
        partition.for_each_span(item, P::N, [&](const Span& s) {
            if (scale) neurons.set_scale(s, scales, shifts);
            if (taus) neurons.set_taus(s, all_taus);
            P last = neurons.run(s, x, v);
            for (int64_t t = 0; t < call.T; t++) {
                P fires;
                for (int i = 0; i < P::SIZE; i++) {
                    auto charged = neurons.h[t].at[i];
                    auto silent = charged == charged ? P::of(0).at[i] : charged;  // NaN goes on
                    fires.at[i] = charged >= neurons.v_threshold ? P::of(1).at[i] : silent;
                }
                fires.save(spikes + t * partition.size + s.m, s.n);
            }
            if (v_last) last.save(v_last + s.m, s.n);
        });
    });
}

// Gradient of x, and those of the first membrane and of tau if asked for; taus: one per channel
template <typename X, typename A, bool USUAL>
void fire_backward(const Call& call, const X* x, const A* v, const X* grad, const A* grad_v, X* grad_x, A* grad_v_first,
                   A* grad_tau, const A* taus) {
    typedef Pack<A> P;
    Partition partition(call, P::N);
    ChannelSums<A> sums(partition);  // of the gradient of tau, where all neurons of one tau are one channel
    std::vector<A> all_taus;
    if (taus) all_taus = cyclic(taus, call.C);
    parallel<X, A, USUAL>(partition, [&](Neurons<X, A, USUAL>& neurons, int64_t item) {
        partition.for_each_span(item, P::N, [&](const Span& s) {
            P back = P::of(0), of_tau = P::of(0);
            if (grad_v) back.load(grad_v + s.m, s.n);
            if (taus) neurons.set_taus(s, all_taus);
            neurons.run(s, x, v);
            neurons.run_backward(s, grad, back, grad_tau ? &of_tau : nullptr, [&](int64_t t, const P& g) {
                g.save(grad_x + t * partition.size + s.m, s.n);
            });
            if (grad_tau) sums.add(item, s, of_tau, P::of(0));
            if (grad_v_first) back.save(grad_v_first + s.m, s.n);
        });
    });
    if (grad_tau) std::copy_n(sums.total().begin(), call.C, grad_tau);
}

}  // namespace

#define EXPORT(NAME, X, A)                                                                                             \
    extern "C" void fire_##NAME(const Call* call, const X* x, const A* v, const A* scale, const A* shift, X* spikes,   \
                                A* v_last, const A* taus) {                                                            \
        (is_usual(*call, nullptr) ? fire<X, A, true> : fire<X, A, false>)(*call, x, v, scale, shift, spikes, v_last,   \
                                                                          taus);                                       \
    }                                                                                                                  \
    extern "C" void fire_backward_##NAME(const Call* call, const X* x, const A* v, const X* grad, const A* grad_v,     \
                                         X* grad_x, A* grad_v_first, A* grad_tau, const A* taus) {                     \
        (is_usual(*call, grad_tau) ? fire_backward<X, A, true> : fire_backward<X, A, false>)(                          \
            *call, x, v, grad, grad_v, grad_x, grad_v_first, grad_tau, taus);                                          \
    }                                                                                                                  \
    extern "C" void bn_fire_##NAME(const Call* call, const X* x, const A* weight, const A* bias, A* norm, X* spikes) { \
        Norm<A> at(norm, call->C);                                                                                     \
        normalise<X, A>(*call, x, weight, bias, at);                                                                   \
        fire_##NAME(call, x, nullptr, at.scale, at.shift, spikes, nullptr, nullptr);                                   \
    }                                                                                                                  \
    extern "C" void bn_backward_##NAME(const Call* call, const X* x, A* norm, const X* grad, X* grad_x,                \
                                       A* grad_affine, A* grad_tau) {                                                  \
        (is_usual(*call, grad_tau) ? bn_backward<X, A, true> : bn_backward<X, A, false>)(                              \
            *call, x, Norm<A>(norm, call->C), grad, grad_x, grad_affine, grad_tau);                                    \
    }

EXPORT(float32, float, float)
EXPORT(bfloat16, bf16, float)
EXPORT(float16, fp16, float)
EXPORT(float64, double, double)
