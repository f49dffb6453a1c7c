"""What a detector learns from and is measured by: pictures of one size, anchors, mean average precision."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed
from torchvision.transforms import v2
from torchvision.tv_tensors import wrap

from .detection_data import BoxedPictures
from .errors import UserError

__all__ = ['BoxTransform', 'MeanAveragePrecision', 'anchor_sizes', 'collate', 'fitting_size']

SMALLEST = 2  # pixels of a box on either side that are left of it after a crop, or it is not trained on
PER_LEVEL = 3  # sizes of anchors
SPREAD = 2, 98  # percentiles of the sizes of boxes that anchors reach from and to

Target = dict[str, Tensor]


def fitting_size(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of an image with its shorter side at most size[0] and its longer one at most size[1]."""
    factor = min(size[0] / min(height, width), size[1] / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


class BoxTransform:
    """A picture with its target, resized to fit into `size`, its shorter and its longer side, without distortion.

    In training, which `scale` switches on, the picture is first made larger or smaller by a factor from this range and
    cropped or padded to the same size at a random place, then flipped and changed in colour by chance. Boxes around
    many objects are left out then, and those of which a crop leaves nearly nothing. `mean` is what pictures are padded
    with. Pictures become [C, H, W] float32, 0 to 1: the detector normalises them.
    """

    def __init__(
        self,
        size: tuple[int, int],
        mean: Sequence[float] = (0.0,),
        *,
        scale: tuple[float, float] | None = None,
        hflip: float = 0.0,
        vflip: float = 0.0,
        color_jitter: float = 0.0,
    ) -> None:
        self.size, self.scale = size, scale
        self.fill = [round(255 * value) for value in mean]
        self.augment = v2.Compose(
            [
                v2.RandomHorizontalFlip(hflip),
                v2.RandomVerticalFlip(vflip),
                v2.ColorJitter(color_jitter, color_jitter, color_jitter),
                v2.SanitizeBoundingBoxes(min_size=SMALLEST),
            ]
        )

    def __call__(self, picture: Tensor, target: Target) -> tuple[Tensor, Target]:
        size = fitting_size(picture.shape[-2], picture.shape[-1], self.size)
        if self.scale:
            boxes: Any = target['boxes']
            whole = ~target['iscrowd']
            target = {'boxes': wrap(boxes[whole], like=boxes), 'labels': target['labels'][whole]}
            factor = torch.empty(()).uniform_(*self.scale).item()
            resize = v2.Resize([max(1, round(side * factor)) for side in size], antialias=True)
            crop = v2.RandomCrop(size, pad_if_needed=True, fill=self.fill)
            picture, target = self.augment(*crop(*resize(picture, target)))
        else:
            picture, target = v2.Resize(size, antialias=True)(picture, target)
        picture = v2.functional.to_dtype(picture, torch.float32, scale=True)
        return picture.as_subclass(Tensor), {key: values.as_subclass(Tensor) for key, values in target.items()}


def collate(samples: Sequence[tuple[Tensor, Target]]) -> tuple[list[Tensor], list[Target]]:
    """Lists of pictures, which may differ in size, and of their targets."""
    pictures, targets = zip(*samples, strict=True)
    return list(pictures), list(targets)


def anchor_sizes(data: BoxedPictures, size: tuple[int, int], levels: int) -> list[tuple[float, ...]]:
    """Sides of square anchors in pixels, three for each level of a detector, that fit the boxes of a data set.

    The smallest one is as large as the smallest boxes: the 2nd percentile of the square roots of the boxes' areas, in
    pictures resized to `size`. From level to level they double, with thirds of an octave between, as in RetinaNet
    (arXiv 1708.02002), or grow faster where the largest ones would not reach the 98th percentile.
    Raises: UserError where the data set does not say how large its pictures are.
    """
    sides = []
    for boxes, whole in zip(data.boxes, data.sizes, strict=True):
        if whole is None:
            raise UserError(
                'the data set does not say how large its pictures are, in columns width and height, so that no anchors '
                'can be chosen: pass --anchor-sizes'
            )
        width, height = whole
        factor = fitting_size(height, width, size)[0] / height
        sides.append(factor * np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(1)))
    low, high = np.percentile(np.concatenate(sides), SPREAD)
    number = PER_LEVEL * levels
    growth = max(2 ** (1 / PER_LEVEL), (high / low) ** (1 / (number - 1)))
    spaced = (low * growth ** np.arange(number)).round(1)
    return [tuple(row) for row in spaced.reshape(levels, PER_LEVEL).tolist()]


class MeanAveragePrecision:
    """COCO's average precisions in percent: `map`, over IoU from 0.5 to 0.95, `map50` and `map75`.

    pycocotools matches the boxes, of which the 100 likeliest of a picture count. A class without a box in the data has
    no precision and is left out of the means. All processes must compute at the same time, and get the same.
    Raises: UserError without torchmetrics and pycocotools.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        try:
            import pycocotools  # noqa: F401  which torchmetrics imports when it computes
            from torchmetrics.detection import MeanAveragePrecision as Metric
        except ImportError as error:
            raise UserError(f"measuring boxes needs {error.name}: pip install 'timm-snn[dense]'") from error
        self.class_names = class_names
        # the metric itself puts together what processes have seen only where each has as many pictures
        self.metric: Any = Metric(extended_summary=True, sync_on_compute=False)
        self.metric.warn_on_many_detections = False
        self.by_class: list[dict[str, Any]] = []
        self.seen: list[tuple[Target, Target]] = []

    def to(self, device: torch.device) -> 'MeanAveragePrecision':
        return self  # boxes are matched on the CPU

    def update(self, predictions: Sequence[Target], targets: Sequence[Target]) -> None:
        self.seen += zip(map(_on_cpu, predictions), map(_on_cpu, targets), strict=True)

    def compute(self) -> dict[str, float]:
        every = [pair for seen in _of_all_processes(self.seen) for pair in seen]
        self.metric.update([found for found, _ in every], [target for _, target in every])
        result = self.metric.compute()
        # [IoU, recall, class, area, detections]: boxes of all areas, 100 detections
        curves = result['precision'][:, :, :, 0, -1].mean(1)
        found = {number: curves[:, i].tolist() for i, number in enumerate(result['classes'].reshape(-1).tolist())}
        self.by_class = [
            {'class': number, 'name': name, **_named(found.get(number))} for number, name in enumerate(self.class_names)
        ]
        return {name: _percent(result[key]) for name, key in (('map', 'map'), ('map50', 'map_50'), ('map75', 'map_75'))}


def _on_cpu(boxes: Target) -> Target:
    return {key: values.detach().cpu() for key, values in boxes.items()}


def _of_all_processes(value: Any) -> list[Any]:
    if not (distributed.is_available() and distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def _named(precisions: list[float] | None) -> dict[str, float | None]:
    """Of a class, over IoU from 0.5 to 0.95 in steps of 0.05."""
    if precisions is None or precisions[0] < 0:
        return {'map': None, 'map50': None, 'map75': None}
    mean = sum(precisions) / len(precisions)
    return {'map': 100 * mean, 'map50': 100 * precisions[0], 'map75': 100 * precisions[5]}


def _percent(value: Any) -> float:
    """torchmetrics says -1 where no class has a box."""
    return 100 * float(value) if value >= 0 else math.nan
