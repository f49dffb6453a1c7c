"""Modules that models are built from; all of them take and return time-first tensors, [T, B, C, H, W]."""

from .attention import MultiScaleSpikingAttention, SpikingSelfAttention
from .conv import ConvBnLif
from .fuse import fuse
from .mlp import SpikingMlp
from .neuron import LIF, ParametricLIF
from .patch_embed import SpikingPatchEmbed, SpikingStem
from .registry import LayerFn, Registry, attentions, neurons, patch_embeds
from .temporal import DropPath, merge_time, split_time, to_time_first

__all__ = [
    'LIF',
    'ConvBnLif',
    'DropPath',
    'LayerFn',
    'MultiScaleSpikingAttention',
    'ParametricLIF',
    'Registry',
    'SpikingMlp',
    'SpikingPatchEmbed',
    'SpikingSelfAttention',
    'SpikingStem',
    'attentions',
    'fuse',
    'merge_time',
    'neurons',
    'patch_embeds',
    'split_time',
    'to_time_first',
]
