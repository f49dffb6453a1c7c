"""Accuracy of a trained model on a data set: top-1, top-5, per class, and after every time step from one run.

    python recipes/validate.py --model local-dir:output/digits/model --dataset digits
    python recipes/validate.py --model hf-hub:USER/NAME --dataset '' --data-dir IMAGENET --split val --device cuda
    python recipes/validate.py --model msvit_4_96 --checkpoint output/digits/checkpoints/epoch_0018 --num-steps 8
    python recipes/validate.py --model local-dir:output/fold_2/model --dataset digits --fold 2/5

Every sample of the split counts once, in one process. A spiking model is causal: the mean of its first t outputs is
what it would answer with T = t, so that one run gives the accuracy of early exit at each t; --num-steps sets T. One
with attention over chunks of steps answers at the end of each chunk.
The model runs fused (timm_snn.fuse), whose rounding differs in the last bit, so that a sample between two classes may
be counted otherwise than in training; --no-fuse runs it as it was trained.

Leaves in --output: results.json, per_class.csv, steps.csv (of models with time steps) and, with --predictions,
predictions.csv.
"""

import json
import time
from argparse import BooleanOptionalAction
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch.utils.data import DataLoader

import timm_snn
from timm_snn.files import write_whole_text
from timm_snn.training.console import give, note
from timm_snn.training.data import open_fold, open_samples
from timm_snn.training.errors import UserError, one_line_errors, script
from timm_snn.training.evaluation import by_class, by_sample, evaluate, summarize
from timm_snn.training.labels import match_labels
from timm_snn.training.models import early_exits, fold_of, fused, open_model
from timm_snn.training.options import (
    ArgumentParser,
    data_source,
    evaluation_parser,
    fold,
    image_options,
    model_options,
    positive_int,
)
from timm_snn.training.tables import make_table, write_csv

FILES = ('results.json', 'per_class.csv', 'steps.csv', 'predictions.csv')


def make_parser() -> ArgumentParser:
    parser = evaluation_parser('recipes/validate.py', __doc__, num_samples=None)
    add = parser.add_argument_group('evaluation').add_argument
    add('--steps', type=positive_int, nargs='+', help='report early exit after these; default: 1 to T')
    add(
        '--fold',
        type=fold_or_none,
        metavar='K/N',
        help='the Kth of N folds of --train-split and --split together, which a training with this --fold held out; '
        "'none' for --split as it is. A model of a fold needs one of both",
    )
    add('--train-split', default='train', help='of --fold')
    add('--amp', choices=('bfloat16', 'float16'), help='mixed precision')
    add('--fuse', action=BooleanOptionalAction, default=True, help='fold batch norms and all else of timm_snn.fuse')
    add('--channels-last', action='store_true', help='as a fused model is anyway')
    add('--worst', type=positive_int, default=10, help='so many classes on the terminal')
    add('--predictions', action='store_true', help='write predictions.csv, a line for every sample')
    add('--output', type=Path, default=Path('output/validate'))
    return parser


def fold_or_none(text: str) -> str:
    return text if text == 'none' else fold(text)


def percent(row: dict[str, Any], metric: str) -> str:
    return f'{row[metric]:.2f} % ({row[f"{metric}_correct"]} of {row["samples"]})'


def tables(steps: list[dict[str, Any]], classes: list[dict[str, Any]], worst: int) -> list[Table]:
    """Tables for the terminal: accuracy after each step if there are any, and the worst classes first."""
    metrics = {'top1': 'top-1', 'top5': 'top-5'}
    shown = {metric: title for metric, title in metrics.items() if steps and metric in steps[0]}
    by_step = make_table(
        ['T', *shown.values(), 'loss'],
        ([row['num_steps'], *(percent(row, metric) for metric in shown), f'{row["loss"]:.4f}'] for row in steps),
        title='early exit',
    )
    present = sorted((row for row in classes if row['samples']), key=lambda row: row['top1'])
    title = f'the worst of {len(present)} classes' if len(present) > worst else f'all {len(present)} classes'
    if len(present) < len(classes):
        title += f'; {len(classes) - len(present)} have no samples'
    per_class = make_table(
        ['class', 'name', 'top-1'],
        ([row['class'], row['name'], percent(row, 'top1')] for row in present[:worst]),
        title=title,
    )
    return [by_step, per_class] if steps else [per_class]


@script
def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    if args.num_threads:
        torch.set_num_threads(args.num_threads)
    model = open_model(args.model, **model_options(args))
    if args.fuse:
        model = fused(model, args.model)
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last)
    has_steps = hasattr(model, 'forward_steps')
    if args.steps and not has_steps:
        raise UserError(f'{args.model} answers once, not after every time step: leave out --steps')
    if args.steps and max(args.steps) > model.num_steps:
        raise UserError(f'{args.model} runs for T = {model.num_steps}: pass --num-steps {max(args.steps)}')
    exits = early_exits(model) if has_steps else []
    if wrong := [step for step in args.steps or () if step not in exits]:
        raise UserError(
            f'{args.model} has attention over chunks of {model.chunk_steps} steps and no answer after {wrong[0]}: '
            f'--steps takes some of {", ".join(map(str, exits))}'
        )
    source = data_source(args)
    held_out = fold_of(args.model, args.checkpoint)
    if held_out and args.fold is None:
        raise UserError(
            f'{args.model} was trained on all of the data but fold {held_out}, so that it has seen most of split '
            f'{args.split!r}: pass --fold {held_out} to test it on the others, or --fold none for the split as it is'
        )
    if args.fold in (None, 'none'):
        samples = open_samples(source, args.split, model, args.num_samples, **image_options(args))
    else:
        splits = args.train_split, args.split
        samples = open_fold(source, args.fold, splits, model, args.num_samples, **image_options(args))
        if held_out != args.fold:
            whose = f'fold {held_out}' if held_out else 'no fold that is known'
            note(f'note: {args.model} is of {whose}: it may have seen samples of fold {args.fold}')
    names, numbers = match_labels(model, samples.source, is_folder=source.is_folder, file=args.labels)
    with one_line_errors(f'write to --output {args.output}'):
        args.output.mkdir(parents=True, exist_ok=True)

    start = time.perf_counter()
    with one_line_errors(f'evaluate {args.model!r} on {samples.description}'):
        loader = DataLoader(samples, args.batch_size, num_workers=args.workers)
        amp = getattr(torch, args.amp) if args.amp else None
        outcome = evaluate(model, loader, numbers=numbers, amp=amp, channels_last=args.channels_last)
    seconds = time.perf_counter() - start

    steps, classes = summarize(outcome, model.num_classes), by_class(outcome, names)
    wanted = [row for row in steps if row['num_steps'] in (args.steps or exits)]
    result = {
        'model': args.model,
        'checkpoint': str(args.checkpoint) if args.checkpoint else None,
        'data': samples.description,
        'num_classes': model.num_classes,
        **steps[-1],
        'num_steps': len(steps) if has_steps else None,
        'early_exit': wanted,
        'seconds': seconds,
        'samples_per_s': len(samples) / seconds,
        'batch_size': args.batch_size,
        'device': args.device,
        'dtype': args.amp or 'float32',
        'torch': torch.__version__,
        'timm_snn': timm_snn.__version__,
    }
    with one_line_errors(f'write to --output {args.output}'):
        for name in FILES:  # an earlier run may have had more of them
            (args.output / name).unlink(missing_ok=True)
        write_whole_text(args.output / 'results.json', json.dumps(result, indent=2) + '\n')
        write_csv(args.output / 'per_class.csv', classes)
        if wanted:
            write_csv(args.output / 'steps.csv', wanted)
        if args.predictions:
            write_csv(args.output / 'predictions.csv', by_sample(outcome, samples, names))

    files = [args.output / name for name in FILES if (args.output / name).is_file()]
    metrics = (('top-1', 'top1'), ('top-5', 'top5'))
    shown = [f'{title} {percent(result, metric)}' for title, metric in metrics if metric in result]
    of_steps = f', T = {len(steps)}' if has_steps else ''
    give(
        result | {'classes': classes, 'files': files},
        *tables(wanted, classes, args.worst),
        f'{args.model}{of_steps}, {samples.description}, {result["dtype"]} on {args.device}:',
        f'{", ".join(shown)}, loss {result["loss"]:.4f}; {result["samples_per_s"]:.0f} samples/s with loading',
        f'written: {", ".join(map(str, files))}',
    )


if __name__ == '__main__':
    main()
