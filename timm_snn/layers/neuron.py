"""Neuron layers: `timm_snn.ops.lif` and `integer_spikes` with their settings, as modules, and ReLU in their place."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn

from ..ops import Surrogate
from ..ops.backend import check_backend
from ..ops.integer import check_levels, count_spikes
from ..ops.lif import fire
from ..ops.neuron import Neuron
from ..ops.surrogate import get_surrogate
from .registry import neurons

__all__ = ['LIF', 'IntegerNeuron', 'ParametricLIF', 'ReluNeuron']

_SETTINGS = ('tau', 'v_threshold', 'v_reset', 'decay_input', 'surrogate', 'detach_reset')


@register_notrace_module  # checks and the choice of backend are Python, a leaf for torch.fx
@neurons.register('lif')
class LIF(nn.Module):
    """Leaky integrate-and-fire neuron (`timm_snn.ops.lif`), stateless: every call starts at rest.

    Shape: [T, B, ...] -> spikes [T, B, ...] in {0, 1}.
    Raises: ValueError for settings out of range.
    """

    def __init__(
        self,
        tau: float = 2.0,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        decay_input: bool = True,
        surrogate: str | Surrogate = 'sigmoid',
        detach_reset: bool = True,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        if isinstance(tau, Tensor):
            raise ValueError('the tau of LIF is a number: ParametricLIF learns it, and timm_snn.lif takes a tensor')
        if backend is not None:
            check_backend(backend, 'the argument `backend`')
        self.tau = float(tau)
        self.v_threshold = float(v_threshold)
        self.v_reset = None if v_reset is None else float(v_reset)
        self.decay_input = decay_input
        self.surrogate = get_surrogate(surrogate)
        self.detach_reset = detach_reset
        self.backend = backend
        self.neuron = self._checked()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in _SETTINGS and hasattr(self, 'neuron'):  # assigned after the constructor
            self.neuron = self._checked()

    def _checked(self) -> Neuron:
        """All settings as one value. Raises ValueError for settings out of range."""
        return Neuron(self.tau, self.v_threshold, self.v_reset, self.decay_input, self.surrogate, self.detach_reset)

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            self._refuse_scripted_training()
            return _scripted_lif(x, self.tau, self.v_threshold, self.v_reset, self.decay_input)
        return self._fire(x)

    @torch.jit.unused
    def arguments(self) -> dict[str, Any]:
        """What `timm_snn.ops.lif`, and the ops that it is fused into, are called with."""
        learned = self.learned_tau()
        return dict(
            tau=self.tau if learned is None else learned,
            v_threshold=self.v_threshold,
            v_reset=self.v_reset,
            decay_input=self.decay_input,
            surrogate=self.surrogate,
            detach_reset=self.detach_reset,
            backend=self.backend,
        )

    @torch.jit.unused
    def learned_tau(self) -> Tensor | None:
        """The time constant, of one element, if it is learned."""
        return None

    def _refuse_scripted_training(self) -> None:
        if self.training:
            raise RuntimeError(
                'a scripted neuron has no surrogate gradient: train the eager model, script model.eval()'
            )

    @torch.jit.unused
    def _fire(self, x: Tensor) -> Tensor:
        return fire(x, self.learned_tau(), self.neuron, self.backend)

    def extra_repr(self) -> str:
        return ', '.join(f'{name}={getattr(self, name)}' for name in (*_SETTINGS, 'backend'))


@register_notrace_module
@neurons.register('plif')
class ParametricLIF(LIF):
    """LIF whose time constant is learned, one for the layer (arXiv 2007.05785): 1/tau = sigmoid(w), so tau > 1.

    `tau` is the initial value and must be above 1. Shape: as `LIF`.
    """

    def __init__(self, tau: float = 2.0, **kwargs) -> None:
        if not 1 < tau < math.inf:
            raise ValueError(f'ParametricLIF needs an initial tau > 1, got {tau}')
        super().__init__(tau=tau, **kwargs)
        self.w = nn.Parameter(torch.tensor(-math.log(tau - 1)))

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            self._refuse_scripted_training()
            return _scripted_lif(x, self.learned_tau().item(), self.v_threshold, self.v_reset, self.decay_input)
        return self._fire(x)

    def _checked(self) -> Neuron:
        return replace(super()._checked(), tau=None)

    def learned_tau(self) -> Tensor:
        return 1 + torch.exp(-_in_membrane_dtype(self.w))

    def extra_repr(self) -> str:
        return f'initial {super().extra_repr()}'  # begins with tau


@neurons.register('integer')
class IntegerNeuron(nn.Module):
    """Integer spikes of spike firing approximation (`timm_snn.ops.integer_spikes`, arXiv 2411.16061).

    One step stands for `levels` steps of binary spikes, and steps know nothing of each other. It is plain torch, which
    torch.compile fuses with what surrounds it: `backend` may be None, 'auto' or 'torch', and switches for the whole
    process, which are for membranes, do not concern it.

    Shape: [T, B, ...] -> [T, B, ...] in 0, 1, ..., levels, divided by levels with `normalize`.
    Raises: ValueError for settings out of range, or another backend.
    """

    def __init__(
        self, levels: int = 4, v_threshold: float = 1.0, normalize: bool = True, backend: str | None = None
    ) -> None:
        super().__init__()
        check_levels(levels, v_threshold)
        if backend not in (None, 'auto', 'torch'):
            raise ValueError(f"the integer neuron runs in plain torch, backend 'torch', and was asked for {backend!r}")
        self.levels = levels
        self.v_threshold = float(v_threshold)
        self.normalize = normalize

    def forward(self, x: Tensor) -> Tensor:
        return count_spikes(x, self.levels, self.v_threshold, self.normalize)

    def extra_repr(self) -> str:
        return f'levels={self.levels}, v_threshold={self.v_threshold}, normalize={self.normalize}'


neurons.register('if')(partial(LIF, tau=math.inf, decay_input=False))  # integrate-and-fire: the membrane does not leak


@neurons.register('relu')
class ReluNeuron(nn.ReLU):
    """ReLU where a model has a neuron: with `act='relu'` the model is the artificial twin of a spiking one.

    It is called as neurons are and has none of their settings. Attention computes the same products, sums and masks,
    of real values: where a spike of the neuron in the middle let a key pass or not (MSSA, QKTA, SDSA), the rectified
    sum scales it; where spikes were counted (SSA), products of real values are summed, without a softmax; where firing
    rates scale (DSSA), they are mean activations.

    Shape: [T, B, ...] -> the same. Steps know nothing of each other.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__()


def _in_membrane_dtype(x: Tensor) -> Tensor:
    """`membrane_dtype`, for TorchScript."""
    return x.float() if x.dtype == torch.float16 or x.dtype == torch.bfloat16 else x


def _scripted_lif(x: Tensor, tau: float, v_threshold: float, v_reset: float | None, decay_input: bool) -> Tensor:
    """The forward pass of `reference` in what TorchScript can compile: no surrogate gradient, no choice of backend."""
    v_rest = 0.0 if v_reset is None else v_reset
    current = _in_membrane_dtype(x)
    v = torch.full_like(current[0], v_rest)
    spikes: list[Tensor] = []
    for x_t in current.unbind(0):
        leak = v - v_rest
        h = v + (x_t - leak) / tau if decay_input else v - leak / tau + x_t
        fires = h >= v_threshold
        s = torch.where(h.isnan(), h, fires.to(h.dtype))
        v = h - s * v_threshold if v_reset is None else h.masked_fill(fires, v_rest)
        spikes.append(s)
    return torch.stack(spikes).to(x.dtype)
