"""LIF with ternary spikes (arXiv 2312.06372)."""

from timm.layers import register_notrace_module
from torch import Tensor

from .registry import neurons
from .torch_neuron import LeakyNeuron

__all__ = ['TernaryLIF']


@register_notrace_module
@neurons.register('ternary')
class TernaryLIF(LeakyNeuron):
    """LIF with ternary spikes (arXiv 2312.06372): -1 at the negative threshold, too.

        s = spike(h - v_threshold) - spike(-h - v_threshold)      h charged as in `timm_snn.lif`
        v = v_reset where |s| = 1, else h                         hard reset
        v = h - s v_threshold                                     soft reset (v_reset=None)

    The settings and their defaults are those of `LIF`; the paper has `tau=4/3, decay_input=False`. Its learned
    amplitude of spikes is left out: it goes into the next weights where these follow at once, and in a stream that is
    a sum of spikes they do not.

    Shape: [T, B, ...] -> [T, B, ...] in {-1, 0, 1, NaN}. Errors: as `TorchNeuron`.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if not self.neuron.v_rest > -self.neuron.v_threshold:
            raise ValueError(
                f'TernaryLIF needs v_reset between -v_threshold and v_threshold, which are {-self.neuron.v_threshold} '
                f'and {self.neuron.v_threshold}: got {self.neuron.v_reset}'
            )

    def step(self, x: Tensor, v: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        h = self.charge(x, v)
        up, down = self.spike(h - self.neuron.v_threshold), self.spike(-h - self.neuron.v_threshold)
        s = up - down
        return s, self.reset(h, up + down, s * self.neuron.v_threshold)
