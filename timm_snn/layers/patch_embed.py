"""Stems and patch embeddings: MSViT's SPEMSF, the steps of Spikformer's SPS, and their order for currents."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor, nn

from .conv import ConvBn, ConvBnLif, pool_spikes
from .neuron import LIF, neuron_for
from .registry import LayerFn, patch_embeds
from .temporal import repeat_for_steps

__all__ = ['CurrentStem', 'MembranePatchEmbed', 'SpikingPatchEmbed', 'SpikingPatchSplitting', 'SpikingStem']


class SpikingStem(nn.Module):
    """Convolution units that turn real-valued input into spikes: `widths[i]` channels, pooled if `pools[i]`.

    The current of the first unit does not depend on the neurons, so for a static image it is computed for one step and
    repeated for the others. In training the batch statistics of that one step are the mean and variance of all.

    Shape: [1 or T, B, in_chs, H, W] -> spikes [T, B, widths[-1], H', W'], with T = num_steps.
    """

    def __init__(
        self,
        in_chs: int,
        widths: Sequence[int],
        pools: Sequence[bool],
        kernel_size: int = 3,
        stride: int = 1,
        lif_layer: LayerFn = LIF,
        device=None,
        dtype=None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.units = _conv_units(in_chs, widths, pools, kernel_size, stride, lif_layer=lif_layer, **dd)

    def forward(self, x: Tensor, num_steps: int) -> Tensor:
        for i, unit in enumerate(self.units):
            x = unit.lif(repeat_for_steps(unit.current(x), num_steps)) if i == 0 else unit(x)  # type: ignore
        return x


class CurrentStem(nn.Module):
    """A convolution unit without a neuron, for families whose stream holds membrane currents.

    Takes the arguments of `ConvBn`. As in `SpikingStem`, the current of a static image is computed for one step and
    repeated for the others.

    Shape: [1 or T, B, in_chs, H, W] -> currents [T, B, out_chs, H', W'], with T = num_steps.
    """

    def __init__(self, in_chs: int, out_chs: int, kernel_size: int, **kwargs) -> None:
        super().__init__()
        self.unit = ConvBn(in_chs, out_chs, kernel_size, **kwargs)

    def forward(self, x: Tensor, num_steps: int) -> Tensor:
        return repeat_for_steps(self.unit(x), num_steps)


@patch_embeds.register('spemsf')
class SpikingPatchEmbed(nn.Module):
    """Spiking patch embedding with multi-scale feature fusion (SPEMSF, arXiv 2505.14719, Eq. 3): Y = F(x) + G(x).

    G is a chain of 3x3 convolution units of `widths[i]` channels, those with `pools[i]` halve the resolution; F is a
    1x1 convolution unit whose stride makes up for the pooling. The sum of the two is a map of 0, 1 and 2.

    A chain that pools twice passes a resolution between those of its input and output: `inner_levels` lists such maps.

    Shape: spikes [T, B, in_chs, H, W] -> [T, B, widths[-1], H / 2**sum(pools), W / 2**sum(pools)], rounded up.
    """

    def __init__(
        self,
        in_chs: int,
        widths: Sequence[int],
        pools: Sequence[bool],
        lif_layer: LayerFn = LIF,
        device=None,
        dtype=None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.units = _conv_units(in_chs, widths, pools, lif_layer=lif_layer, **dd)
        self.shortcut = ConvBnLif(in_chs, widths[-1], stride=2 ** sum(pools), lif_layer=lif_layer, **dd)
        self.inner_levels = _inner_levels(widths, pools)

    def forward(self, x: Tensor) -> Tensor:
        return self.units(x) + self.shortcut(x)

    def forward_levels(self, x: Tensor) -> list[Tensor]:
        """The inner levels, then what `forward` returns."""
        y, inner = _keep_levels(self.units, x, self.inner_levels)
        return [*inner, y + self.shortcut(x)]


class MembranePatchEmbed(nn.Module):
    """SPEMSF for membrane shortcuts: a sum of currents, Y = F(SN(u)) + G(SN(u)), where F and G end in a batch norm.

    G is a chain of 3x3 convolution units of `widths[i]` channels, those with `pools[i]` halve the resolution and the
    first has the `stride`; F is a 1x1 convolution whose stride makes up for both. With `max_shortcut` F is pooled
    instead, so that both keep the high frequencies (Embed-Max of MaxFormer, arXiv 2505.18608); G must halve the
    resolution once then. `pre_activation=False` leaves out SN, for input that is spikes already.

    Shape: currents [T, B, in_chs, H, W] -> currents [T, B, widths[-1], H', W'], rounded up.
    Raises: ValueError for widths that are not as many as pools, or `max_shortcut` at another resolution.
    """

    def __init__(
        self,
        in_chs: int,
        widths: Sequence[int],
        pools: Sequence[bool],
        stride: int = 1,
        max_shortcut: bool = False,
        pre_activation: bool = True,
        lif_layer: LayerFn = LIF,
        device=None,
        dtype=None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        _check_widths(widths, pools)
        reduction = stride * 2 ** sum(pools)
        if max_shortcut and reduction != 2:
            raise ValueError(f'max_shortcut halves the resolution, and these units divide it by {reduction}')
        self.lif = neuron_for(in_chs, lif_layer).to(**dd) if pre_activation else nn.Identity()
        units: list[nn.Module] = []
        for i, (width, pool) in enumerate(zip(widths, pools, strict=True)):
            conv = (widths[i - 1] if i else in_chs, width, 3, 1 if i else stride, pool)
            units.append(ConvBn(*conv, **dd) if i == len(widths) - 1 else ConvBnLif(*conv, lif_layer=lif_layer, **dd))
        self.units = nn.Sequential(*units)
        self.shortcut = ConvBn(in_chs, widths[-1], stride=1 if max_shortcut else reduction, pool=max_shortcut, **dd)
        self.inner_levels = _inner_levels(widths, pools, stride)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lif(x)
        return self.units(x) + self.shortcut(x)

    def forward_levels(self, x: Tensor) -> list[Tensor]:
        """The inner levels, which are spikes, then what `forward` returns."""
        x = self.lif(x)
        y, inner = _keep_levels(self.units, x, self.inner_levels)
        return [*inner, y + self.shortcut(x)]


class SpikingPatchSplitting(nn.Module):
    """Steps of spiking patch splitting (SPS, arXiv 2209.15425): 3x3 convolution units of `widths[i]` channels.

    Where `pools[i]`, the resolution is halved: by pooling the spikes of the unit or, with `cml`, the current before its
    neuron (CML, arXiv 2305.05954: Conv-BN-MaxPool-LIF), whose maximum has a gradient. The parameters are the same.
    `pool_input` pools what comes in first: the spikes of a stem, which has no pooling of that kind. With `position` a
    unit adds the conditional position embedding at the end, y = x + SN(BN(Conv(x))).

    Shape: spikes [T, B, in_chs, H, W] -> [T, B, widths[-1], H / 2**pooled, W / 2**pooled], rounded up.
    """

    def __init__(
        self,
        in_chs: int,
        widths: Sequence[int],
        pools: Sequence[bool],
        pool_input: bool = False,
        cml: bool = False,
        position: bool = False,
        lif_layer: LayerFn = LIF,
        device=None,
        dtype=None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.pool_input = pool_input
        self.pool_after = [pool and not cml for pool in pools]
        self.units = _conv_units(in_chs, widths, [pool and cml for pool in pools], lif_layer=lif_layer, **dd)
        chs = widths[-1]
        self.position = ConvBnLif(chs, chs, kernel_size=3, lif_layer=lif_layer, **dd) if position else None

    def forward(self, x: Tensor) -> Tensor:
        if self.pool_input:
            x = pool_spikes(x)
        for i, unit in enumerate(self.units):
            x = unit(x)
            if self.pool_after[i]:
                x = pool_spikes(x)
        if self.position is not None:
            x = x + self.position(x)
        return x


def _conv_units(
    in_chs: int, widths: Sequence[int], pools: Sequence[bool], kernel_size: int = 3, stride: int = 1, **kwargs
) -> nn.Sequential:
    _check_widths(widths, pools)
    chs = [in_chs, *widths]
    return nn.Sequential(
        *(ConvBnLif(chs[i], chs[i + 1], kernel_size, stride, pool=pool, **kwargs) for i, pool in enumerate(pools))
    )


class InnerLevel(NamedTuple):
    """The map behind a unit of a patch embedding, of a resolution that neither its input nor its output has."""

    unit: int
    num_chs: int
    reduction: int  # of the size of the embedding's input


def _inner_levels(widths: Sequence[int], pools: Sequence[bool], stride: int = 1) -> list[InnerLevel]:
    reductions = [stride * 2 ** sum(pools[: i + 1]) for i in range(len(pools))]
    return [
        InnerLevel(i, widths[i], reduction)
        for i, (reduction, following) in enumerate(pairwise(reductions))
        if 1 < reduction < following
    ]


def _keep_levels(units: nn.Sequential, x: Tensor, levels: Sequence[InnerLevel]) -> tuple[Tensor, list[Tensor]]:
    """What a chain of units returns, and the maps behind some of them."""
    kept = []
    for i, unit in enumerate(units):
        x = unit(x)
        if any(level.unit == i for level in levels):
            kept.append(x)
    return x, kept


def _check_widths(widths: Sequence[int], pools: Sequence[bool]) -> None:
    if len(widths) != len(pools) or not widths:
        raise ValueError(f'expected as many widths as pools and at least one, got {tuple(widths)} and {tuple(pools)}')
