"""One step of the neuron and of its gradient as Triton device functions, and how our kernels are launched.

Kernels take the neuron's settings under the names that `neuron_settings` and `gradient_settings` return. Numbers are
declared as float64, which is what Triton passes unrounded, and become the membrane's type in the kernel.

The spikes are those of reference to the bit: no multiplication is fused with an addition, and the division by tau is
the IEEE one (a product with 1/tau if tau is a power of two, which rounds alike).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...neuron import Neuron

__all__ = [
    'MAX_UNROLL',
    'block_size',
    'charge',
    'charge_and_reset',
    'chunk_backward',
    'gradient_settings',
    'is_interpreted',
    'launch',
    'load_tau',
    'neuron_settings',
    'reset',
    'spike',
    'spike_backward',
    'step_settings',
    'tau_gradient',
    'triton_membrane',
    'why_no_kernel',
]

# So many steps are held in registers; longer sequences run in chunks of this length, and the backward pass keeps the
# membrane at the start of each.
MAX_UNROLL = 8

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def is_interpreted() -> bool:
    """True if Triton runs kernels in its interpreter, on the CPU."""
    return triton.knobs.runtime.interpret


def why_no_kernel(x: Tensor | None) -> str | None:
    """Why no Triton kernel can run x, or without x why none can run at all."""
    if _INTERPRETED:
        return None
    if x is None:
        return None if torch.cuda.is_available() else 'it needs a CUDA device, and torch finds none'
    if not x.is_cuda:
        return f'it needs a tensor on a CUDA device, got one on {x.device}'
    if x.dtype not in DTYPES:
        return f'it needs float16, bfloat16, float32 or float64, got {x.dtype}'
    return None


_INTERPRETED = is_interpreted()  # once, like @triton.jit itself; and torch.compile need not look


def launch(kernel: Any, grid: tuple[int, ...], x: Tensor, *args: Any, **kwargs: Any) -> None:
    """Run the kernel on x's device; its first argument is x."""
    if 0 in grid:  # which CUDA refuses
        return
    if x.is_cuda and x.get_device() != torch._C._cuda_getDevice():  # Triton launches on the current device
        with torch.cuda.device_of(x):
            kernel[grid](x, *args, **kwargs, enable_fp_fusion=False, num_warps=4)
    else:
        kernel[grid](x, *args, **kwargs, enable_fp_fusion=False, num_warps=4)


def block_size(dtype: torch.dtype) -> int:
    """Neurons of a program: 16 bytes for each of its 128 threads."""
    return 128 * 16 // dtype.itemsize


def triton_membrane(dtype: torch.dtype) -> tl.dtype:
    """`neuron.membrane_dtype` as a type of Triton."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def step_settings(num_steps: int) -> dict[str, Any]:
    """A short sequence is one chunk of known length, unrolled whole; a long one runs through chunks."""
    if num_steps <= MAX_UNROLL:
        return dict(num_steps=tl.constexpr(num_steps), UNROLL=num_steps)
    return dict(num_steps=num_steps, UNROLL=MAX_UNROLL)


def neuron_settings(neuron: Neuron, dtype: torch.dtype) -> dict[str, Any]:
    """What the forward pass needs to know of a neuron with input of this dtype, beside `tau_ptr`."""
    return dict(
        tau=1.0 if neuron.tau is None else neuron.tau,
        v_threshold=neuron.v_threshold,
        v_rest=neuron.v_rest,
        HARD_RESET=neuron.v_reset is not None,
        DECAY_INPUT=neuron.decay_input,
        EXACT_INVERSE=neuron.inverse_is_exact,
        MEMBRANE=triton_membrane(dtype),
    )


def gradient_settings(neuron: Neuron) -> dict[str, Any]:
    """What the backward pass needs besides."""
    surrogate = neuron.surrogate
    return dict(alpha=float(surrogate.alpha), SURROGATE=surrogate.name, DETACH_RESET=neuron.detach_reset)


@triton.jit
def load_tau(tau_ptr, tau, MEMBRANE: tl.constexpr):
    """tau, of one element, from memory if it is learned, so that the host need not wait for it."""
    return tl.load(tau_ptr).to(MEMBRANE) if tau_ptr is not None else tl.full([], tau, MEMBRANE)


@triton.jit
def divide(a, b):
    """a / b, rounded as IEEE asks; Triton's own is an approximation in float32."""
    return a / b if a.dtype == tl.float64 else tl.div_rn(a, b)


@triton.jit
def over_tau(a, tau, EXACT_INVERSE: tl.constexpr):
    """a / tau; by a product if that rounds like the division."""
    return a * divide(tl.full([], 1.0, tau.dtype), tau) if EXACT_INVERSE else divide(a, tau)


@triton.jit
def charge(x, v, tau, v_rest, DECAY_INPUT: tl.constexpr, EXACT_INVERSE: tl.constexpr):
    """The membrane h before the reset."""
    leak = v - v_rest
    return v + over_tau(x - leak, tau, EXACT_INVERSE) if DECAY_INPUT else v - over_tau(leak, tau, EXACT_INVERSE) + x


@triton.jit
def reset(h, v_threshold, v_rest, HARD_RESET: tl.constexpr):
    """Whether the neuron fires, and the membrane v afterwards."""
    fires = h - v_threshold >= 0
    return fires, tl.where(fires, v_rest if HARD_RESET else h - v_threshold, h)


@triton.jit
def spike(h, fires):
    """What goes out, in the membrane's type: 1 or 0, or NaN if h is."""
    return tl.where(h == h, fires.to(tl.float32).to(h.dtype), h)  # not at once: the interpreter cannot


@triton.jit
def surrogate_derivative(x, alpha, SURROGATE: tl.constexpr):
    """`Surrogate.derivative` of each shape in surrogate.py."""
    if SURROGATE == 'sigmoid':
        e = tl.exp(-tl.abs(alpha * x))
        derivative = alpha * e / ((1 + e) * (1 + e))  # p (1 - p), without the cancellation
    elif SURROGATE == 'atan':
        z = 1.5707963267948966 * alpha * x
        derivative = 0.5 * alpha / (1 + z * z)
    elif SURROGATE == 'piecewise_quadratic':
        y = alpha - alpha * alpha * tl.abs(x)
        derivative = tl.where(y < 0, 0.0, y)  # NaN stays, which a maximum loses
    else:
        tl.static_assert(SURROGATE == 'erf')
        z = alpha * x
        derivative = 0.5641895835477563 * alpha * tl.exp(-z * z)  # 1/sqrt(pi)
    return derivative


@triton.jit
def charge_and_reset(
    xs,
    v,
    tau,
    v_threshold,
    v_rest,
    HARD_RESET: tl.constexpr,
    DECAY_INPUT: tl.constexpr,
    EXACT_INVERSE: tl.constexpr,
):
    """A chunk of steps: h of each, and v before each and after the last."""
    hs: tl.tuple = ()
    vs: tl.tuple = (v,)
    for i in tl.static_range(len(xs)):
        hs += (charge(xs[i], vs[i], tau, v_rest, DECAY_INPUT, EXACT_INVERSE),)
        vs += (reset(hs[i], v_threshold, v_rest, HARD_RESET)[1],)
    return hs, vs


@triton.jit
def spike_backward(
    grad_spike,
    grad_v,
    h,
    tau,
    v_threshold,
    v_rest,
    alpha,
    HARD_RESET: tl.constexpr,
    DECAY_INPUT: tl.constexpr,
    EXACT_INVERSE: tl.constexpr,
    SURROGATE: tl.constexpr,
    DETACH_RESET: tl.constexpr,
):
    """One step back: from the gradients of the spike and of the membrane after the step to those of h, x and v."""
    x = h - v_threshold
    if not DETACH_RESET:
        if HARD_RESET:
            grad_spike += grad_v * tl.where(tl.abs(h) == float('inf'), 0.0, v_rest - h)
        else:
            grad_spike -= grad_v * v_threshold
    if HARD_RESET:
        grad_v = tl.where(x >= 0, 0.0, grad_v)
    grad_h = grad_spike * surrogate_derivative(x, alpha, SURROGATE) + grad_v
    decayed = over_tau(grad_h, tau, EXACT_INVERSE)
    return grad_h, decayed if DECAY_INPUT else grad_h, grad_h - decayed


@triton.jit
def chunk_backward(
    grad_spikes,
    grad_v,
    hs,
    num_left,
    tau,
    v_threshold,
    v_rest,
    alpha,
    HARD_RESET: tl.constexpr,
    DECAY_INPUT: tl.constexpr,
    EXACT_INVERSE: tl.constexpr,
    SURROGATE: tl.constexpr,
    DETACH_RESET: tl.constexpr,
):
    """A chunk of steps back, of which num_left exist: gradients of each h, each x, and v before the first."""
    grad_hs: tl.tuple = ()
    grad_xs: tl.tuple = ()
    for i in tl.static_range(len(hs) - 1, -1, -1):
        grad_h, grad_x, grad_before = spike_backward(
            grad_spikes[i],
            grad_v,
            hs[i],
            tau,
            v_threshold,
            v_rest,
            alpha,
            HARD_RESET,
            DECAY_INPUT,
            EXACT_INVERSE,
            SURROGATE,
            DETACH_RESET,
        )
        exists = i < num_left
        grad_v = tl.where(exists, grad_before, grad_v)
        grad_hs = (tl.where(exists, grad_h, 0.0),) + grad_hs  # noqa: RUF005  Triton has no star
        grad_xs = (tl.where(exists, grad_x, 0.0),) + grad_xs  # noqa: RUF005
    return grad_hs, grad_xs, grad_v


@triton.jit
def tau_gradient(grad_h, h, v, tau, v_rest, DECAY_INPUT: tl.constexpr):
    """dL/dtau of one step: dh/dtau is -(x - (v - r))/tau^2 = -(h - v)/tau, without decay_input (v - r)/tau^2."""
    return grad_h * (v - h) / tau if DECAY_INPUT else grad_h * (v - v_rest) / (tau * tau)
