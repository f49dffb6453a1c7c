"""Modules that models are built from; all of them take and return time-first tensors, [T, B, C, H, W]."""

import warnings
from typing import Any

from .adapters import SnnTorchNeuron, SpikingJellyNeuron, adapter_of
from .alif import ALIF
from .attention import MultiScaleSpikingAttention, QKTokenAttention, SpikingSelfAttention
from .block import SpikingBlock, SpikingResidual
from .clif import CLIF
from .conv import ConvBn, ConvBnLif, LifConvBn, pool_spikes
from .dssa import DualSpikeSelfAttention, GroupWiseMlp, RunningFiringRate
from .e_sdsa import EfficientSpikeDrivenSelfAttention
from .glif import GLIF
from .klif import KLIF
from .mlp import SpikingMlp
from .neuron import IF, LIF, IntegerNeuron, ParametricLIF, ReluNeuron, neuron_for
from .patch_embed import CurrentStem, MembranePatchEmbed, SpikingPatchEmbed, SpikingPatchSplitting, SpikingStem
from .psn import PSN, SlidingPSN
from .quantized import ClipFloorShift, ConvertedNeuron, OnRunningMean
from .registry import LayerFn, Registry, attentions, neurons, patch_embeds
from .rep_conv import RepConv
from .sdsa import SpikeDrivenSelfAttention
from .sep_conv import SepConv
from .softmax_attention import SoftmaxAttention
from .statten import SpatialTemporalAttention
from .temporal import DropPath, mean_over_time, merge_time, refuse_bare_recording, split_time, to_time_first
from .ternary import TernaryLIF
from .torch_neuron import FixedSteps, LeakyNeuron, StepwiseNeuron, TorchNeuron

__all__ = [
    'ALIF',
    'CLIF',
    'GLIF',
    'IF',
    'KLIF',
    'LIF',
    'PSN',
    'ClipFloorShift',
    'ConvBn',
    'ConvBnLif',
    'ConvertedNeuron',
    'CurrentStem',
    'DropPath',
    'DualSpikeSelfAttention',
    'EfficientSpikeDrivenSelfAttention',
    'FixedSteps',
    'GroupWiseMlp',
    'IntegerNeuron',
    'LayerFn',
    'LeakyNeuron',
    'LifConvBn',
    'MembranePatchEmbed',
    'MultiScaleSpikingAttention',
    'OnRunningMean',
    'ParametricLIF',
    'QKTokenAttention',
    'Registry',
    'ReluNeuron',
    'RepConv',
    'RunningFiringRate',
    'SepConv',
    'SlidingPSN',
    'SnnTorchNeuron',
    'SoftmaxAttention',
    'SpatialTemporalAttention',
    'SpikeDrivenSelfAttention',
    'SpikingBlock',
    'SpikingJellyNeuron',
    'SpikingMlp',
    'SpikingPatchEmbed',
    'SpikingPatchSplitting',
    'SpikingResidual',
    'SpikingSelfAttention',
    'SpikingStem',
    'StepwiseNeuron',
    'TernaryLIF',
    'TorchNeuron',
    'adapter_of',
    'attentions',
    'mean_over_time',
    'merge_time',
    'neuron_for',
    'neurons',
    'patch_embeds',
    'pool_spikes',
    'refuse_bare_recording',
    'split_time',
    'to_time_first',
]


def __getattr__(name: str) -> Any:
    if name == 'fuse':
        from .. import fuse  # of the models, which import this package

        warnings.warn('timm_snn.layers.fuse is deprecated: use timm_snn.fuse', DeprecationWarning, stacklevel=2)
        return fuse
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
