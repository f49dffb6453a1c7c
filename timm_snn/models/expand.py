"""A network of integer spikes as one of binary spikes over more steps, with the same answers."""

from __future__ import annotations

import copy
from typing import Any

from timm.layers import SelectAdaptivePool2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..layers import (
    ConvBn,
    ConvBnLif,
    CurrentStem,
    DropPath,
    GroupWiseMlp,
    IntegerNeuron,
    LifConvBn,
    MembranePatchEmbed,
    RepConv,
    RunningFiringRate,
    SepConv,
    SpikingMlp,
    SpikingPatchEmbed,
    SpikingPatchSplitting,
    SpikingResidual,
    SpikingStem,
    neurons,
)
from ..layers.attention import SumOfScales
from ..layers.conv import DilatedMaxPool, MapConv, SpikePool, TokenConv
from ..layers.expanded import EXPANDED, ExpandedConvBn, ExpandedConvBnLif, ExpandedNeuron
from ..layers.sep_conv import DepthwiseConv
from ..wrappers import unwrapped
from .base import SpikingTransformer

__all__ = ['expand_levels']

# What answers the mean of several inputs by the mean of its answers, and what only calls its parts one after the other
# or adds them up. Blocks of our families do no more than that either.
_LINEAR = {
    *(
        nn.ModuleDict,
        nn.Identity,
        nn.Sequential,
        nn.Conv1d,
        nn.Conv2d,
        nn.Linear,
        nn.BatchNorm2d,
        nn.SyncBatchNorm,
        nn.Dropout,
    ),
    *(nn.Flatten, nn.AdaptiveAvgPool2d, SelectAdaptivePool2d),
    *(MapConv, TokenConv, RepConv, DepthwiseConv, ConvBn, ConvBnLif, LifConvBn, SpikingMlp, SepConv, GroupWiseMlp),
    *(SpikingStem, CurrentStem, SpikingPatchEmbed, MembranePatchEmbed, SpikingPatchSplitting, nn.ModuleList),
    *(SpikingResidual, DropPath, SumOfScales, RunningFiringRate),
}


def expand_levels(model: nn.Module) -> nn.Module:
    """A copy of a network of integer spikes, in eval mode, that runs on binary spikes and answers the same.

        model = timm.create_model('espikeformer_5m')        # trained with integer spikes of 0 to D = 4
        expanded = timm_snn.expand_levels(model)
        logits = expanded(images)                           # those of the model
        report = timm_snn.profile(expanded, images)         # of 4 binary steps

    An integer spike n becomes n binary spikes in the first n of D steps (arXiv 2411.16061), so T steps become T * D.
    A neuron waits for the currents of all D steps, takes their mean and fires in the next D, as one on a chip does
    that counts until its layer is done. Between neurons everything runs step by step on binary spikes, but products
    of two activations take the mean over D steps of one of them: of the values in attention, with every key of its
    own step; of the mask in MSSA, QKTA and SDSA, behind which the projection is therefore fed numbers of 0 to D, over
    D; of the patches in DSSA. Residual streams of spikes (SEW) hold whole numbers, as with any neuron.

    A segmenter of `timm_snn.dense` with a spiking decoder is expanded as a whole.

    Images and frames go in as before, with `num_steps` of them, and weights, their names and answers are the model's.
    Where the neuron before the classifier counts spikes (`normalize=False`, E-SpikeFormer), the classifier has D
    times the weights. `forward_steps` has T * D answers, of which those of D steps in turn average to one of the
    model's. In float64 logits agree to rounding; spikes are those of the model unless a current lies halfway between
    two integers, to rounding, which a D that is a power of two does not move.

    Save the model itself, and expand it after loading: that takes no time, and config.json has no word for it.

    Raises: ValueError for a network without integer neurons, or with other ones, and for layers that are not known to
    be exact, by name and with the reason.
    """
    model = unwrapped(model)
    if not any(isinstance(module, SpikingTransformer) for module in model.modules()):
        raise ValueError(f'expand_levels takes the networks of timm_snn, got a {type(model).__name__}')
    levels = _levels_of(model)
    place, network = _network_in(model)
    for name, module in model.named_modules():
        if reason := _why_not(network, name.removeprefix(f'{place}.'), module):
            raise ValueError(f'expand_levels cannot expand {name}, a {type(module).__name__}: {reason}')
    expanded: Any = copy.deepcopy(model).requires_grad_(False).eval()
    network = expanded.get_submodule(place)
    if network.head_lif is not None and not network.head_lif.normalize:
        network.head.fc.weight.data *= levels
    for name, module in list(expanded.named_modules()):
        if isinstance(module, IntegerNeuron):
            expanded.set_submodule(name, ExpandedNeuron(module))
        elif type(module) in EXPANDED:
            _become(module, EXPANDED[type(module)], levels)
        elif isinstance(module, ConvBn) and not isinstance(module.pool, nn.Identity) and module is not _first(network):
            _become(module, ExpandedConvBnLif if isinstance(module, ConvBnLif) else ExpandedConvBn, levels)
    network.levels = levels
    return expanded


def _network_in(model: nn.Module) -> tuple[str, Any]:
    """The backbone with time, which may be the whole model, and its name."""
    return next((name, m) for name, m in model.named_modules() if isinstance(m, SpikingTransformer))


def _become(module: Any, cls: type[nn.Module], levels: int) -> None:
    module.__class__, module.levels = cls, levels
    if hasattr(module, 'chunk_steps'):
        module.chunk_steps *= levels


def _levels_of(model: nn.Module) -> int:
    """D. Raises: ValueError for a network without integer neurons, or with different ones."""
    found = {module.levels: name for name, module in model.named_modules() if isinstance(module, IntegerNeuron)}
    if not found:
        raise ValueError(
            f'this {type(model).__name__} has no integer neurons, whose spikes could be expanded: '
            "create_model(..., lif_layer='integer') makes it with them"
        )
    if len(found) > 1:
        (one, name), (other, other_name) = list(found.items())[:2]
        raise ValueError(
            f'expand_levels needs the same levels everywhere, got {one} in {name} and {other} in {other_name}'
        )
    levels = next(iter(found))
    if levels == 1:
        raise ValueError('spikes of this network are binary already: its neurons have levels=1')
    return levels


def _why_not(model: SpikingTransformer, name: str, module: Any) -> str | None:
    """Why this layer would not give the same answers, or None."""
    if isinstance(module, IntegerNeuron):
        if module.normalize or (module is model.head_lif and isinstance(model.head.fc, nn.Linear)):
            return None
        return (
            'with normalize=False it counts spikes, and a binary spike would have to be worth several: train with '
            'normalize=True, which divides by the levels'
        )
    if neurons.name_of(type(module)):
        return 'it is no integer neuron, and would see more steps than it was trained with'
    if isinstance(module, _BatchNorm) and module.running_mean is None:
        return "without running statistics it normalises by each batch's own, which are others for binary spikes"
    if type(module) is SpikePool:
        pools_spikes = '.pools.' in name or _is_fed_by_stem(model, name)  # `pools` follow neurons
        return None if pools_spikes else 'it pools sums, and maxima of sums do not add up over steps'
    if type(module) in (nn.MaxPool1d, nn.MaxPool2d, DilatedMaxPool):
        unit = model.get_submodule(name.rpartition('.')[0])
        return None if isinstance(unit, ConvBn) else 'the maximum of a mean is not the mean of maxima'
    is_ours = type(module).__module__.startswith(('timm_snn.models.', 'timm_snn.dense.'))
    if type(module) in _LINEAR or type(module) in EXPANDED or is_ours:
        return None
    return (
        'only layers of timm_snn and torch are known to be linear between neurons, and not all of them are: make the '
        'model with others there'
    )


def _is_fed_by_stem(model: Any, name: str) -> bool:
    """Whether the spikes of the stem come in here, which a maximum keeps, since they begin in the first step."""
    before = model.stages[: int(name.split('.')[1])] if name.startswith('stages.') else model.stages
    passes = all(isinstance(stage.embed, nn.Identity) and not len(stage.blocks) for stage in before)
    return passes and isinstance(model.stem, SpikingStem)


def _first(model: Any) -> nn.Module:
    """The unit that is fed the image, one step of which stands for all: a maximum of it is that of its mean."""
    return model.stem.units[0] if isinstance(model.stem, SpikingStem) else model.stem.unit
