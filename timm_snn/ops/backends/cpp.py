"""The neuron in C++ for a CPU: one pass over memory forward, one backward, in lif.cpp.

Built when it is first used, see native/build.py: some seconds once on a machine, for all settings, sizes and dtypes.
With batch norm, one pass takes the statistics and one fires. The backward pass goes through memory twice: for the sums
of the neuron's gradient per channel, and to write that of x with them.
"""

import ctypes
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..layout import as_steps, channel_strides, empty_steps, from_steps, inner_size, step_strides
from ..native.build import LIBRARIES, load_cpp, why_not_built, why_not_here
from ..neuron import Neuron, membrane_dtype
from ..surrogate import SURROGATES
from .operator import Operator, empty_membrane, lif_operator, like_tau, one_step

__all__ = ['affine_lif', 'bn_lif', 'lif', 'prepare', 'why_not']

_SOURCE = Path(__file__).parents[1] / 'native' / 'lif.cpp'
_OPTIONS = LIBRARIES['lif.cpp'].options
_NAMES = {
    torch.float32: 'float32',
    torch.bfloat16: 'bfloat16',
    torch.float16: 'float16',
    torch.float64: 'float64',
}
_SURROGATES = list(SURROGATES)  # in the order of lif.cpp


class _Call(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ('T', 'rows', 'C', 'S', 'x_stride', 'grad_stride')),
        *((name, ctypes.c_double) for name in ('tau', 'v_threshold', 'v_rest', 'alpha', 'eps')),
        *((name, ctypes.c_int32) for name in ('hard_reset', 'decay_input', 'detach_reset', 'surrogate', 'threads')),
    )


def why_not(x: Tensor | None = None) -> str | None:
    """Why this does not run x, once it is built; or without x why nothing can be built here."""
    if x is None:
        return why_not_here()
    if x.device.type != 'cpu':
        return f'it is for a CPU, got a tensor on {x.device}'
    if x.dtype not in _NAMES:
        return f'it needs float16, bfloat16, float32 or float64, got {x.dtype}'
    return None


@torch.compiler.assume_constant_result  # torch.compile runs it instead of tracing it
def prepare() -> str | None:
    """Why its library cannot be built, or None; builds it if that is not done."""
    return why_not_built(_SOURCE, *_OPTIONS)


def _forward(x: Tensor, v: Tensor | None, tau: Tensor | None, neuron: Neuron, needs_v: bool) -> tuple[Tensor, Tensor]:
    """The contract is that of `lif_operator`."""
    strides = step_strides(x)
    steps, spikes = as_steps(x, strides), empty_steps(x)
    v_first = None if v is None else as_steps(v[None], strides)
    v_last = one_step(x) if needs_v else empty_membrane(x)
    channels, taus = _by_channel(x, strides, tau)
    tensors = (steps, v_first, None, None, spikes, v_last if needs_v else None, taus)
    _call('fire', steps, channels, _settings(neuron, tau), tensors)
    return spikes, v_last


def _backward(
    grad_spikes: Tensor, grad_v: Tensor | None, x: Tensor, v: Tensor | None, tau: Tensor | None, neuron: Neuron
) -> tuple[Tensor, Tensor, Tensor]:
    """The contract is that of `lif_operator`."""
    strides = step_strides(x)
    steps, grad_steps = as_steps(x, strides), as_steps(grad_spikes, strides)
    v_first, grad_v = (None if t is None else as_steps(t[None], strides) for t in (v, grad_v))
    grad_x = empty_steps(x)
    grad_v_first = empty_membrane(x) if v is None else one_step(x)
    grad_tau = empty_membrane(x) if tau is None else grad_v_first.new_zeros(tau.shape)
    channels, taus = _by_channel(x, strides, tau)
    _call(
        'fire_backward',
        steps,
        channels,
        _settings(neuron, tau),
        (
            *(steps, v_first, grad_steps, grad_v, grad_x),
            *(None if v is None else grad_v_first, None if tau is None else grad_tau, taus),
        ),
        grad_steps.stride(0),
    )
    return grad_x, grad_v_first, grad_tau


lif = lif_operator('cpp', _forward, _backward)


def bn_lif(
    x: Tensor, weight: Tensor, bias: Tensor, tau: Tensor | None, neuron: Neuron, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """x [T, B, C, *spatial] -> spikes, and the batch's mean and biased variance [C] without a gradient."""
    spikes, norm = _bn_lif(x, weight, bias, tau, neuron, eps)
    return spikes, norm[0], norm[1]


def affine_lif(x: Tensor, scale: Tensor, shift: Tensor, tau: Tensor | None, neuron: Neuron) -> Tensor:
    """The neuron of x * scale + shift, [C] each, without a gradient."""
    return _affine_lif(x, scale, shift, tau, neuron)


def _run_affine(x: Tensor, scale: Tensor, shift: Tensor, tau: Tensor | None, neuron: Neuron) -> Tensor:
    steps, channels, strides = _in_memory(x)
    spikes = torch.empty(steps.shape, dtype=steps.dtype)
    _call('fire', steps, channels, _settings(neuron, tau), (steps, None, scale, shift, spikes, None, None))
    return from_steps(spikes, x, strides)


_affine_lif = Operator('affine_lif_cpp', _run_affine)


@_affine_lif.register_fake
def _(x, scale, shift, tau, neuron):
    return _empty_like_kernels(x)


def _run_forward(
    x: Tensor, weight: Tensor, bias: Tensor, tau: Tensor | None, neuron: Neuron, eps: float
) -> tuple[Tensor, Tensor]:
    """Spikes, and the batch's norm [5, C], see Norm in bn_lif.hpp."""
    steps, channels, strides = _in_memory(x)
    dtype = membrane_dtype(x.dtype)
    norm = torch.empty(5, x.shape[2], dtype=dtype)
    spikes = torch.empty(steps.shape, dtype=steps.dtype)
    affine = [t.to(dtype).contiguous() for t in (weight, bias)]
    _call('bn_fire', steps, channels, _settings(neuron, tau, eps), (steps, *affine, norm, spikes))
    return from_steps(spikes, x, strides), norm


_bn_lif = Operator('bn_lif_cpp', _run_forward)


@_bn_lif.register_fake
def _(x, weight, bias, tau, neuron, eps):
    return _empty_like_kernels(x), x.new_empty(5, x.shape[2], dtype=membrane_dtype(x.dtype))


def _run_backward(
    grad_spikes: Tensor, x: Tensor, norm: Tensor, tau: Tensor | None, neuron: Neuron, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, of bias and weight [2, C], and of tau; `empty_membrane(x)` if that is not learned."""
    steps, channels, strides = _in_memory(x)
    grad_steps = as_steps(grad_spikes, strides)
    grad_x, sums = torch.empty_like(steps), norm.new_empty(2, norm.shape[1])
    grad_tau = None if tau is None else norm.new_zeros(())
    tensors = (steps, norm, grad_steps, grad_x, sums, grad_tau)
    _call('bn_backward', steps, channels, _settings(neuron, tau, eps), tensors, grad_steps.stride(0))
    return from_steps(grad_x, x, strides), sums, empty_membrane(x) if grad_tau is None else grad_tau


_bn_lif_backward = Operator('bn_lif_cpp_backward', _run_backward)


@_bn_lif_backward.register_fake
def _(grad_spikes, x, norm, tau, neuron, eps):
    grad_tau = empty_membrane(x) if tau is None else norm.new_empty(())
    return _empty_like_kernels(x), norm.new_empty(2, x.shape[2]), grad_tau


def _setup_context(ctx, inputs, output) -> None:
    x, weight, bias, tau, ctx.neuron, ctx.eps = inputs
    _, norm = output
    ctx.dtypes = weight.dtype, bias.dtype
    ctx.mark_non_differentiable(norm)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, norm, tau)


def _backward_of_bn(ctx, grad, *_):
    x, norm, tau = ctx.saved_tensors
    grad_x, sums, grad_tau = _bn_lif_backward(grad, x, norm, tau, ctx.neuron, ctx.eps)
    of_weight, of_bias = ctx.dtypes
    return grad_x, sums[1].to(of_weight), sums[0].to(of_bias), like_tau(grad_tau, tau), None, None


_bn_lif.register_autograd(_backward_of_bn, setup_context=_setup_context)


def _empty_like_kernels(x: Tensor) -> Tensor:
    """Uninitialised, of the shape of x and laid out as what the kernels write for it."""
    strides = (math.prod(x.shape[1:]), *channel_strides(x))
    return torch.empty_strided(x.shape, strides, dtype=x.dtype, device=x.device)


def _in_memory(x: Tensor) -> tuple[Tensor, tuple[int, int], tuple[int, ...]]:
    """x as [T, M], C and S of a step as [rows, C, S], and the strides of that order."""
    strides = channel_strides(x)
    return as_steps(x, strides), (x.shape[2], inner_size(x, strides)), strides


def _by_channel(x: Tensor, strides: tuple[int, ...], tau: Tensor | None) -> tuple[tuple[int, ...], Tensor | None]:
    """C and S of a step as [rows, C, S], in any order of its axes, and tau, if each channel has its own."""
    if tau is None or tau.ndim == 0:
        return (), None
    return (len(tau), strides[1]), tau.to(membrane_dtype(x.dtype)).contiguous()


def _settings(neuron: Neuron, tau: Tensor | None, eps: float = 0.0) -> tuple:
    """Of a neuron, as `_Call` lists them: numbers, then flags."""
    surrogate = neuron.surrogate
    number: Any = neuron.tau if tau is None else math.nan if tau.ndim else float(tau)  # NaN: each channel has its own
    return (
        *(number, neuron.v_threshold, neuron.v_rest, surrogate.alpha, eps),
        *(neuron.v_reset is not None, neuron.decay_input, neuron.detach_reset, _SURROGATES.index(surrogate.name)),
    )


def _call(
    name: str,
    steps: Tensor,
    channels: tuple[int, ...],
    settings: tuple,
    tensors: tuple[Tensor | None, ...],
    stride: int = 0,
) -> None:
    """Run a function of lif.cpp.

    Args:
        steps: x as [T, M].
        channels: C and S of a step [rows, C, S], if the function needs to know.
        settings: Those of the neuron.
        tensors: What the function takes after the call.
        stride: Between the steps of the gradient.
    """
    num_steps, num_neurons = steps.shape
    C, S = channels or (1, num_neurons)
    call = _Call(
        *(num_steps, num_neurons // max(C * S, 1), C, S, steps.stride(0), stride), *settings, torch.get_num_threads()
    )
    function = getattr(load_cpp(_SOURCE, *_OPTIONS), f'{name}_{_NAMES[steps.dtype]}')
    function(ctypes.byref(call), *(None if t is None else ctypes.c_void_p(t.data_ptr()) for t in tensors))
