"""Gated LIF (arXiv 2210.13768)."""

import math

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn

from ..ops.surrogate import Surrogate
from .registry import neurons
from .torch_neuron import FixedSteps, TorchNeuron

__all__ = ['GLIF']


@register_notrace_module
@neurons.register('glif')
class GLIF(FixedSteps, TorchNeuron):
    """Gated LIF (GLIF, arXiv 2210.13768): learned gates mix two kinds of leak, of input and of reset.

        v[t] = (1 - alpha (1 - r)) v[t-1] (1 - gamma s[t-1]) - (1 - alpha) v_leak - (1 - gamma) v_fall s[t-1]
               + (1 - beta (1 - g[t])) x[t]
        s[t] = spike(v[t] - theta)

    alpha mixes exponential leak by the factor r with a linear one by v_leak, beta a constant input with one that is
    scaled by g[t] at each step, gamma a hard reset with a soft one by v_fall; the reset of a spike comes with the next
    step, and has a gradient. All nine are learned, one value for the layer and g one for each step, and kept in range
    by a sigmoid: gates, r and g in (0, 1), and the voltages theta, v_leak and v_fall in (0, 2 v_threshold), which is
    (0, 1) as in the paper for `v_threshold` = 1/2.

    Gates and g begin at 1/2, theta and v_fall at `v_threshold`, r at 1 - 1/tau, v_leak at v_threshold / 2T. The number
    of steps is fixed, see `FixedSteps`. There are no values for each channel.

    Shape and errors: as `TorchNeuron`, with T = num_steps; ValueError for another T.
    """

    def __init__(
        self,
        num_steps: int | None = None,
        tau: float = 4 / 3,
        v_threshold: float = 0.5,
        surrogate: str | Surrogate = 'sigmoid',
        backend: str | None = None,
    ) -> None:
        super().__init__(surrogate, backend)
        if not (1 < tau < math.inf and 0 < v_threshold < math.inf):
            raise ValueError(f'GLIF needs tau > 1 and v_threshold > 0, got tau={tau} and v_threshold={v_threshold}')
        self.v_threshold = float(v_threshold)
        self.alpha, self.beta, self.gamma, self.theta, self.v_leak, self.v_fall = (
            nn.Parameter(torch.tensor(0.0)) for _ in range(6)
        )
        self.r = nn.Parameter(torch.tensor(math.log(tau - 1)))  # sigmoid(r) = 1 - 1 / tau
        self.g = nn.Parameter(torch.empty(0))
        if num_steps is not None:
            self.set_num_steps(num_steps)

    def make_parameters(self, num_steps: int) -> None:
        self.g = nn.Parameter(self.g.new_zeros(num_steps))
        nn.init.constant_(self.v_leak, -math.log(4 * num_steps - 1))  # its sigmoid is 1 / 4T

    def fire(self, x: Tensor) -> Tensor:
        self.check_num_steps(len(x))
        gates = self.alpha, self.beta, self.gamma, self.r, self.g
        alpha, beta, gamma, r, g = (p.to(x.dtype).sigmoid() for p in gates)
        voltages = self.theta, self.v_leak, self.v_fall
        theta, v_leak, v_fall = (2 * self.v_threshold * p.to(x.dtype).sigmoid() for p in voltages)
        keep, leak, fall = 1 - alpha * (1 - r), (1 - alpha) * v_leak, (1 - gamma) * v_fall
        v = s = x.new_zeros(())
        spikes = []
        for x_t, gain in zip(x.unbind(0), (1 - beta * (1 - g)).unbind(0), strict=True):
            v = keep * v * (1 - gamma * s) - leak - fall * s + gain * x_t
            s = self.spike(v - theta)
            spikes.append(s)
        return torch.stack(spikes)

    def extra_repr(self) -> str:
        return f'num_steps={self.num_steps}, v_threshold={self.v_threshold}, surrogate={self.surrogate}'
