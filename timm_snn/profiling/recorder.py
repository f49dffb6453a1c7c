"""Watches a model from outside while it runs: hooks that are there as long as the `with` block, and nothing in it.

What is counted are the units that a model is built from, not their parts, so it does not matter how much of a unit is
one kernel: a `ConvBnLif` is known by its input and its spikes, attention by the spikes of its units (`rules.py`), the
stem by its input. Convolutions, linear layers and neurons anywhere else are counted as such, and products that a module
computes by itself are seen when torch dispatches them. Every module has hooks, since a user's may call the parts of a
unit; ours notice them and run part by part, without fused kernels, until the hooks are gone.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..layers import ConvBn, ConvBnLif, SpikingStem
from ..layers.fixed import FixedConv, FixedMean
from ..modes import evaluating
from ..ops.switches import switched
from .counts import (
    CONVOLUTIONS,
    Counts,
    Geometry,
    count_convolution,
    count_linear,
    count_matmul,
    steps_and_samples,
)
from .rules import rule_of, runs_as
from .site import Record, Site
from .state import ModuleState
from .steps import Steps, WatchedBackend, is_neuron, is_ours

__all__ = ['Recorder', 'before_compiling', 'name_before_compiling']


def before_compiling(module: Any) -> Any:
    """The module that `torch.compile` was given; any other as it is."""
    return getattr(module, '_orig_mod', module)


def name_before_compiling(name: str) -> str:
    """A module's or parameter's name without the wrappers that `torch.compile` puts around parts of a model."""
    return '.'.join(part for part in name.split('.') if part != '_orig_mod')


def is_unit(module: nn.Module) -> bool:
    return runs_as(module, ConvBnLif) or runs_as(module, ConvBn)


class Recorder:
    """Counts what `model` does to every batch that `run` is given; `record` holds the result.

    A context manager: it puts the model into eval mode and adds hooks, and on the way out, also after an exception, it
    takes them away and restores the mode of every module and what modules keep between calls, such as membranes. Every
    batch begins with the network at rest.

    `num_steps` is T, which is compared with what the neurons see; None measures it.
    """

    def __init__(self, model: nn.Module, num_steps: int | None = None) -> None:
        self.model = model
        self.num_steps = num_steps
        self.record = Record()
        self.names: dict[nn.Module, str] = {}
        self._batch_size = 1
        self._wholes: dict[nn.Module, list[nn.Module]] = {}  # the modules that a part is counted with, if they run
        self._running: list[nn.Module] = []  # wholes that run now
        self._path: list[str] = []  # of the modules that run now
        self._inside = 0  # how many of these are counted; products in there are not counted again
        self._stem_unit: dict[nn.Module, nn.Module] = {}  # a stem's second unit -> its first, whose spikes enter it
        # where a rule wants the spikes that a unit of attention fires, and those that enter it: the layer, and its
        # name for the unit
        self._fired_for: dict[nn.Module, tuple[nn.Module, str]] = {}
        self._entering_for: dict[nn.Module, tuple[nn.Module, str]] = {}
        self._spikes: dict[nn.Module, dict[str, Tensor]] = {}  # of attention layers that run now, by unit
        self._geometry: dict[nn.Module, Geometry] = {}
        self._has_zeros: dict[nn.Module, bool] = {}
        self._steps = Steps()
        self._first_frames: int | None = None  # T of event frames
        self._is_counting = False  # hooks see a first run too, that measures T
        self._input = 0  # where the batch lies in memory
        self._unknown: str | None = None  # a layer that is fed spikes of nobody knows which neuron
        # of the currents of a quantised network
        self._fraction_bits = next((m.fraction_bits for m in model.modules() if isinstance(m, FixedMean)), 0)
        self._state: Any = None  # of the modules
        self._exit = ExitStack()

    def __enter__(self) -> 'Recorder':
        with ExitStack() as stack:
            stack.enter_context(evaluating(self.model))
            stack.enter_context(torch.compiler.set_stance('force_eager'))  # what is compiled runs without hooks
            # torch's fast path of nn.MultiheadAttention is one op with no products in it
            stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
            torch.backends.mha.set_fastpath_enabled(False)
            self._state = ModuleState(self.model, is_neuron)
            stack.callback(self._state.restore)
            self._survey()
            wholes = {whole for wholes in self._wholes.values() for whole in wholes}
            for module in self.model.modules():
                self._attach(module, module in wholes, stack)
            self._exit = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._spikes.clear()
        self.record.forget_measured()
        self._exit.close()

    def run(self, images: Tensor) -> Any:
        """The model's output for images [B, C, H, W] or frames [B, T, C, H, W]."""
        record, static = self.record, images.ndim == 4
        frames = None if static else images.shape[1]
        if not record.batch_sizes:
            record.num_steps, record.static = self._steps_of(images), static
        elif static != record.static or (frames and self._first_frames != frames):
            raise ValueError(
                f'expected batches with the time steps of the first, T={record.num_steps}, and all of images or all of '
                f'frames; got shape {tuple(images.shape)}: profile what differs by itself'
            )
        self._first_frames = frames
        self._batch_size, self._input, self._is_counting = len(images), images.data_ptr(), True
        with _Products(self):
            output = self._call(images)
        measured = self._steps.measured(record.num_steps)
        if measured not in (None, record.num_steps):
            raise ValueError(
                f'expected T={record.num_steps}, and the neurons of this network run for {measured} steps: pass '
                f'num_steps={measured}, or make the network run for {record.num_steps} in one call'
            )
        if measured is None and self._unknown and self._declared(images) is None:
            raise ValueError(
                f'{self._unknown} is fed spikes, but no neurons are known in this network, so that its T cannot be '
                'measured: pass num_steps, which is 1 for a network without time'
            )
        record.end_batch(len(images))
        return output

    def _call(self, images: Tensor) -> Any:
        """The output of the network for these images, at rest before."""
        self._state.rest()
        self._steps.begin()
        return self._forward(images)

    def _forward(self, images: Tensor) -> Any:
        # in inference mode products reach no dispatch mode, as functions of torch that are not taken apart yet
        with torch.inference_mode(False), torch.no_grad(), switched(watch=self._watched):
            return self.model(images.clone() if images.is_inference() else images)

    def _declared(self, images: Tensor) -> int | None:
        """T as it was asked for, as frames have it, or as the model says; None if nobody says it."""
        if self.num_steps is not None or images.ndim == 5:
            return self.num_steps or images.shape[1]
        steps = [getattr(module, 'num_steps', None) for module in self.model.modules()]
        return next((T for T in steps if isinstance(T, int) and T > 0), None)

    def _steps_of(self, images: Tensor) -> int:
        """T of the first batch: measured on one sample, unless it is known and all neurons are ours."""
        declared = self._declared(images)
        if declared is not None and all(is_ours(m) or not is_neuron(m) for m in self.model.modules()):
            return declared
        self._is_counting = False
        sample = images[:1].clone()  # the network may keep what it is fed, and what it keeps is erased for a try
        self._call(sample)
        measured = self._steps.measured(declared)
        self._state.refuse_leftovers(lambda: self._forward(sample))
        return self.num_steps or measured or declared or 1

    def _watched(self, backend: Any, neuron: Any) -> Any:
        return WatchedBackend(backend, self._see_call)

    def _see_call(self, x: Tensor, v: Tensor | None, spikes: Tensor, v_last: Tensor, needs_v: bool) -> None:
        """A neuron ran: of a layer, or of a module that calls `timm_snn.lif` by itself."""
        self._steps.see_call(self._path[-1] if self._path else '', x, v, v_last, needs_v)
        if self._is_counting and not self._inside:
            self.record.site('.'.join(filter(None, [*self._path[-1:], 'lif'])), 'neuron').fire(spikes)

    def _survey(self) -> None:
        """Name all modules, and find those that are counted with another one."""
        self.names = {module: name_before_compiling(name) for name, module in self.model.named_modules()}
        module: Any
        for module in self.names:
            if is_unit(module):
                # what stands for a convolution, such as RepConv, is made of some, which are sites of their own
                apart = set() if isinstance(module.conv, CONVOLUTIONS) else set(module.conv.modules())
                self._count_with(module, set(module.modules()) - apart - {module})
            elif runs_as(module, SpikingStem):
                self._survey_stem(module)
            elif rule_of(module):
                self._survey_attention(module)

    def _survey_stem(self, stem: Any) -> None:
        first, *later = map(before_compiling, stem.units)
        self._count_with(stem, first.modules())
        if later:
            self._stem_unit[later[0]] = first

    def _survey_attention(self, layer: nn.Module) -> None:
        rule: Any = rule_of(layer)
        for name, part in layer.named_modules():
            name = name_before_compiling(name)
            if isinstance(part, ConvBn):
                wanted = self._entering_for if name == rule.output else self._fired_for
                wanted[part] = (layer, name)
            elif name == rule.neuron:
                self._count_with(layer, [part])

    def _count_with(self, whole: nn.Module, parts: Iterable[nn.Module]) -> None:
        for part in parts:
            self._wholes.setdefault(part, []).append(whole)

    def _attach(self, module: nn.Module, is_whole: bool, stack: ExitStack) -> None:
        name = self.names[module]
        begins, ends = self._watchers(module)
        fires = is_neuron(module)

        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            self._path.append(name)
            self._inside += ends is not None
            if begins and self._is_counting and not self._is_part(module):
                begins(module, *args, **kwargs)
            if is_whole:
                self._running.append(module)

        def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            x = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
            if fires and x is not None:
                self._steps.see(module, x)
            if ends and self._is_counting and not self._is_part(module):
                ends(module, x, output)
            if is_whole:
                self._running.pop()
            self._inside -= ends is not None
            self._path.pop()

        stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
        stack.callback(module.register_forward_hook(after, with_kwargs=True).remove)

    def _watchers(self, module: nn.Module) -> tuple[Callable[..., None] | None, Callable[..., None] | None]:
        """What to do when a call of this module begins and ends; there is an end for all that is counted."""
        if runs_as(module, SpikingStem):
            return self._stem_begins, self._stem_ends
        if is_unit(module):
            return self._unit_begins, self._unit_ends
        if rule_of(module):
            return None, self._attention_ends
        if isinstance(module, (nn.Linear, *CONVOLUTIONS)):
            return None, self._connection_ends
        if is_neuron(module):
            return None, self._neuron_ends
        return None, None

    def _is_part(self, module: nn.Module) -> bool:
        """True if a whole is running that this module is counted with."""
        return any(whole in self._running for whole in self._wholes.get(module, ()))

    def _site_of(self, module: nn.Module, kind: str) -> Site:
        """The site of a module; a part of a unit that is called by itself belongs to the unit's."""
        unit = next((whole for whole in self._wholes.get(module, ()) if isinstance(whole, ConvBn)), module)
        return self.record.site(self.names[unit], kind)

    def _stem_begins(self, stem: Any, x: Tensor, num_steps: int) -> None:
        """Count the first unit, which has no call of its own: its current is computed for one step and held for all."""
        self._connect_unit(before_compiling(stem.units[0]), x, repeats=num_steps // len(x))

    def _stem_ends(self, stem: Any, x: Tensor, output: Tensor) -> None:
        if len(stem.units) == 1:
            self._site_of(before_compiling(stem.units[0]), 'conv').fire(output)

    def _unit_begins(self, unit: Any, x: Tensor) -> None:
        if unit in self._stem_unit:
            self._site_of(self._stem_unit[unit], 'conv').fire(x)
        # one step of a static image stands for all
        self._connect_unit(unit, x, repeats=max(1, self.record.num_steps // len(x)))
        if unit in self._entering_for:
            self._keep_for_rule(x, *self._entering_for[unit])

    def _connect_unit(self, unit: Any, x: Tensor, repeats: int) -> None:
        site = self.record.site(self.names[unit], 'conv')
        if not isinstance(unit.conv, CONVOLUTIONS):  # it is made of some, which are sites of their own
            return
        geometry = self._geometry_of(unit.conv)
        rows = _as_kernel(x.reshape(-1, *x.shape[2:]), unit.conv)
        out_size = geometry.output_size(rows.shape[2:])
        # its bias vanishes in the batch norm, or is the batch norm
        counts = count_convolution(rows, unit.conv.weight, out_size, geometry, self._zeros_in(unit.conv), False)
        counts.effective = counts.effective.reshape(x.shape[:2])
        site.operate('connection', [self._real(x)], counts, repeats)

    def _unit_ends(self, unit: Any, x: Tensor, spikes: Tensor) -> None:
        if not isinstance(unit, ConvBnLif):  # currents
            return
        self.record.site(self.names[unit], 'conv').fire(spikes)
        if unit in self._fired_for:
            self._keep_for_rule(spikes, *self._fired_for[unit])

    def _keep_for_rule(self, spikes: Tensor, layer: nn.Module, unit: str) -> None:
        self._spikes.setdefault(layer, {})[unit] = spikes

    def _attention_ends(self, layer: nn.Module, x: Tensor, output: Tensor) -> None:
        rule: Any = rule_of(layer)
        site = self.record.site(f'{self.names[layer]}.{rule.neuron}', rule.kind)
        rule.count(layer, self._spikes.pop(layer), site)

    def _connection_ends(self, layer: Any, x: Tensor, output: Tensor) -> None:
        is_fixed = isinstance(layer, FixedConv)
        kind = 'linear' if isinstance(layer, nn.Linear) or (is_fixed and x.ndim == 2) else 'conv'
        site = self._site_of(layer, kind)
        has_bias = layer.bias is not None and site.name == self.names[layer]  # that of a unit vanishes in its norm
        if is_fixed:
            feature_dims = x.ndim - 1
            rows, out_size = _as_kernel(x, layer), _as_kernel(output, layer).shape[2:]
            geometry = self._geometry_of(layer)
            # its bias is added where its sums are scaled, which is not counted
            counts = count_convolution(rows, layer.weight, out_size, geometry, self._zeros_in(layer), False)
        elif kind == 'linear':
            feature_dims = 1
            counts = count_linear(x, layer.weight, self._zeros_in(layer), has_bias)
        else:
            feature_dims = len(layer.kernel_size) + 1
            lead = x.shape[: x.ndim - feature_dims]
            rows, out_size = x.reshape(-1, *x.shape[len(lead) :]), output.shape[1 - feature_dims :]
            geometry = self._geometry_of(layer)
            counts = count_convolution(rows, layer.weight, out_size, geometry, self._zeros_in(layer), has_bias)
            counts.effective = counts.effective.reshape(lead)
        counts.effective = self._by_step(counts.effective, 0)
        site.operate('connection', [self._by_step(self._real(x), feature_dims)], counts)
        entering = site.input
        if x.data_ptr() != self._input and entering is not None and entering.largest >= 1 and entering.kind != 'real':
            self._unknown = self._unknown or site.name

    def _neuron_ends(self, neuron: nn.Module, x: Tensor, output: Any) -> None:
        spikes = output if isinstance(output, Tensor) else output[0]  # snnTorch's return the membrane as well
        if not self._steps.sees_time(neuron, x):
            spikes = spikes[None]
        if spikes.shape[1] != self._batch_size and spikes.shape[1] % self._batch_size == 0:  # windows of samples
            spikes = spikes.unflatten(1, (self._batch_size, -1))
        self._site_of(neuron, 'neuron').fire(spikes)

    def count_product(self, name: str, args: Any) -> None:
        """A product that a module computes by itself, as torch dispatches it."""
        site = self.record.site(self._path[-1] if self._path else '', 'product')
        if name in ('mm', 'addmm'):  # [rows, C] @ [C, C'], a linear map
            x, weight = args[-2:]
            kind, operands = 'connection', [self._by_step(x, 1)]
            counts = count_linear(x, weight.t(), has_zeros=True, has_bias=name == 'addmm')
        elif name in ('bmm', 'baddbmm'):
            a, b = args[-2:]
            kind, operands = 'matmul', [self._by_step(a, 2), self._by_step(b, 2)]
            counts = count_matmul(a, b)
        elif name == 'convolution':
            x, weight, bias, stride, padding, dilation, transposed, _, groups = args
            kind, operands = 'connection', [self._by_step(x, x.ndim - 1)]
            geometry = Geometry(weight.shape[2:], stride, padding, dilation, groups, transposed)
            out_size = geometry.output_size(x.shape[2:])
            counts = count_convolution(x, weight, out_size, geometry, True, bias is not None)
        else:  # softmax attention in one kernel: Q K^T and its product with V, of real numbers
            q, k, v = args[:3]  # [B, heads, N, d]
            kind, operands = 'matmul', []
            macs = q.shape[1] * q.shape[2] * k.shape[2] * (q.shape[3] + v.shape[3])
            counts = Counts(dense=macs, effective=q.new_full((len(q),), macs, dtype=torch.float64), reached=macs)
        counts.effective = self._by_step(counts.effective, 0)
        site.operate(kind, operands, counts)

    def _by_step(self, x: Tensor, feature_dims: int) -> Tensor:
        """`steps_and_samples` of this run: [steps, B, ...]."""
        return steps_and_samples(x, self.record.num_steps, self._batch_size, feature_dims)

    def _real(self, x: Tensor) -> Tensor:
        """Currents of a quantised network as the real numbers that they stand for, anything else as it is."""
        return x.double() * 2.0**-self._fraction_bits if x.dtype == torch.int32 else x

    def _geometry_of(self, conv: Any) -> Geometry:
        if conv not in self._geometry:
            self._geometry[conv] = Geometry.of(conv)
        return self._geometry[conv]

    def _zeros_in(self, layer: Any) -> bool:
        """True if weights are zero, as pruned ones; only then they have to be looked at for every input."""
        if layer not in self._has_zeros:
            self._has_zeros[layer] = bool((layer.weight == 0).any())
        return self._has_zeros[layer]


def _as_kernel(x: Tensor, conv: nn.Module) -> Tensor:
    """Rows [N, C, ...] with as many axes as the kernel, which for a `FixedConv` is always one of maps."""
    if not isinstance(conv, FixedConv) or x.ndim == 4:
        return x
    return x.unsqueeze(2) if x.ndim == 3 else x[:, :, None, None]


class _Products(TorchDispatchMode):
    """Shows the recorder the products that run outside of the layers that it counts."""

    NAMES = ('mm', 'addmm', 'bmm', 'baddbmm', 'convolution')

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not self.recorder._inside and (name in self.NAMES or name.startswith('_scaled_dot_product')):
            self.recorder.count_product(name, args)
        return output
