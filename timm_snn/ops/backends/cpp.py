"""The neuron in C++ for a CPU: one pass over memory forward, one backward, in lif.cpp.

Built when it is first used, see native/build.py: some seconds once on a machine, for all settings, sizes and dtypes.
With batch norm, one pass takes the statistics and one fires. The backward pass goes through memory twice: for the sums
of the neuron's gradient per channel, and to write that of x with them.
"""

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..layout import as_steps, channel_strides, empty_steps, from_steps, inner_size, step_strides
from ..native.build import load_cpp, why_no_compiler
from ..neuron import membrane_dtype
from ..surrogate import SURROGATES, Surrogate
from . import lif_operator
from .reference import scale_and_shift

__all__ = ['affine_lif', 'backward', 'bn_lif', 'forward', 'lif', 'why_not']

_SOURCE = Path(__file__).parents[1] / 'native' / 'lif.cpp'
# No product is fused with a sum, which would move spikes; a choice between numbers may compute both.
_OPTIONS = ('-ffp-contract=off', '-fno-trapping-math')
_NAMES = {
    torch.float32: 'float32',
    torch.bfloat16: 'bfloat16',
    torch.float16: 'float16',
    torch.float64: 'float64',
}

_NO_COMPILER = why_no_compiler()  # once, so that torch.compile need not look


class _Call(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ('T', 'rows', 'C', 'S', 'x_stride', 'grad_stride')),
        *((name, ctypes.c_double) for name in ('tau', 'v_threshold', 'v_rest', 'alpha')),
        *((name, ctypes.c_int32) for name in ('hard_reset', 'decay_input', 'detach_reset', 'surrogate', 'threads')),
    )


def why_not(x: Tensor | None = None) -> str | None:
    """Why nothing can be built here, or why this does not run x."""
    if x is not None and x.device.type != 'cpu':
        return f'it is for a CPU, got a tensor on {x.device}'
    if x is not None and x.dtype not in _NAMES:
        return f'it needs float16, bfloat16, float32 or float64, got {x.dtype}'
    return _NO_COMPILER


def lif(x: Tensor, v: Tensor | None, **settings: Any) -> tuple[Tensor, Tensor]:
    """`reference.lif` in two passes."""
    return lif_operator.lif('cpp', x, v, **settings)


def forward(
    x: Tensor,
    v: Tensor | None,
    tau: float | Tensor,
    v_threshold: float,
    v_reset: float | None,
    decay_input: bool,
    needs_v: bool,
) -> tuple[Tensor, Tensor]:
    """The contract is that of lif_operator.py."""
    strides = step_strides(x)
    steps, spikes = as_steps(x, strides), empty_steps(x)
    v_first = None if v is None else as_steps(v[None], strides)
    v_last = lif_operator.one_step(x) if needs_v else lif_operator.empty_membrane(x)
    neuron = (float(tau), v_threshold, v_reset, decay_input)
    _call('fire', steps, (), neuron, (steps, v_first, None, None, spikes, v_last if needs_v else None))
    return spikes, v_last


def backward(
    grad_spikes: Tensor,
    grad_v: Tensor | None,
    x: Tensor,
    v: Tensor | None,
    tau: float | Tensor,
    v_threshold: float,
    v_reset: float | None,
    decay_input: bool,
    surrogate: str,
    alpha: float,
    detach_reset: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The contract is that of lif_operator.py."""
    strides = step_strides(x)
    steps, grad_steps = as_steps(x, strides), as_steps(grad_spikes, strides)
    v_first, grad_v = (None if t is None else as_steps(t[None], strides) for t in (v, grad_v))
    grad_x = empty_steps(x)
    grad_v_first = lif_operator.empty_membrane(x) if v is None else lif_operator.one_step(x)
    learned = isinstance(tau, Tensor)
    grad_tau = grad_v_first.new_zeros(()) if learned else lif_operator.empty_membrane(x)
    _call(
        'fire_backward',
        steps,
        (),
        (float(tau), v_threshold, v_reset, decay_input, surrogate, alpha, detach_reset),
        (
            *(steps, v_first, grad_steps, grad_v, grad_x),
            *(None if v is None else grad_v_first, grad_tau if learned else None),
        ),
        grad_steps.stride(0),
    )
    return grad_x, grad_v_first, grad_tau


def _call(
    name: str,
    steps: Tensor,
    channels: tuple[int, ...],
    neuron: tuple,
    tensors: tuple[Tensor | None, ...],
    stride: int = 0,
) -> None:
    """Run a function of lif.cpp.

    Args:
        steps: x as [T, M].
        channels: C and S of a step [rows, C, S], if the function needs to know.
        neuron: As far as it needs to know: tau, v_threshold, v_reset, decay_input, surrogate, alpha, detach_reset.
        tensors: What the function takes after the call.
        stride: Between the steps of the gradient.
    """
    defaults: tuple[Any, ...] = (2.0, 1.0, 0.0, True, 'sigmoid', 1.0, True)
    tau, v_threshold, v_reset, decay_input, surrogate, alpha, detach_reset = neuron + defaults[len(neuron) :]
    num_steps, num_neurons = steps.shape
    C, S = channels or (1, num_neurons)
    settings = _Call(
        *(num_steps, num_neurons // max(C * S, 1), C, S, steps.stride(0), stride),
        *(tau, v_threshold, v_reset or 0.0, alpha),
        *(v_reset is not None, decay_input, detach_reset, list(SURROGATES).index(surrogate), torch.get_num_threads()),
    )
    function = getattr(load_cpp(_SOURCE, *_OPTIONS), f'{name}_{_NAMES[steps.dtype]}')
    function(ctypes.byref(settings), *(None if t is None else ctypes.c_void_p(t.data_ptr()) for t in tensors))


def bn_lif(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float,
    tau: float | Tensor,
    v_threshold: float,
    v_reset: float | None,
    decay_input: bool,
    surrogate: Surrogate,
    detach_reset: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """x [T, B, C, *spatial] -> spikes, and the batch's mean and biased variance [C] without a gradient.

    Raises: BackendUnavailable for a surrogate that is not in the table of surrogate.py.
    """
    settings = (
        v_threshold,
        v_reset,
        decay_input,
        surrogate.name,
        lif_operator.constant_alpha(surrogate, 'cpp'),
        detach_reset,
    )
    return _BnLif.apply(x, weight, bias, tau, settings, eps)


def affine_lif(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    *,
    tau: float | Tensor,
    v_threshold: float,
    v_reset: float | None,
    decay_input: bool,
) -> Tensor:
    """The neuron of x * scale + shift, [C] each, without a gradient."""
    steps, channels, strides = _in_memory(x)
    return from_steps(_fire(steps, channels, scale, shift, (float(tau), v_threshold, v_reset, decay_input)), x, strides)


class _BnLif(torch.autograd.Function):
    @staticmethod
    def forward(x, weight, bias, tau, settings, eps):
        steps, channels, strides = _in_memory(x)
        mean, var = torch.empty(2, x.shape[2], dtype=membrane_dtype(x.dtype)).unbind()
        _call('statistics', steps, channels, (), (steps, mean, var))
        spikes = _fire(steps, channels, *scale_and_shift(weight, bias, mean, var, eps), (float(tau), *settings))
        return from_steps(spikes, x, strides), mean, var

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, bias, tau, ctx.settings, ctx.eps = inputs
        _, mean, var = output
        ctx.mark_non_differentiable(mean, var)
        ctx.set_materialize_grads(False)
        ctx.tau = None if isinstance(tau, Tensor) else tau
        ctx.save_for_backward(x, weight, bias, tau if ctx.tau is None else None, mean, var)

    @staticmethod
    def backward(ctx, grad, *_):
        x, weight, bias, tau, mean, var = ctx.saved_tensors
        steps, channels, strides = _in_memory(x)
        grad_steps = as_steps(grad, strides)
        scale, shift = scale_and_shift(weight, bias, mean, var, ctx.eps)
        grad_x, sums = torch.empty_like(steps), mean.new_empty(2, len(mean))
        grad_tau = None if tau is None else mean.new_zeros(())
        _call(
            'bn_backward',
            steps,
            channels,
            (float(tau if ctx.tau is None else ctx.tau), *ctx.settings),
            (steps, scale, shift, mean, (var + ctx.eps).rsqrt(), grad_steps, grad_x, sums, grad_tau),
            grad_steps.stride(0),
        )
        if grad_tau is not None:
            grad_tau = grad_tau.reshape(tau.shape).to(tau.dtype)
        return from_steps(grad_x, x, strides), sums[1].to(weight.dtype), sums[0].to(bias.dtype), grad_tau, None, None


def _fire(steps: Tensor, channels: tuple[int, int], scale: Tensor, shift: Tensor, neuron: tuple) -> Tensor:
    spikes = torch.empty(steps.shape, dtype=steps.dtype)
    _call('fire', steps, channels, neuron, (steps, None, scale, shift, spikes, None))
    return spikes


def _in_memory(x: Tensor) -> tuple[Tensor, tuple[int, int], tuple[int, ...]]:
    """x as [T, M], C and S of a step as [rows, C, S], and the strides of that order."""
    strides = channel_strides(x)
    return as_steps(x, strides), (x.shape[2], inner_size(x, strides)), strides
