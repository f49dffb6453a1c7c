"""`record`: what the neurons of a model do while it runs, as tensors with gradients."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..layers.neuron import FUSED
from ..ops.backends import reference
from ..ops.neuron import Neuron
from ..ops.switches import switched, switches
from ..wrappers import unwrapped
from .recorder import name_before_compiling
from .steps import is_neuron, is_ours

__all__ = ['Recording', 'record']


@contextmanager
def record(
    model: nn.Module, *, spikes: bool = True, membranes: bool = False, currents: bool = False
) -> Iterator['Recording']:
    """The spikes, membranes and currents of every neuron of a model, of each pass inside the `with` block.

        with timm_snn.record(model, membranes=True) as r:
            logits = model(images)
        loss = criterion(logits, labels) + r.spikes['stem.units.0.lif'].mean()

    In training and evaluation, with activation checkpointing too. Nothing in the model changes, and its hooks are gone
    at the end of the block. Blocks can be nested, and other models can run inside. A compiled model runs eagerly.

    Spikes alone are taken from the fused kernels, and all numbers stay to the bit; only the neuron inside MSSA leaves
    its kernel. Currents make units run part by part, and membranes make neurons run in plain torch, where rounding may
    differ in the last bit. `r.unfused` names the neurons of which that is so.

    Args:
        model: Any network; of one in a wrapper, as DistributedDataParallel, the model inside.
        spikes: What neurons put out.
        membranes: Potentials after integration and before the reset, of LIF and its kin.
        currents: What drives the neurons.

    Raises: ValueError for a scripted model, and where nothing is asked for.
    """
    model = unwrapped(model)
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise ValueError(f'expected a model, an nn.Module that is not scripted, got {type(model).__name__}')
    if not (spikes or membranes or currents):
        raise ValueError('there is nothing to record: ask for spikes, membranes or currents')
    recording = Recording(model, spikes, membranes, currents)
    with ExitStack() as stack:
        recording.attach(stack)
        stack.enter_context(torch.compiler.set_stance('force_eager'))  # what is compiled runs without hooks
        before = switches().watch
        outer = before if isinstance(before, _Watch) else _Watch((), before)
        stack.enter_context(switched(watch=_Watch((*outer.recordings, recording), outer.before)))
        yield recording


class Recording:
    """What the neurons of a model did in its last pass; `record` makes one.

    Attributes:
        model: The model, without wrappers.
        modules: Its modules by name, without the wrappers that torch.compile puts around parts.
        spikes, membranes, currents: By the name of a neuron in `model.named_modules()`, tensors [T, B, ...]. A neuron
            that runs several times in a pass is there as 'NAME', 'NAME#2' and so on; a call of `timm_snn.lif` by
            itself as 'MODULE.lif'. A new pass replaces what the last one left.
        unfused: Names of neurons that the recording has taken out of a kernel that they would run in.

    Spikes and currents are the tensors that the pass has gone through: a loss of them reaches the parameters, and
    `torch.autograd.grad(loss, r.currents[name])` is what reaches them. Membranes are a copy for losses. Currents and
    membranes are in the units of the current; where a threshold is learned, in those of its initial value.
    """

    def __init__(self, model: nn.Module, spikes: bool, membranes: bool, currents: bool) -> None:
        self.model = model
        self.modules = {name_before_compiling(name): module for name, module in model.named_modules()}
        self.spikes = _ByName('spikes', spikes)
        self.membranes = _ByName('membranes', membranes)
        self.currents = _ByName('currents', currents)
        self.unfused: list[str] = []
        self._names: dict[int, tuple[str, Neuron]] = {}  # of our neurons, by the identity of their settings
        self._path: list[str] = []  # of the modules that run now
        self._running: str | None = None  # a neuron whose module is watched; what runs inside is part of it
        self._ran: set[nn.Module] = set()  # in this pass
        self._calls: dict[str, int] = {}

    def __repr__(self) -> str:
        kinds = ', '.join(f'{values.kind} of {len(values)}' for values in self._kinds if values.is_wanted)
        return f'Recording({type(self.model).__name__}: {kinds} neurons; {len(self.unfused)} left fused kernels)'

    @property
    def _kinds(self) -> tuple['_ByName', ...]:
        return self.spikes, self.membranes, self.currents

    def attach(self, stack: ExitStack) -> None:
        """Watch the modules until the stack is closed: neurons of others, and who runs.

        Our neurons are known by their settings, and a hook would take them out of their kernels. So they have none,
        and neither have the layers around them that have no parts.
        """
        for name, module in self.modules.items():
            if type(module) in FUSED:
                self._names[id(module.neuron)] = name, module.neuron
            elif is_neuron(module):
                self._hook(module, stack, *self._watch_neuron(name))
                continue
            if module is self.model or any(module.children()) or not type(module).__module__.startswith(_PLAIN):
                self._hook(module, stack, lambda name=name: self._path.append(name), self._leave)

    def _hook(self, module: nn.Module, stack: ExitStack, begin: Callable[..., Any], end: Callable[..., Any]) -> None:
        def before(module: nn.Module, args: Any) -> None:
            if _in_backward():  # activation checkpointing runs it again
                return
            # by `forward`, or by a method of the model that calls its parts
            if not self._path and (module is self.model or module in self._ran):
                self._begin_pass()
            self._ran.add(module)
            begin()

        def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if not _in_backward():
                end(module, (*args, *kwargs.values()), output)

        stack.callback(module.register_forward_pre_hook(before).remove)
        # after an exception too
        stack.callback(module.register_forward_hook(after, with_kwargs=True, always_call=True).remove)

    def _begin_pass(self) -> None:
        self._ran.clear()
        self._calls.clear()
        for values in self._kinds:
            values.clear()

    def _leave(self, *_: Any) -> None:
        self._path.pop()

    def _watch_neuron(self, name: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """What to do when the module of a neuron begins and ends that is not known by its settings."""

        def begin() -> None:
            self._path.append(name)
            self._running = self._running or name

        def end(module: Any, inputs: tuple[Any, ...], output: Any) -> None:
            self._path.pop()
            if self._running != name:
                return
            self._running = None
            x = next((x for x in inputs if isinstance(x, Tensor)), None)
            fired = output[0] if isinstance(output, tuple) else output  # snnTorch's return the membrane as well
            if x is None or not isinstance(fired, Tensor):
                return  # an exception
            if _sees_time(module):
                self._note(name, spikes=fired, currents=x)
            else:
                self._note(name, goes_on=True, spikes=fired.unsqueeze(0), currents=x.unsqueeze(0))

        return begin, end

    def concerns(self, neuron: Neuron) -> bool:
        """Whether a call with these settings is one of the model's; in the backward pass, as in the forward pass."""
        return id(neuron) in self._names or bool(self._path) or _in_backward()

    def wants_inside(self, op: str) -> bool:
        """Whether what it wants is inside of a fused op."""
        return self.membranes.is_wanted or self.currents.is_wanted or op == 'mssa'

    def name_of(self, neuron: Neuron) -> str:
        if self._running is not None:
            return self._running
        if id(neuron) in self._names:
            return self._names[id(neuron)][0]
        return '.'.join(filter(None, [*self._path[-1:], 'lif']))

    def see(self, neuron: Neuron, spikes: Tensor, goes_on: bool = False, **inside: Tensor) -> None:
        """Note a call of one of our neurons, with `membranes` and `currents` where they are known."""
        if _in_backward():
            return
        if self._running is None:
            self._note(self.name_of(neuron), goes_on, spikes=spikes, **inside)
        elif 'membranes' in inside:  # the module shows its own spikes and currents
            self.membranes.add(self._running, inside['membranes'], goes_on)

    def note_unfused(self, neuron: Neuron) -> None:
        name = self.name_of(neuron)
        if name not in self.unfused and not _in_backward():
            self.unfused.append(name)

    def _note(self, name: str, goes_on: bool = False, **values: Tensor) -> None:
        self._calls[name] = count = self._calls.get(name, 0) + (not goes_on)
        name = name if count <= 1 else f'{name}#{count}'
        for kind, value in values.items():
            getattr(self, kind).add(name, value, goes_on)


class _ByName(Mapping[str, Tensor]):
    """Tensors of one kind by the names of neurons, in the order in which they ran."""

    def __init__(self, kind: str, is_wanted: bool) -> None:
        self.kind, self.is_wanted = kind, is_wanted
        self._pieces: dict[str, list[Tensor]] = {}  # along time

    def add(self, name: str, value: Tensor, goes_on: bool) -> None:
        if self.is_wanted:
            pieces = self._pieces.setdefault(name, [])
            if not goes_on:
                pieces.clear()
            pieces.append(value)

    def clear(self) -> None:
        self._pieces.clear()

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._pieces:
            raise KeyError(self._why_not(name))
        pieces = self._pieces[name]
        if len(pieces) > 1:
            pieces[:] = [torch.cat(pieces)]
        return pieces[0]

    def _why_not(self, name: str) -> str:
        if not self.is_wanted:
            return f'no {self.kind} were recorded: ask for them, record(model, {self.kind}=True)'
        if self.kind == 'membranes':
            return f'no membrane of {name!r}: there are those of LIF neurons that ran, {", ".join(self) or "none"}'
        return f'no {self.kind} of {name!r}: there are those of neurons that ran, {", ".join(self) or "none"}'

    def __iter__(self) -> Iterator[str]:
        return iter(self._pieces)

    def __len__(self) -> int:
        return len(self._pieces)

    def __repr__(self) -> str:
        return repr({name: tuple(self[name].shape) for name in self})


class _Watch:
    """The switch `watch` while models are recorded; `before` is what it was set to outside of all of them."""

    def __init__(self, recordings: tuple[Recording, ...], before: Callable[[Any, Neuron], Any] | None) -> None:
        self.recordings, self.before = recordings, before

    def __call__(self, backend: Any, neuron: Neuron) -> Any:
        backend = backend if self.before is None else self.before(backend, neuron)
        concerned = [recording for recording in self.recordings if recording.concerns(neuron)]
        return _RecordedBackend(backend, neuron, concerned) if concerned else backend


class _RecordedBackend:
    """A backend of the neuron that shows recordings what it does."""

    def __init__(self, backend: Any, neuron: Neuron, recordings: list[Recording]) -> None:
        self.backend, self.neuron, self.recordings = backend, neuron, recordings
        self.adds_bias = backend.adds_bias

    def lif(self, x: Tensor, v: Tensor | None, tau: Any, neuron: Neuron, needs_v: bool) -> tuple[Tensor, Tensor]:
        inside = {'currents': x}
        if any(recording.membranes.is_wanted for recording in self.recordings):
            potentials: list[Tensor] = []
            spikes, v_last = reference.lif(x, v, tau, neuron, needs_v, potentials)
            inside['membranes'] = torch.stack(potentials)
        else:
            spikes, v_last = self.backend.lif(x, v, tau, neuron, needs_v)
        for recording in self.recordings:
            if recording.membranes.is_wanted and getattr(self.backend, 'name', None) != 'torch':
                recording.note_unfused(neuron)
            recording.see(neuron, spikes, goes_on=v is not None, **inside)
        return spikes, v_last

    def fused(self, op: str) -> Callable[..., Any] | None:
        run = self.backend.fused(op)
        if run is None:
            return None
        curious = [recording for recording in self.recordings if recording.wants_inside(op)]
        for recording in curious:
            recording.note_unfused(self.neuron)
        if curious:
            return None

        def run_and_show(*args: Any) -> Any:
            output = run(*args)
            for recording in self.recordings:
                recording.see(self.neuron, output[0] if isinstance(output, tuple) else output)
            return output

        return run_and_show


_PLAIN = ('torch.', 'timm_snn.')  # packages whose layers without parts may be in a kernel, and call no neuron


def _sees_time(neuron: Any) -> bool:
    """Whether it maps [T, B, ...], or one step of it. SpikingJelly's say it; snnTorch's take one step."""
    if is_ours(neuron) or not hasattr(neuron, 'reset_mechanism'):
        return getattr(neuron, 'step_mode', 'm') == 'm'
    return False


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1
