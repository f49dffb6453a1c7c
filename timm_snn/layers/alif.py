"""LIF with an adaptive threshold (arXiv 1803.09574)."""

import math

from timm.layers import register_notrace_module
from torch import Tensor

from ..ops.surrogate import Surrogate
from .registry import neurons
from .torch_neuron import LeakyNeuron

__all__ = ['ALIF']


@register_notrace_module
@neurons.register('alif')
class ALIF(LeakyNeuron):
    """Adaptive LIF (ALIF, Bellec et al. 2018, arXiv 1803.09574): spikes raise the threshold, which falls back slowly.

        theta = v_threshold + beta a          a = 0 at rest
        s = spike(h - theta)                  h charged as in `timm_snn.lif`
        v = h - s theta                       soft reset, the paper's; v_reset where s fires with a number
        a = rho a + (1 - rho) s               rho = exp(-1 / tau_adaptation)

    Gradients go through the threshold. Other settings are those of `LIF`. The paper's beta is 1.8; its time constant of
    700 steps is for sequences of a thousand, and the default of 4 for models of a few steps is ours.

    Shape and errors: as `TorchNeuron`, and ValueError for a `tau_adaptation` that is not positive or a negative beta.
    """

    state_names = ('v', 'a')

    def __init__(
        self,
        tau: float = 2.0,
        v_threshold: float = 1.0,
        v_reset: float | None = None,
        decay_input: bool = True,
        surrogate: str | Surrogate = 'sigmoid',
        detach_reset: bool = True,
        backend: str | None = None,
        beta: float = 1.8,
        tau_adaptation: float = 4.0,
    ) -> None:
        super().__init__(tau, v_threshold, v_reset, decay_input, surrogate, detach_reset, backend)
        if not (0 <= beta < math.inf and 0 < tau_adaptation < math.inf):
            raise ValueError(
                f'ALIF needs beta >= 0 and tau_adaptation > 0 steps, got beta={beta}, tau_adaptation={tau_adaptation}'
            )
        self.beta = float(beta)
        self.tau_adaptation = float(tau_adaptation)

    def step(self, x: Tensor, v: Tensor, a: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        h = self.charge(x, v)
        theta = self.neuron.v_threshold + self.beta * a
        s = self.spike(h - theta)
        rho = math.exp(-1 / self.tau_adaptation)
        return s, self.reset(h, s, s * theta), rho * a + (1 - rho) * s

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, beta={self.beta}, tau_adaptation={self.tau_adaptation}'
