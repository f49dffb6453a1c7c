"""Watches a model from outside while it runs: hooks that are there as long as the `with` block, and nothing in it.

What is counted are the units that a model is built from, not their parts, so it does not matter how much of a unit is
one kernel: a `ConvBnLif` is known by its input and its spikes, attention by the spikes of its units (`attention.py`),
the stem by its input. Convolutions, linear layers and neurons anywhere else are counted as such, and products that a
module computes by itself are seen when torch dispatches them. Every module has hooks, since a user's may call the parts
of a unit; ours notice them and run part by part, without fused kernels, until the hooks are gone.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..layers import LIF, ConvBn, ConvBnLif, SpikingStem, neurons
from .attention import rule_of, runs_as
from .counts import (
    CONVOLUTIONS,
    Activity,
    Counts,
    Geometry,
    Measured,
    Operation,
    count_convolution,
    count_linear,
    count_matmul,
    steps_and_samples,
)

__all__ = ['Recorder', 'Site', 'evaluating', 'is_neuron', 'num_steps_of', 'plain_name']


def num_steps_of(model: nn.Module, images: Tensor) -> int:
    """T: the frames of 5-D input, or `num_steps` of the model or of one inside it, or 1."""
    if images.ndim == 5:
        return images.shape[1]
    for module in model.modules():
        if isinstance(steps := getattr(module, 'num_steps', None), int):
            return steps
    return 1


def plain_name(name: str) -> str:
    """Of a module or parameter, without the wrappers that `torch.compile` puts around parts of a model."""
    return '.'.join(part for part in name.split('.') if part != '_orig_mod')


def is_neuron(module: nn.Module) -> bool:
    """Ours, one that a user registered, or one of another library.

    SpikingJelly's have a `v_threshold`, snnTorch's a `threshold` and a `reset_mechanism`.
    """
    registered = tuple(layer for name in neurons.names() if isinstance(layer := neurons.get(name), type))
    return (
        isinstance(module, (LIF, *registered))
        or isinstance(getattr(module, 'v_threshold', None), (float, Tensor))
        or (hasattr(module, 'threshold') and hasattr(module, 'reset_mechanism'))
    )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """In eval mode inside; every module gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


class Site:
    """A place in the model, a row of the report: what enters, what is computed from it, and what fires."""

    def __init__(self, recorder: 'Recorder', name: str, kind: str) -> None:
        self.recorder, self.name, self.kind = recorder, name, kind
        self.input: Activity | None = None
        self.output: Activity | None = None
        self.operations: dict[int, Operation] = {}
        self.neurons = 0  # per sample
        self.state_bytes = 0  # of their membranes
        self.spikes: Tensor | None = None  # [T, B, ...]
        self.unit: Any = None  # a ConvBn, its input, and how many steps each step of that stands for
        self._called = 0  # operations of this batch

    def operate(self, kind: str, operands: Sequence[str | Tensor], counts: Counts, repeats: int = 1) -> Operation:
        """Add an operation. Operands are values [steps, B, ...], or the name of a unit beside this site for its spikes.

        That of a connection is the input of the site.
        """
        # A layer that runs several times, for one step each or at several places, is one operation.
        index, self._called = (
            (0, 0) if kind == 'connection' and self.kind != 'product' else (self._called, self._called + 1)
        )
        if index not in self.operations:
            seen = tuple(self._spikes_of(x) if isinstance(x, str) else self.recorder.activity() for x in operands)
            self.operations[index] = self.recorder.tally(Operation(kind, seen))
            if kind == 'connection' and self.input is None:
                self.input = seen[0]
        operation = self.operations[index]
        operation.add(counts, repeats)
        for activity, x in zip(operation.operands, operands, strict=True):
            if isinstance(x, Tensor):
                self._see(activity, x, repeats)
        return operation

    def fire(self, spikes: Tensor) -> None:
        """Add what the neurons of this site put out, [T, B, ...]."""
        if self.output is None:
            self.output = self.recorder.activity()
        self._see(self.output, spikes)
        if self.recorder.keep:
            self.spikes = spikes
        self.neurons = spikes[0, 0].numel()
        # the membrane is float32 for half precision and has the dtype of its input otherwise
        self.state_bytes = self.neurons * max(4, spikes.element_size())

    def end_batch(self) -> None:
        self._called = 0

    def _see(self, activity: Activity, x: Tensor, repeats: int = 1) -> None:
        try:
            activity.add(self.recorder.measure(x), repeats)
        except ValueError as error:
            raise ValueError(f'cannot profile {self.name or "the model"}: {error}') from error

    def _spikes_of(self, unit: str) -> Activity:
        output = self.recorder.sites[f'{self.name.rpartition(".")[0]}.{unit}'].output
        if output is None:
            raise ValueError(f'{self.name} needs the spikes of its unit {unit}, which has not run')
        return output


class Recorder:
    """Counts what `model` does to every batch that `run` is given; `sites` holds the result, in the order of execution.

    A context manager: puts the model into eval mode and adds hooks, and on the way out, also after an exception, takes
    them away and restores the mode of every module. With `keep`, for pictures, it holds on to the tensors of the last
    run: sites have their `spikes` and `unit`, and `kept` has what attention layers computed.
    """

    def __init__(self, model: nn.Module, keep: bool = False) -> None:
        self.model = model
        self.keep = keep
        self.sites: dict[str, Site] = {}
        self.batch_sizes: list[int] = []
        self.num_steps = 1
        self.static = True  # images; False for frames
        self.names: dict[nn.Module, str] = {}
        self.kept: dict[Any, dict[str, Tensor]] = {}  # of attention layers: spikes of their units, for the rule
        self._batch_size = 1
        self._tallies: list[Any] = []
        # of the last tensors, which often enter several layers, and their versions
        self._measured: list[tuple[Tensor, int, Measured]] = []
        self._owners: dict[nn.Module, list[nn.Module]] = {}  # the modules that stand for one, if they run
        self._feeds: dict[nn.Module, str] = {}  # the site whose spikes are the input of this unit
        self._attention_of: dict[nn.Module, tuple[nn.Module, str]] = {}  # of a unit, and its name in there
        self._geometry: dict[nn.Module, Geometry] = {}
        self._has_zeros: dict[nn.Module, bool] = {}
        self._inside = 0  # layers that are counted as a whole; products in there are not counted again
        self._path: list[str] = []  # of the modules that run
        self._running: list[nn.Module] = []  # units that stand for their parts
        self._first: Operation | None = None
        self._exit = ExitStack()

    def __enter__(self) -> 'Recorder':
        with ExitStack() as stack:
            stack.enter_context(evaluating(self.model))
            stack.enter_context(torch.compiler.set_stance('force_eager'))  # what is compiled runs without hooks
            # torch's fast path of nn.MultiheadAttention is one op with no products in it
            stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
            torch.backends.mha.set_fastpath_enabled(False)
            self._survey()
            for module in self.model.modules():
                self._attach(module, stack)
            self._exit = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        if not self.keep:
            self.kept.clear()
        self._measured.clear()
        self._exit.close()

    def run(self, images: Tensor) -> Any:
        """The model's output for images [B, C, H, W] or frames [B, T, C, H, W]."""
        time = num_steps_of(self.model, images), images.ndim == 4
        if self.batch_sizes and time != (self.num_steps, self.static):
            raise ValueError(
                f'expected batches with the time steps of the first, T={self.num_steps}, and all of images or all of '
                f'frames; got shape {tuple(images.shape)}: profile what differs by itself'
            )
        self.num_steps, self.static = time
        self._batch_size = len(images)
        # in inference mode products reach no dispatch mode, as functions of torch that are not taken apart yet
        with torch.inference_mode(False), torch.no_grad(), _Products(self):
            output = self.model(images.clone() if images.is_inference() else images)
        self._measured.clear()
        for tally in self._tallies:
            tally.end_batch(len(images))
        for site in self.sites.values():
            site.end_batch()
        self.batch_sizes.append(len(images))
        return output

    # What sites use.

    def site(self, name: str, kind: str) -> Site:
        if name not in self.sites:
            self.sites[name] = Site(self, name, kind)
        return self.sites[name]

    def tally(self, new: Any) -> Any:
        """Keep it in step with the batches; one that comes late has seen nothing of those before."""
        for batch_size in self.batch_sizes:
            new.end_batch(batch_size)
        self._tallies.append(new)
        return new

    def activity(self) -> Activity:
        return self.tally(Activity())

    def measure(self, x: Tensor) -> Measured:
        if x.is_inference():  # of a model that enters that mode by itself; such tensors have no version
            return Measured(x)
        for known, version, measured in self._measured:
            if known is x and version == x._version:
                return measured
        measured = Measured(x)
        self._measured = [*self._measured[-3:], (x, x._version, measured)]
        return measured

    def sort(self, x: Tensor, feature_dims: int) -> Tensor:
        return steps_and_samples(x, self.num_steps, self._batch_size, feature_dims)

    # Hooks.

    def _survey(self) -> None:
        """Which modules stand for others."""
        for name, module in self.model.named_modules():
            name = self.names[module] = plain_name(name)
            if _is_unit(module):
                inside = set() if isinstance(module.conv, CONVOLUTIONS) else set(module.conv.modules())
                for part in module.modules():
                    if part is not module and part not in inside:
                        self._owners.setdefault(part, []).append(module)
            elif runs_as(module, SpikingStem):
                stem: Any = module
                for part in stem.units[0].modules():
                    self._owners.setdefault(part, []).append(module)
                if len(stem.units) > 1:
                    self._feeds[stem.units[1]] = f'{name}.units.0'
            elif rule_of(module):
                for part_name, part in module.named_modules():
                    if isinstance(part, ConvBn):
                        self._attention_of[part] = (module, part_name)
                    elif part_name == 'attn_lif':
                        self._owners.setdefault(part, []).append(module)

    def _attach(self, module: nn.Module, stack: ExitStack) -> None:
        name = self.names[module]
        on_input: Any = None
        on_output: Any = None
        if runs_as(module, SpikingStem):
            on_input, on_output = self._stem_begins, self._stem_ends
        elif _is_unit(module):
            on_input, on_output = self._unit_begins, self._unit_ends
        elif rule_of(module):
            on_output = self._attention_ends
        elif isinstance(module, (nn.Linear, *CONVOLUTIONS)):
            on_output = self._connection_ends
        elif is_neuron(module):
            on_output = self._neuron_ends
        counted = on_output is not None
        stands_for_parts = any(module in owners for owners in self._owners.values())

        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            self._path.append(name)
            self._inside += counted
            if on_input and not self._is_part(module):
                on_input(name, module, *args, **kwargs)
            if stands_for_parts:
                self._running.append(module)

        def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if on_output and not self._is_part(module):
                on_output(name, module, next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), output)
            if stands_for_parts:
                self._running.pop()
            self._inside -= counted
            self._path.pop()

        stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
        stack.callback(module.register_forward_hook(after, with_kwargs=True).remove)

    def _is_part(self, module: nn.Module) -> bool:
        """Whether a module that stands for this one is running, and counts it."""
        return any(owner in self._running for owner in self._owners.get(module, ()))

    def _stem_begins(self, name: str, stem: Any, x: Tensor, num_steps: int) -> None:
        """The first unit has no call of its own: its current is computed for one step and held for all."""
        site = self.site(f'{name}.units.0', 'conv')
        self._connect_unit(site, stem.units[0], x, repeats=num_steps // len(x))

    def _stem_ends(self, name: str, stem: Any, x: Tensor, output: Tensor) -> None:
        if len(stem.units) == 1:
            self.sites[f'{name}.units.0'].fire(output)

    def _unit_begins(self, name: str, unit: Any, x: Tensor) -> None:
        if unit in self._feeds:
            self.sites[self._feeds[unit]].fire(x)
        # one step of a static image stands for all
        self._connect_unit(self.site(name, 'conv'), unit, x, repeats=max(1, self.num_steps // len(x)))
        layer, part = self._attention_of.get(unit, (None, ''))
        if layer is not None and part == 'proj':
            self.kept.setdefault(layer, {})[part] = x

    def _connect_unit(self, site: Site, unit: Any, x: Tensor, repeats: int = 1) -> None:
        if self.keep:
            site.unit = (unit, x, repeats)
        if not isinstance(unit.conv, CONVOLUTIONS):  # it is made of some, which are sites of their own
            return
        geometry = self._geometry_of(unit.conv)
        rows = x.reshape(-1, *x.shape[2:])
        out_size = geometry.output_size(x.shape[3:])
        # its bias vanishes in the batch norm, or is the batch norm
        counts = count_convolution(rows, unit.conv.weight, out_size, geometry, self._zeros_in(unit.conv), False)
        counts.effective = counts.effective.reshape(x.shape[:2])
        self._note_first(site.operate('connection', [x], counts, repeats))

    def _unit_ends(self, name: str, unit: Any, x: Tensor, spikes: Tensor) -> None:
        if not isinstance(unit, ConvBnLif):  # currents
            return
        self.site(name, 'conv').fire(spikes)
        layer, part = self._attention_of.get(unit, (None, ''))
        if layer is not None and part != 'proj':
            self.kept.setdefault(layer, {})[part] = spikes

    def _attention_ends(self, name: str, layer: Any, x: Tensor, output: Tensor) -> None:
        kind, rule = rule_of(layer)  # type: ignore[misc]
        rule(layer, self.kept[layer], self.site(f'{name}.attn_lif', kind))

    def _connection_ends(self, name: str, layer: Any, x: Tensor, output: Tensor) -> None:
        unit = next((owner for owner in self._owners.get(layer, ()) if isinstance(owner, ConvBn)), None)
        has_bias = layer.bias is not None and unit is None
        if isinstance(layer, nn.Linear):
            kind, feature_dims = 'linear', 1
            counts = count_linear(x, layer.weight, self._zeros_in(layer), has_bias)
        else:
            kind, feature_dims = 'conv', len(layer.kernel_size) + 1
            lead = x.shape[: x.ndim - feature_dims]
            rows, out_size = x.reshape(-1, *x.shape[len(lead) :]), output.shape[1 - feature_dims :]
            geometry = self._geometry_of(layer)
            counts = count_convolution(rows, layer.weight, out_size, geometry, self._zeros_in(layer), has_bias)
            counts.effective = counts.effective.reshape(lead)
        counts.effective = self.sort(counts.effective, 0)
        site = self.site(self.names[unit] if unit else name, kind)
        self._note_first(site.operate('connection', [self.sort(x, feature_dims)], counts))

    def _neuron_ends(self, name: str, neuron: nn.Module, x: Tensor, output: Any) -> None:
        spikes = output if isinstance(output, Tensor) else output[0]  # snnTorch's return the membrane as well
        unit = next((owner for owner in self._owners.get(neuron, ()) if isinstance(owner, ConvBn)), None)
        if not isinstance(neuron, LIF):
            spikes = self.sort(spikes, max(0, spikes.ndim - 2))
        self.site(self.names[unit] if unit else name, 'neuron').fire(spikes)

    def _product(self, name: str, args: Any) -> None:
        """A product that a module computes by itself, as torch dispatches it."""
        site = self.site(self._path[-1] if self._path else '', 'product')
        if name in ('mm', 'addmm'):  # [rows, C] @ [C, C'], a linear map
            x, weight = args[-2:]
            counts = count_linear(x, weight.t(), has_zeros=True, has_bias=name == 'addmm')
            counts.effective = self.sort(counts.effective, 0)
            self._note_first(site.operate('connection', [self.sort(x, 1)], counts))
        elif name in ('bmm', 'baddbmm'):
            a, b = args[-2:]
            counts = count_matmul(a, b)
            counts.effective = self.sort(counts.effective, 0)
            site.operate('matmul', [self.sort(a, 2), self.sort(b, 2)], counts)
        elif name == 'convolution':
            x, weight, bias, stride, padding, dilation, transposed, _, groups = args
            geometry = Geometry(weight.shape[2:], stride, padding, dilation, groups, transposed)
            out_size = geometry.output_size(x.shape[2:])
            counts = count_convolution(x, weight, out_size, geometry, True, bias is not None)
            counts.effective = self.sort(counts.effective, 0)
            self._note_first(site.operate('connection', [self.sort(x, x.ndim - 1)], counts))
        else:  # softmax attention in one kernel: Q K^T and its product with V, of real numbers
            q, k, v = args[:3]  # [B, heads, N, d]
            macs = q.shape[1] * q.shape[2] * k.shape[2] * (q.shape[3] + v.shape[3])
            effective = q.new_full((len(q),), macs, dtype=torch.float64)
            site.operate('matmul', [], Counts(dense=macs, effective=self.sort(effective, 0), reached=macs))

    def _note_first(self, operation: Operation) -> None:
        if self._first is None:
            self._first = operation
            operation.is_first = True
        operation.static = self.static

    def _geometry_of(self, conv: Any) -> Geometry:
        if conv not in self._geometry:
            self._geometry[conv] = Geometry.of(conv)
        return self._geometry[conv]

    def _zeros_in(self, layer: Any) -> bool:
        """Whether weights are zero, as pruned ones; only then they have to be looked at for every input."""
        if layer not in self._has_zeros:
            self._has_zeros[layer] = bool((layer.weight == 0).any())
        return self._has_zeros[layer]


def _is_unit(module: nn.Module) -> bool:
    return runs_as(module, ConvBnLif) or runs_as(module, ConvBn)


class _Products(TorchDispatchMode):
    """Shows the recorder the products that run outside of the layers it counts as a whole."""

    NAMES = ('mm', 'addmm', 'bmm', 'baddbmm', 'convolution')

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not self.recorder._inside and (name in self.NAMES or name.startswith('_scaled_dot_product')):
            self.recorder._product(name, args)
        return output
