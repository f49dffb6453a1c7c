"""The LIF neuron in plain, differentiable torch: the definition that every other backend is tested against."""

import torch
from torch import Tensor

from ..neuron import membrane_dtype
from ..surrogate import Surrogate, spike

__all__ = ['lif', 'scale_and_shift', 'why_not']


def why_not(x: Tensor | None = None) -> str | None:
    """Plain torch runs everywhere and on every input."""
    return None


def lif(
    x: Tensor,
    v: Tensor | None,
    *,
    tau: float | Tensor,
    v_threshold: float,
    v_reset: float | None,
    decay_input: bool,
    surrogate: Surrogate,
    detach_reset: bool,
    needs_v: bool = True,
) -> tuple[Tensor, Tensor]:
    """The equations of `timm_snn.ops.lif`; x [T, B, ...], v [B, ...] or None for rest -> (spikes, last v).

    `needs_v` False lets a backend leave out the last v, an empty tensor then; here it costs nothing.
    """
    v_rest = 0.0 if v_reset is None else v_reset
    current = x.to(membrane_dtype(x.dtype))
    if v is None:
        v = torch.full_like(current[0], v_rest)
    if isinstance(tau, Tensor):
        tau = tau.reshape(()).to(current)
    spikes = []
    for x_t in current.unbind(0):
        leak = v - v_rest
        h = v + (x_t - leak) / tau if decay_input else v - leak / tau + x_t
        s = spike(h - v_threshold, surrogate)
        reset = s.detach() if detach_reset else s
        v = h - reset * v_threshold if v_reset is None else (1 - reset) * h + reset * v_rest
        spikes.append(s)
    return torch.stack(spikes).to(x.dtype), v


def scale_and_shift(weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """A batch norm with these statistics as x * scale + shift, in the dtype of the statistics."""
    scale = weight.to(mean.dtype) * (var + eps).rsqrt()
    return scale, bias.to(mean.dtype) - mean * scale
