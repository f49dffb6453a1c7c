"""Pictures of boxes: what a detector finds in images, and what is there."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.utils import draw_bounding_boxes

from ..profiling.style import INK, new_figure, styled
from .data import evenly
from .dense_pictures import class_colors, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ['LEAST_SCORE', 'draw_boxes', 'draw_samples', 'figure_of_boxes', 'painted_boxes']

LEAST_SCORE = 0.3  # of a box that is drawn
SAMPLES = 8
COLUMNS = 4
WIDTH = 3.2  # inches of an image


def draw_boxes(axes: 'Axes', boxes: Mapping[str, Tensor], class_names: Sequence[str]) -> None:
    """Boxes on an image that is shown there: with `scores` solid and labelled by them, else dashed, as the truth.

    Where classes share a colour, the label has their name.
    """
    from matplotlib.patches import Rectangle

    colors = colors_of(class_names)
    scores = boxes.get('scores')
    for i, ((left, top, right, bottom), label) in enumerate(
        zip(boxes['boxes'].tolist(), boxes['labels'].tolist(), strict=True)
    ):
        color = colors[label]
        style: Any = {'linestyle': (0, (3, 2)), 'linewidth': 1.0, 'edgecolor': INK}
        words = [] if len(set(colors)) == len(colors) else [class_names[label]]
        if scores is not None:
            style = {'linewidth': 1.4, 'edgecolor': color}
            words.append(f'{scores[i]:.2f}')
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, **style))
        if scores is not None:
            place: Any = {'xy': (left, top), 'xytext': (1, -1), 'textcoords': 'offset points', 'va': 'top'}
            shown = {'boxstyle': 'square,pad=0.15', 'facecolor': color, 'edgecolor': 'none', 'alpha': 0.85}
            axes.annotate(' '.join(words), **place, fontsize=5.5, color='white', bbox=shown, annotation_clip=True)


def colors_of(class_names: Sequence[str]) -> list[str]:
    return [f'#{red:02x}{green:02x}{blue:02x}' for red, green, blue in class_colors(len(class_names))]


def figure_of_boxes(
    pictures: Sequence[Tensor],
    predictions: Sequence[Mapping[str, Tensor]],
    targets: Sequence[Mapping[str, Tensor]] | None,
    class_names: Sequence[str],
    title: str = '',
) -> 'Figure':
    """Images [C, H, W], 0 to 1, with predicted boxes of at least `LEAST_SCORE` over the true ones, if these are given.

    It must be made inside `profiling.style.styled`.
    """
    from matplotlib.lines import Line2D

    columns = min(COLUMNS, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    tallest = max(picture.shape[-2] / picture.shape[-1] for picture in pictures)
    figure = new_figure(max(WIDTH * columns, 4.0), rows * WIDTH * min(tallest, 2.0) + 0.8)
    for i, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.axis('off')
        if i >= len(pictures):
            continue
        picture = pictures[i].float().cpu()
        axes.imshow(picture.expand(3, -1, -1).permute(1, 2, 0).clip(0, 1).numpy())
        if targets is not None:
            draw_boxes(axes, targets[i], class_names)
        kept = predictions[i]['scores'] >= LEAST_SCORE
        draw_boxes(axes, {key: values[kept] for key, values in predictions[i].items()}, class_names)
    colors = colors_of(class_names)
    entries = [Line2D([], [], color=color, label=name) for color, name in zip(colors, class_names, strict=True)]
    if len(set(colors)) < len(colors):  # boxes are named one by one
        entries = []
    if targets is not None:
        entries.append(Line2D([], [], color=INK, linestyle=(0, (3, 2)), label='true boxes'))
    if entries:
        figure.legend(handles=entries, loc='outside lower center', ncols=min(len(entries), 6))
    if title:
        figure.suptitle(title, x=0.01, ha='left')
    return figure


def painted_boxes(
    picture: Image.Image, boxes: Tensor, labels: Sequence[int], scores: Sequence[float], class_names: Sequence[str]
) -> Image.Image:
    """The picture in its own size, with the boxes of at least `LEAST_SCORE`, their names and scores."""
    likely = [i for i, score in enumerate(scores) if score >= LEAST_SCORE]
    colors = class_colors(len(class_names))
    pixels = v2.functional.pil_to_tensor(picture.convert('RGB'))
    drawn = draw_bounding_boxes(
        pixels,
        boxes[likely],
        [f'{class_names[labels[i]]} {scores[i]:.2f}' for i in likely],
        [colors[labels[i]] for i in likely],
        width=max(1, round(min(picture.size) / 240)),
    )
    return v2.functional.to_pil_image(drawn)


@torch.inference_mode()
def draw_samples(detector: nn.Module, samples: Any, file: Path, class_names: Sequence[str]) -> None:
    """Write a PNG of some samples of a data set, evenly spread, with what a detector in eval mode finds in them."""
    device = next(detector.parameters()).device
    pictures, targets = zip(*(samples[i] for i in evenly(range(len(samples)), SAMPLES)), strict=True)
    predictions = detector([picture.to(device) for picture in pictures])
    with styled():
        title = f'Boxes found with a score of at least {LEAST_SCORE}'
        figure = figure_of_boxes(pictures, predictions, targets, class_names, title)
        write_figure(figure, file)
