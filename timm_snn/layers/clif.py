"""Complementary LIF (arXiv 2402.04663)."""

from timm.layers import register_notrace_module
from torch import Tensor

from ..ops.neuron import Neuron
from ..ops.surrogate import Surrogate
from .registry import neurons
from .torch_neuron import StepwiseNeuron

__all__ = ['CLIF']


@register_notrace_module
@neurons.register('clif')
class CLIF(StepwiseNeuron):
    """Complementary LIF (CLIF, arXiv 2402.04663): a second potential m remembers spikes and deepens the reset.

        h = (1 - 1/tau) v + x
        s = spike(h - v_threshold)
        m = m sigmoid(h / tau) + s
        v = h - s (v_threshold + sigmoid(m))

    It has no parameters, and the reset has a gradient. The paper trains with a rectangle as surrogate, which
    `timm_snn.ops.make_surrogate` shows.

    Shape and errors: as `TorchNeuron`.
    """

    state_names = ('v', 'm')

    def __init__(
        self,
        tau: float = 2.0,
        v_threshold: float = 1.0,
        surrogate: str | Surrogate = 'sigmoid',
        backend: str | None = None,
    ) -> None:
        super().__init__(surrogate, backend)
        Neuron(tau, v_threshold, v_reset=None, decay_input=False)  # checks both
        self.tau = float(tau)
        self.v_threshold = float(v_threshold)

    def step(self, x: Tensor, v: Tensor, m: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        h = (1 - 1 / self.tau) * v + x
        s = self.spike(h - self.v_threshold)
        m = m * (h / self.tau).sigmoid() + s
        return s, h - s * (self.v_threshold + m.sigmoid()), m

    def extra_repr(self) -> str:
        return f'tau={self.tau}, v_threshold={self.v_threshold}, surrogate={self.surrogate}'
