"""Pictures of what segmenters answer: labels as colours, over a photo or beside it, with the names of the classes."""

from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..files import write_whole
from ..profiling.style import CLASSES, INK, new_figure, styled

__all__ = [
    'add_legend',
    'class_colors',
    'labels_of',
    'overlay',
    'photo_of',
    'save_label_map',
    'write_figure',
    'write_masks',
]

# After Okabe and Ito's, which the colour-blind tell apart, those of Tol's muted scheme, for data of many classes.
MORE = ('#e69f00', '#56b4e9', '#f0e442', '#332288', '#999933', '#882255', '#44aa99', '#661100', '#88ccee', '#117733')
IGNORED = (235, 235, 235)
MOST_NAMES = 40  # in a legend


def labels_of(logits: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Logits [num_classes, h, w] -> the same at another size, [num_classes, H, W], and the likeliest labels [H, W]."""
    if logits.shape[-2:] != tuple(size):
        logits = F.interpolate(logits[None], size=tuple(size), mode='bilinear', align_corners=False)[0]
    return logits, logits.argmax(0)


def class_colors(number: int) -> list[tuple[int, int, int]]:
    """Red, green and blue of each class, 0 to 255; those of many classes repeat."""
    colors = (bytes.fromhex(color[1:]) for color in (*CLASSES, *MORE))
    return list(islice(cycle((red, green, blue) for red, green, blue in colors), number))


def painted(labels: np.ndarray, number: int) -> np.ndarray:
    """Labels [H, W] as colours uint8 [H, W, 3]; what is no class is light grey."""
    table = np.array([*class_colors(number), IGNORED], dtype=np.uint8)
    return table[np.where((labels >= 0) & (labels < number), labels, number)]


def overlay(photo: np.ndarray, labels: np.ndarray, number: int, opacity: float = 0.55) -> np.ndarray:
    """The colours of labels over a photo uint8 [H, W, 3], which is resized to them."""
    resized = np.asarray(Image.fromarray(photo).resize(labels.shape[::-1], Image.Resampling.BILINEAR))
    return ((1 - opacity) * resized + opacity * painted(labels, number)).round().astype(np.uint8)


def photo_of(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """A normalised picture [C, H, W], of 1 or 3 channels, as people see it: uint8 [H, W, 3]."""
    pixels = image.cpu().float().numpy().transpose(1, 2, 0) * np.asarray(std) + np.asarray(mean)
    pixels = (255 * pixels).clip(0, 255).round().astype(np.uint8)
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def save_label_map(labels: np.ndarray, number: int, file: Path) -> None:
    """Write a PNG whose values are the labels; up to 256 classes have a palette, by which it is seen in colours."""
    if number > 256:
        picture = Image.fromarray(labels.astype(np.uint16))
    else:
        picture = Image.fromarray(labels.astype(np.uint8))
        picture.putpalette([value for color in class_colors(number) for value in color])
    with write_whole(file, durable=False) as unfinished:
        picture.save(unfinished, format='PNG')


def write_masks(rows: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], names: Sequence[str], file: Path) -> None:
    """A PNG with a row for each sample: photo uint8 [H, W, 3], true and predicted labels [H, W], and a legend."""
    with styled():
        height, width = rows[0][1].shape
        figure = new_figure(9.6, 0.6 + len(rows) * 3.1 * height / width + legend_height(names))
        grid = figure.subplots(len(rows), 3, squeeze=False)
        for axes_row, (photo, truth, prediction) in zip(grid, rows, strict=True):
            shown = photo, painted(truth, len(names)), painted(prediction, len(names))
            for axes, picture, title in zip(axes_row, shown, ('Picture', 'Truth', 'Prediction'), strict=True):
                axes.imshow(picture, interpolation='nearest')
                axes.set(title=title if axes_row[0].get_subplotspec().is_first_row() else None)
                axes.axis('off')
        add_legend(figure, names)
        write_figure(figure, file)


def legend_height(names: Sequence[str]) -> float:
    """In inches, of `add_legend`."""
    return 0.25 * -(-min(len(names), MOST_NAMES) // 6)


def add_legend(figure: Any, names: Sequence[str]) -> None:
    """The colours of the first classes with their names, below all axes."""
    from matplotlib.patches import Patch

    colors = [(red / 255, green / 255, blue / 255) for red, green, blue in class_colors(len(names))]
    patches = [Patch(color=color, label=name) for color, name in zip(colors, names, strict=True)]
    figure.legend(handles=patches[:MOST_NAMES], loc='outside lower center', ncols=6, labelcolor=INK)


def write_figure(figure: Any, file: Path) -> None:
    with write_whole(file) as unfinished:
        figure.savefig(unfinished, format='png')
