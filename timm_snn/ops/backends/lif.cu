// The LIF neuron over time, forward and backward: the equations of backends/reference.py in one pass over the memory.
//
// A thread takes WIDTH neighbouring neurons through all steps, with their membranes in registers: float for half
// precision, otherwise the type of the input. Nothing but x is kept for the backward pass, which runs the neuron again.
// Steps come in chunks whose membranes fit in registers: STEPS <= 8 at once, or chunks of 8 for any number (STEPS 0).
// Compile without contraction to FMA (--fmad=false), or membranes, and so spikes, differ from the reference's.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

typedef long long int64;

enum Surrogate { SIGMOID, ATAN, PIECEWISE_QUADRATIC, ERF };

template <typename Stored> struct Membrane { typedef float type; };
template <> struct Membrane<double> { typedef double type; };

__device__ inline float widen(float x) { return x; }
__device__ inline double widen(double x) { return x; }
__device__ inline float widen(__half x) { return __half2float(x); }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

__device__ inline void narrow(float& to, float x) { to = x; }
__device__ inline void narrow(double& to, double x) { to = x; }
__device__ inline void narrow(__half& to, float x) { to = __float2half_rn(x); }
__device__ inline void narrow(__nv_bfloat16& to, float x) { to = __float2bfloat16_rn(x); }

__device__ inline float divide(float a, float b) { return __fdiv_rn(a, b); }
__device__ inline double divide(double a, double b) { return __ddiv_rn(a, b); }

// WIDTH neighbours, which one instruction loads or stores if they fill at most 16 bytes.
template <typename T, int WIDTH>
struct alignas(sizeof(T) * WIDTH < 16 ? sizeof(T) * WIDTH : 16) Pack {
    T at[WIDTH];
};

template <int WIDTH, typename T> __device__ inline Pack<T, WIDTH> load(const T* from) {
    return *reinterpret_cast<const Pack<T, WIDTH>*>(from);
}

template <int WIDTH, typename T> __device__ inline void store(T* to, const Pack<T, WIDTH>& pack) {
    *reinterpret_cast<Pack<T, WIDTH>*>(to) = pack;
}

// Loads up to CHUNK steps. No load waits for another, so the memory works on all of them at once.
template <int WIDTH, int CHUNK, typename T>
__device__ inline void load_chunk(Pack<T, WIDTH> (&steps)[CHUNK], const T* from, int64 stride, int count) {
#pragma unroll
    for (int i = 0; i < CHUNK; ++i)
        if (i < count) steps[i] = load<WIDTH>(from + i * stride);
}

// The values at `neuron`, or `otherwise` for each if `from` is null.
template <int WIDTH, typename T> __device__ inline Pack<T, WIDTH> load_or(const T* from, int64 neuron, T otherwise) {
    if (from) return load<WIDTH>(from + neuron);
    Pack<T, WIDTH> pack;
    for (int k = 0; k < WIDTH; ++k) pack.at[k] = otherwise;
    return pack;
}

// The settings of a neuron and its steps. POWER_OF_TWO: tau is one, so that the product with its reciprocal rounds as
// the quotient does. BY_CHANNEL: the TAUS neurons of a thread, k = 0, 1, ..., have those of their channels; else there is
// one for all.
template <typename Real, bool SOFT, bool DECAY, bool POWER_OF_TWO, bool BY_CHANNEL, int TAUS> struct Neuron {
    Real tau[TAUS], inverse[TAUS], threshold, rest;

    __device__ Neuron(const Real* learnt_tau, double number, double threshold_, double rest_, int64 neuron,
                      int64 channels, int64 channel_stride)
        : threshold(Real(threshold_)), rest(Real(rest_)) {
#pragma unroll
        for (int k = 0; k < TAUS; ++k) {
            const int64 channel = BY_CHANNEL ? (neuron + k) / channel_stride % channels : 0;
            tau[k] = learnt_tau ? learnt_tau[channel] : Real(number);
            inverse[k] = divide(Real(1), tau[k]);
        }
    }

    __device__ Real rate(int k) const { return inverse[TAUS > 1 ? k : 0]; }

    __device__ Real over_tau(Real a, int k) const {
        return POWER_OF_TWO ? a * rate(k) : divide(a, tau[TAUS > 1 ? k : 0]);
    }

    __device__ Real charge(Real v, Real x, int k) const {
        const Real leak = v - rest;
        return DECAY ? v + over_tau(x - leak, k) : v - over_tau(leak, k) + x;
    }

    __device__ bool fires(Real h) const { return h >= threshold; }

    __device__ Real spike(Real h) const { return h != h ? h : Real(fires(h) ? 1 : 0); }  // NaN goes on

    __device__ Real reset(Real h) const { return !fires(h) ? h : SOFT ? h - threshold : rest; }

    // Gradient of h, from those of the spike and of the membrane after the reset, and the surrogate's slope at h.
    template <bool DETACH> __device__ Real backward(Real h, Real slope, Real grad_spike, Real carry) const {
        if (!DETACH) grad_spike += carry * (SOFT ? -threshold : isinf(h) ? Real(0) : rest - h);
        return grad_spike * slope + (SOFT || !fires(h) ? carry : Real(0));
    }

    // dh/dtau, where v is the membrane before the step.
    __device__ Real by_tau(Real h, Real v, int k) const {
        return DECAY ? (v - h) * rate(k) : (v - rest) * rate(k) * rate(k);
    }
};

// The derivative of the surrogate at x = h - threshold.
template <int SURROGATE, typename Real> __device__ inline Real derivative(Real x, Real alpha) {
    if (SURROGATE == SIGMOID) {
        const Real p = 1 / (1 + exp(-alpha * x));
        return alpha * p * (1 - p);
    }
    if (SURROGATE == ATAN) {
        const Real y = Real(1.57079632679489661923) * alpha * x;  // pi / 2
        return alpha / 2 / (1 + y * y);
    }
    if (SURROGATE == PIECEWISE_QUADRATIC) {
        const Real y = alpha - alpha * alpha * (x < 0 ? -x : x);
        return y < 0 ? Real(0) : y;
    }
    const Real y = alpha * x;
    return alpha * Real(0.56418958354775628695) * exp(-y * y);  // 1 / sqrt(pi)
}

template <typename Stored, int STEPS, int WIDTH, bool SOFT, bool DECAY, bool POWER_OF_TWO, bool BY_CHANNEL>
__global__ void lif_forward(
    Stored* __restrict__ spikes,                               // [T, M]
    typename Membrane<Stored>::type* __restrict__ v_last,      // [M], or null: not wanted
    const Stored* __restrict__ x,                              // [T, M], steps x_stride apart
    const typename Membrane<Stored>::type* __restrict__ v,     // [M], or null: at rest
    const typename Membrane<Stored>::type* __restrict__ learnt_tau,  // [channels], or null: the number
    int64 channels, int64 channel_stride, double tau, double threshold, double rest, int64 num_neurons,
    int64 num_steps, int64 x_stride) {
    typedef typename Membrane<Stored>::type Real;
    constexpr int CHUNK = STEPS ? STEPS : 8, TAUS = BY_CHANNEL ? WIDTH : 1;
    const int64 neuron = (int64(blockIdx.x) * blockDim.x + threadIdx.x) * WIDTH;
    if (neuron >= num_neurons) return;
    const Neuron<Real, SOFT, DECAY, POWER_OF_TWO, BY_CHANNEL, TAUS> lif(learnt_tau, tau, threshold, rest, neuron,
                                                                        channels, channel_stride);

    Pack<Real, WIDTH> membrane = load_or<WIDTH>(v, neuron, lif.rest);
    for (int64 start = 0; start < (STEPS ? 1 : num_steps); start += CHUNK) {
        const int count = STEPS ? STEPS : int(num_steps - start < CHUNK ? num_steps - start : CHUNK);
        Pack<Stored, WIDTH> current[CHUNK];
        load_chunk(current, x + start * x_stride + neuron, x_stride, count);
#pragma unroll
        for (int i = 0; i < CHUNK; ++i) {
            if (i >= count) break;
            Pack<Stored, WIDTH> fired;
#pragma unroll
            for (int k = 0; k < WIDTH; ++k) {
                const Real h = lif.charge(membrane.at[k], widen(current[i].at[k]), k);
                narrow(fired.at[k], lif.spike(h));
                membrane.at[k] = lif.reset(h);
            }
            store(spikes + (start + i) * num_neurons + neuron, fired);
        }
    }
    if (v_last) store(v_last + neuron, membrane);
}

template <typename Stored, int STEPS, int WIDTH, bool SOFT, bool DECAY, bool POWER_OF_TWO, bool BY_CHANNEL, bool DETACH,
          int SURROGATE, bool GRAD_TAU>
__global__ void lif_backward(
    Stored* __restrict__ grad_x,                                   // [T, M]
    typename Membrane<Stored>::type* __restrict__ grad_v,          // [M], or null: not wanted
    typename Membrane<Stored>::type* __restrict__ grad_tau,        // if GRAD_TAU, one part for each thread, or [M] if BY_CHANNEL
    typename Membrane<Stored>::type* checkpoints,                  // [ceil(T / 8) - 1, M] if STEPS is 0
    const Stored* __restrict__ grad_spikes,                        // [T, M], steps grad_stride apart
    const typename Membrane<Stored>::type* __restrict__ grad_v_last,  // [M], or null: zero
    const Stored* __restrict__ x, const typename Membrane<Stored>::type* __restrict__ v,
    const typename Membrane<Stored>::type* __restrict__ learnt_tau, int64 channels, int64 channel_stride, double tau,
    double threshold, double rest, double alpha, int64 num_neurons, int64 num_steps, int64 x_stride, int64 grad_stride) {
    typedef typename Membrane<Stored>::type Real;
    constexpr int CHUNK = STEPS ? STEPS : 8, TAUS = BY_CHANNEL ? WIDTH : 1;
    const int64 thread = int64(blockIdx.x) * blockDim.x + threadIdx.x;
    const int64 neuron = thread * WIDTH;
    if (neuron >= num_neurons) return;
    const Neuron<Real, SOFT, DECAY, POWER_OF_TWO, BY_CHANNEL, TAUS> lif(learnt_tau, tau, threshold, rest, neuron,
                                                                        channels, channel_stride);

    // Forward to the start of the last chunk; the membrane at the start of each chunk before it is kept.
    Pack<Real, WIDTH> membrane = load_or<WIDTH>(v, neuron, lif.rest);
    int64 start = 0;
    if (!STEPS) {
        for (; start + CHUNK < num_steps; start += CHUNK) {
            store(checkpoints + start / CHUNK * num_neurons + neuron, membrane);
            Pack<Stored, WIDTH> current[CHUNK];
            load_chunk(current, x + start * x_stride + neuron, x_stride, CHUNK);
#pragma unroll
            for (int i = 0; i < CHUNK; ++i)
#pragma unroll
                for (int k = 0; k < WIDTH; ++k)
                    membrane.at[k] = lif.reset(lif.charge(membrane.at[k], widen(current[i].at[k]), k));
        }
    }

    Pack<Real, WIDTH> carry = load_or<WIDTH>(grad_v_last, neuron, Real(0));
    Real tau_sums[TAUS] = {};
    while (true) {
        const int count = STEPS ? STEPS : int(num_steps - start < CHUNK ? num_steps - start : CHUNK);
        const Pack<Real, WIDTH> first = membrane;
        Pack<Stored, WIDTH> current[CHUNK], upstream[CHUNK];
        load_chunk(current, x + start * x_stride + neuron, x_stride, count);
        load_chunk(upstream, grad_spikes + start * grad_stride + neuron, grad_stride, count);
        Pack<Real, WIDTH> h[CHUNK];
#pragma unroll
        for (int i = 0; i < CHUNK; ++i) {
            if (i >= count) break;
#pragma unroll
            for (int k = 0; k < WIDTH; ++k) {
                h[i].at[k] = lif.charge(membrane.at[k], widen(current[i].at[k]), k);
                membrane.at[k] = lif.reset(h[i].at[k]);
            }
        }
#pragma unroll
        for (int i = CHUNK - 1; i >= 0; --i) {
            if (i >= count) continue;
            Pack<Stored, WIDTH> grad;
#pragma unroll
            for (int k = 0; k < WIDTH; ++k) {
                const Real slope = derivative<SURROGATE>(h[i].at[k] - lif.threshold, Real(alpha));
                const Real grad_h =
                    lif.template backward<DETACH>(h[i].at[k], slope, widen(upstream[i].at[k]), carry.at[k]);
                const Real scaled = grad_h * lif.rate(k);
                narrow(grad.at[k], DECAY ? scaled : grad_h);
                carry.at[k] = grad_h - scaled;
                if (GRAD_TAU) {
                    const Real before = i ? lif.reset(h[i ? i - 1 : 0].at[k]) : first.at[k];
                    tau_sums[TAUS > 1 ? k : 0] += grad_h * lif.by_tau(h[i].at[k], before, k);
                }
            }
            store(grad_x + (start + i) * num_neurons + neuron, grad);
        }
        if (STEPS || start == 0) break;
        start -= CHUNK;
        membrane = load<WIDTH>(checkpoints + start / CHUNK * num_neurons + neuron);
    }
    if (grad_v) store(grad_v + neuron, carry);
    if (GRAD_TAU)
        for (int k = 0; k < TAUS; ++k) grad_tau[thread * TAUS + k] = tau_sums[k];
}
