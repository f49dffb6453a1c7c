"""KLIF (arXiv 2302.09238)."""

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn

from .registry import neurons
from .torch_neuron import LeakyNeuron

__all__ = ['KLIF']


@register_notrace_module
@neurons.register('klif')
class KLIF(LeakyNeuron):
    """KLIF (arXiv 2302.09238): a learned factor k scales the membrane, and what is below zero is cut off.

        f = relu(k h)                 h charged as in `timm_snn.lif`
        s = spike(f - v_threshold)
        v = f, reset where s fires

    k begins at 1. It is no `lif` of a scaled current: the scaled and rectified membrane is what the next step goes on
    from. The settings and their defaults are those of `LIF`; the paper has `detach_reset=False`.

    Shape and errors: as `TorchNeuron`.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.k = nn.Parameter(torch.tensor(1.0))

    def step(self, x: Tensor, v: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        f = (self.k.to(x.dtype) * self.charge(x, v)).relu()
        s = self.spike(f - self.neuron.v_threshold)
        return s, self.reset(f, s, s * self.neuron.v_threshold)
