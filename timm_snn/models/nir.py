"""Networks as graphs of NIR, which simulators and neuromorphic chips read: convolutions, sums, LIF, average pooling.

NIR (the Neuromorphic Intermediate Representation, arXiv 2311.14641) describes neurons in continuous time. With a time
step dt, by Euler's rule, its LIF does what ours does, in these settings:

    tau dv/dt = (v_leak - v) + R I          v + dt / tau (v_leak - v + R I)
    z = 1 where v > v_threshold             v = v_reset there

| ours | NIR's |
|---|---|
| tau, in steps | tau = tau dt |
| resting potential r, where neurons begin | v_leak = v_reset = 0, since the membrane is v - r |
| a spike where h >= v_threshold | v_threshold = the largest number below v_threshold - r, since z needs v above it |
| `decay_input` | R = 1 |
| without | R = tau in steps |
| tau = inf | IF, with R = 1 / dt |
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from timm.layers import SelectAdaptivePool2d
from torch import Tensor, nn

from ..files import write_whole
from ..layers import (
    IF,
    LIF,
    ConvBn,
    ConvBnLif,
    CurrentStem,
    DropPath,
    GroupWiseMlp,
    LifConvBn,
    MembranePatchEmbed,
    ParametricLIF,
    SepConv,
    SpikingBlock,
    SpikingMlp,
    SpikingPatchEmbed,
    SpikingPatchSplitting,
    SpikingResidual,
    SpikingStem,
    neurons,
)
from ..layers.conv import SpikePool
from ..layers.sep_conv import DepthwiseConv
from ..version import __version__
from ..wrappers import unwrapped
from .base import SpikingStage, SpikingTransformer
from .espikeformer import ESpikeformerBlock
from .fuse import fuse
from .heads import Head
from .ms_resnet import MSBlock, MSResNet
from .sew_resnet import SEWBlock
from .spiking_resnet import HiddenLayer, SpikingResNetBlock

__all__ = ['to_nir', 'why_not_nir', 'write_nir']


def to_nir(model: nn.Module, input_size: Sequence[int] | None = None, *, dt: float = 1e-4) -> Any:
    """The model as a `nir.NIRGraph`, whose nodes have the names of its layers.

        graph = timm_snn.to_nir(timm.create_model('ms_resnet18', num_classes=10))
        nir.write('ms_resnet18.nir', graph)

    The graph is what happens in one time step: an image or a frame comes in at every step, and out come the logits of
    that step, [classes, 1, 1], or the spikes of a `nn.Sequential` of our layers. The mean over steps, which is the
    model's answer, is left to whoever reads them. Batch norms and learned thresholds are folded into convolutions.
    Where a node has several inputs they are added up. The classifier is a convolution of the pooled map, since readers
    do not agree on the axes of NIR's Flatten.

    Args:
        model: A classifier of timm_snn, or layers of `timm_snn.layers` in a row.
        input_size: (C, H, W) of a frame; None for that of the model's pretrained config.
        dt: Length of a step in seconds. Readers must run with the same: snnTorch has 1e-4 and no other, norse has an
            argument.

    Raises: ValueError for a model of which NIR cannot say all, with what `why_not_nir` says; ImportError without nir.
    """
    nir = _import_nir()
    model = unwrapped(model)
    if reasons := why_not_nir(model):
        name, reason = next(iter(reasons.items()))
        more = f' and {len(reasons) - 1} more, see timm_snn.why_not_nir(model)' if len(reasons) > 1 else ''
        raise ValueError(f'NIR cannot say what {name} does, {reason}{more}')
    if input_size is None:
        input_size = (getattr(model, 'pretrained_cfg', None) or {}).get('input_size')
        if input_size is None:
            raise ValueError(f'a {type(model).__name__} does not say what it is fed: pass input_size=(C, H, W)')
    fused = fuse(model) if any(isinstance(module, ConvBn) for module in model.modules()) else model
    is_double = any(p.dtype == torch.float64 for p in model.parameters())
    graph = _Graph(nir, dt, np.float64 if is_double else np.float32)
    shape = tuple(int(n) for n in input_size)
    graph.nodes['input'] = nir.Input({'input': np.array(shape)})
    out = graph.emit('', fused, _Stream(('input',), shape))
    graph.add('output', nir.Output({'output': np.array(out.shape)}), out)
    metadata = {'made_by': f'timm_snn {__version__}', 'dt': dt, 'num_steps': getattr(model, 'num_steps', 1)}
    return nir.NIRGraph(graph.nodes, graph.edges, metadata)


def write_nir(model: nn.Module, path: str | Path, input_size: Sequence[int] | None = None, *, dt: float = 1e-4) -> None:
    """`to_nir` into a file, which `nir.read` reads. Raises: as `to_nir`; OSError from the disk."""
    graph = to_nir(model, input_size, dt=dt)
    with write_whole(Path(path)) as unfinished:
        _import_nir().write(unfinished, graph)


def why_not_nir(model: nn.Module) -> dict[str, str]:
    """Of every layer that NIR cannot say, by name, the reason; {} for a model that `to_nir` takes."""
    found: dict[str, str] = {}
    for name, module in unwrapped(model).named_modules():
        inside_another = any(name.startswith(f'{other}.') for other in found if other)
        if not inside_another and (reason := _why_not(module)):
            found[name or type(module).__name__] = reason
    return found


def _import_nir() -> ModuleType:
    try:
        import nir
    except ImportError as error:
        raise ImportError("graphs of NIR need the package nir: pip install 'timm-snn[nir]'") from error
    return nir


def _why_not(module: Any) -> str | None:
    """Why NIR cannot say what this layer does, its parts apart; or None."""
    if isinstance(module, LIF) and module.v_reset is None:
        return 'whose soft reset subtracts the threshold: NIR sets a membrane to a value'
    if _rule_of(module) is _neuron:
        return None
    if neurons.name_of(type(module)):
        return f'which is a {type(module).__name__}: of our neurons NIR has LIF and IF, with a hard reset'
    if hasattr(module, 'attn_lif'):
        return 'which is attention: NIR has no product of two activations'
    if isinstance(module, (SpikePool, nn.MaxPool1d, nn.MaxPool2d)):
        return 'which is max pooling: NIR has averages and sums'
    if isinstance(module, (nn.Conv1d, nn.Conv2d)) and (module.groups > 1 or module.padding_mode != 'zeros'):
        return 'whose groups of channels, or whose padding, nodes of NIR do not check as they should (nir 1.0.8)'
    if isinstance(module, nn.Conv2d) and (max(module.dilation) > 1 or getattr(module, 'border', 0) > 0):
        return 'which is dilated: this export writes the convolutions of a model without output_stride'
    if isinstance(module, ConvBn) and not isinstance(module.bn, (nn.BatchNorm2d, nn.Identity)):
        return f'whose {type(module.bn).__name__} cannot be folded into its convolution'
    if isinstance(module, SpikingTransformer) and module.head.global_pool.pool_type not in ('avg', 'fast', 'fastavg'):
        return f'which ends in the pooling {module.head.global_pool.pool_type!r}: NIR has averages and sums'
    if _rule_of(module) or isinstance(module, _PARTS):
        return None
    return f'which is a {type(module).__name__}: this export does not know how it connects its parts'


@dataclass(frozen=True)
class _Stream:
    """What flows between layers: the sum of what these nodes put out, and its shape in a step, without the batch."""

    nodes: tuple[str, ...]
    shape: tuple[int, ...]

    def __add__(self, other: '_Stream') -> '_Stream':
        return _Stream(self.nodes + other.nodes, self.shape)


@dataclass
class _Graph:
    """A graph of NIR that grows layer by layer."""

    nir: ModuleType
    dt: float
    dtype: Any  # of numpy
    nodes: dict[str, Any] = field(default_factory=dict)
    edges: list[tuple[str, str]] = field(default_factory=list)

    def emit(self, name: str, module: Any, x: _Stream) -> _Stream:
        """Add the layer of this name, and say what comes out of it."""
        rule = _rule_of(module)
        if rule is None:  # a part that `why_not_nir` knows, in a place that no rule knows
            raise ValueError(
                f'NIR cannot say what {name} does, which is a {type(module).__name__} by itself: the convolutions and '
                'norms of a graph are those of ConvBn and ConvBnLif'
            )
        return rule(self, name, module, x)

    def chain(self, name: str, layer: Any, parts: Sequence[str], x: _Stream) -> _Stream:
        """Parts of a layer, by their names in it, one after the other."""
        for part in parts:
            x = self.emit(f'{name}.{part}'.lstrip('.'), layer.get_submodule(part), x)
        return x

    def add(self, name: str, node: Any, x: _Stream, shape: tuple[int, ...] | None = None) -> _Stream:
        self.nodes[name] = node
        self.edges += [(source, name) for source in x.nodes]
        return _Stream((name,), x.shape if shape is None else shape)

    def convolve(
        self, name: str, weight: Tensor, bias: Tensor | None, stride: int, padding: int, x: _Stream
    ) -> _Stream:
        out_chs, kernel = weight.shape[0], weight.shape[-1]
        sizes = [(n + 2 * padding - kernel) // stride + 1 for n in x.shape[1:]]
        bias = weight.new_zeros(out_chs) if bias is None else bias  # readers want one
        both = (stride, stride), (padding, padding)
        node = self.nir.Conv2d(x.shape[1:], self.array(weight), *both, (1, 1), 1, self.array(bias))
        return self.add(name, node, x, (out_chs, *sizes))

    def array(self, x: Tensor) -> np.ndarray:
        return np.ascontiguousarray(x.detach().cpu().double().numpy().astype(self.dtype))

    def average(self, name: str, x: _Stream) -> _Stream:
        """The mean over height and width."""
        size = np.array(x.shape[1:])
        return self.add(name, self.nir.AvgPool2d(size, size, np.array((0, 0))), x, (x.shape[0], 1, 1))


_Rule = Callable[[_Graph, str, Any, _Stream], _Stream]
_RULES: dict[type, _Rule] = {}
# what rules of others look into: torch's, and the pooling and the classifier of the head
_PARTS = (
    *(nn.Conv2d, nn.BatchNorm2d, Head, SelectAdaptivePool2d, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear),
    nn.ModuleList,
)


def _rule(*classes: type) -> Callable[[_Rule], _Rule]:
    """Decorator: how layers of these classes are written; of classes derived from them too, but for neurons."""

    def add(rule: _Rule) -> _Rule:
        _RULES.update(dict.fromkeys(classes, rule))
        return rule

    return add


def _rule_of(module: nn.Module) -> _Rule | None:
    """The rule of its class or of a base of that, unless a user's class has a `forward` of its own."""
    if isinstance(module, LIF):
        return _RULES.get(type(module))
    base: Any = next((cls for cls in type(module).__mro__ if cls in _RULES), None)
    forward: Any = type(module).forward
    is_known = base is not None and (forward is base.forward or forward.__module__.startswith('timm_snn.'))
    return _RULES[base] if is_known else None


@_rule(nn.Identity, DropPath, nn.Dropout)
def _pass_on(graph: _Graph, name: str, layer: Any, x: _Stream) -> _Stream:
    return x


@_rule(nn.Sequential)
def _in_a_row(graph: _Graph, name: str, layer: nn.Sequential, x: _Stream) -> _Stream:
    return graph.chain(name, layer, [part for part, _ in layer.named_children()], x)


@_rule(LIF, ParametricLIF, IF)
def _neuron(graph: _Graph, name: str, layer: LIF, x: _Stream) -> _Stream:
    settings, dtype = layer.neuron, graph.dtype
    channels = [-1] + [1] * (len(x.shape) - 1)

    def everywhere(number: Any) -> np.ndarray:
        """A number, or one for each channel, for all neurons."""
        number = number.detach().cpu().double().numpy() if isinstance(number, Tensor) else np.float64(number)
        return np.array(np.broadcast_to(number.reshape(channels).astype(dtype), x.shape))

    learned_threshold, learned_tau = layer.learned_threshold(), layer.learned_tau()
    threshold = settings.v_threshold if learned_threshold is None else learned_threshold
    below = np.nextafter(everywhere(threshold - settings.v_rest), dtype(-np.inf))
    zero = np.zeros(x.shape, dtype)
    if settings.tau == math.inf:
        return graph.add(name, graph.nir.IF(everywhere(1 / graph.dt), below, zero), x)
    tau = everywhere(settings.tau if learned_tau is None else learned_tau)
    resistance = np.ones_like(tau) if settings.decay_input else tau
    return graph.add(name, graph.nir.LIF(tau * dtype(graph.dt), resistance, zero, below, zero), x)


@_rule(ConvBn, HiddenLayer, DepthwiseConv)
def _unit(graph: _Graph, name: str, layer: Any, x: _Stream) -> _Stream:
    conv = layer.conv
    return graph.convolve(f'{name}.conv'.lstrip('.'), conv.weight, conv.bias, conv.stride[0], conv.padding[0], x)


@_rule(ConvBnLif)
def _firing_unit(graph: _Graph, name: str, layer: ConvBnLif, x: _Stream) -> _Stream:
    return graph.chain(name, layer, ['lif'], _unit(graph, name, layer, x))


def _parts_in_a_row(*parts: str) -> _Rule:
    return lambda graph, name, layer, x: graph.chain(name, layer, parts, x)


_rule(LifConvBn)(_parts_in_a_row('lif', 'unit'))
_rule(SpikingMlp)(_parts_in_a_row('lif', 'fc1', 'fc2'))
_rule(SpikingStem)(_parts_in_a_row('units'))
_rule(CurrentStem)(_parts_in_a_row('unit'))
_rule(SepConv)(_parts_in_a_row('lif', 'pw1', 'dw', 'pw2'))
_rule(GroupWiseMlp)(_parts_in_a_row('up', 'conv', 'down'))
_rule(SpikingStage)(_parts_in_a_row('embed', 'blocks'))
_rule(ESpikeformerBlock)(_parts_in_a_row('conv', 'block'))


@_rule(SpikingPatchEmbed)
def _two_scales(graph: _Graph, name: str, layer: Any, x: _Stream) -> _Stream:
    return graph.chain(name, layer, ['units'], x) + graph.chain(name, layer, ['shortcut'], x)


@_rule(MembranePatchEmbed)
def _two_scales_of_currents(graph: _Graph, name: str, layer: Any, x: _Stream) -> _Stream:
    return _two_scales(graph, name, layer, graph.chain(name, layer, ['lif'], x))


@_rule(SpikingResidual)
def _residual(graph: _Graph, name: str, layer: Any, x: _Stream) -> _Stream:
    return graph.chain(name, layer, ['branch'], x) + x


@_rule(SpikingBlock)
def _two_residuals(graph: _Graph, name: str, layer: Any, x: _Stream) -> _Stream:
    x = graph.chain(name, layer, ['attn'], x) + x
    return graph.chain(name, layer, ['mlp'], x) + x


@_rule(SpikingPatchSplitting)
def _units_and_position(graph: _Graph, name: str, layer: Any, x: _Stream) -> _Stream:
    x = graph.chain(name, layer, ['units'], x)
    return x if layer.position is None else graph.chain(name, layer, ['position'], x) + x


@_rule(SEWBlock)
def _residual_of_spikes(graph: _Graph, name: str, layer: Any, x: _Stream) -> _Stream:
    return graph.chain(name, layer, ['units'], x) + graph.chain(name, layer, ['shortcut'], x)


@_rule(MSBlock)
def _residual_of_currents(graph: _Graph, name: str, layer: Any, x: _Stream) -> _Stream:
    return graph.chain(name, layer, ['lif', 'conv1', 'conv2'], x) + graph.chain(name, layer, ['shortcut'], x)


@_rule(SpikingResNetBlock)
def _residual_that_fires(graph: _Graph, name: str, layer: Any, x: _Stream) -> _Stream:
    x = graph.chain(name, layer, ['conv1', 'conv2'], x) + graph.chain(name, layer, ['shortcut'], x)
    return graph.chain(name, layer, ['lif'], x)


@_rule(SpikingTransformer)
def _classifier(graph: _Graph, name: str, model: Any, x: _Stream) -> _Stream:
    x = graph.chain(name, model, ['stem', 'stages'], x)
    neuron = [] if model.head_lif is None else ['head_lif']
    if isinstance(model, MSResNet):  # whose last neuron comes before the pooling
        x = graph.average('head.global_pool', graph.chain(name, model, neuron, x))
    else:
        x = graph.chain(name, model, neuron, graph.average('head.global_pool', x))
    if isinstance(model.head.fc, nn.Identity):
        return x
    return graph.convolve('head.fc', model.head.fc.weight[:, :, None, None], model.head.fc.bias, 1, 0, x)
