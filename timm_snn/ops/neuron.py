"""The settings of a leaky integrate-and-fire neuron: one value, checked once, that every op and backend takes whole."""

import functools
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .surrogate import SURROGATES, Sigmoid, Surrogate, as_constant, constant, get_surrogate

__all__ = ['Neuron', 'describe_neuron', 'membrane_dtype']


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


def describe_neuron(
    tau: float | Tensor,
    v_threshold: float,
    v_reset: float | None,
    decay_input: bool,
    surrogate: str | Surrogate,
    detach_reset: bool,
) -> tuple[Neuron, Tensor | None]:
    """The neuron of these settings, and its tau if that is learned. Raises ValueError for settings out of range."""
    if not isinstance(tau, Tensor):
        return Neuron(tau, v_threshold, v_reset, decay_input, get_surrogate(surrogate), detach_reset), None
    if tau.numel() != 1:
        raise ValueError(f'lif needs one tau for all neurons, got a tensor of shape {tuple(tau.shape)}')
    return Neuron(None, v_threshold, v_reset, decay_input, get_surrogate(surrogate), detach_reset), tau


def membrane_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for half precision, which would lose spikes in the accumulation; otherwise the dtype itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
