"""Pictures whose masks are easy to find: a bright box, label 1, on a dark ground, label 0, in a frame of label 2."""

from pathlib import Path

import numpy as np
from PIL import Image

IGNORED = 2
SIZE = (24, 32)


def street(number: int) -> tuple[Image.Image, Image.Image]:
    """A picture of three colours and its mask; its noise and the place of its box follow from the number."""
    rng = np.random.default_rng(number)
    labels = np.zeros(SIZE, np.uint8)
    top, left = rng.integers(2, 10), rng.integers(2, 16)
    labels[top : top + 10, left : left + 12] = 1
    labels[0], labels[:, 0] = IGNORED, IGNORED
    pixels = np.where(labels == 1, 200, 40)[..., None] + rng.integers(-20, 20, (*SIZE, 3))
    return Image.fromarray(pixels.astype(np.uint8)), Image.fromarray(labels)


def write_street(folder: Path, numbers: range, images: str, masks: str) -> None:
    """Files of these names below the folder, pictures as JPEG."""
    for number in numbers:
        picture, mask = street(number)
        for kind, image, suffix in ((images, picture, 'jpg'), (masks, mask, 'png')):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            image.save(folder / kind / f'{number}.{suffix}')
