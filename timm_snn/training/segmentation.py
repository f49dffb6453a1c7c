"""The loss of a segmenter, and how its answers are measured: mean IoU, pixel accuracy, IoU of every class."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from .dense_pictures import labels_of
from .errors import UserError

__all__ = ['SegmentationLearner', 'SegmentationMetric']


class SegmentationLearner(nn.Module):
    """A segmenter with its loss over the pixels that count: cross-entropy, and with a weight the Dice loss.

    Shape: in training images [B, C, H, W] and labels [B, H, W] -> losses by name. In eval mode images, stacked or a
    list of several sizes -> logits [num_classes, H, W] of each.
    """

    def __init__(self, model: nn.Module, ignore_index: int, dice: float = 0.0) -> None:
        super().__init__()
        self.model, self.ignore_index, self.dice = model, ignore_index, dice
        self.dice_loss: Any = None
        if dice:
            from segmentation_models_pytorch.losses import DiceLoss

            self.dice_loss = DiceLoss('multiclass', ignore_index=ignore_index)

    def forward(self, images: Any, targets: Any = None) -> Any:
        if not self.training:
            return (
                self.model(images) if isinstance(images, Tensor) else [self.model(image[None])[0] for image in images]
            )
        if not isinstance(images, Tensor) or not isinstance(targets, Tensor):
            raise UserError('the pictures of a batch are of several sizes: pass --crop-size H W, or --img-size H W')
        logits = self.model(images)
        losses = {'cross_entropy': pixel_loss(logits, targets, self.ignore_index)}
        if self.dice:
            losses['dice'] = self.dice * self.dice_loss(logits, targets)
        return losses


def pixel_loss(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """Mean cross-entropy of the pixels that count; 0 where a batch has none, of which torch makes NaN."""
    loss = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction='sum')
    return loss / (labels != ignore_index).sum().clamp(min=1)


class SegmentationMetric(nn.Module):
    """IoU over all pixels of a split that count, at the size of their masks, in percent.

    A class that is neither in a mask nor predicted has no IoU and is left out of the mean. One that is predicted but
    in no mask has an IoU of 0, which counts.
    """

    def __init__(self, names: Sequence[str], ignore_index: int) -> None:
        super().__init__()
        self.names, self.ignore_index = names, ignore_index
        options: dict[str, Any] = dict(num_classes=len(names), ignore_index=ignore_index, validate_args=False)
        self.iou = MulticlassJaccardIndex(average='none', zero_division=math.nan, **options)
        self.accuracy = MulticlassAccuracy(average='micro', **options)
        self.loss = MeanMetric()
        self.by_class: list[dict[str, Any]] = []

    def update(self, predictions: Any, targets: Any) -> None:
        """Add logits and labels of a batch, stacked or lists."""
        for prediction, mask in zip(predictions, targets, strict=True):
            logits, labels = labels_of(prediction.float(), mask.shape)
            self.iou.update(labels[None], mask[None])
            self.accuracy.update(labels[None], mask[None])
            counted = (mask != self.ignore_index).sum()
            self.loss.update(pixel_loss(logits[None], mask[None], self.ignore_index), counted)

    def compute(self) -> dict[str, float]:
        ious = 100 * self.iou.compute()
        self.by_class = [
            {'class': number, 'name': name, 'iou': None if math.isnan(iou) else iou}
            for number, (name, iou) in enumerate(zip(self.names, ious.tolist(), strict=True))
        ]
        return {
            'loss': self.loss.compute().item(),
            'mean_iou': ious.nanmean().item(),
            'pixel_accuracy': 100 * self.accuracy.compute().item(),
        }
