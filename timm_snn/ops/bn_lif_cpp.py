"""Batch norm and neuron in C++ for a CPU: see `timm_snn.ops.bn_lif`.

One pass takes the statistics and one fires. The backward pass goes through memory twice: for the sums of the neuron's
gradient per channel, and to write that of x with them.
"""

import torch
from torch import Tensor

from .bn_lif import scale_and_shift
from .layout import as_steps, channel_strides, from_steps, inner_size
from .lif_cpp import call
from .lif_op import constant_alpha
from .lif_torch import membrane_dtype
from .surrogate import Surrogate

__all__ = ['affine_lif', 'bn_lif']


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
    settings = (v_threshold, v_reset, decay_input, surrogate.name, constant_alpha(surrogate, 'cpp'), detach_reset)
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
        call('statistics', steps, channels, (), (steps, mean, var))
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
        call(
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
    call('fire', steps, channels, neuron, (steps, None, scale, shift, spikes, None))
    return spikes


def _in_memory(x: Tensor) -> tuple[Tensor, tuple[int, int], tuple[int, ...]]:
    """x as [T, M], C and S of a step as [rows, C, S], and the strides of that order."""
    strides = channel_strides(x)
    return as_steps(x, strides), (x.shape[2], inner_size(x, strides)), strides
