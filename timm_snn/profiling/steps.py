"""T, measured from what the neurons of a network see while it runs."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..layers import LIF, neurons
from ..layers.fixed import FixedLevels, FixedLIF
from ..ops.backend import Backend

__all__ = ['Steps', 'WatchedBackend', 'is_neuron', 'is_ours']


def is_ours(module: nn.Module) -> bool:
    """True for our neurons, in whole numbers too, and those that a user registered, which see [T, B, ...]."""
    registered = tuple(layer for name in neurons.names() if isinstance(layer := neurons.get(name), type))
    return isinstance(module, (LIF, FixedLIF, FixedLevels, *registered))


def is_neuron(module: nn.Module) -> bool:
    """True for ours, and for those that declare themselves by a threshold.

    These are other libraries': SpikingJelly's have a `v_threshold`, snnTorch's a `threshold` and a `reset_mechanism`.
    """
    return (
        is_ours(module)
        or isinstance(getattr(module, 'v_threshold', None), (float, Tensor))
        or (hasattr(module, 'threshold') and hasattr(module, 'reset_mechanism'))
    )


class Steps:
    """Counts the steps of every neuron in one call of a network.

    A neuron that sees [T, B, ...] runs T steps in one call; one that sees [B, ...] runs one step in each. Which kind
    one is of other libraries says its `step_mode`, or its first call with a batch of one sample.
    """

    def __init__(self) -> None:
        self._sees_time: dict[nn.Module, bool] = {}
        self.begin()

    def begin(self) -> None:
        self._at_once: set[int] = set()
        self._single: dict[str, int] = {}  # calls for one step, by module
        self._one_by_one: dict[nn.Module, int] = {}
        self._streams: list[tuple[Tensor, int]] = []  # last membranes and the steps until there

    def sees_time(self, neuron: Any, x: Tensor) -> bool:
        """Whether x, of one sample in the first call, is [T, B, ...]. Raises: ValueError where it cannot be told."""
        if is_ours(neuron) or getattr(neuron, 'step_mode', None) in ('m', 's'):
            return getattr(neuron, 'step_mode', 'm') == 'm'
        if neuron not in self._sees_time:
            if x.shape[0] != 1 and (x.ndim < 2 or x.shape[1] != 1):
                raise ValueError(
                    f'expected neurons to see [T, B, ...] or [B, ...]; a {type(neuron).__name__} sees '
                    f'{tuple(x.shape)} for one sample'
                )
            self._sees_time[neuron] = x.shape[0] != 1
        return self._sees_time[neuron]

    def see(self, neuron: nn.Module, x: Tensor) -> None:
        """A call of a neuron that is a module."""
        if not self.sees_time(neuron, x):
            self._one_by_one[neuron] = self._one_by_one.get(neuron, 0) + 1
        elif not isinstance(neuron, LIF):  # whose backend is watched
            self._at_once.add(len(x))

    def see_call(self, place: str, x: Tensor, v: Tensor | None, v_last: Tensor, needs_v: bool) -> None:
        """A call of `lif`, or with `needs_v` of `lif_stream`, which goes on where one of before has ended."""
        if not needs_v and len(x) == 1:
            self._single[place] = self._single.get(place, 0) + 1
        elif not needs_v:
            self._at_once.add(len(x))
        elif v is None:
            self._streams.append((v_last, len(x)))
        else:
            self._streams = [(v_last, n + len(x)) if last is v else (last, n) for last, n in self._streams]

    def measured(self, wanted: int | None) -> int | None:
        """T, or None where no neuron was seen; `wanted` if that may be T.

        A neuron at several places of the network is seen several times in a step, as is one without memory that is
        called for one step at a time. Raises: ValueError for neurons with different T, and where T cannot be told.
        """
        sure = self._at_once | set(self._one_by_one.values()) | {steps for _, steps in self._streams}
        several = set(self._single.values())
        if wanted and (wanted in sure or (several and not sure)) and not any(n % wanted for n in sure | several):
            return wanted
        T = min(sure or several, default=None)
        if len(sure) > 1 or any(n % T for n in several if T):
            raise ValueError(
                f'neurons of this network run for different numbers of steps, {sorted(sure | several)}: profile its '
                'parts by themselves, or pass num_steps if neurons are used several times in a step'
            )
        if not sure and T != 1 and several:
            raise ValueError(
                f'lif is called {T} times for one step each, which may be T={T} or {T} neurons: pass num_steps'
            )
        return T


class WatchedBackend:
    """A backend of the neuron whose calls are shown to `see(x, v, spikes, v_last, needs_v)`; it fuses nothing."""

    def __init__(self, backend: Backend, see: Callable[..., None]) -> None:
        self.backend, self.see = backend, see
        self.adds_bias = False

    def lif(self, x: Tensor, v: Tensor | None, tau: Any, neuron: Any, needs_v: bool) -> tuple[Tensor, Tensor]:
        spikes, v_last = self.backend.lif(x, v, tau, neuron, needs_v)
        self.see(x, v, spikes, v_last, needs_v)
        return spikes, v_last

    def fused(self, op: str) -> None:
        return None
