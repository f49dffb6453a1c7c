"""Layers of a network whose integer spikes are binary ones over D steps each: what `timm_snn.expand_levels` puts in.

An integer spike n of 0 to D becomes n binary spikes in the first n of D steps. What is linear, up to a bias, then runs
step by step as it is: the mean of its D answers is its answer to n / D, and the next neuron takes that mean. The layers
here are those that are not linear. They take the mean before they multiply or pool.

In their shapes T counts binary steps: D for each step of the network that was trained.
"""

from torch import Tensor, arange, nn

from ..ops.integer import count_spikes
from .attention import MultiScaleSpikingAttention, QKTokenAttention, SpikingSelfAttention
from .conv import ConvBn, ConvBnLif
from .dssa import DualSpikeSelfAttention
from .e_sdsa import EfficientSpikeDrivenSelfAttention
from .neuron import IntegerNeuron
from .sdsa import SpikeDrivenSelfAttention
from .statten import SpatialTemporalAttention, sum_over_chunks
from .temporal import merge_time, split_time

__all__ = ['EXPANDED', 'ExpandedNeuron', 'mean_over_levels']


def mean_over_levels(x: Tensor, levels: int) -> Tensor:
    """The mean over each `levels` steps in turn, at all of them: [T, ...] -> the same shape."""
    return sum_over_chunks(x, levels) / levels


class ExpandedNeuron(nn.Module):
    """`IntegerNeuron` with an output of binary spikes: n of them, in the first n of its `levels` steps.

    It waits for the current of all `levels` steps, whose mean is that of the integer neuron, and then fires.

    Shape: [T, B, ...] -> spikes [T, B, ...] in {0, 1}, with T a multiple of levels.
    """

    memoryless = True

    def __init__(self, neuron: IntegerNeuron) -> None:
        super().__init__()
        self.levels = self.chunk_steps = neuron.levels
        self.v_threshold = neuron.v_threshold

    def forward(self, x: Tensor) -> Tensor:
        current = x.unflatten(0, [-1, self.levels]).mean(1)
        n = count_spikes(current, self.levels, self.v_threshold, normalize=False).unsqueeze(1)
        step = arange(self.levels, device=x.device).view(-1, *[1] * current[0].ndim)
        return merge_time((step < n).to(x.dtype))

    def extra_repr(self) -> str:
        return f'levels={self.levels}, v_threshold={self.v_threshold}'


class _Expanded:
    """Base of layers that a network's own become, by an assignment of their class."""

    levels: int


class ExpandedConvBn(_Expanded, ConvBn):
    """`ConvBn` with pooling: a maximum of means."""

    def current(self, x: Tensor) -> Tensor:
        y = mean_over_levels(split_time(self._normalised(merge_time(x)), len(x)), self.levels)
        return split_time(self.pool(merge_time(y)), len(x))


class ExpandedConvBnLif(ExpandedConvBn, ConvBnLif):
    """`ConvBnLif` with pooling: a maximum of means."""


class ExpandedSelfAttention(_Expanded, SpikingSelfAttention):
    """`SpikingSelfAttention`: every query of a step meets the keys of all steps, and each key the values of all."""

    def _key_values(self, k: Tensor, v: Tensor, num_steps: int) -> Tensor:
        k, v = split_time(k, num_steps), split_time(v, num_steps)
        return merge_time(mean_over_levels(k.transpose(-2, -1) @ mean_over_levels(v, self.levels), self.levels))


class ExpandedSpatialTemporalAttention(_Expanded, SpatialTemporalAttention):
    """`SpatialTemporalAttention`, as `ExpandedSelfAttention`; its `chunk_steps` count binary steps."""

    def _key_values(self, k: Tensor, v: Tensor, num_steps: int) -> Tensor:
        k, v = split_time(k, num_steps), split_time(v, num_steps)
        kv = k.transpose(-2, -1) @ mean_over_levels(v, self.levels)
        return merge_time(sum_over_chunks(kv, self.chunk_steps) / self.levels)


class ExpandedEfficientSpikeDrivenSelfAttention(_Expanded, EfficientSpikeDrivenSelfAttention):
    """`EfficientSpikeDrivenSelfAttention`, as `ExpandedSelfAttention`."""

    def values_of_keys(self, k: Tensor, v: Tensor) -> Tensor:
        return mean_over_levels(mean_over_levels(v, self.levels) @ k.transpose(-2, -1), self.levels)


class ExpandedMultiScaleSpikingAttention(_Expanded, MultiScaleSpikingAttention):
    """`MultiScaleSpikingAttention`: how far a key passes is a mean, so what passes is k / levels, not binary."""

    def _mask(self, queries: list[Tensor], k: Tensor) -> Tensor:
        current = sum(query.sum(3, keepdim=True) for query in queries)
        return mean_over_levels(self.attn_lif(current), self.levels) * k


class ExpandedQKTokenAttention(ExpandedMultiScaleSpikingAttention, QKTokenAttention):
    """`QKTokenAttention`, as `ExpandedMultiScaleSpikingAttention`."""


class ExpandedSpikeDrivenSelfAttention(_Expanded, SpikeDrivenSelfAttention):
    """`SpikeDrivenSelfAttention`, as `ExpandedMultiScaleSpikingAttention`; with `erode` it pools means."""

    def agreement(self, k: Tensor, v: Tensor) -> Tensor:
        return super().agreement(k, mean_over_levels(v, self.levels))

    def gates(self, agreement: Tensor) -> Tensor:
        return mean_over_levels(super().gates(agreement), self.levels)

    def _dilate_tokens(self, x: Tensor) -> Tensor:
        return super()._dilate_tokens(mean_over_levels(x, self.levels))


class ExpandedDualSpikeSelfAttention(_Expanded, DualSpikeSelfAttention):
    """`DualSpikeSelfAttention`: spikes meet the mean of the patches."""

    def patches_of(self, s: Tensor) -> Tensor:
        return mean_over_levels(super().patches_of(s), self.levels)


EXPANDED: dict[type[nn.Module], type[nn.Module]] = {
    SpikingSelfAttention: ExpandedSelfAttention,
    SpatialTemporalAttention: ExpandedSpatialTemporalAttention,
    EfficientSpikeDrivenSelfAttention: ExpandedEfficientSpikeDrivenSelfAttention,
    MultiScaleSpikingAttention: ExpandedMultiScaleSpikingAttention,
    QKTokenAttention: ExpandedQKTokenAttention,
    SpikeDrivenSelfAttention: ExpandedSpikeDrivenSelfAttention,
    DualSpikeSelfAttention: ExpandedDualSpikeSelfAttention,
}
