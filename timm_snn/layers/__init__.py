"""Modules that models are built from; all of them take and return time-first tensors, [T, B, C, H, W]."""

from .attention import MultiScaleSpikingAttention, QKTokenAttention, SpikingSelfAttention
from .block import SpikingBlock, SpikingResidual
from .conv import ConvBn, ConvBnLif, pool_spikes
from .fuse import fuse
from .mlp import SpikingMlp
from .neuron import LIF, ParametricLIF
from .patch_embed import CurrentStem, SpikingPatchEmbed, SpikingPatchSplitting, SpikingStem
from .registry import LayerFn, Registry, attentions, neurons, patch_embeds
from .rep_conv import RepConv
from .sdsa import SpikeDrivenSelfAttention
from .sep_conv import SepConv
from .temporal import DropPath, merge_time, split_time, to_time_first

__all__ = [
    'LIF',
    'ConvBn',
    'ConvBnLif',
    'CurrentStem',
    'DropPath',
    'LayerFn',
    'MultiScaleSpikingAttention',
    'ParametricLIF',
    'QKTokenAttention',
    'Registry',
    'RepConv',
    'SepConv',
    'SpikeDrivenSelfAttention',
    'SpikingBlock',
    'SpikingMlp',
    'SpikingPatchEmbed',
    'SpikingPatchSplitting',
    'SpikingResidual',
    'SpikingSelfAttention',
    'SpikingStem',
    'attentions',
    'fuse',
    'merge_time',
    'neurons',
    'patch_embeds',
    'pool_spikes',
    'split_time',
    'to_time_first',
]
