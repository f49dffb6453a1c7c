"""The LIF neuron in plain, differentiable torch: the definition that every other backend is tested against."""

from typing import Any

import torch
from torch import Tensor

from ..neuron import Neuron, by_channel, membrane_dtype
from ..surrogate import spike

__all__ = ['lif', 'scale_and_shift', 'why_not']


def why_not(x: Tensor | None = None) -> str | None:
    """Plain torch runs everywhere and on every input."""
    return None


def lif(
    x: Tensor,
    v: Tensor | None,
    tau: Tensor | None,
    neuron: Neuron,
    needs_v: bool,
    potentials: list[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """The equations of `timm_snn.ops.lif`; x [T, B, ...], v [B, ...] or None for rest -> (spikes, last v).

    `tau` is the learned one, () or [C] for x [T, B, C, ...], or None where `neuron.tau` is the number. Without
    `needs_v` a backend may leave out the last v, an empty tensor then; here it costs nothing. `potentials`, which no
    other backend takes, gets the membrane h of every step, before its reset.
    """
    v_threshold, v_rest = neuron.v_threshold, neuron.v_rest
    current = x.to(membrane_dtype(x.dtype))
    if v is None:
        v = current.new_full((), v_rest)  # of no size: an export would keep that of its example
    divisor: Any = neuron.tau if tau is None else by_channel(tau.to(current), x.ndim - 1)
    spikes = []
    for x_t in current.unbind(0):
        leak = v - v_rest
        h = v + (x_t - leak) / divisor if neuron.decay_input else v - leak / divisor + x_t
        s = spike(h - v_threshold, neuron.surrogate)
        reset = s.detach() if neuron.detach_reset else s
        v = h - reset * v_threshold if neuron.v_reset is None else _hard_reset(h, reset, neuron)
        spikes.append(s)
        if potentials is not None:
            potentials.append(h)
    return torch.stack(spikes).to(x.dtype), v


def _hard_reset(h: Tensor, reset: Tensor, neuron: Neuron) -> Tensor:
    """v_rest where h fires, else h; by a choice, since a product of 0 and an infinite h is NaN.

    With a gradient through the reset that of s is v_rest - h, or 0 where h is infinite.
    """
    v = torch.where(h >= neuron.v_threshold, neuron.v_rest, h)  # not masked_fill, which loses the layout
    if neuron.detach_reset:
        return v
    by_spike = torch.where(h.isinf(), 0.0, neuron.v_rest - h)
    return v + (reset - reset.detach()) * by_spike


def scale_and_shift(weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """A batch norm with these statistics as x * scale + shift, in the dtype of the statistics."""
    scale = weight.to(mean.dtype) * (var + eps).rsqrt()
    return scale, bias.to(mean.dtype) - mean * scale
