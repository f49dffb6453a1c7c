"""Detection: boxes with classes, by RetinaNet or Faster R-CNN of torchvision over a feature pyramid."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign

from .backbones import description
from .model import DenseModel
from .norms import freeze_norms as freeze
from .pyramid import anchor_generator, fpn_backbone

__all__ = ['Detector', 'create_detector']

DETECTORS = ('retinanet', 'faster_rcnn')


def create_detector(
    backbone: str,
    num_classes: int,
    *,
    detector: str = 'retinanet',
    neck: str = 'fpn',
    pretrained: bool = False,
    in_chans: int = 3,
    out_channels: int = 128,
    min_size: int | Sequence[int] = 480,
    max_size: int = 800,
    anchor_sizes: Sequence[int] | Sequence[Sequence[int]] | None = None,
    freeze_norms: bool = False,
    num_steps: int | None = None,
    lif_layer: Any = None,
    **backbone_kwargs: Any,
) -> 'Detector':
    """A detector of torchvision over `fpn_backbone`, called as torchvision's are.

        model = timm_snn.dense.create_detector('msvit_4_96', num_classes=3)
        losses = model(images, targets)         # in training: a dict of losses
        boxes = model.eval()(images)            # else, for each image: boxes, scores, labels

    Images are a list of [C, H, W] in 0 to 1, of any sizes, which are normalised as the backbone wants them and resized;
    or of frames [T, C, H, W], for a spiking backbone. Boxes are (x1, y1, x2, y2) in pixels of the image as it came in.
    Labels count classes from 0, in and out, whatever the detector: there is no background among them.

    Args:
        backbone: Any name for `timm.create_model`, with a tag or as 'local-dir:FOLDER' too.
        num_classes: Without background.
        detector: 'retinanet' (arXiv 1708.02002) or 'faster_rcnn' (arXiv 1506.01497).
        neck, out_channels: As in `fpn_backbone`.
        min_size, max_size: Images are resized so that the shorter side has `min_size` pixels, of several one by chance
            in training and the last otherwise, and the longer side at most `max_size`.
        anchor_sizes: As in `anchor_generator`; by default that of RetinaNet, or one of 8 strides for 'faster_rcnn'.
        freeze_norms: Whether the batch norms of the backbone keep their statistics, for small batches.
        num_steps, lif_layer: As in `create_segmenter`.
        backbone_kwargs: Go to `fpn_backbone` and `timm.create_model`.

    Raises: ValueError for arguments that do not fit.
    """
    if detector not in DETECTORS:
        raise ValueError(f'unknown detector {detector!r}: expected one of {", ".join(DETECTORS)}')
    if type(num_classes) is not int or num_classes < 1:
        raise ValueError(f'num_classes must be a whole number of at least 1, got {num_classes!r}')
    body = fpn_backbone(
        backbone,
        neck=neck,
        out_channels=out_channels,
        pretrained=pretrained,
        in_chans=in_chans,
        num_steps=num_steps,
        lif_layer=lif_layer,
        **backbone_kwargs,
    )
    if anchor_sizes is None and detector == 'faster_rcnn':
        anchors = anchor_generator(body, [8 * stride for stride in body.strides])
    else:
        anchors = anchor_generator(body, anchor_sizes)
    if freeze_norms:
        freeze(body.body)
    made: Any
    if detector == 'retinanet':
        made = RetinaNet(body, num_classes, anchor_generator=anchors)
    else:
        pool = MultiScaleRoIAlign(body.names, output_size=7, sampling_ratio=2)
        made = FasterRCNN(body, num_classes + 1, rpn_anchor_generator=anchors, box_roi_pool=pool)
    arguments = description(backbone, body.body) | {
        key: backbone_kwargs[key] for key in ('pool', 'min_stride') if key in backbone_kwargs
    }
    arguments.update(
        num_classes=num_classes,
        detector=detector,
        neck=neck,
        out_channels=out_channels,
        min_size=min_size,
        max_size=max_size,
        anchor_sizes=anchor_sizes,
        freeze_norms=freeze_norms,
    )
    return Detector(made, num_classes, arguments)


class Detector(DenseModel):
    """What `create_detector` returns; `network` is torchvision's."""

    task = 'detection'

    def __init__(self, network: Any, num_classes: int, arguments: dict[str, Any]) -> None:
        super().__init__(network.backbone.body, num_classes, arguments)
        self.network = network
        self.first_label = 1 if isinstance(network, FasterRCNN) else 0  # after the background
        network.transform = _Transform(
            self, arguments['min_size'], arguments['max_size'], max(network.backbone.strides)
        )

    @property
    def features(self) -> Any:
        return self.network.backbone.body

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        self._check(images)
        images = [x.flatten(0, -3) for x in images]  # the library takes three axes: time goes among the channels
        if targets is not None:
            targets = [{**target, 'labels': target['labels'] + self.first_label} for target in targets]
        found = self.network(images, targets)
        if self.training:
            return found
        return [{**boxes, 'labels': boxes['labels'] - self.first_label} for boxes in found]

    def _check(self, images: Sequence[Tensor]) -> None:
        """Raises: ValueError for what is no list of images, or of frames in a model without so many steps."""
        T = getattr(self, 'num_steps', None)
        for x in images:
            if x.ndim not in (3, 4) or x.shape[-3] != self.in_chans or (x.ndim == 4 and len(x) != T):
                frames = '' if T is None else f' or frames [T={T}, C, H, W]'
                raise ValueError(
                    f'expected a list of images [C={self.in_chans}, H, W]{frames}, got one of {list(x.shape)}'
                )


class _Transform(GeneralizedRCNNTransform):
    """torchvision's, for frames too, whose time is among the channels, with the statistics that the model has now."""

    def __init__(self, model: Detector, min_size: Any, max_size: int, stride: int) -> None:
        self.cfg = model.pretrained_cfg
        super().__init__(min_size, max_size, self.cfg['mean'], self.cfg['std'], size_divisible=stride)

    def normalize(self, image: Tensor) -> Tensor:
        self.image_mean, self.image_std = self.cfg['mean'], self.cfg['std']
        frames = image.unflatten(0, (-1, len(self.image_mean)))
        return super().normalize(frames).flatten(end_dim=1)
