"""What neurons share that `timm_snn.lif` does not cover: they run in plain torch, and nothing else has to know them."""

from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..ops.lif import check_input
from ..ops.neuron import Neuron, membrane_dtype
from ..ops.surrogate import Surrogate, get_surrogate, spike

__all__ = ['FixedSteps', 'LeakyNeuron', 'StepwiseNeuron', 'TorchNeuron']


class TorchNeuron(nn.Module):
    """A neuron in plain torch, stateless: a subclass has `fire`, from currents to spikes.

    The membrane is float32 for float16 and bfloat16, and autocast does not touch it. torch.compile fuses the steps with
    each other and with what surrounds them. `backend` may be None, 'auto' or 'torch', and switches for the whole
    process, which are for `lif`, do not concern it.

    Shape: [T, B, ...] -> spikes [T, B, ...], in the dtype of the input.
    Raises: ValueError for settings out of range, another backend, or input that is no sequence of currents.
    """

    def __init__(self, surrogate: str | Surrogate, backend: str | None) -> None:
        super().__init__()
        if backend not in (None, 'auto', 'torch'):
            raise ValueError(
                f"{type(self).__name__} runs in plain torch, backend 'torch', and was asked for {backend!r}: the "
                "others run 'lif' and what is made of it"
            )
        self.surrogate = get_surrogate(surrogate)

    def forward(self, x: Tensor) -> Tensor:
        check_input(x)
        without_autocast = nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)  # meta has none
        with without_autocast:
            return self.fire(x.to(membrane_dtype(x.dtype))).to(x.dtype)

    def fire(self, x: Tensor) -> Tensor:
        """Spikes of the currents x [T, B, ...], both in the membrane's dtype."""
        raise NotImplementedError

    def spike(self, x: Tensor) -> Tensor:
        """`timm_snn.ops.spike` with the surrogate of this neuron."""
        return spike(x, self.surrogate)


class StepwiseNeuron(TorchNeuron):
    """A neuron whose steps follow from each other: a subclass has `rest` and `step`.

    Its state is a tensor for each of `state_names`, of which the first is the membrane after the reset.
    """

    state_names: ClassVar[tuple[str, ...]] = ('v',)

    def fire(self, x: Tensor) -> Tensor:
        return self._run(x, self.rest(x))[0]

    def stream(self, x: Tensor, state: dict[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The next steps of a stream (`timm_snn.stream`): from the state after the last ones, or at rest, on."""
        currents = x.to(membrane_dtype(x.dtype))
        before = self.rest(currents) if state is None else tuple(state[name] for name in self.state_names)
        spikes, after = self._run(currents, before)
        return spikes.to(x.dtype), dict(zip(self.state_names, after, strict=True))

    def rest(self, x: Tensor) -> tuple[Tensor, ...]:
        """The state before the first step, of tensors that broadcast to a step of x."""
        return tuple(x.new_zeros(()) for _ in self.state_names)  # of no size: an export would keep that of its example

    def step(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """The spikes of one step [B, ...], and the state after it."""
        raise NotImplementedError

    def _run(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        spikes = []
        for x_t in x.unbind(0):
            s, *after = self.step(x_t, *state)
            state = tuple(after)
            spikes.append(s)
        return torch.stack(spikes), state


class LeakyNeuron(StepwiseNeuron):
    """A neuron with the membrane of `timm_snn.lif`, and its settings, that fires by a rule of its own."""

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
        super().__init__(surrogate, backend)
        self.neuron = Neuron(tau, v_threshold, v_reset, decay_input, self.surrogate, detach_reset)

    @property
    def v_threshold(self) -> float:
        return self.neuron.v_threshold

    def rest(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.new_full((), self.neuron.v_rest), *super().rest(x)[1:]

    def charge(self, x: Tensor, v: Tensor) -> Tensor:
        """h, the membrane v after the current x, before it fires."""
        tau: Any = self.neuron.tau
        leak = v - self.neuron.v_rest
        return v + (x - leak) / tau if self.neuron.decay_input else v - leak / tau + x

    def reset(self, h: Tensor, fired: Tensor, fall: Tensor) -> Tensor:
        """The membrane after the step: at v_reset where the neuron `fired`; lower by `fall` with a soft reset."""
        if self.neuron.v_reset is None:
            return h - (fall.detach() if self.neuron.detach_reset else fall)
        v = torch.where(fired > 0, self.neuron.v_reset, h)  # by a choice, since 0 times an infinite h is NaN
        if self.neuron.detach_reset:
            return v
        return v + (fired - fired.detach()) * torch.where(h.isinf(), 0.0, self.neuron.v_reset - h)

    def extra_repr(self) -> str:
        return f'{self.neuron}'.removeprefix('Neuron(').removesuffix(')')


class FixedSteps:
    """Mixin for neurons with parameters for every step, which they make when they are told T.

    The models of this package tell it: they call `set_num_steps` of every layer that has it when they are made, and
    when `num_steps` is assigned. A layer by itself is given `num_steps`, or told so before it is used.
    """

    num_steps: int | None = None

    def set_num_steps(self, num_steps: int) -> None:
        """Make the parameters for T steps. Raises: ValueError if there are some for another number of steps."""
        if self.num_steps is None:
            self.make_parameters(num_steps)
            self.num_steps = num_steps
        self.check_num_steps(num_steps)

    def make_parameters(self, num_steps: int) -> None:
        raise NotImplementedError

    def check_num_steps(self, num_steps: int) -> None:
        """Raises: ValueError for a number of steps that there are no parameters for."""
        name = type(self).__name__
        if self.num_steps is None:
            raise ValueError(f'{name} has parameters for every step and was not told T: make it with num_steps=T')
        if num_steps != self.num_steps:
            raise ValueError(
                f'{name} has parameters for each of {self.num_steps} steps, and cannot run {num_steps}: make and train '
                f"a model with num_steps={num_steps}, or with a neuron for any number of steps, as 'sliding_psn'"
            )
