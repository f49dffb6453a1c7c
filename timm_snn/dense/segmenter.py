"""Segmentation: a class for every pixel, by a spiking decoder or by one of segmentation_models_pytorch."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ..layers import mean_over_time, merge_time, split_time
from .backbones import carries_currents, description, is_spiking, neuron_of, open_backbone, refuse_frames, unfold_frames
from .decoders import SpikingFpn, SpikingUnet
from .model import DenseModel

__all__ = ['Segmenter', 'SmpSegmenter', 'SpikingSegmenter', 'create_segmenter']

SPIKING = ('spiking_unet', 'spiking_fpn')
# Classes of segmentation_models_pytorch. U-Nets have a number of channels for each block, the others one for all.
SMP = {
    'unet': 'Unet',
    'unetplusplus': 'UnetPlusPlus',
    'fpn': 'FPN',
    'deeplabv3': 'DeepLabV3',
    'deeplabv3plus': 'DeepLabV3Plus',
}
DEEPLABS = ('deeplabv3', 'deeplabv3plus')
UNETS = ('spiking_unet', 'unet', 'unetplusplus')


def create_segmenter(
    backbone: str,
    num_classes: int,
    *,
    decoder: str = 'spiking_unet',
    pretrained: bool = False,
    in_chans: int = 3,
    decoder_channels: int | Sequence[int] | None = None,
    lif_layer: Any = None,
    num_steps: int | None = None,
    **backbone_kwargs: Any,
) -> 'Segmenter':
    """A model that labels every pixel: images [B, C, H, W] or frames [B, T, C, H, W] -> logits [B, num_classes, H, W].

        model = timm_snn.dense.create_segmenter('msvit_4_96', num_classes=11)
        model(torch.rand(1, 3, 360, 480)).shape     # [1, 11, 360, 480]

    Images are normalised as the backbone wants them (`model.pretrained_cfg`) and may have any size: they are padded
    with zeros to a multiple of the largest stride inside.

    Args:
        backbone: Any name for `timm.create_model`, with a tag or as 'local-dir:FOLDER' too.
        decoder: 'spiking_unet' or 'spiking_fpn', of spikes like the backbone, which must be a spiking one; or 'unet',
            'unetplusplus', 'fpn', 'deeplabv3', 'deeplabv3plus' of segmentation_models_pytorch, of real values, which
            take features averaged over time, or those of an ordinary backbone.
        pretrained: Whether the backbone has its weights.
        decoder_channels: Of U-Nets one number for each block, from the smallest map on; of a spiking one as many as
            there are levels below the last, each of which by default is as wide as that level, or more, and then the
            answer has up to the size of the input before it is interpolated. Of other decoders a single number, by
            default 128 ('spiking_fpn') or 256.
        lif_layer: The neurons of backbone and decoder; None for the backbone's own. Those of the decoder have the
            settings of the backbone's.
        num_steps: T, for spiking backbones.
        backbone_kwargs: Go to `timm.create_model`, such as `extra_levels` and `output_stride`.

    Raises: ValueError for arguments that do not fit; ModuleNotFoundError without segmentation_models_pytorch, if the
    decoder is of it.
    """
    if decoder not in (*SPIKING, *SMP):
        raise ValueError(f'unknown decoder {decoder!r}: expected one of {", ".join((*SPIKING, *SMP))}')
    if type(num_classes) is not int or num_classes < 1:
        raise ValueError(f'num_classes must be a whole number of at least 1, got {num_classes!r}')
    channels = _check_channels(decoder, decoder_channels)
    kwargs = dict(pretrained=pretrained, in_chans=in_chans, lif_layer=lif_layer, num_steps=num_steps, **backbone_kwargs)
    make = _spiking if decoder in SPIKING else _of_smp
    return make(backbone, num_classes, decoder, channels, kwargs)


def _check_channels(decoder: str, channels: Any) -> Any:
    """A list for U-Nets, a number for others, None for the default. Raises: ValueError for anything else."""
    values = channels if isinstance(channels, (list, tuple)) else [] if channels is None else [channels]
    if any(type(width) is not int or width < 1 for width in values):
        raise ValueError(f'decoder_channels are whole numbers of at least 1, got {channels!r}')
    if channels is None:
        return None
    if (decoder in UNETS) != isinstance(channels, (list, tuple)):
        expected = 'a number for each block, as (128, 64)' if decoder in UNETS else 'one number, as 128'
        raise ValueError(f'decoder_channels of {decoder!r} are {expected}, got {channels!r}')
    return list(channels) if decoder in UNETS else channels


class Segmenter(DenseModel):
    """What `create_segmenter` returns."""

    task = 'segmentation'

    def _padded(self, x: Tensor) -> Tensor:
        """With zeros to the right and below, up to a multiple of the largest stride."""
        stride = max(self.features.feature_info.reduction())
        pad = [math.ceil(size / stride) * stride - size for size in (x.shape[-1], x.shape[-2])]
        return F.pad(x, (0, pad[0], 0, pad[1])) if any(pad) else x

    @staticmethod
    def _resized(logits: Tensor, padded: Tensor, x: Tensor) -> Tensor:
        """Logits [B, num_classes, h, w] of the padded input, at the size of the input."""
        if logits.shape[-2:] != padded.shape[-2:]:
            logits = F.interpolate(logits, size=padded.shape[-2:], mode='bilinear', align_corners=False)
        return logits[..., : x.shape[-2], : x.shape[-1]]


class SpikingSegmenter(Segmenter):
    """A spiking backbone and a decoder of `decoders.py`, spike-driven as a whole; `timm_snn.stream` takes it."""

    streams = True

    def __init__(self, features: Any, decoder: nn.Module, num_classes: int, arguments: dict[str, Any]) -> None:
        super().__init__(features, num_classes, arguments)
        self.backbone = features
        self.decoder = decoder

    @property
    def features(self) -> Any:
        return self.backbone

    @property
    def act(self) -> str | None:
        """'relu' in an artificial twin, as that of the backbone."""
        return self.backbone.model.act

    def forward(self, x: Tensor) -> Tensor:
        padded = self._padded(x)
        membrane = mean_over_time(self.decoder(self.backbone.forward_steps(padded)))
        return self._resized(membrane, padded, x)

    def forward_steps(self, x: Tensor) -> Tensor:
        """Logits of every time step [B, T, num_classes, H, W], whose mean over T is what `forward` returns."""
        padded = self._padded(x)
        currents = self.decoder(self.backbone.forward_steps(padded))
        logits = self._resized(merge_time(currents), padded, x)
        return split_time(logits, currents.shape[0]).transpose(0, 1)


class SmpSegmenter(Segmenter):
    """A backbone and a decoder of segmentation_models_pytorch, `network`."""

    def __init__(self, network: Any, num_classes: int, arguments: dict[str, Any]) -> None:
        super().__init__(network.encoder.model, num_classes, arguments)
        self.network = network
        if hasattr(self, 'num_steps'):
            self.features.register_forward_pre_hook(_unfold)

    @property
    def features(self) -> Any:
        return self.network.encoder.model

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, 'num_steps'):
            refuse_frames(x, self.arguments['backbone'])
        padded = self._padded(x)
        # the library takes four axes: time goes through its code among the channels of the input, which it ignores
        return self._resized(self.network(padded.flatten(1, -3)), padded, x)


def _unfold(features: Any, args: tuple[Tensor]) -> Tensor:
    return unfold_frames(args[0], features.in_chans)


def _spiking(backbone: str, num_classes: int, decoder: str, channels: Any, kwargs: dict[str, Any]) -> Segmenter:
    features = open_backbone(backbone, **kwargs)
    if not is_spiking(features):
        raise ValueError(
            f'decoder {decoder!r} takes the spikes of every step, and the backbone {backbone!r} has none: use one of '
            f'{", ".join(SMP)}, or a spiking backbone'
        )
    in_chs = features.feature_info.channels()
    parts = (in_chs, carries_currents(features), num_classes)
    if decoder == 'spiking_unet':
        channels = channels or in_chs[-2::-1]
        most = len(in_chs) - 1 + int(math.log2(features.feature_info.reduction()[0]))
        if not len(in_chs) - 1 <= len(channels) <= most:
            raise ValueError(
                f'spiking_unet on {backbone!r} has {len(in_chs) - 1} blocks with a level beside, and up to {most} in '
                f'all: expected so many decoder_channels, got {channels}'
            )
        made: nn.Module = SpikingUnet(*parts, channels, neuron_of(features))
    else:
        channels = channels or 128
        made = SpikingFpn(*parts, channels, neuron_of(features))
    arguments = dict(decoder=decoder, decoder_channels=channels, num_classes=num_classes)
    return SpikingSegmenter(features, made, num_classes, description(backbone, features) | arguments)


def _of_smp(backbone: str, num_classes: int, decoder: str, channels: Any, kwargs: dict[str, Any]) -> Segmenter:
    try:
        import segmentation_models_pytorch as smp
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"decoder {decoder!r} needs {error.name}: pip install 'timm-snn[dense]'", name=error.name
        ) from error
    output_stride = kwargs.pop('output_stride', None)
    strides = open_backbone(backbone, **{**kwargs, 'pretrained': False}).feature_info.reduction()
    if decoder == 'fpn' and output_stride is not None and output_stride < strides[-1]:
        raise ValueError(
            f"decoder 'fpn' doubles the size from level to level, and output_stride={output_stride} makes the last "
            'ones alike: leave it out, or use another decoder'
        )
    # the library counts levels from stride 2 on, and takes five at most
    depth = min(5, len(strides) + int(math.log2(strides[0])) - 1)
    missing = {'fpn': 4 - len(strides), 'deeplabv3plus': 3 - depth}.get(decoder, 0)
    if missing > 0:
        raise ValueError(
            f'the backbone {backbone!r} has levels of strides {strides}, too few for {decoder!r}: make it with '
            f'extra_levels={missing}, or use another decoder'
        )
    settings: dict[str, Any] = {}
    if decoder in UNETS:
        settings['decoder_channels'] = channels or [256, 128, 64, 32, 16][-depth:]
    elif decoder == 'fpn':
        settings.update(decoder_pyramid_channels=channels or 256, decoder_segmentation_channels=(channels or 256) // 2)
    else:
        settings['decoder_channels'] = channels or 256
    if output_stride is not None:
        settings['encoder_output_stride' if decoder in DEEPLABS else 'output_stride'] = output_stride
    pretrained, in_chans = kwargs.pop('pretrained'), kwargs.pop('in_chans')
    network = getattr(smp, SMP[decoder])(
        f'tu-{backbone}',
        encoder_depth=depth,
        encoder_weights=True if pretrained else None,
        in_channels=in_chans,
        classes=num_classes,
        **settings,
        **{key: value for key, value in kwargs.items() if value is not None},
    )
    arguments = dict(decoder=decoder, decoder_channels=channels, num_classes=num_classes)
    made = description(backbone, network.encoder.model)
    made = {key: value for key, value in made.items() if key not in ('out_indices', 'output_stride')}
    if output_stride is not None:
        made['output_stride'] = output_stride
    return SmpSegmenter(network, num_classes, made | arguments)
