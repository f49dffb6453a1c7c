"""timm's augmentation policies, for every version of Pillow."""

from collections.abc import Iterator
from typing import Any

from PIL import Image
from timm.data import auto_augment

__all__ = ['mend_posterize']


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
