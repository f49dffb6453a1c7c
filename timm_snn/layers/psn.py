"""Parallel spiking neurons (arXiv 2304.12760): no reset, so that all steps are computed at once."""

import math
from collections.abc import Callable

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn

from ..ops.surrogate import Surrogate
from .registry import neurons
from .torch_neuron import FixedSteps, TorchNeuron

__all__ = ['PSN', 'SlidingPSN']


@register_notrace_module
@neurons.register('psn')
class PSN(FixedSteps, TorchNeuron):
    """Parallel spiking neuron (PSN, arXiv 2304.12760): one learned matrix mixes the currents of all T steps.

        h = W x            W [T, T]
        s = spike(h - theta)      theta [T]

    It is **not causal**: a step sees those after it, and `chunk_steps` of a model says so. What is not a number at one
    step is none at all steps. W and theta are learned, W begins uniform in +-1/sqrt(T), as a linear layer, and theta at
    `v_threshold`. Weight decay leaves both alone. The number of steps is fixed, see `FixedSteps`.

    Shape and errors: as `TorchNeuron`, with T = num_steps; ValueError for another T.
    """

    def __init__(
        self,
        num_steps: int | None = None,
        v_threshold: float = 1.0,
        surrogate: str | Surrogate = 'sigmoid',
        backend: str | None = None,
    ) -> None:
        super().__init__(surrogate, backend)
        self.v_threshold = float(v_threshold)
        self.weight = nn.Parameter(torch.empty(0, 0))  # until T is known, for device and dtype
        self.theta = nn.Parameter(torch.empty(0))
        if num_steps is not None:
            self.set_num_steps(num_steps)

    @property
    def chunk_steps(self) -> int:
        """How many steps see each other."""
        return self.num_steps or 1

    def make_parameters(self, num_steps: int) -> None:
        bound = 1 / math.sqrt(num_steps)
        self.weight = nn.Parameter(self.weight.new_empty(num_steps, num_steps).uniform_(-bound, bound))
        self.theta = nn.Parameter(self.theta.new_full((num_steps,), self.v_threshold))

    def no_weight_decay(self) -> set[str]:
        return {'weight'}

    def fire(self, x: Tensor) -> Tensor:
        self.check_num_steps(len(x))
        theta, weight = self.theta.to(x.dtype), self.weight.to(x.dtype)
        return self.spike(_over_time(x, lambda steps: torch.addmm(-theta[:, None], weight, steps)))

    def extra_repr(self) -> str:
        return f'num_steps={self.num_steps}, v_threshold={self.v_threshold}, surrogate={self.surrogate}'


@register_notrace_module
@neurons.register('sliding_psn')
class SlidingPSN(TorchNeuron):
    """Sliding PSN (arXiv 2304.12760): the same learned weights for the last `order` steps, at every step.

        h[t] = sum_i w[i] x[t - order + 1 + i]      with x = 0 before the first step
        s[t] = spike(h[t] - theta)

    It is causal and takes any number of steps. w begins as (..., 1/4, 1/2, 1) and theta at `v_threshold`; both are
    learned. What is not a number is seen by `order` steps.

    Shape and errors: as `TorchNeuron`.
    """

    def __init__(
        self,
        order: int = 4,
        v_threshold: float = 1.0,
        surrogate: str | Surrogate = 'sigmoid',
        backend: str | None = None,
    ) -> None:
        super().__init__(surrogate, backend)
        if type(order) is not int or order < 1:
            raise ValueError(f'SlidingPSN needs an order of at least 1 step, got {order!r}')
        self.order = order
        self.v_threshold = float(v_threshold)
        self.weight = nn.Parameter(0.5 ** torch.arange(order - 1.0, -1, -1))
        self.theta = nn.Parameter(torch.tensor(self.v_threshold))

    def fire(self, x: Tensor) -> Tensor:
        theta, weight = self.theta.to(x.dtype), self.weight.to(x.dtype)

        def mix(steps: Tensor) -> Tensor:
            # not one product with a band matrix, whose zeros would let NaN and infinite currents reach earlier steps
            windows = (steps[max(0, t - self.order) : t] for t in range(1, len(steps) + 1))
            return torch.stack([weight[-len(window) :] @ window for window in windows])

        return self.spike(_over_time(x, mix) - theta)

    def stream(self, x: Tensor, state: dict[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The next steps of a stream (`timm_snn.stream`), which remembers the last currents."""
        currents = x if state is None else torch.cat([state['x'], x])
        return self(currents)[-len(x) :], {'x': currents[max(0, len(currents) - self.order + 1) :]}

    def extra_repr(self) -> str:
        return f'order={self.order}, v_threshold={self.v_threshold}, surrogate={self.surrogate}'


def _over_time(x: Tensor, mix: Callable[[Tensor], Tensor]) -> Tensor:
    """`mix` of the steps [T, N] of x [T, B, ...], as x; N in the order of memory, so that channels_last is no copy.

    A compiler orders memory itself, and cannot sort strides that are unknown to it.
    """
    axes = list(range(1, x.ndim))
    in_memory = axes if torch.compiler.is_compiling() else sorted(axes, key=x.stride, reverse=True)
    steps = x.movedim(in_memory, axes)
    return mix(steps.flatten(1)).unflatten(1, steps.shape[1:]).movedim(axes, in_memory)
