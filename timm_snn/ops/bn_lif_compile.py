"""Batch norm and neuron for the compiled backend, called eagerly: see `timm_snn.ops.bn_lif`.

torch's own kernels take the statistics and their gradient, which Inductor does several times slower on a CPU; the
normalisation is compiled into the neuron's body, so the batch norm's output is never written and never saved.
"""

import torch
from torch import Tensor

from .bn_lif import scale_and_shift
from .layout import as_steps, channel_strides, from_steps, inner_size
from .lif_compile import Settings, fire, fire_backward, run_compiled, split_tau
from .lif_torch import membrane_dtype
from .surrogate import Sigmoid, Surrogate

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
    """x [T, B, C, *spatial] -> spikes, and the batch's mean and biased variance [C] without a gradient."""
    number, learned = split_tau(tau, x)
    s = Settings(number, v_threshold, v_reset, decay_input, surrogate, detach_reset)
    return _BnLif.apply(x, weight, bias, learned, s, eps)


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
    number, learned = split_tau(tau, x)
    s = Settings(number, v_threshold, v_reset, decay_input, Sigmoid(), detach_reset=True)
    return _fire(x, scale, shift, learned, s)


class _BnLif(torch.autograd.Function):
    @staticmethod
    def forward(x, weight, bias, tau, s, eps):
        running = torch.zeros(2, x.shape[2], dtype=membrane_dtype(x.dtype), device=x.device)  # sets the results' dtype
        mean, var = torch.batch_norm_update_stats(x.flatten(0, 1), running[0], running[1], 0.0)
        scale, shift = scale_and_shift(weight, bias, mean, var, eps)
        return _fire(x, scale, shift, tau, s), mean, var

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, bias, tau, ctx.s, ctx.eps = inputs
        _, mean, var = output
        ctx.mark_non_differentiable(mean, var)
        ctx.save_for_backward(x, weight, bias, tau, mean, var)

    @staticmethod
    def backward(ctx, grad, *_):
        x, weight, bias, tau, mean, var = ctx.saved_tensors
        scale, shift = scale_and_shift(weight, bias, mean, var, ctx.eps)
        strides = channel_strides(x)
        args = (_by_channel(grad, x, strides), _by_channel(x, x, strides), scale, shift, tau)
        grad_y, *grad_tau = run_compiled(_affine_fire_backward, 1 if tau is None else 2, ctx.s, *args)
        grad_y = from_steps(grad_y.flatten(1), x, strides)
        grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad_y.flatten(0, 1),
            x.flatten(0, 1),
            weight,
            None,
            None,
            mean,
            (var + ctx.eps).rsqrt(),
            True,
            ctx.eps,
            [True] * 3,
        )
        return grad_x.unflatten(0, x.shape[:2]), grad_weight, grad_bias, *(grad_tau or (None,)), None, None


def _fire(x: Tensor, scale: Tensor, shift: Tensor, tau: Tensor | None, s: Settings) -> Tensor:
    strides = channel_strides(x)
    (spikes,) = run_compiled(_affine_fire, 1, s, _by_channel(x, x, strides), scale, shift, tau)
    return from_steps(spikes.flatten(1), x, strides)


def _affine_fire(x: Tensor, scale: Tensor, shift: Tensor, tau: Tensor | None, s: Settings) -> tuple[Tensor, ...]:
    return fire(_normalised(x, scale, shift), None, tau, s, x.dtype)


def _affine_fire_backward(
    grad: Tensor, x: Tensor, scale: Tensor, shift: Tensor, tau: Tensor | None, s: Settings
) -> tuple[Tensor, Tensor | None]:
    grad_y, _, grad_tau = fire_backward(grad, None, _normalised(x, scale, shift), None, tau, s)
    return grad_y.to(x.dtype), grad_tau


def _normalised(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x [T, ..., C, S] -> the current, in the membrane's dtype."""
    return x.to(membrane_dtype(x.dtype)) * scale[:, None] + shift[:, None]


def _by_channel(x: Tensor, like: Tensor, strides: tuple[int, ...]) -> Tensor:
    """x -> [T, B, C, S] if it is contiguous, [T, B * S, C, 1] if it is channels_last."""
    steps = as_steps(x, strides)
    return steps.unflatten(1, [-1, like.shape[2], inner_size(like, strides)])
