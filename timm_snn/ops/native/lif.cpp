// The neuron on a CPU, alone and behind a batch norm. Built by build.py, called by backends/cpp.py.
//
// A pack of neurons goes through all steps at a time, in registers and the first-level cache, so that every tensor is
// read or written once per pass. Spikes are those of backends/reference.py to the bit, if the compiler contracts nothing.
//
//   x       [T][rows][C][S], of type X: S = 1 in channels_last, otherwise the pixels of a channel
//   membrane, and all that is computed: of type A

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#ifdef __FMA__
#include <immintrin.h>
#endif

#include "float_formats.hpp"

struct Call {  // of backends/cpp.py, field by field
    int64_t T, rows, C, S, x_stride, grad_stride;
    double tau, v_threshold, v_rest, alpha;
    int32_t hard_reset, decay_input, detach_reset, surrogate, threads;
};

#define INLINE inline __attribute__((always_inline))

namespace {

constexpr int64_t PIECE = 4096;  // neurons that a thread takes at a time, about
constexpr int64_t PARTS = 128;   // sums per channel in channels_last, at most, that are added up in the end
enum { SIGMOID, ATAN, PIECEWISE_QUADRATIC, ERF };  // in the order of surrogate.py

template <typename A>
struct Vector {
    static constexpr int LANES = 32 / sizeof(A);
    typedef A type __attribute__((vector_size(32)));
    typedef A anywhere __attribute__((vector_size(32), aligned(alignof(A)), may_alias));  // in memory
};

typedef Vector<double>::type doubles;
typedef Vector<float>::type floats;
typedef int64_t longs __attribute__((vector_size(32)));
typedef int32_t ints __attribute__((vector_size(32)));

INLINE doubles negative(doubles x) { return (doubles)((longs)x | INT64_MIN); }  // -|x|
INLINE floats negative(floats x) { return (floats)((ints)x | INT32_MIN); }
INLINE doubles multiply_add(doubles x, doubles y, doubles z) { return x * y + z; }
INLINE floats multiply_add(floats x, floats y, floats z) {
#ifdef __FMA__
    return _mm256_fmadd_ps(x, y, z);
#else
    return x * y + z;
#endif
}
INLINE doubles power_of_two(doubles x) {
    for (int i = 0; i < 4; i++) x[i] = std::exp2(x[i]);
    return x;
}
// x <= 0. 2^n times the Taylor polynomial of what is left, which is at most 1/2
INLINE floats power_of_two(floats x) {
    const floats least = floats{} - 126.f;
    x = least > x ? least : x;  // NaN stays
    floats shifted = x + 0x1.8p23f;  // rounds to n, and has it in the last bits
    floats left = x - (shifted - 0x1.8p23f), p = floats{} + 1.54035304e-4f;
    for (float ith : {1.33335581e-3f, 9.61812911e-3f, 5.55041087e-2f, 2.40226507e-1f, 6.93147181e-1f, 1.f})  // ln(2)^i/i!
        p = multiply_add(p, left, floats{} + ith);
    return p * (floats)(((ints)shifted << 23) + 0x3f800000);
}

// Neurons that are computed together: enough vectors to keep the processor busy while each waits for its last step, and
// to read memory in long pieces
template <typename A>
struct Pack {
    typedef typename Vector<A>::type vec;
    typedef typename Vector<A>::anywhere anywhere;
    static constexpr int LANES = Vector<A>::LANES, SIZE = 8, N = SIZE * LANES;
    vec w[SIZE];

    INLINE static Pack of(A number) {
        Pack pack;
        for (int i = 0; i < SIZE; i++) pack.w[i] = vec{} + number;
        return pack;
    }
    // Whole vectors in and out: what is written in smaller parts has to reach the cache before it can be read.
    INLINE void load(const A* from) {
        for (int i = 0; i < SIZE; i++) w[i] = *(const anywhere*)(from + i * LANES);
    }
    INLINE void save(A* to) const {
        for (int i = 0; i < SIZE; i++) *(anywhere*)(to + i * LANES) = w[i];
    }
    template <typename X>
    INLINE void load(const X* from, int64_t n) {
        if (std::is_same<X, A>::value && n == N) return load((const A*)from);
        A numbers[N] = {};
        if (n == N)
            for (int i = 0; i < N; i++) numbers[i] = value(from[i]);
        else
            for (int64_t i = 0; i < n; i++) numbers[i] = value(from[i]);
        load(numbers);
    }
    template <typename X>
    INLINE void save(X* to, int64_t n) const {
        if (std::is_same<X, A>::value && n == N) return save((A*)to);
        A numbers[N];
        save(numbers);
        if (n == N)
            for (int i = 0; i < N; i++) store(to[i], numbers[i]);
        else
            for (int64_t i = 0; i < n; i++) store(to[i], numbers[i]);
    }
};

// n neurons at m in the memory of a step, of channel c or, in channels_last, of c and those that follow
struct Span {
    int64_t m, n, c;
};

// How the neurons of a step are divided among threads: always in the same way, whatever their number
struct Division {
    const Call& k;
    bool channels_last;
    int64_t size, each, pieces;  // of a step; of an item; items of S

    Division(const Call& k, int64_t n) : k(k), channels_last(k.S == 1 && k.C > 1), size(k.rows * k.C * k.S), each(PIECE) {
        if (channels_last) each = std::max({PIECE, 8 * k.C, (size + PARTS - 1) / PARTS});
        each = (each + n - 1) / n * n;
        pieces = (k.S + each - 1) / each;
    }
    int64_t items() const { return channels_last ? (size + each - 1) / each : k.rows * k.C * pieces; }
    int64_t channel(int64_t item) const { return item / pieces % k.C; }  // not in channels_last

    template <typename F>
    void spans(int64_t item, int64_t n, F f) const {
        if (channels_last) {
            int64_t begin = item * each, end = std::min(begin + each, size), c = begin % k.C;
            for (int64_t m = begin; m < end; m += n, c = (c + n) % k.C) f(Span{m, std::min(n, end - m), c});
        } else {
            int64_t line = item / pieces, begin = item % pieces * each, end = std::min(begin + each, k.S);
            for (int64_t s = begin; s < end; s += n) f(Span{line * k.S + s, std::min(n, end - s), line % k.C});
        }
    }
};

bool is_power_of_two(double tau) {
    int exponent;
    return std::frexp(tau, &exponent) == 0.5;
}

// A number per channel, and again from the first one on, so that a pack can be loaded at any of them
template <typename A>
std::vector<A> cyclic(const A* numbers, int64_t C) {
    std::vector<A> all(C + Pack<A>::N);
    for (int64_t i = 0; i < int64_t(all.size()); i++) all[i] = numbers[i % C];
    return all;
}

// A pack and what it computes step by step. USUAL: see is_usual.
template <typename X, typename A, bool USUAL>
struct Neurons {
    typedef Pack<A> P;
    typedef typename P::vec vec;
    static constexpr int N = P::N;

    const Call& k;
    const Division& division;
    const bool hard_reset, decay_input, detach_reset, exact;
    const A tau, inverse, v_threshold, v_rest, alpha, binary_alpha;
    bool scaled = false;  // whether scale and shift are to be looked at
    P scale, shift;
    std::vector<P> h, v;  // of each step, and v before it; v unless USUAL

    explicit Neurons(const Division& d)
        : k(d.k), division(d), hard_reset(USUAL || k.hard_reset), decay_input(USUAL || k.decay_input),
          detach_reset(USUAL || k.detach_reset), exact(USUAL || is_power_of_two(k.tau)), tau(k.tau), inverse(1 / tau),
          v_threshold(k.v_threshold), v_rest(k.v_rest), alpha(k.alpha), binary_alpha(k.alpha * M_LOG2E), h(k.T),
          v(USUAL ? 0 : k.T) {}

    // A number per channel, for each neuron of the span
    INLINE P per_neuron(const Span& s, const std::vector<A>& of) const {
        P pack;
        division.channels_last ? pack.load(&of[s.c]) : void(pack = P::of(of[s.c]));
        return pack;
    }

    INLINE void set_scale(const Span& s, const std::vector<A>& scales, const std::vector<A>& shifts) {
        scaled = true, scale = per_neuron(s, scales), shift = per_neuron(s, shifts);
    }

    INLINE vec over_tau(vec a) const { return exact ? a * inverse : a / tau; }

    // From x and the first v to every h; returns the last v
    INLINE P run(const Span& s, const X* from, const A* v_first) {
        P now = P::of(v_rest);
        if (v_first) now.load(v_first + s.m, s.n);
        for (int64_t t = 0; t < k.T; t++) {
            P x;
            x.load(from + t * k.x_stride + s.m, s.n);
            if (!USUAL) v[t] = now;
#pragma GCC unroll 4
            for (int i = 0; i < P::SIZE; i++) {
                vec current = scaled ? x.w[i] * scale.w[i] + shift.w[i] : x.w[i];
                vec before = now.w[i], leak = USUAL ? before : before - v_rest;
                vec charged = decay_input ? before + over_tau(current - leak) : before - over_tau(leak) + current;
                vec after = USUAL ? vec{} : hard_reset ? vec{} + v_rest : charged - v_threshold;
                now.w[i] = charged >= vec{} + v_threshold ? after : charged;
                h[t].w[i] = charged;
            }
        }
        return now;
    }

    // Of the surrogate, at x = h - v_threshold
    INLINE vec derivative(vec x) const {
        if (USUAL || k.surrogate == SIGMOID) {
            vec e = power_of_two(binary_alpha * negative(x));
            return alpha * e / ((1 + e) * (1 + e));  // p (1 - p), without the cancellation
        }
        if (k.surrogate == ATAN) {
            vec z = A(M_PI_2) * alpha * x;
            return alpha / 2 / (1 + z * z);
        }
        if (k.surrogate == PIECEWISE_QUADRATIC) {
            vec d = alpha + alpha * alpha * negative(x);
            return d < 0 ? vec{} : d;  // NaN stays
        }
        return alpha * A(M_2_SQRTPI / 2) * power_of_two(-binary_alpha * alpha * x * x);
    }

    // After `run`: use(t, gradient of the current) from the last step to the first. The membrane's gradient goes from
    // after the last to before the first; returns what the span adds to that of tau, if it is learned.
    template <typename F>
    INLINE A run_backward(const Span& s, const X* upstream, P& grad_v, bool learned, F use) {
        A grad_tau = 0;
        for (int64_t t = k.T - 1; t >= 0; t--) {
            P grad;
            grad.load(upstream + t * k.grad_stride + s.m, s.n);
#pragma GCC unroll 4
            for (int i = 0; i < P::SIZE; i++) {
                vec charged = h[t].w[i], above = charged - v_threshold, d = derivative(above);
                vec g = grad.w[i], back = grad_v.w[i];
                if (!detach_reset) g += hard_reset ? back * (v_rest - charged) : -back * v_threshold;
                if (hard_reset) back = above >= 0 ? vec{} : back;
                g = multiply_add(g, d, back);
                vec decayed = g * inverse;
                if (!USUAL && learned) {
                    vec before = v[t].w[i];
                    vec of_tau = decay_input ? (before - charged) * decayed : (before - v_rest) * decayed * inverse;
                    for (int j = 0; j < P::LANES && i * P::LANES + j < s.n; j++) grad_tau += of_tau[j];
                }
                grad_v.w[i] = g - decayed;
                grad.w[i] = decay_input ? decayed : g;
            }
            use(t, grad);
        }
        return grad_tau;
    }
};

// f(neurons, item) for every item, on all threads
template <typename X, typename A, bool USUAL, typename F>
void parallel(const Division& division, F f) {
#pragma omp parallel num_threads(division.k.threads)
    {
        Neurons<X, A, USUAL> neurons(division);
#pragma omp for schedule(static)
        for (int64_t item = 0; item < division.items(); item++) f(neurons, item);
    }
}

template <typename A>
A sum(const std::vector<A>& numbers) {
    double total = 0;
    for (A x : numbers) total += x;
    return total;
}

// Spikes of x * scale + shift (of x if there is no scale), and the last membrane if asked for
template <typename X, typename A, bool USUAL>
void fire(const Call& k, const X* x, const A* v, const A* scale, const A* shift, X* spikes, A* v_last) {
    typedef Pack<A> P;
    Division division(k, P::N);
    std::vector<A> scales, shifts;
    if (scale) scales = cyclic(scale, k.C), shifts = cyclic(shift, k.C);
    parallel<X, A, USUAL>(division, [&](Neurons<X, A, USUAL>& neurons, int64_t item) {
        division.spans(item, P::N, [&](const Span& s) {
            if (scale) neurons.set_scale(s, scales, shifts);
            P last = neurons.run(s, x, v);
            for (int64_t t = 0; t < k.T; t++) {
                P fires;
                for (int i = 0; i < P::SIZE; i++) {
                    auto charged = neurons.h[t].w[i];
                    fires.w[i] = charged >= neurons.v_threshold ? P::of(1).w[i] : P::of(0).w[i];
                }
                fires.save(spikes + t * division.size + s.m, s.n);
            }
            if (v_last) last.save(v_last + s.m, s.n);
        });
    });
}

// Gradients of x, of the first membrane and of tau, each if asked for, but for x
template <typename X, typename A, bool USUAL>
void fire_backward(const Call& k, const X* x, const A* v, const X* grad, const A* grad_v, X* grad_x, A* grad_v_first,
                   A* grad_tau) {
    typedef Pack<A> P;
    Division division(k, P::N);
    std::vector<A> parts(grad_tau ? division.items() : 0);
    parallel<X, A, USUAL>(division, [&](Neurons<X, A, USUAL>& neurons, int64_t item) {
        division.spans(item, P::N, [&](const Span& s) {
            P back = P::of(0);
            if (grad_v) back.load(grad_v + s.m, s.n);
            neurons.run(s, x, v);
            A part = neurons.run_backward(s, grad, back, grad_tau, [&](int64_t t, const P& g) {
                g.save(grad_x + t * division.size + s.m, s.n);
            });
            if (grad_tau) parts[item] += part;
            if (grad_v_first) back.save(grad_v_first + s.m, s.n);
        });
    });
    if (grad_tau) *grad_tau = sum(parts);
}

// Two sums per channel: of what is added at a channel and, in channels_last, at those that follow
template <typename A>
struct Sums {
    const Division& division;
    int64_t width;
    std::vector<A> parts;  // [items][2][width]; what lies beyond C in channels_last belongs to the first channels again

    explicit Sums(const Division& d)
        : division(d), width(d.channels_last ? d.k.C + Pack<A>::N : 1), parts(d.items() * 2 * width) {}

    INLINE void add(int64_t item, const Span& s, const Pack<A>& first, const Pack<A>& second) {
        A *to = &parts[item * 2 * width], a[Pack<A>::N], b[Pack<A>::N];
        first.save(a), second.save(b);
        if (division.channels_last)
            for (int64_t i = 0; i < s.n; i++) to[s.c + i] += a[i], to[width + s.c + i] += b[i];
        else
            for (int64_t i = 0; i < s.n; i++) to[0] += a[i], to[1] += b[i];
    }
    std::vector<double> total() const {  // [2][C]
        int64_t C = division.k.C;
        std::vector<double> total(2 * C);
        for (int64_t item = 0; item < division.items(); item++)
            for (int64_t i = 0; i < 2 * width; i++) {
                int64_t c = division.channels_last ? i % width % C : division.channel(item);
                total[i / width * C + c] += parts[item * 2 * width + i];
            }
        return total;
    }
};

// Mean and biased variance of each channel, from the distances to its first number
template <typename X, typename A>
void statistics(const Call& k, const X* x, A* mean, A* var) {
    typedef Pack<A> P;
    Division division(k, P::N);
    Sums<A> sums(division);
    std::vector<A> first(k.C);
    for (int64_t c = 0; c < k.C; c++) first[c] = value(x[c * k.S]);
    std::vector<A> origins = cyclic(first.data(), k.C);
    parallel<X, A, true>(division, [&](Neurons<X, A, true>& neurons, int64_t item) {
        division.spans(item, P::N, [&](const Span& s) {
            P origin = neurons.per_neuron(s, origins), sum = P::of(0), squares = P::of(0);
            for (int64_t t = 0; t < k.T; t++) {
                P pack;
                pack.load(x + t * k.x_stride + s.m, s.n);
                for (int i = 0; i < P::SIZE; i++) {
                    typename P::vec d = pack.w[i] - origin.w[i];
                    sum.w[i] += d, squares.w[i] += d * d;
                }
            }
            sums.add(item, s, sum, squares);
        });
    });
    std::vector<double> total = sums.total();
    double count = double(k.T) * k.rows * k.S;
    for (int64_t c = 0; c < k.C; c++) {
        double distance = total[c] / count;
        mean[c] = first[c] + distance, var[c] = std::max(total[k.C + c] / count - distance * distance, 0.0);
    }
}

// Gradients of x, of bias and weight as [2][C], and of tau if asked for, behind the batch norm with these statistics.
// The first pass over memory adds up the neuron's gradient, which waits for the second in grad_x; half precision would
// round it there once more, so it is computed again.
template <typename X, typename A, bool USUAL>
void bn_backward(const Call& k, const X* x, const A* scale, const A* shift, const A* mean, const A* rstd, const X* grad,
                 X* grad_x, A* grad_affine, A* grad_tau) {
    typedef Pack<A> P;
    constexpr bool KEEPS = std::is_same<X, A>::value;
    Division division(k, P::N);
    Sums<A> sums(division);
    std::vector<A> tau_parts(grad_tau ? division.items() : 0);
    std::vector<A> scales = cyclic(scale, k.C), shifts = cyclic(shift, k.C), means = cyclic(mean, k.C),
                   rstds = cyclic(rstd, k.C);
    auto run = [&](Neurons<X, A, USUAL>& neurons, const Span& s, auto use) {
        neurons.set_scale(s, scales, shifts);
        neurons.run(s, x, nullptr);
        P back = P::of(0);
        return neurons.run_backward(s, grad, back, grad_tau, use);
    };
    auto centred = [&](const Span& s, int64_t t, const P& mean) {
        P pack;
        pack.load(x + t * k.x_stride + s.m, s.n);
        for (int i = 0; i < P::SIZE; i++) pack.w[i] -= mean.w[i];
        return pack;
    };
    parallel<X, A, USUAL>(division, [&](Neurons<X, A, USUAL>& neurons, int64_t item) {
        division.spans(item, P::N, [&](const Span& s) {
            P b = P::of(0), w = P::of(0), m = neurons.per_neuron(s, means), r = neurons.per_neuron(s, rstds);
            A part = run(neurons, s, [&](int64_t t, const P& g) {
                P c = centred(s, t, m);
                for (int i = 0; i < P::SIZE; i++) b.w[i] += g.w[i], w.w[i] += g.w[i] * (c.w[i] * r.w[i]);
                if (KEEPS) g.save(grad_x + t * division.size + s.m, s.n);
            });
            if (grad_tau) tau_parts[item] += part;
            sums.add(item, s, b, w);
        });
    });
    std::vector<double> total = sums.total();
    std::copy(total.begin(), total.end(), grad_affine);
    if (grad_tau) *grad_tau = sum(tau_parts);

    double count = double(k.T) * k.rows * k.S;
    std::vector<A> of_mean(k.C), of_x(k.C);  // the statistics' share of the gradient
    for (int64_t c = 0; c < k.C; c++) of_mean[c] = total[c] / count, of_x[c] = total[k.C + c] * rstd[c] / count;
    of_mean = cyclic(of_mean.data(), k.C), of_x = cyclic(of_x.data(), k.C);
    parallel<X, A, USUAL>(division, [&](Neurons<X, A, USUAL>& neurons, int64_t item) {
        division.spans(item, P::N, [&](const Span& s) {
            P b = neurons.per_neuron(s, of_mean), w = neurons.per_neuron(s, of_x);
            P m = neurons.per_neuron(s, means), by = neurons.per_neuron(s, scales);
            auto finish = [&](int64_t t, P& g) {
                P c = centred(s, t, m);
                for (int i = 0; i < P::SIZE; i++) g.w[i] = by.w[i] * (g.w[i] - b.w[i] - c.w[i] * w.w[i]);
                g.save(grad_x + t * division.size + s.m, s.n);
            };
            if (KEEPS)
                for (int64_t t = 0; t < k.T; t++) {
                    P g;
                    g.load(grad_x + t * division.size + s.m, s.n);
                    finish(t, g);
                }
            else
                run(neurons, s, finish);
        });
    });
}

// The settings of the published models
bool is_usual(const Call& k, const void* grad_tau) {
    bool resets = k.hard_reset && k.v_rest == 0 && k.detach_reset;
    return resets && k.decay_input && is_power_of_two(k.tau) && k.surrogate == SIGMOID && !grad_tau;
}

}  // namespace

#define EXPORT(NAME, X, A)                                                                                             \
    extern "C" void fire_##NAME(const Call* k, const X* x, const A* v, const A* scale, const A* shift, X* spikes,     \
                                A* v_last) {                                                                           \
        (is_usual(*k, nullptr) ? fire<X, A, true> : fire<X, A, false>)(*k, x, v, scale, shift, spikes, v_last);        \
    }                                                                                                                  \
    extern "C" void fire_backward_##NAME(const Call* k, const X* x, const A* v, const X* grad, const A* grad_v,       \
                                         X* grad_x, A* grad_v_first, A* grad_tau) {                                    \
        (is_usual(*k, grad_tau) ? fire_backward<X, A, true> : fire_backward<X, A, false>)(                             \
            *k, x, v, grad, grad_v, grad_x, grad_v_first, grad_tau);                                                   \
    }                                                                                                                  \
    extern "C" void bn_backward_##NAME(const Call* k, const X* x, const A* scale, const A* shift, const A* mean,      \
                                       const A* rstd, const X* grad, X* grad_x, A* grad_affine, A* grad_tau) {         \
        (is_usual(*k, grad_tau) ? bn_backward<X, A, true> : bn_backward<X, A, false>)(                                 \
            *k, x, scale, shift, mean, rstd, grad, grad_x, grad_affine, grad_tau);                                     \
    }                                                                                                                  \
    extern "C" void statistics_##NAME(const Call* k, const X* x, A* mean, A* var) { statistics<X, A>(*k, x, mean, var); }

EXPORT(float32, float, float)
EXPORT(bfloat16, bf16, float)
EXPORT(float16, fp16, float)
EXPORT(float64, double, double)
