"""What is added to timm's transform of one image: policies for every version of Pillow, padded crops, and cutout."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image
from timm.data import auto_augment
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision.transforms import functional as TF

__all__ = ['Cutout', 'PaddedCrop', 'mend_posterize']


class PaddedCrop(RandomResizedCropAndInterpolation):
    """A crop of the image's own size, at a random place of the image padded by reflection; resized to `size`."""

    def __init__(self, size: Sequence[int], padding: int, interpolation: str) -> None:
        super().__init__(size, interpolation=interpolation)
        self.padding = padding

    def __call__(self, image: Image.Image) -> Image.Image:
        return super().__call__(TF.pad(image, [self.padding], padding_mode='reflect'))

    def get_params(self, image: Image.Image, *_: Any) -> tuple[int, int, int, int]:  # type: ignore[override]
        margin = 2 * self.padding
        return random.randint(0, margin), random.randint(0, margin), image.height - margin, image.width - margin


class Cutout:
    """A square of zeros around a random pixel; beyond the border it is cut off.

    Shape: normalised [C, H, W], whose zeros are the mean colour.  Source: arXiv 1708.04552.
    """

    def __init__(self, side: int) -> None:
        self.side = side

    def __call__(self, image: Tensor) -> Tensor:
        top, left = (random.randrange(size) - self.side // 2 for size in image.shape[1:])
        image[:, max(top, 0) : top + self.side, max(left, 0) : left + self.side] = 0
        return image


def mend_posterize(transform: Any) -> None:
    """Let the policies in a transform keep 0 bits of a picture, at their largest magnitudes, as a black one.

    timm asks Pillow for it, which made it black up to version 12 and refuses it since version 13. What is drawn stays
    the same.
    """
    for op in _augment_ops(transform):
        if op.aug_fn is auto_augment.posterize:
            op.aug_fn = posterize


def posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    return auto_augment.posterize(image, bits) if bits > 0 else Image.new(image.mode, image.size)


def _augment_ops(transform: Any) -> Iterator[auto_augment.AugmentOp]:
    if isinstance(transform, auto_augment.AugmentOp):
        yield transform
        return
    inside = transform if isinstance(transform, (list, tuple)) else None
    for name in ('transforms', 'policy', 'ops'):  # of a composition, of AutoAugment, of RandAugment and AugMix
        inside = inside if inside is not None else getattr(transform, name, None)
    for part in inside if isinstance(inside, (list, tuple)) else ():
        yield from _augment_ops(part)
