"""The loss of a segmenter, and how its answers are measured: mean IoU, pixel accuracy, IoU of every class."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from .dense_pictures import labels_of
from .errors import UserError

__all__ = ['SegmentationLearner', 'SegmentationMetric', 'class_weights']


class SegmentationLearner(nn.Module):
    """A segmenter with its loss over the pixels that count: cross-entropy, and with a weight the Dice loss.

    `weights` are those of the classes in the cross-entropy, by default all alike.

    Shape: in training images [B, C, H, W] and labels [B, H, W] -> losses by name. In eval mode images, stacked or a
    list of several sizes -> logits [num_classes, H, W] of each.
    """

    def __init__(self, model: nn.Module, ignore_index: int, dice: float = 0.0, weights: Tensor | None = None) -> None:
        super().__init__()
        self.model, self.ignore_index, self.dice = model, ignore_index, dice
        self.register_buffer('weights', weights, persistent=False)  # which follow from the data, and are not saved
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
        losses = {'cross_entropy': pixel_loss(logits, targets, self.ignore_index, self.weights)}
        if self.dice:
            losses['dice'] = self.dice * self.dice_loss(logits, targets)
        return losses


def pixel_loss(logits: Tensor, labels: Tensor, ignore_index: int, weights: Any = None) -> Tensor:
    """Mean cross-entropy of the pixels that count; 0 where a batch has none, of which torch makes NaN.

    `weights` are of the classes; the mean is over them too.
    """
    loss = F.cross_entropy(logits, labels, weights, ignore_index=ignore_index, reduction='sum')
    counted = labels[labels != ignore_index]
    total = weights[counted].sum() if weights is not None else loss.new_tensor(counted.numel())
    return loss / total.clamp(min=torch.finfo(total.dtype).tiny)


def class_weights(masks: Iterable[Tensor], number: int, ignore_index: int, power: float) -> Tensor:
    """The median share of a class over that of each, to the power: 0 is all alike, 1 is median frequency balancing.

    A class that is in no mask has the weight of the rarest one. Source: SegNet, arXiv 1511.00561, section 4, where a
    share is of the pictures that a class is in; here it is of all pixels.
    """
    counts = torch.zeros(number, dtype=torch.int64)
    for mask in masks:
        counts += mask[mask != ignore_index].long().bincount(minlength=number)[:number]
    if not counts.any():
        return torch.ones(number)
    found = counts[counts > 0]
    return (found.double().quantile(0.5) / counts.clamp(min=int(found.min()))).pow(power).float()


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
