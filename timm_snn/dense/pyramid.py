"""Backbones for the detectors of torchvision: a feature pyramid over a timm model, and anchors that go with it."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from ..layers import LayerFn, mean_over_time
from .backbones import carries_currents, is_spiking, neuron_of, open_backbone, refuse_frames, unfold_frames
from .decoders import Readout, SpikingPyramid

__all__ = ['FpnBackbone', 'anchor_generator', 'fpn_backbone']

NECKS = ('fpn', 'spiking_fpn')


def fpn_backbone(
    backbone: str,
    *,
    neck: str = 'fpn',
    out_channels: int = 256,
    pool: bool = True,
    min_stride: int = 4,
    pretrained: bool = False,
    in_chans: int = 3,
    lif_layer: Any = None,
    num_steps: int | None = None,
    **backbone_kwargs: Any,
) -> 'FpnBackbone':
    """A feature pyramid over a timm model, as the detectors of torchvision take it.

        body = dense.fpn_backbone('msvit_4_96')
        detector = RetinaNet(body, num_classes=3, anchor_generator=dense.anchor_generator(body))

    Args:
        backbone: Any name for `timm.create_model`, with a tag or as 'local-dir:FOLDER' too.
        neck: 'fpn', torchvision's, of real values, on features averaged over time; or 'spiking_fpn', of spikes like the
            backbone, whose levels are membranes that are read out.
        out_channels: Of all levels.
        pool: Whether a last level is added, every second value of the one before.
        min_stride: Levels of a smaller stride are left out: there an image would have a million anchors.
        pretrained, in_chans, lif_layer, num_steps, backbone_kwargs: As in `create_segmenter`.

    Raises: ValueError for arguments that do not fit.
    """
    if neck not in NECKS:
        raise ValueError(f'unknown neck {neck!r}: expected one of {", ".join(NECKS)}')
    kwargs = dict(pretrained=pretrained, in_chans=in_chans, lif_layer=lif_layer, num_steps=num_steps, **backbone_kwargs)
    body = open_backbone(backbone, **kwargs)
    strides = body.feature_info.reduction()
    first = sum(stride < min_stride for stride in strides)
    if first == len(strides):
        raise ValueError(f'the backbone {backbone!r} has strides {strides}, and none of at least {min_stride}')
    in_chs = body.feature_info.channels()[first:]
    if neck == 'fpn':
        made: nn.Module = FeaturePyramidNetwork(in_chs, out_channels)
    elif is_spiking(body):
        made = SpikingNeck(in_chs, carries_currents(body)[first:], out_channels, neuron_of(body))
    else:
        raise ValueError(
            f"neck {neck!r} takes the spikes of every step, and the backbone {backbone!r} has none: use 'fpn', or a "
            'spiking backbone'
        )
    return FpnBackbone(backbone, body, made, out_channels, pool, first)


class FpnBackbone(nn.Module):
    """What `fpn_backbone` returns: `out_channels` and `strides` of its levels, which are named '0', '1' and so on.

    With `pool` the last one is called 'pool'.

    Shape: images [B, C, H, W] or frames [B, T, C, H, W] -> OrderedDict of [B, out_channels, H', W'], from the largest
    map on. Frames may also come as torchvision's code can hand them on, [B, T * C, H, W].
    """

    def __init__(self, name: str, body: Any, fpn: nn.Module, out_channels: int, pool: bool, first: int) -> None:
        super().__init__()
        self.name = name
        self.body = body
        self.fpn = fpn
        self.pool = LastLevelMaxPool() if pool else None
        self.out_channels = out_channels
        self.first = first  # level of the body that is used
        strides = body.feature_info.reduction()[first:]
        self.strides: list[int] = [*strides, 2 * strides[-1]] if pool else strides
        self.names = [str(i) for i in range(len(strides))]

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        has_time = hasattr(self.body, 'num_steps')
        if not has_time:
            refuse_frames(x, self.name)
        elif x.ndim == 4:
            x = unfold_frames(x, self.body.in_chans)
        features = self.body.forward_steps(x) if isinstance(self.fpn, SpikingNeck) else self.body(x)
        levels = self.fpn(OrderedDict(zip(self.names, features[self.first :], strict=True)))
        if self.pool is None:
            return levels
        maps, names = self.pool(list(levels.values()), features, list(levels))
        return OrderedDict(zip(names, maps, strict=True))


class SpikingNeck(nn.Module):
    """A `SpikingPyramid` whose levels are read out: the membranes over T that integrate a 3x3 convolution's currents.

    Shape: OrderedDict of levels [T, B, C, H, W] -> the same of [B, channels, H, W].
    """

    def __init__(self, in_chs: Sequence[int], currents: Sequence[bool], channels: int, lif_layer: LayerFn) -> None:
        super().__init__()
        self.pyramid = SpikingPyramid(in_chs, currents, channels, lif_layer)
        self.readouts = nn.ModuleList(Readout(channels, channels, 3) for _ in in_chs)

    def forward(self, levels: OrderedDict[str, Tensor]) -> OrderedDict[str, Tensor]:
        counts = self.pyramid(list(levels.values()))
        return OrderedDict(
            (name, mean_over_time(readout(x))) for name, readout, x in zip(levels, self.readouts, counts, strict=True)
        )


def anchor_generator(
    backbone: FpnBackbone, sizes: Sequence[int] | Sequence[Sequence[int]] | None = None
) -> AnchorGenerator:
    """torchvision's anchors for all levels of a backbone, in the ratios 1:2, 1:1 and 2:1.

    Args:
        sizes: Side of the square anchors in pixels of the resized image, one or several for each level; by default
            three from 4 strides on, a third of an octave apart, as in RetinaNet (arXiv 1708.02002).

    Raises: ValueError for sizes that are not as many as the levels, or not equally many on each, which heads need.
    """
    if sizes is None:
        sizes = [[round(4 * stride * 2 ** (octave / 3)) for octave in range(3)] for stride in backbone.strides]
    each = [tuple(size) if isinstance(size, (list, tuple)) else (size,) for size in sizes]
    if len(each) != len(backbone.strides) or len({len(level) for level in each}) != 1:
        raise ValueError(
            f'expected anchor sizes for each of {len(backbone.strides)} levels, of strides {backbone.strides}, and '
            f'equally many for each, got {sizes}'
        )
    return AnchorGenerator(tuple(each), ((0.5, 1.0, 2.0),) * len(each))
