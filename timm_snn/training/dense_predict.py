"""Answers of saved segmenters and detectors to pictures, as files and as records for JSON."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from rich.table import Table
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from ..dense import load
from ..files import printable, write_whole
from ..progress import track
from .box_pictures import LEAST_SCORE, painted_boxes
from .dense_pictures import labels_of, overlay, save_label_map
from .detection import fitting_size
from .errors import UserError, one_line_errors
from .options import Namespace
from .pictures import open_picture
from .tables import make_table

__all__ = ['TASKS', 'answers_to', 'open_dense']

MOST_CLASSES = 3  # of a picture, in the table


def open_dense(args: Namespace) -> Any:
    """The model of 'local-dir:FOLDER', a folder of timm_snn.dense.save, on its device. Raises: UserError."""
    scheme, _, folder = args.model.partition(':')
    if scheme != 'local-dir':
        raise UserError(f'{args.model} answers with masks or boxes: download it, for --model local-dir:FOLDER')
    if args.checkpoint or args.model_kwargs:
        raise UserError(f'{args.model} is a whole model with its weights: leave out --checkpoint and --model-kwargs')
    with one_line_errors(f'open {folder}'):
        model = load(folder)
        if args.num_steps:
            if not hasattr(model, 'num_steps'):
                raise ValueError('it has no time steps: leave out --num-steps')
            model.num_steps = args.num_steps
        if model.takes_events:
            raise ValueError('it is a model of event frames, and pictures are none')
        return model.to(args.device)


def answers_to(
    model: Any, files: Sequence[Path], names: Sequence[str], args: Namespace
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A record for each picture, with `error` for those that cannot be read. Files are written to `args.output`."""
    task = TASKS[model.task]
    taken: set[str] = set()
    for file in track(files, 'predict', unit='pictures'):
        name = next(
            name for name in (file.stem, *(f'{file.stem}_{i}' for i in range(2, 2 + len(files)))) if name not in taken
        )
        taken.add(name)
        try:
            picture = open_picture(file, 'L' if model.in_chans == 1 else 'RGB')
        except Exception as error:  # decoders stumble in their own ways over broken files
            yield file, {'file': str(file), 'error': printable(f'{type(error).__name__}: {error}', 500)}
            continue
        with one_line_errors(f'predict {file}'), torch.inference_mode():
            image = task.prepare(model, TF.pil_to_tensor(picture), args).to(args.device)
            yield file, {'file': str(file), **task.answer(model, image, picture, names, args.output / name)}


def to_segment(model: Any, picture: Tensor, args: Namespace) -> Tensor:
    """Resized so that the shorter side is that of the model's input, as --img-size may set it, and normalised."""
    cfg = model.pretrained_cfg
    factor = (args.img_size or min(cfg['input_size'][1:])) / min(picture.shape[-2:])
    size = [max(1, round(side * factor)) for side in picture.shape[-2:]]
    image = TF.to_dtype(TF.resize(picture, size, antialias=True), torch.float32, scale=True)
    return TF.normalize(image, list(args.mean or cfg['mean']), list(args.std or cfg['std']))


def segment(model: Any, image: Tensor, picture: Image.Image, names: Sequence[str], target: Path) -> dict[str, Any]:
    """Write TARGET_mask.png, whose values are labels, and TARGET_overlay.png, both of the size of the picture."""
    _, labels = labels_of(model(image[None])[0].float(), (picture.height, picture.width))
    found = labels.cpu().numpy()
    mask, shown = (target.with_name(f'{target.name}_{kind}.png') for kind in ('mask', 'overlay'))
    save_label_map(found, len(names), mask)
    with write_whole(shown, durable=False) as unfinished:
        pixels = overlay(np.asarray(picture.convert('RGB')), found, len(names))
        Image.fromarray(pixels).save(unfinished, format='PNG')
    shares = np.bincount(found.ravel(), minlength=len(names)) / found.size
    order = [number for number in np.argsort(-shares).tolist() if shares[number]]
    classes = [{'class': number, 'name': names[number], 'share': float(shares[number])} for number in order]
    return {'mask': str(mask), 'overlay': str(shown), 'classes': classes}


def table_of_masks(records: Sequence[dict[str, Any]]) -> Table:
    """The classes with the largest parts of each picture."""
    rows = (
        [record['file'], *(f'{found["name"]} {found["share"]:.1%}' for found in record['classes'][:MOST_CLASSES])]
        for record in records
    )
    columns = ['picture', *(f'{place}.' for place in range(1, 1 + MOST_CLASSES))]
    return make_table(columns, ([*row, *[''] * (len(columns) - len(row))] for row in rows))


def to_detect(model: Any, picture: Tensor, args: Namespace) -> Tensor:
    """Resized as the detector would, but smoothly, as in training; it normalises by itself."""
    if args.img_size or args.mean or args.std:
        raise ValueError('a detector knows its size, mean and std: leave out --img-size, --mean and --std')
    shorter = model.arguments['min_size']  # one, or several to train with, of which the last is to evaluate with
    size = (shorter if isinstance(shorter, int) else shorter[-1], model.arguments['max_size'])
    image = TF.resize(picture, list(fitting_size(picture.shape[-2], picture.shape[-1], size)), antialias=True)
    return TF.to_dtype(image, torch.float32, scale=True)


def detect(model: Any, image: Tensor, picture: Image.Image, names: Sequence[str], target: Path) -> dict[str, Any]:
    """Write TARGET_boxes.png, of the likely ones; the record has all of them, in pixels of the picture."""
    found = {key: values.float().cpu() for key, values in model([image])[0].items()}
    factors = torch.tensor([picture.width / image.shape[-1], picture.height / image.shape[-2]] * 2)
    boxes, labels, scores = found['boxes'] * factors, found['labels'].long().tolist(), found['scores'].tolist()
    shown = target.with_name(f'{target.name}_boxes.png')
    with write_whole(shown, durable=False) as unfinished:
        painted_boxes(picture, boxes, labels, scores, names).save(unfinished, format='PNG')
    objects = [
        {'class': label, 'name': names[label], 'score': score, 'box': box}
        for label, score, box in zip(labels, scores, boxes.tolist(), strict=True)
    ]
    return {'boxes': str(shown), 'objects': objects}


def table_of_boxes(records: Sequence[dict[str, Any]]) -> Table:
    """How many likely boxes of each class there are in each picture."""
    rows = []
    for record in records:
        likely = Counter(found['name'] for found in record['objects'] if found['score'] >= LEAST_SCORE)
        counts = ', '.join(f'{count} {name}' for name, count in likely.most_common())
        rows.append([record['file'], counts or 'nothing'])
    return make_table(['picture', f'boxes with a score of at least {LEAST_SCORE}'], rows)


class Task(NamedTuple):
    """What answers, and what shows the answers on the terminal."""

    # (model, picture uint8 [C, H, W], options) -> image [C, H, W]
    prepare: Callable[[Any, Tensor, Namespace], Tensor]
    # (model, image [C, H, W], picture, names of the classes, file to write to without a suffix) -> a part of
    # the record
    answer: Callable[..., dict[str, Any]]
    table: Callable[[Sequence[dict[str, Any]]], Table]


# By the task in a folder's config.json.
TASKS = {
    'segmentation': Task(to_segment, segment, table_of_masks),
    'detection': Task(to_detect, detect, table_of_boxes),
}
