"""Integer spikes: the neuron of spike firing approximation (SFA), which stands for several steps of a binary one."""

import math
from typing import Any

import torch
from torch import Tensor

from .backend import is_followed
from .switches import is_exporting

__all__ = ['check_levels', 'count_spikes', 'integer_spikes']


def integer_spikes(x: Tensor, *, levels: int = 4, v_threshold: float = 1.0, normalize: bool = True) -> Tensor:
    """How many of `levels` virtual steps a neuron fires in: round(clip(x / v_threshold, 0, levels)).

    A constant current x into a neuron without leak and with a soft reset fires so often, up to rounding; halves are
    rounded to even. `normalize` divides by `levels`, so that the result is a firing rate of 0 to 1; the factor can go
    into the next weights, and n / levels is n binary spikes then. The gradient is that of the clipped current, rounding
    counts as the identity (straight-through): 1 / (levels * v_threshold) from 0 to levels, borders included, 0 outside.

    Shape: x [...] -> the same, in its dtype. There is no time and no state: an element depends on itself alone.
    Source: E-SpikeFormer, arXiv 2411.16061 (integer training, spike-driven inference).
    Raises: ValueError for arguments out of range.
    """
    check_levels(levels, v_threshold)
    if not x.is_floating_point():
        raise ValueError(f'integer_spikes needs a floating-point current, got {x.dtype}')
    return count_spikes(x, levels, v_threshold, normalize)


def check_levels(levels: int, v_threshold: float) -> None:
    """Raises ValueError for settings with which a neuron cannot fire."""
    if not isinstance(levels, int) or levels < 1:
        raise ValueError(f'integer spikes need a whole number of levels, at least 1, got {levels!r}')
    if not 0 < v_threshold < math.inf:
        raise ValueError(f'integer spikes need 0 < v_threshold < inf, got {v_threshold}')


def count_spikes(x: Tensor, levels: int, v_threshold: float, normalize: bool) -> Tensor:
    """`integer_spikes` without its checks; TorchScript can compile it."""
    if not torch.jit.is_scripting():
        spikes = _count_eagerly(x, levels, v_threshold, normalize)
        if spikes is not None:
            return spikes
    current = x / v_threshold
    # not the gradient of clamp, which has left out a border in some versions of torch
    current = torch.where((current >= 0) & (current <= levels), current, current.detach().clamp(0, levels))
    # exact: the difference is at most one half, and its sum with the current is a small integer
    spikes = current + (current.round() - current).detach()
    return spikes / levels if normalize else spikes


def _count_eagerly(x: Tensor, levels: int, v_threshold: float, normalize: bool) -> Tensor | None:
    """The same in fewer passes over memory; None where a compiler, an export or torch.func follows them."""
    if torch.compiler.is_compiling() or is_exporting() or is_followed(x):
        return None
    if x.requires_grad and torch.is_grad_enabled():
        return _IntegerSpikes.apply(x, levels, v_threshold, normalize)
    return _spikes_and_clipped(x, levels, v_threshold, normalize)[0]


class _IntegerSpikes(torch.autograd.Function):
    """Integer spikes with a derivative of their own; autograd's would make choices, which torch does not vectorise."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, levels: int, v_threshold: float, normalize: bool) -> Tensor:
        spikes, current, clipped = _spikes_and_clipped(x, levels, v_threshold, normalize)
        # torch vectorises comparisons in place, and none that makes bools
        inside = clipped.eq_(current).to(torch.int8)
        ctx.save_for_backward(inside)
        ctx.save_for_forward(inside)
        ctx.settings = levels, v_threshold, normalize
        return spikes

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (inside,) = ctx.saved_tensors
        levels, v_threshold, normalize = ctx.settings
        grad = grad / levels if normalize else grad
        return inside.to(grad.dtype).mul_(grad / v_threshold if v_threshold != 1 else grad), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return _IntegerSpikes.backward(ctx, tangent)[0]  # the derivative is one number for each element


def _spikes_and_clipped(x: Tensor, levels: int, v_threshold: float, normalize: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The spikes, the current in units of the threshold, and that clipped to what has a gradient."""
    current = x / v_threshold if v_threshold != 1 else x
    clipped = current.clamp(0, levels)
    spikes = clipped.round()
    return spikes.div_(levels) if normalize else spikes, current, clipped
