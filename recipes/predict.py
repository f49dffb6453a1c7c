"""Classify pictures with a trained model: the likeliest classes of each, with their probabilities.

    python recipes/predict.py --model local-dir:output/digits/model photo.png holiday/
    python recipes/predict.py --model hf-hub:USER/NAME FOLDER --topk 3 --device cuda --output predictions.csv

Takes files, and folders with all that is below them, linked folders too; in folders, files named like a picture.
Pictures become upright, and grayscale or RGB as the model wants, without regard to transparency. Those that cannot be
read are named, and the exit status is then 1.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from timm_snn.files import printable, write_whole_text
from timm_snn.training.data import make_transform
from timm_snn.training.errors import UserError, one_line_errors, script
from timm_snn.training.labels import descriptions_of, open_labels
from timm_snn.training.models import channels, fused, input_config, open_model
from timm_snn.training.options import ArgumentParser, image_options, model_options, model_parser, positive_int
from timm_snn.training.pictures import find_pictures as pictures_below
from timm_snn.training.pictures import open_picture
from timm_snn.training.tables import make_table, wide_console, write_csv

MOST_ROWS = 50  # of the table on the terminal


def find_pictures(paths: list[Path]) -> list[Path]:
    """Files as they are named, and those of folders in the order of their names; each once.

    Raises: UserError for a path that does not exist and for a folder without pictures.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            below = pictures_below(path)
            if not below.files:
                raise UserError(f'folder {path} has no pictures, which are files named .png, .jpg and so on')
            if note := below.note():
                print(f'note: left out of {path}, not named like pictures or hidden: {note}', file=sys.stderr)
            found += below.files
        elif path.exists():
            found.append(path)
        else:
            raise UserError(f'there is no file or folder {path}')
    return list(dict.fromkeys(found))


class Pictures(Dataset):
    """Files as the model's input, or why they cannot be read: (index, tensor | str)."""

    def __init__(self, files: list[Path], mode: str, transform: Any) -> None:
        self.files = files
        self.mode = mode
        self.transform = transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor | str]:
        try:
            picture = open_picture(self.files[index], self.mode)
        except Exception as error:  # decoders stumble in their own ways over broken files
            return index, printable(f'{type(error).__name__}: {error}', 500)
        return index, self.transform(picture)


@torch.inference_mode()
def predict(model: Any, pictures: Pictures, topk: int, batch_size: int, workers: int) -> Iterator[tuple[int, Any]]:
    """Yield each picture's index with [(class, probability), ...], the likeliest first, or why it is unreadable."""
    device = next(model.parameters()).device
    loader: Any = DataLoader(pictures, batch_size, num_workers=workers, collate_fn=list)
    bar = tqdm(total=len(pictures), desc='predict', unit='picture')
    for batch in loader:
        good = [(index, tensor) for index, tensor in batch if not isinstance(tensor, str)]
        yield from ((index, reason) for index, reason in batch if isinstance(reason, str))
        if good:
            logits = model(torch.stack([tensor for _, tensor in good]).to(device)).float()
            if not logits.isfinite().all():
                wrong = next(i for (i, _), row in zip(good, logits, strict=True) if not row.isfinite().all())
                name = printable(pictures.files[wrong], 500)
                raise ValueError(f'the model answers {name} with numbers that are not finite')
            values, classes = logits.softmax(1).topk(topk)
            for (index, _), row, guesses in zip(good, values.tolist(), classes.tolist(), strict=True):
                yield index, list(zip(guesses, row, strict=True))
        bar.update(len(batch))
    bar.close()


def as_row(file: Path, answer: Any, names: list[str], topk: int) -> dict[str, Any]:
    """A row of the CSV; all rows have the same columns."""
    row: dict[str, Any] = {'file': str(file)}
    guesses = [] if isinstance(answer, str) else answer
    for i in range(topk):
        number, probability = guesses[i] if guesses else (None, None)
        name = None if number is None else names[number]
        row |= {f'class_{i + 1}': number, f'name_{i + 1}': name, f'probability_{i + 1}': probability}
    return row | {'error': answer if isinstance(answer, str) else None}


def as_record(file: Path, answer: Any, names: list[str]) -> dict[str, Any]:
    """An entry of the JSON."""
    if isinstance(answer, str):
        return {'file': str(file), 'error': answer}
    guesses = [{'class': number, 'name': names[number], 'probability': p} for number, p in answer]
    return {'file': str(file), 'predictions': guesses}


def table_of(answers: list[tuple[Path, Any]], names: list[str], topk: int) -> Table:
    rows = ([file, *(f'{names[number]} {p:.1%}' for number, p in answer)] for file, answer in answers)
    return make_table(['picture', *(f'{i + 1}.' for i in range(topk))], rows)


def make_parser() -> ArgumentParser:
    parser = model_parser('recipes/predict.py', __doc__)
    parser.add_argument('pictures', type=Path, nargs='+', metavar='PICTURE|FOLDER')
    add = parser.add_argument_group('prediction').add_argument
    add('--topk', type=positive_int, default=5, help='so many classes, at most all')
    add('--labels', type=Path, help='names of the classes, one in each line; default: those saved with the model')
    add('--output', type=Path, help='.csv or .json')
    return parser


@script
def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.output and args.output.suffix not in ('.csv', '.json'):
        parser.error(f'argument --output: expected a file named .csv or .json, got {args.output}')
    if args.num_threads:
        torch.set_num_threads(args.num_threads)
    files = find_pictures(args.pictures)
    model = fused(open_model(args.model, **model_options(args)), args.model)
    in_chans = channels(model)
    if in_chans not in (1, 3):
        raise UserError(
            f'{args.model} takes {in_chans} channels, such as event frames have, and pictures have 1 or 3: '
            'recipes/validate.py runs it on a data set'
        )
    topk = min(args.topk, model.num_classes)
    names = descriptions_of(open_labels(model, args.labels), model.num_classes)
    transform = make_transform(input_config(model, **image_options(args)), is_events=False)
    pictures = Pictures(files, 'L' if in_chans == 1 else 'RGB', transform)

    with one_line_errors(f'predict with {args.model!r}'):
        by_index = dict(predict(model, pictures, topk, args.batch_size, args.workers))
    answers = [(file, by_index[i]) for i, file in enumerate(files)]
    if args.output:
        with one_line_errors(f'write to --output {args.output}'):
            args.output.parent.mkdir(parents=True, exist_ok=True)
            if args.output.suffix == '.csv':
                write_csv(args.output, [as_row(file, answer, names, topk) for file, answer in answers])
            else:
                records = [as_record(file, answer, names) for file, answer in answers]
                write_whole_text(args.output, json.dumps(records, indent=2) + '\n')

    read = [(file, answer) for file, answer in answers if not isinstance(answer, str)]
    if read:
        wide_console().print(table_of(read[:MOST_ROWS], names, topk))
    if len(read) > MOST_ROWS:
        print(f'and {len(read) - MOST_ROWS} more: --output writes all')
    if args.output:
        print(f'written: {args.output}')
    for file, answer in answers:
        if isinstance(answer, str):
            print(f'unreadable: {printable(file, 500)}: {answer}', file=sys.stderr)
    if len(read) < len(answers):
        raise UserError(f'{len(answers) - len(read)} of {len(answers)} pictures cannot be read')


if __name__ == '__main__':
    main()
