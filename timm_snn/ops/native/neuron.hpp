// The neuron: its steps, its surrogate gradient and its steps back, for a pack of neurons at a time.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "partition.hpp"
#include "vectors.hpp"

namespace {

enum { SIGMOID, ATAN, PIECEWISE_QUADRATIC, ERF };  // in the order of surrogate.py

bool is_power_of_two(double tau) {
    int exponent;
    return std::frexp(tau, &exponent) == 0.5;
}

// Whether the neuron has the settings of the published models, for which we compile code without a choice in it
bool is_usual(const Call& call, const void* grad_tau) {
    bool resets = call.hard_reset && call.v_rest == 0 && call.detach_reset;
    return resets && call.decay_input && is_power_of_two(call.tau) && call.surrogate == SIGMOID && !grad_tau;
}

// One number per channel, repeated from the first one on so that a pack can be loaded from any channel
template <typename A>
std::vector<A> cyclic(const A* numbers, int64_t C) {
    std::vector<A> all(C + Pack<A>::N);
    for (int64_t i = 0; i < int64_t(all.size()); i++) all[i] = numbers[i % C];
    return all;
}

// A pack of neurons, with its membranes at every step. USUAL: see is_usual.
template <typename X, typename A, bool USUAL>
struct Neurons {
    typedef Pack<A> P;
    typedef typename P::vec vec;
    static constexpr int N = P::N;

    const Call& call;
    const Partition& partition;
    const bool hard_reset, decay_input, detach_reset, exact;  // exact: a product with 1 / tau rounds like the division
    const A tau, inverse, v_threshold, v_rest, alpha, binary_alpha;
    bool scaled = false;  // whether the current is x * scale + shift, not x
    P scale, shift;
    bool by_channel = false;  // whether tau is that of the channel, not the call's
    P taus;
    std::vector<P> h, v;  // membranes before the reset and at the start of each step; v is empty if USUAL

    explicit Neurons(const Partition& partition)
        : call(partition.call), partition(partition), hard_reset(USUAL || call.hard_reset),
          decay_input(USUAL || call.decay_input), detach_reset(USUAL || call.detach_reset),
          exact(USUAL || is_power_of_two(call.tau)), tau(call.tau), inverse(1 / tau), v_threshold(call.v_threshold),
          v_rest(call.v_rest), alpha(call.alpha), binary_alpha(call.alpha * M_LOG2E), h(call.T),
          v(USUAL ? 0 : call.T) {}

    // The number of its channel for each neuron of the span
    INLINE P per_neuron(const Span& s, const std::vector<A>& of) const {
        P pack;
        partition.channels_last ? pack.load(&of[s.c]) : void(pack = P::of(of[s.c]));
        return pack;
    }

    INLINE void set_scale(const Span& s, const std::vector<A>& scales, const std::vector<A>& shifts) {
        scaled = true, scale = per_neuron(s, scales), shift = per_neuron(s, shifts);
    }

    INLINE void set_taus(const Span& s, const std::vector<A>& of) { by_channel = true, taus = per_neuron(s, of); }

    INLINE vec over_tau(vec a, int i) const {
        if (!USUAL && by_channel) return a / taus.at[i];
        return exact ? a * inverse : a / tau;
    }

    // All steps: h of each, and the membrane after the last
    INLINE P run(const Span& s, const X* from, const A* v_first) {
        P now = P::of(v_rest);
        if (v_first) now.load(v_first + s.m, s.n);
        for (int64_t t = 0; t < call.T; t++) {
            P x;
            x.load(from + t * call.x_stride + s.m, s.n);
            if (!USUAL) v[t] = now;
#pragma GCC unroll 4
            for (int i = 0; i < P::SIZE; i++) {
                vec current = scaled ? x.at[i] * scale.at[i] + shift.at[i] : x.at[i];
                vec before = now.at[i], leak = USUAL ? before : before - v_rest;
                vec charged = decay_input ? before + over_tau(current - leak, i) : before - over_tau(leak, i) + current;
                vec after = USUAL ? vec{} : hard_reset ? vec{} + v_rest : charged - v_threshold;
                now.at[i] = charged >= vec{} + v_threshold ? after : charged;
                h[t].at[i] = charged;
            }
        }
        return now;
    }

    // The derivative of the surrogate at x = h - v_threshold
    INLINE vec derivative(vec x) const {
        if (USUAL || call.surrogate == SIGMOID) {
            vec e = exp2(binary_alpha * minus_abs(x));
            return alpha * e / ((1 + e) * (1 + e));  // p (1 - p), without the cancellation
        }
        if (call.surrogate == ATAN) {
            vec z = A(M_PI_2) * alpha * x;
            return alpha / 2 / (1 + z * z);
        }
        if (call.surrogate == PIECEWISE_QUADRATIC) {
            vec d = alpha + alpha * alpha * minus_abs(x);
            return d < 0 ? vec{} : d;  // NaN stays
        }
        return alpha * A(M_2_SQRTPI / 2) * exp2(-binary_alpha * alpha * x * x);
    }

    // The derivative of the membrane after a hard reset by the spike; 0 if the membrane before is infinite
    INLINE vec by_spike(vec charged) const {
        return minus_abs(charged) == vec{} - A(INFINITY) ? vec{} : v_rest - charged;
    }

    // All steps back, after `run`: use(t, gradient of the current) from the last to the first. grad_v is the gradient
    // of the membrane after the last step and becomes that before the first. Each neuron's share of the gradient of tau
    // is added to grad_tau, if that is learned.
    template <typename F>
    INLINE void run_backward(const Span& s, const X* upstream, P& grad_v, P* grad_tau, F use) {
        for (int64_t t = call.T - 1; t >= 0; t--) {
            P grad;
            grad.load(upstream + t * call.grad_stride + s.m, s.n);
#pragma GCC unroll 4
            for (int i = 0; i < P::SIZE; i++) {
                vec charged = h[t].at[i], above = charged - v_threshold, d = derivative(above);
                vec g = grad.at[i], back = grad_v.at[i];
                if (!detach_reset) g += hard_reset ? back * by_spike(charged) : -back * v_threshold;
                if (hard_reset) back = above >= 0 ? vec{} : back;
                g = multiply_add(g, d, back);
                vec rate = !USUAL && by_channel ? 1 / taus.at[i] : vec{} + inverse, decayed = g * rate;
                if (!USUAL && grad_tau) {
                    vec before = v[t].at[i];
                    grad_tau->at[i] += decay_input ? (before - charged) * decayed : (before - v_rest) * decayed * rate;
                }
                grad_v.at[i] = g - decayed;
                grad.at[i] = decay_input ? decayed : g;
            }
            use(t, grad);
        }
    }
};

// f(neurons, item) for every item, on all threads
template <typename X, typename A, bool USUAL, typename F>
void parallel(const Partition& partition, F f) {
#pragma omp parallel num_threads(partition.call.threads)
    {
        Neurons<X, A, USUAL> neurons(partition);
#pragma omp for schedule(static)
        for (int64_t item = 0; item < partition.items(); item++) f(neurons, item);
    }
}

}  // namespace
