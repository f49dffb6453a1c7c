"""Classify pictures or recordings with a trained model: the likeliest classes of each, with their probabilities.

Or label the pixels of pictures, with a model of recipes/segment.py, or draw boxes, with one of recipes/detect.py.

    python recipes/predict.py --model local-dir:output/digits/model photo.png holiday/
    python recipes/predict.py --model hf-hub:USER/NAME FOLDER --topk 3 --device cuda --output predictions.csv
    python recipes/predict.py --model local-dir:output/gestures/model wave.raw recordings/ --output answers.json
    python recipes/predict.py --model local-dir:output/camvid/model street.jpg --output masks/

Takes files, and folders with all that is below them, linked folders too; in folders, files named like a picture, or
like a recording. Pictures become upright, and grayscale or RGB as the model wants, without regard to transparency.
What cannot be read is named, and the exit status is then 1.

A model that was trained on events takes recordings, whose frames are made as it says, and so does any other one with
--sensor-size. It answers after every step, with the mean of its outputs until then. The confidence of an answer is the
probability of its class less that of the next one.

A model of recipes/segment.py writes NAME_mask.png, whose values are the labels, and NAME_overlay.png to the folder
--output. Pictures are resized so that their shorter side is that of the pictures it was measured on, or --img-size.
One of recipes/detect.py writes NAME_boxes.png, with the boxes that have a score of at least 0.3. predictions.json in
that folder has a record for each picture; those of detectors hold all boxes, [left, top, right, bottom] in pixels.
"""

import json
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from timm_snn.data import has_frame_settings
from timm_snn.data.detect import KNOWN
from timm_snn.data.event_folder import find_recordings
from timm_snn.files import printable, write_whole_text
from timm_snn.folders import Found
from timm_snn.progress import bar, write_line
from timm_snn.training.console import give, note
from timm_snn.training.data import DataSource, make_transform
from timm_snn.training.errors import UserError, one_line_errors, script
from timm_snn.training.evaluation import running_logits
from timm_snn.training.labels import descriptions_of, open_labels
from timm_snn.training.models import channels, early_exits, fused, input_config, open_model, saved_config
from timm_snn.training.options import (
    ArgumentParser,
    add_recording_options,
    image_options,
    model_options,
    model_parser,
    positive_int,
    recordings,
)
from timm_snn.training.pictures import find_pictures as pictures_below
from timm_snn.training.pictures import open_picture
from timm_snn.training.recordings import open_frames, settings_for
from timm_snn.training.tables import make_table, write_csv

MOST_ROWS = 50  # of the table on the terminal


class Answer(NamedTuple):
    """What the model says after some of its steps."""

    step: int
    guesses: list[tuple[int, float]]  # (class, probability), the likeliest first
    confidence: float  # the probability of the likeliest class less that of the next


def find_files(paths: list[Path], below: Callable[[Path], Found], kind: str, named: str) -> list[Path]:
    """Files as they are named, and those that `below` finds in folders in the order of their names; each once.

    Raises: UserError for a path that does not exist and for a folder without any, which are files `named` so.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = below(path)
            if not inside.files:
                raise UserError(f'folder {path} has no {kind}, which are files named {named}')
            if left_out := inside.note():
                note(f'note: left out of {path}, not named like {kind} or hidden: {left_out}')
            found += inside.files
        elif path.exists():
            found.append(path)
        else:
            raise UserError(f'there is no file or folder {path}')
    return list(dict.fromkeys(found))


class Inputs(Dataset):
    """Files as the model's input, or why they cannot be read: (index, tensor | str)."""

    def __init__(self, files: list[Path], read: Callable[[Path], Tensor]) -> None:
        self.files = files
        self.read = read

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[int, Tensor | str]:
        try:
            return index, self.read(self.files[index])
        except Exception as error:  # decoders stumble in their own ways over broken files
            return index, printable(f'{type(error).__name__}: {error}', 500)


def read_picture(file: Path, mode: str, transform: Any) -> Tensor:
    return transform(open_picture(file, mode))


def logits_of(model: Any, batch: Tensor, steps: list[int] | None) -> Tensor:
    """[B, steps, classes]: one for pictures, for frames [B, T, C, H, W] the mean of the outputs until each step."""
    if steps is None:
        return model(batch).float().unsqueeze(1)
    return running_logits(model, batch)[:, [step - 1 for step in steps]]


@torch.inference_mode()
def predict(
    model: Any, inputs: Inputs, topk: int, batch_size: int, workers: int, steps: list[int] | None
) -> Iterator[tuple[int, list[Answer] | str]]:
    """Yield each file's index with its answers, or why it is unreadable; of a picture there is one answer."""
    device = next(model.parameters()).device
    loader: Any = DataLoader(inputs, batch_size, num_workers=workers, collate_fn=list)
    with bar('predict', len(inputs), unit='pictures' if steps is None else 'recordings') as shows:
        for batch in loader:
            good = [(index, tensor) for index, tensor in batch if not isinstance(tensor, str)]
            yield from ((index, reason) for index, reason in batch if isinstance(reason, str))
            if good:
                logits = logits_of(model, torch.stack([tensor for _, tensor in good]).to(device), steps)
                if not logits.isfinite().all():
                    wrong = next(i for (i, _), row in zip(good, logits, strict=True) if not row.isfinite().all())
                    name = printable(inputs.files[wrong], 500)
                    raise ValueError(f'the model answers {name} with numbers that are not finite')
                probabilities = logits.softmax(2)
                for (index, _), rows in zip(good, probabilities, strict=True):
                    yield index, [answer_of(step, row, topk) for step, row in zip(steps or [1], rows, strict=True)]
            shows.update(len(batch))


def answer_of(step: int, probabilities: Tensor, topk: int) -> Answer:
    values, classes = probabilities.topk(topk)
    best = probabilities.topk(min(2, len(probabilities))).values.tolist()
    confidence = best[0] - (best[1] if len(best) > 1 else 0.0)
    return Answer(step, list(zip(classes.tolist(), values.tolist(), strict=True)), confidence)


def as_rows(file: Path, answers: list[Answer] | str, names: list[str], topk: int, with_steps: bool) -> list[dict]:
    """Rows of the CSV, one for each step; all rows have the same columns."""
    rows = []
    for answer in [None] if isinstance(answers, str) else answers:
        row: dict[str, Any] = {'file': str(file)}
        if with_steps:
            row |= {'step': answer and answer.step, 'confidence': answer and answer.confidence}
        for i in range(topk):
            number, probability = answer.guesses[i] if answer else (None, None)
            name = None if number is None else names[number]
            row |= {f'class_{i + 1}': number, f'name_{i + 1}': name, f'probability_{i + 1}': probability}
        rows.append(row | {'error': answers if isinstance(answers, str) else None})
    return rows


def as_record(file: Path, answers: list[Answer] | str, names: list[str], with_steps: bool) -> dict[str, Any]:
    """An entry of the JSON."""
    if isinstance(answers, str):
        return {'file': str(file), 'error': answers}
    described = [
        {
            'step': answer.step,
            'confidence': answer.confidence,
            'predictions': [{'class': number, 'name': names[number], 'probability': p} for number, p in answer.guesses],
        }
        for answer in answers
    ]
    return {'file': str(file), 'steps': described} if with_steps else {'file': str(file), **described[0]}


def table_of(answers: list[tuple[Path, list[Answer]]], names: list[str], topk: int, kind: str) -> Table:
    """A row for each picture, or for each step of each recording."""
    with_steps = kind == 'recording'
    columns = [kind, *(['step', 'confidence'] if with_steps else []), *(f'{i + 1}.' for i in range(topk))]
    rows = (
        [file, *([answer.step, f'{answer.confidence:.1%}'] if with_steps else [])]
        + [f'{names[number]} {p:.1%}' for number, p in answer.guesses]
        for file, of_file in answers
        for answer in of_file
    )
    return make_table(columns, rows)


def make_parser() -> ArgumentParser:
    parser = model_parser('recipes/predict.py', __doc__)
    parser.add_argument('files', type=Path, nargs='+', metavar='PICTURE|RECORDING|FOLDER')
    add_recording_options(parser.add_argument_group('recordings').add_argument)
    add = parser.add_argument_group('prediction').add_argument
    add('--topk', type=positive_int, default=5, help='so many classes, at most all')
    add('--labels', type=Path, help='names of the classes, one in each line; default: those saved with the model')
    add('--output', type=Path, help='.csv or .json; of a model of masks or boxes a folder')
    return parser


@script
def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.num_threads:
        torch.set_num_threads(args.num_threads)
    if task := saved_config(args.model).get('task'):
        predict_places(args, parser, task)
        return
    if args.output and args.output.suffix not in ('.csv', '.json'):
        parser.error(f'argument --output: expected a file named .csv or .json, got {args.output}')
    model = fused(open_model(args.model, **model_options(args)), args.model)
    topk = min(args.topk, model.num_classes)
    names = descriptions_of(open_labels(model, args.labels), model.num_classes)
    source = recordings(args)
    steps = None
    if has_frame_settings(model) or source.sensor_size:
        kind = 'recording'
        inputs, steps = recordings_for(model, args, source)
    else:
        kind = 'picture'
        inputs = pictures_for(model, args, source)

    with one_line_errors(f'predict with {args.model!r}'):
        by_index = dict(predict(model, inputs, topk, args.batch_size, args.workers, steps))
    answers = [(file, by_index[i]) for i, file in enumerate(inputs.files)]
    records = [as_record(file, answer, names, with_steps=steps is not None) for file, answer in answers]
    if args.output:
        write(args.output, answers, records, names, topk, with_steps=steps is not None)

    read = [(file, answer) for file, answer in answers if not isinstance(answer, str)]
    shown = read[: max(1, MOST_ROWS // len(steps or [1]))]
    result: list[str | Table] = [table_of(shown, names, topk, kind)] if shown else []
    if len(read) > len(shown):
        result.append(f'and {len(read) - len(shown)} more: --output writes all')
    if args.output:
        result.append(f'written: {args.output}')
    give(records, *result)
    say_unreadable({file: answer for file, answer in answers if isinstance(answer, str)}, len(answers), kind)


def say_unreadable(reasons: dict[Path, str], total: int, kind: str) -> None:
    """Raises: UserError if there are some, after a line about each."""
    for file, reason in reasons.items():
        write_line(f'unreadable: {printable(file, 500)}: {reason}', sys.stderr)  # with --quiet too
    if reasons:
        raise UserError(f'{len(reasons)} of {total} {kind}s cannot be read')


def predict_places(args: Namespace, parser: ArgumentParser, task: str) -> None:
    """Write what a segmenter or detector finds in pictures, to the folder --output."""
    from timm_snn.training.dense_predict import TASKS, answers_to, open_dense

    if task not in TASKS:
        raise UserError(f'{args.model} is a model of {printable(task)}, and this version knows {", ".join(TASKS)}')
    if not args.output:
        parser.error('argument --output: expected a folder, for the pictures that are written')
    model = open_dense(args)
    names = model.label_names or [str(number) for number in range(model.num_classes)]
    if args.labels:
        with one_line_errors(f'read --labels {args.labels}'):
            names = args.labels.read_text(encoding='utf-8-sig').splitlines()
            if len(names) != model.num_classes:
                raise ValueError(f'it has {len(names)} names for {model.num_classes} classes')
    files = find_files(args.files, pictures_below, 'pictures', '.png, .jpg and so on')
    with one_line_errors(f'write to --output {args.output}'):
        args.output.mkdir(parents=True, exist_ok=True)
    answers = dict(answers_to(model, files, names, args))
    with one_line_errors(f'write to --output {args.output}'):
        write_whole_text(args.output / 'predictions.json', json.dumps([*answers.values()], indent=2) + '\n')
    read = [record for record in answers.values() if 'error' not in record]
    more = [f'and {len(read) - MOST_ROWS} more: predictions.json has all'] if len(read) > MOST_ROWS else []
    shown = [TASKS[task].table(read[:MOST_ROWS])] if read else []
    give([*answers.values()], *shown, *more, f'written: {args.output}')
    reasons = {file: record['error'] for file, record in answers.items() if 'error' in record}
    say_unreadable(reasons, len(answers), 'picture')


def pictures_for(model: Any, args: Namespace, source: DataSource) -> Inputs:
    in_chans = channels(model)
    if in_chans not in (1, 3):
        raise UserError(
            f'{args.model} takes {in_chans} channels, such as event frames have, and pictures have 1 or 3: for '
            'recordings pass --sensor-size H W, of the camera that it was trained with'
        )
    if source.reading or any(source.bins.values()):
        raise UserError(
            '--split-by, --bin-ms, --events-per-bin and --read-events are for recordings, and this is a model of '
            'pictures: leave them out, or pass --sensor-size H W, of the camera that it was trained with'
        )
    files = find_files(args.files, pictures_below, 'pictures', '.png, .jpg and so on')
    transform = make_transform(input_config(model, **image_options(args)), is_events=False)
    return Inputs(files, partial(read_picture, mode='L' if in_chans == 1 else 'RGB', transform=transform))


def recordings_for(model: Any, args: Namespace, source: DataSource) -> tuple[Inputs, list[int]]:
    """The recordings, and the steps after which the model answers."""
    if not hasattr(model, 'forward_steps'):
        raise UserError(f'{args.model} has no time steps, which recordings are cut into')
    settings, difference = settings_for(model, source, **image_options(args))
    if difference:
        note(difference)
    named = ', '.join(KNOWN)
    reading = source.reading or {}
    files = find_files(args.files, lambda folder: find_recordings([folder], reading), 'recordings', named)
    return Inputs(files, partial(open_frames, settings=settings, source=source)), early_exits(model)


def write(
    output: Path, answers: list[tuple[Path, Any]], records: list[dict], names: list[str], topk: int, with_steps: bool
) -> None:
    with one_line_errors(f'write to --output {output}'):
        output.parent.mkdir(parents=True, exist_ok=True)
        if output.suffix == '.csv':
            write_csv(
                output, [row for file, answer in answers for row in as_rows(file, answer, names, topk, with_steps)]
            )
        else:
            write_whole_text(output, json.dumps(records, indent=2) + '\n')


if __name__ == '__main__':
    main()
