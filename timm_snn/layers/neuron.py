"""Neuron layers: `timm_snn.ops.lif` and `integer_spikes` with their settings, as modules, and ReLU in their place."""

import math
from dataclasses import replace
from typing import Any

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn

from ..ops import Surrogate
from ..ops.backend import check_backend
from ..ops.integer import check_levels, count_spikes
from ..ops.lif import fire, fire_on
from ..ops.neuron import Learned, Neuron
from ..ops.surrogate import get_surrogate
from .registry import LayerFn, neurons

__all__ = ['FUSED', 'IF', 'LIF', 'IntegerNeuron', 'ParametricLIF', 'ReluNeuron', 'neuron_for']

_SETTINGS = ('tau', 'v_threshold', 'v_reset', 'decay_input', 'surrogate', 'detach_reset')


@register_notrace_module  # checks and the choice of backend are Python, a leaf for torch.fx
@neurons.register('lif')
class LIF(nn.Module):
    """Leaky integrate-and-fire neuron (`timm_snn.ops.lif`), stateless: every call starts at rest.

    With `learn_threshold` the threshold is learned, from `v_threshold` on, and stays above the resting potential r: it
    is r + (v_threshold - r) * exp(log_threshold), with a parameter that begins at 0. The current is divided by the
    exponential, and so the surrogate is taken in units of the threshold: at first it is that of the fixed neuron.
    snnTorch's `learn_threshold` subtracts a threshold of any sign.

    `per_channel` is C if what is learned has a value for each channel of [T, B, C, ...], else there is one for all.
    The layers of a model pass it: `lif_kwargs=dict(learn_threshold=True, per_channel=True)`.

    Shape: [T, B, ...] -> spikes [T, B, ...] in {0, 1}.
    Raises: ValueError for settings out of range.
    """

    log_threshold: nn.Parameter | None

    def __init__(
        self,
        tau: float = 2.0,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        decay_input: bool = True,
        surrogate: str | Surrogate = 'sigmoid',
        detach_reset: bool = True,
        backend: str | None = None,
        learn_threshold: bool = False,
        per_channel: int | bool = False,
    ) -> None:
        super().__init__()
        if isinstance(tau, Tensor):
            raise ValueError(
                'the tau of LIF is a number: ParametricLIF learns it, for each channel if it starts at a tensor, and '
                'timm_snn.lif takes a tensor'
            )
        if isinstance(v_threshold, Tensor):
            raise ValueError(
                'the v_threshold of LIF is a number: learn_threshold=True learns it, and timm_snn.lif takes a tensor'
            )
        if per_channel is True:
            raise ValueError('LIF needs the number of channels, per_channel=C; layers of a model fill it in for True')
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
        self.learn_threshold = learn_threshold
        self.per_channel = int(per_channel)
        self.register_parameter('log_threshold', nn.Parameter(self._per_channel(0.0)) if learn_threshold else None)

    def _per_channel(self, number: float) -> Tensor:
        """A value to learn: (), or [C] with `per_channel`."""
        return torch.full((self.per_channel,) if self.per_channel else (), number)

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
            return self._scripted(x, torch.tensor(self.tau, dtype=torch.float64))
        return self._fire(x)

    def _scripted(self, x: Tensor, tau: Tensor) -> Tensor:
        log_threshold = self.log_threshold
        if log_threshold is not None:
            x = (x / _of_step(_in_membrane_dtype(log_threshold).exp(), x)).to(x.dtype)
        return _scripted_lif(x, tau, self.v_threshold, self.v_reset, self.decay_input)

    @torch.jit.unused
    def learned(self) -> Learned:
        """The settings that are tensors, for the ops that take them."""
        scale = _in_membrane_dtype(self.log_threshold).exp() if self.learn_threshold else None  # type: ignore[arg-type]
        return Learned(self.learned_tau(), scale)

    @torch.jit.unused
    def learned_tau(self) -> Tensor | None:
        """The time constant, () or [C], if it is learned."""
        return None

    @torch.jit.unused
    def learned_threshold(self) -> Tensor | None:
        """The threshold, () or [C], if it is learned, in units of the current."""
        scale, v_rest = self.learned().scale, self.neuron.v_rest
        return None if scale is None else v_rest + (self.v_threshold - v_rest) * scale

    def _refuse_scripted_training(self) -> None:
        if self.training:
            raise RuntimeError(
                'a scripted neuron has no surrogate gradient: train the eager model, script model.eval()'
            )

    @torch.jit.unused
    def _fire(self, x: Tensor) -> Tensor:
        return fire(x, self.neuron, self.learned(), self.backend)

    def stream(self, x: Tensor, state: dict[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The next steps of a stream (`timm_snn.stream`): from the state after the last ones, or at rest, on."""
        spikes, v = fire_on(x, None if state is None else state['v'], self.neuron, self.learned(), self.backend)
        return spikes, {'v': v}

    def extra_repr(self) -> str:
        names = [*_SETTINGS, 'backend', *(name for name in ('learn_threshold', 'per_channel') if getattr(self, name))]
        return ', '.join(f'{name}={getattr(self, name)}' for name in names)


@register_notrace_module
@neurons.register('plif')
class ParametricLIF(LIF):
    """LIF whose time constant is learned, one for the layer (arXiv 2007.05785): 1/tau = sigmoid(w), so tau > 1.

    `tau` is the initial value and must be above 1. With `per_channel`, or a tensor as tau, each channel has its own:
    `ParametricLIF(torch.linspace(1.5, 8.0, 64)).requires_grad_(False)` has 64 time constants and learns none.

    Shape: as `LIF`.
    """

    def __init__(self, tau: float | Tensor = 2.0, per_channel: int | bool = False, **kwargs) -> None:
        taus = torch.as_tensor(tau, dtype=torch.float64, device='cpu')  # with values, whatever the default device
        if isinstance(tau, Tensor) and tau.ndim and not per_channel:
            per_channel = len(tau)
        if taus.ndim > 1 or (taus.ndim == 1 and len(taus) != per_channel) or not ((taus > 1) & (taus < math.inf)).all():
            raise ValueError(f'ParametricLIF needs an initial tau > 1, got {tau}: a number, or one for each channel')
        super().__init__(tau=taus.mean().item(), per_channel=per_channel, **kwargs)
        self.w = nn.Parameter(self._per_channel(0.0).copy_(-(taus - 1).log()))

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            self._refuse_scripted_training()
            return self._scripted(x, self.learned_tau())
        return self._fire(x)

    stream = LIF.stream  # of this class, whose `forward` differs in TorchScript alone

    def _checked(self) -> Neuron:
        return replace(super()._checked(), tau=None)

    def learned_tau(self) -> Tensor:
        return 1 + torch.exp(-_in_membrane_dtype(self.w))

    def extra_repr(self) -> str:
        return f'initial {super().extra_repr()}'  # begins with tau


@neurons.register('integer')
class IntegerNeuron(nn.Module):
    """Integer spikes of spike firing approximation (`timm_snn.ops.integer_spikes`, arXiv 2411.16061).

    One step stands for `levels` steps of binary spikes, and steps know nothing of each other. It is plain torch, in few
    passes over memory and one byte kept for the backward pass; torch.compile fuses it with what surrounds it. `backend`
    may be None, 'auto' or 'torch', and switches for the whole process, which are for membranes, do not concern it.

    Shape: [T, B, ...] -> [T, B, ...] in 0, 1, ..., levels, divided by levels with `normalize`.
    Raises: ValueError for settings out of range, or another backend.
    """

    memoryless = True

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


@register_notrace_module
@neurons.register('if')
class IF(LIF):
    """Integrate-and-fire neuron: `LIF` with tau = inf, whose membrane is the sum of its currents and does not leak.

    Shape: as `LIF`.
    """

    def __init__(self, v_threshold: float = 1.0, **kwargs) -> None:
        super().__init__(math.inf, v_threshold, decay_input=False, **kwargs)


FUSED = (LIF, ParametricLIF, IF)  # of these very classes, settings are all there is to know: an op may stand for them


@neurons.register('relu')
class ReluNeuron(nn.ReLU):
    """ReLU where a model has a neuron: with `act='relu'` the model is the artificial twin of a spiking one.

    It is called as neurons are and has none of their settings. Attention computes the same products, sums and masks,
    of real values: where a spike of the neuron in the middle let a key pass or not (MSSA, QKTA, SDSA), the rectified
    sum scales it; where spikes were counted (SSA), products of real values are summed, without a softmax; where firing
    rates scale (DSSA), they are mean activations. Sums over the tokens grow with the image, which a neuron would bound:
    a twin may fail in another size than that which it was trained in.

    Shape: [T, B, ...] -> the same. Steps know nothing of each other.
    """

    memoryless = True

    def __init__(self, **settings: Any) -> None:
        super().__init__()


def neuron_for(channels: int, lif_layer: LayerFn, **settings: Any) -> nn.Module:
    """A neuron for [T, B, channels, ...], which is told how many there are if it was asked to be `per_channel`."""
    if getattr(lif_layer, 'keywords', {}).get('per_channel'):
        settings['per_channel'] = channels
    return lif_layer(**settings)


def _in_membrane_dtype(x: Tensor) -> Tensor:
    """`membrane_dtype`, for TorchScript."""
    return x.float() if x.dtype == torch.float16 or x.dtype == torch.bfloat16 else x


def _of_step(numbers: Tensor, x: Tensor) -> Tensor:
    """`timm_snn.ops.neuron.by_channel`, for TorchScript."""
    return numbers if numbers.ndim == 0 else numbers.view([-1] + [1] * (x.ndim - 3))


def _scripted_lif(x: Tensor, tau: Tensor, v_threshold: float, v_reset: float | None, decay_input: bool) -> Tensor:
    """The forward pass of `reference` in what TorchScript can compile: no surrogate gradient, no choice of backend."""
    v_rest = 0.0 if v_reset is None else v_reset
    current = _in_membrane_dtype(x)
    v = torch.full_like(current[0], v_rest)
    divisor = _of_step(tau.to(current), x)
    spikes: list[Tensor] = []
    for x_t in current.unbind(0):
        leak = v - v_rest
        h = v + (x_t - leak) / divisor if decay_input else v - leak / divisor + x_t
        fires = h >= v_threshold
        s = torch.where(h.isnan(), h, fires.to(h.dtype))
        v = h - s * v_threshold if v_reset is None else h.masked_fill(fires, v_rest)
        spikes.append(s)
    return torch.stack(spikes).to(x.dtype)
