"""Spiking decoders: from the feature levels of every step to the currents of a membrane that is read out.

All convolutions are fed spikes, or sums of them, which are whole numbers. The last one has no neuron behind it: its
currents are integrated by a membrane that never fires, and what is read is that membrane over the number of steps,
which is the mean of the currents over time.

Levels come from the largest map to the smallest, [T, B, C, H, W] each.
"""

from collections.abc import Sequence

from torch import Tensor, cat, nn
from torch.nn import functional as F

from ..layers import ConvBnLif, LayerFn, merge_time, neuron_for, split_time
from ..layers.conv import MapConv

__all__ = ['FireLevels', 'Readout', 'SpikingFpn', 'SpikingPyramid', 'SpikingUnet']


class FireLevels(nn.ModuleList):
    """Spikes of all levels: those that are currents, by membrane shortcuts, fire first; the others stay as they are.

    Args:
        currents: For each level, whether it is currents.
    """

    def __init__(self, in_chs: Sequence[int], currents: Sequence[bool], lif_layer: LayerFn) -> None:
        super().__init__(
            nn.ModuleDict({'lif': neuron_for(chs, lif_layer)} if is_current else {})
            for chs, is_current in zip(in_chs, currents, strict=True)
        )

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        return [neuron['lif'](x) if neuron else x for x, neuron in zip(levels, self, strict=True)]  # type: ignore


class Readout(nn.Module):
    """A convolution whose currents are not fired but integrated: the mean over T of its output is the membrane.

    Shape: spikes [T, B, in_chs, H, W] -> currents [T, B, out_chs, H, W].
    """

    def __init__(self, in_chs: int, out_chs: int, kernel_size: int = 1) -> None:
        super().__init__()
        self.conv = MapConv(in_chs, out_chs, kernel_size, padding=kernel_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        return split_time(self.conv(merge_time(x)), x.shape[0])


class SpikingUnet(nn.Module):
    """U-Net (arXiv 1505.04597) of spikes: upsampling to the next larger level, its spikes beside, two convolutions.

    Args:
        in_chs, currents: Of each level, as in `FireLevels`.
        num_classes: Channels of the answer.
        channels: Of each block, from the smallest map on; those after the last level double the map without a skip.
        lif_layer: Called as `lif_layer()`, or with `per_channel`.

    Shape: levels [T, B, C, H, W] -> currents [T, B, num_classes, H', W'], of the largest level or double its size.
    """

    def __init__(
        self,
        in_chs: Sequence[int],
        currents: Sequence[bool],
        num_classes: int,
        channels: Sequence[int],
        lif_layer: LayerFn,
    ) -> None:
        super().__init__()
        self.levels = FireLevels(in_chs, currents, lif_layer)
        skips = [*in_chs[-2::-1], *[0] * (len(channels) + 1 - len(in_chs))]
        widths = [in_chs[-1], *channels]
        self.blocks = nn.ModuleList(
            nn.Sequential(
                ConvBnLif(widths[i] + skip, widths[i + 1], 3, lif_layer=lif_layer),
                ConvBnLif(widths[i + 1], widths[i + 1], 3, lif_layer=lif_layer),
            )
            for i, skip in enumerate(skips)
        )
        self.readout = Readout(widths[-1], num_classes)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        *skips, x = self.levels(levels)
        for block in self.blocks:
            if skips:
                skip = skips.pop()
                x = cat([upsample(x, skip.shape[-2:]), skip], 2)
            else:
                x = upsample(x, (2 * x.shape[-2], 2 * x.shape[-1]))
            x = block(x)
        return self.readout(x)


class SpikingPyramid(nn.Module):
    """Feature pyramid (arXiv 1612.03144) of spike counts: lateral 1x1 units, and the sum from the smallest map on.

    Arguments as in `SpikingUnet`, of `channels` one number. Shape: levels [T, B, C, H, W] -> [T, B, channels, H, W].
    """

    def __init__(self, in_chs: Sequence[int], currents: Sequence[bool], channels: int, lif_layer: LayerFn) -> None:
        super().__init__()
        self.levels = FireLevels(in_chs, currents, lif_layer)
        self.laterals = nn.ModuleList(ConvBnLif(chs, channels, lif_layer=lif_layer) for chs in in_chs)

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        counts: list[Tensor] = []
        for x, lateral in zip(self.levels(levels)[::-1], reversed(self.laterals), strict=True):
            y = lateral(x)
            counts.insert(0, y + upsample(counts[0], y.shape[-2:]) if counts else y)
        return counts


class SpikingFpn(nn.Module):
    """A `SpikingPyramid` for segmentation: a 3x3 unit for each level, whose spikes are summed on the largest map.

    Shape: levels [T, B, C, H, W] -> currents [T, B, num_classes, H', W'] of the largest level.
    """

    def __init__(
        self, in_chs: Sequence[int], currents: Sequence[bool], num_classes: int, channels: int, lif_layer: LayerFn
    ) -> None:
        super().__init__()
        self.pyramid = SpikingPyramid(in_chs, currents, channels, lif_layer)
        self.units = nn.ModuleList(ConvBnLif(channels, channels, 3, lif_layer=lif_layer) for _ in in_chs)
        self.readout = Readout(channels, num_classes)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        counts = [unit(x) for unit, x in zip(self.units, self.pyramid(levels), strict=True)]
        size = counts[0].shape[-2:]
        return self.readout(sum(upsample(x, size) for x in counts))


def upsample(x: Tensor, size: Sequence[int]) -> Tensor:
    """The nearest spike of every step: [T, B, C, H, W] -> [T, B, C, *size]."""
    if x.shape[-2:] == tuple(size):
        return x
    return split_time(F.interpolate(merge_time(x), size=tuple(size), mode='nearest'), x.shape[0])
