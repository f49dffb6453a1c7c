"""Answers of saved segmenters and detectors to pictures, as files and as records for JSON."""

from argparse import Namespace
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
from .dense_pictures import labels_of, overlay, save_label_map
from .errors import UserError, one_line_errors
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
    """A record for each picture, with `error` for those that cannot be read. Files are written to `args.output`.

    Pictures are resized so that their shorter side is that of the model's input, as --img-size may set it.
    """
    cfg, answer = model.pretrained_cfg, TASKS[model.task].answer
    side = args.img_size or min(cfg['input_size'][1:])
    mean, std = list(args.mean or cfg['mean']), list(args.std or cfg['std'])
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
        factor = side / min(picture.size)
        size = [max(1, round(picture.height * factor)), max(1, round(picture.width * factor))]
        image = TF.to_dtype(TF.resize(TF.pil_to_tensor(picture), size, antialias=True), torch.float32, scale=True)
        with one_line_errors(f'predict {file}'), torch.inference_mode():
            image = TF.normalize(image, mean, std).to(args.device)
            yield file, {'file': str(file), **answer(model, image, picture, names, args.output / name)}


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


class Task(NamedTuple):
    """What answers, and what shows the answers on the terminal."""

    # (model, normalised image [C, H, W], picture, names of the classes, file to write to without a suffix) -> a part of
    # the record
    answer: Callable[..., dict[str, Any]]
    table: Callable[[Sequence[dict[str, Any]]], Table]


TASKS = {'segmentation': Task(segment, table_of_masks)}  # by the task in a folder's config.json
