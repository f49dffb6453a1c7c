"""The settings of a leaky integrate-and-fire neuron: one value, checked once, that every op and backend takes whole."""

import functools
import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from .surrogate import SURROGATES, Sigmoid, Surrogate, as_constant, constant, get_surrogate

__all__ = ['Learned', 'Neuron', 'describe_neuron', 'membrane_dtype']


@dataclass(frozen=True)
class Neuron:
    """Settings of the neuron of `timm_snn.ops.lif`, which has its equations.

    Args:
        tau: Membrane time constant in steps, at least 1; None if it is learned, and a tensor beside the input then.
            math.inf, with decay_input=False, is the integrate-and-fire neuron, which does not leak.
        v_threshold: In units of the membrane, which are those of the input.
        v_reset: Membrane after a spike and at rest; None for a soft reset, with rest at 0.
        decay_input: Whether the input is divided by tau as well.
        surrogate: Gradient of the spike.
        detach_reset: Whether the reset is a constant in the backward pass.

    Raises: ValueError for settings with which a neuron grows without bounds, always fires or never can.
    """

    tau: float | None = 2.0
    v_threshold: float = 1.0
    v_reset: float | None = 0.0
    decay_input: bool = True
    surrogate: Surrogate = field(default_factory=Sigmoid)
    detach_reset: bool = True

    def __post_init__(self) -> None:
        for name, value in (('v_reset', self.v_reset), ('the alpha of the surrogate', self.surrogate.alpha)):
            if isinstance(value, Tensor):  # which kernels would read as a number, without a gradient
                raise ValueError(f'lif takes tensors for tau and v_threshold: {name} must be a number, got {value!r}')
        if self.tau is not None and not 1 <= self.tau <= math.inf:
            raise ValueError(f'lif needs 1 <= tau steps, got tau={self.tau}')
        if self.tau == math.inf and self.decay_input:
            raise ValueError(
                'lif with tau=inf, which does not leak, needs decay_input=False: an input divided by tau would be 0'
            )
        if not -math.inf < self.v_rest < self.v_threshold < math.inf:
            raise ValueError(
                'lif needs a finite v_threshold above the resting potential, which is v_reset, or 0 for a soft reset: '
                f'got v_threshold={self.v_threshold}, v_reset={self.v_reset}'
            )

    @property
    def key(self) -> str:
        """All of it as one string, which the schema of an operator can hold; for a surrogate of the table."""
        numbers = (self.tau, self.v_threshold, self.v_reset, self.surrogate.alpha)
        words = ['' if number is None else float(number).hex() for number in numbers]
        return ' '.join([*words, self.surrogate.name, str(int(self.decay_input)), str(int(self.detach_reset))])

    @staticmethod
    @functools.cache
    def from_key(key: str) -> 'Neuron':
        """The neuron with this key."""
        *numbers, surrogate, decay_input, detach_reset = key.split(' ')
        tau, v_threshold, v_reset, alpha = (float.fromhex(word) if word else None for word in numbers)
        return Neuron(
            tau,
            v_threshold,  # type: ignore[arg-type]
            v_reset,
            decay_input == '1',
            SURROGATES[surrogate](alpha),  # type: ignore[arg-type]
            detach_reset == '1',
        )

    @property
    def v_rest(self) -> float:
        """The resting potential."""
        return 0.0 if self.v_reset is None else self.v_reset

    @property
    def inverse_is_exact(self) -> bool:
        """Whether a product with 1 / tau rounds like the division, so that it gives the same spikes."""
        return self.tau is not None and math.frexp(self.tau)[0] == 0.5  # a power of two

    def as_constants(self) -> 'Neuron':
        """The same, with numbers that are constants to torch.compile."""
        if not torch.compiler.is_compiling():
            return self
        return Neuron(
            None if self.tau is None else constant(self.tau),
            constant(self.v_threshold),
            None if self.v_reset is None else constant(self.v_reset),
            self.decay_input,
            as_constant(self.surrogate),
            self.detach_reset,
        )


class Learned(NamedTuple):
    """The settings of a neuron that are tensors, of one element or of one for each channel, and may have a gradient.

    `scale` is (v_threshold - r) / (the number in `Neuron` - r), with r at rest. A neuron with a learned threshold does
    what one with that number does when it is fed x / scale; its own membrane is r + (v - r) / scale.
    """

    tau: Tensor | None = None
    scale: Tensor | None = None

    @property
    def is_by_channel(self) -> bool:
        """Whether channels differ in tau, which kernels that fuse the neuron with others do not take."""
        return self.tau is not None and self.tau.numel() > 1

    def of(self, x: Tensor) -> 'Learned':
        """The same on the device of x [T, B, C, ...], shaped as backends take them: () or [C].

        Raises: ValueError for another number of elements.
        """
        if self.tau is None and self.scale is None:  # the usual case, at the cost of one call
            return self
        return Learned(_of(x, 'tau', self.tau), _of(x, 'v_threshold', self.scale))


def _of(x: Tensor, name: str, learned: Tensor | None) -> Tensor | None:
    if learned is None:
        return None
    channels = x.shape[2] if x.ndim > 2 else 1
    if learned.numel() not in (1, channels):
        raise ValueError(
            f'lif needs one {name} for all neurons, or one for each of the C channels of x [T, B, C, ...]: got '
            f'{tuple(learned.shape)} for x {tuple(x.shape)}'
        )
    return learned.to(x.device).reshape(() if learned.numel() == 1 else -1)


def by_channel(numbers: Tensor, ndim: int) -> Tensor:
    """() or [C] -> what is broadcast over the channels of a step [B, C, ...] of `ndim` axes."""
    return numbers if numbers.ndim == 0 else numbers.view(-1, *[1] * (ndim - 2))


def describe_neuron(
    tau: float | Tensor,
    v_threshold: float | Tensor,
    v_reset: float | None,
    decay_input: bool,
    surrogate: str | Surrogate,
    detach_reset: bool,
) -> tuple[Neuron, 'Learned']:
    """The neuron of these settings, and those that are tensors. Raises ValueError for settings out of range."""
    learned_tau, scale = tau if isinstance(tau, Tensor) else None, None
    if isinstance(v_threshold, Tensor):
        v_rest = 0.0 if v_reset is None else v_reset
        scale, v_threshold = v_threshold - v_rest, v_rest + 1.0
    number = None if isinstance(tau, Tensor) else tau
    neuron = Neuron(number, v_threshold, v_reset, decay_input, get_surrogate(surrogate), detach_reset)
    return neuron, Learned(learned_tau, scale)


def membrane_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for half precision, which would lose spikes in the accumulation; otherwise the dtype itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
