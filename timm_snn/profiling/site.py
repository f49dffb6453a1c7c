"""Sites: the places of a model where something is counted, and what was seen there.

A `Site` is a row of the report and adds up the calls of one module: what enters, what is computed from it, what fires.
A `Record` holds all sites of a run, in the order of execution, and what they share.
"""

from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor

from .counts import Activity, Counts, Measured, Operation

__all__ = ['Record', 'Site']

Counter = TypeVar('Counter', Activity, Operation)


class Site:
    """A place in the model: what enters, what is computed from it, and what fires."""

    def __init__(self, record: 'Record', name: str, kind: str) -> None:
        self.record, self.name, self.kind = record, name, kind
        self.input: Activity | None = None
        self.output: Activity | None = None
        self.operations: dict[int, Operation] = {}
        self.neurons = 0  # per sample
        self.state_bytes = 0  # of their membranes
        self._calls = 0  # operations of this batch
        self._updates = 0  # of the neurons for a sample of this batch
        self._membrane_bytes = 4

    def operate(self, kind: str, operands: Sequence[str | Tensor], counts: Counts, repeats: int = 1) -> None:
        """Add an operation, which stands for `repeats` equal ones.

        Operands are values [steps, B, ...], or the name of a unit beside this site for its spikes. That of a connection
        is the input of the site.
        """
        if kind == 'connection' and self.kind != 'product':
            index = 0  # a layer that runs several times, for one step each or at several places, is one operation
        else:
            self._calls += 1
            index = self._calls
        if index not in self.operations:
            self.operations[index] = self._new_operation(kind, operands)
        operation = self.operations[index]
        operation.add(counts, repeats)
        for activity, x in zip(operation.operands, operands, strict=True):
            if isinstance(x, Tensor):
                self._see(activity, x, repeats)

    def fire(self, spikes: Tensor) -> None:
        """Add what the neurons of this site put out, [T, B, ...]."""
        if self.output is None:
            self.output = self.record.activity()
        self._see(self.output, spikes)
        self._updates += len(spikes) * spikes[0, 0].numel()
        # the membrane is float32 for half precision and has the dtype of its input otherwise
        self._membrane_bytes = max(4, spikes.element_size())

    def end_batch(self) -> None:
        if self._updates:  # one module may stand for the neurons of several places
            self.neurons = self._updates // self.record.num_steps
            self.state_bytes = self.neurons * self._membrane_bytes
        self._calls = self._updates = 0

    def _new_operation(self, kind: str, operands: Sequence[str | Tensor]) -> Operation:
        seen = tuple(self._spikes_of(x) if isinstance(x, str) else self.record.activity() for x in operands)
        operation = self.record.follow(Operation(kind, seen))
        if kind == 'connection':
            self.record.note_connection(operation)
            if self.input is None:
                self.input = seen[0]
        return operation

    def _see(self, activity: Activity, x: Tensor, repeats: int = 1) -> None:
        try:
            activity.add(self.record.measure(x), repeats)
        except ValueError as error:
            raise ValueError(f'cannot profile {self.name or "the model"}: {error}') from error

    def _spikes_of(self, unit: str) -> Activity:
        output = self.record.sites[f'{self.name.rpartition(".")[0]}.{unit}'].output
        if output is None:
            raise ValueError(f'{self.name} needs the spikes of its unit {unit}, which has not run')
        return output


class Record:
    """The sites of a run over data, and the batches, which end for all of them together."""

    def __init__(self) -> None:
        self.sites: dict[str, Site] = {}
        self.batch_sizes: list[int] = []
        self.num_steps = 1
        self.static = True  # images; False for frames
        self._counters: list[Activity | Operation] = []
        self._has_connection = False
        # of the last tensors, which often enter several layers, and their versions
        self._measured: list[tuple[Tensor, int, Measured]] = []

    @property
    def num_samples(self) -> int:
        return sum(self.batch_sizes)

    def site(self, name: str, kind: str) -> Site:
        """The site of this name, a new one of this kind where there is none."""
        if name not in self.sites:
            self.sites[name] = Site(self, name, kind)
        return self.sites[name]

    def follow(self, counter: Counter) -> Counter:
        """End the batches of this counter from now on; one that comes late has seen nothing of those before."""
        for batch_size in self.batch_sizes:
            counter.end_batch(batch_size)
        self._counters.append(counter)
        return counter

    def activity(self) -> Activity:
        return self.follow(Activity())

    def note_connection(self, operation: Operation) -> None:
        """The first connection of a run is fed the model's input, which conventions charge by rules of their own."""
        operation.is_first, self._has_connection = not self._has_connection, True
        operation.static = self.static

    def measure(self, x: Tensor) -> Measured:
        if x.is_inference():  # of a model that enters that mode by itself; such tensors have no version
            return Measured(x)
        for known, version, measured in self._measured:
            if known is x and version == x._version:
                return measured
        measured = Measured(x)
        self._measured = [*self._measured[-3:], (x, x._version, measured)]
        return measured

    def end_batch(self, batch_size: int) -> None:
        self.forget_measured()
        for counter in self._counters:
            counter.end_batch(batch_size)
        for site in self.sites.values():
            site.end_batch()
        self.batch_sizes.append(batch_size)

    def forget_measured(self) -> None:
        """Let go of tensors that are held to recognise them."""
        self._measured.clear()
