"""Accuracy of a trained model on a data set: top-1, top-5, per class, and after every time step from one run.

    python recipes/validate.py --model local-dir:output/digits/model --dataset digits
    python recipes/validate.py --model hf-hub:USER/NAME --dataset '' --data-dir IMAGENET --split val --device cuda
    python recipes/validate.py --model msvit_4_96 --checkpoint output/digits/checkpoints/epoch_0018 --num-steps 8

Every sample of the split counts once, in one process. A spiking model is causal: the mean of its first t outputs is
what it would answer with T = t, so that one run gives the accuracy of early exit at each t; --num-steps sets T.

Leaves in --output: results.json, per_class.csv, steps.csv (of models with time steps) and, with --predictions,
predictions.csv.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from evaluation import Samples, make_parser, open_model, open_samples, parse_args, print_tables, write_csv
from labels import match_labels
from options import one_line_errors, positive_int
from rich.markup import escape
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

import timm_snn

FILES = ('results.json', 'per_class.csv', 'steps.csv', 'predictions.csv')


def running_logits(model: Any, images: Tensor) -> Tensor:
    """Answers [B, T, num_classes] after 1 to T time steps; a model without time steps has one."""
    logits = model.forward_steps(images) if hasattr(model, 'forward_steps') else model(images).unsqueeze(1)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    counts = torch.arange(1, logits.shape[1] + 1, device=logits.device)
    return logits.cumsum(1) / counts[:, None]


def check_labels(labels: Any, num_classes: int) -> Tensor:
    """Raises: ValueError if these are not numbers of classes."""
    if not isinstance(labels, Tensor) or labels.ndim != 1 or labels.is_floating_point():
        raise ValueError(f'labels must be whole numbers, one a sample, got {labels!r}: --target-key names their column')
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if len(wrong):
        raise ValueError(
            f'labels must be 0 to {num_classes - 1}, as the model has {num_classes} classes, got {wrong[0]}: it is for '
            'other classes, or the split has no labels'
        )
    return labels


@torch.inference_mode()
def evaluate(
    model: Any,
    loader: Any,
    numbers: list[int] | None = None,
    amp: torch.dtype | None = None,
    channels_last: bool = False,
) -> dict[str, Tensor]:
    """What became of every sample, in the order of the loader.

    `numbers` translates its labels into the model's. Returns label, prediction and probability [N], and for 1 to T
    steps loss, top1 and top5 [N, T]. Raises: ValueError for labels out of range, and for logits that are not finite.
    """
    device = next(model.parameters()).device
    table = None if numbers is None else torch.tensor(numbers)
    parts: list[dict[str, Tensor]] = []
    for images, labels in tqdm(loader, 'validate', unit='batch'):
        labels = check_labels(labels, model.num_classes if table is None else len(table))
        labels = (labels if table is None else table[labels]).to(device)
        images = images.to(device)
        if channels_last and images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype=amp, enabled=amp is not None):
            logits = running_logits(model, images)
        if not logits.isfinite().all():
            raise ValueError('the model answers with numbers that are not finite')
        probability, prediction = logits[:, -1].softmax(1).max(1)
        top5 = logits.topk(min(5, model.num_classes), dim=2).indices
        losses = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), labels[:, None].expand(-1, logits.shape[1]), reduction='none'
        )
        part = {
            'label': labels,
            'prediction': prediction,
            'probability': probability,
            'loss': losses.double(),
            'top1': logits.argmax(2) == labels[:, None],
            'top5': (top5 == labels[:, None, None]).any(2),
        }
        parts.append({key: value.cpu() for key, value in part.items()})
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def summarize(outcome: dict[str, Tensor], num_classes: int) -> list[dict[str, Any]]:
    """Accuracies in percent, the counts behind them and the mean loss, after 1 to T steps; top-5 of over 5 classes."""
    rows = []
    total = len(outcome['label'])
    for t in range(outcome['loss'].shape[1]):
        row: dict[str, Any] = {'num_steps': t + 1, 'samples': total}
        for metric in ('top1', 'top5') if num_classes > 5 else ('top1',):
            correct = int(outcome[metric][:, t].sum())
            row |= {metric: 100 * correct / total, f'{metric}_correct': correct}
        rows.append(row | {'loss': outcome['loss'][:, t].mean().item()})
    return rows


def by_class(outcome: dict[str, Tensor], names: list[str]) -> list[dict[str, Any]]:
    """Samples, hits and accuracy of every class; one that the data lacks has no accuracy."""
    label, hit = outcome['label'], outcome['top1'][:, -1]
    totals = label.bincount(minlength=len(names)).tolist()
    hits = label[hit].bincount(minlength=len(names)).tolist()
    return [
        {'class': i, 'name': name, 'samples': n, 'top1_correct': k, 'top1': 100 * k / n if n else None}
        for i, (name, n, k) in enumerate(zip(names, totals, hits, strict=True))
    ]


def by_sample(outcome: dict[str, Tensor], samples: Samples, names: list[str]) -> list[dict[str, Any]]:
    columns = [outcome[key].tolist() for key in ('label', 'prediction', 'probability')]
    return [
        {
            'sample': samples.name(i),
            'class': label,
            'name': names[label],
            'predicted_class': guess,
            'predicted_name': names[guess],
            'probability': probability,
        }
        for i, (label, guess, probability) in enumerate(zip(*columns, strict=True))
    ]


def percent(row: dict[str, Any], metric: str) -> str:
    return f'{row[metric]:.2f} % ({row[f"{metric}_correct"]} of {row["samples"]})'


def tables(steps: list[dict[str, Any]], classes: list[dict[str, Any]], worst: int) -> list[Table]:
    """For the terminal: accuracy after each step if there are any, and the worst classes first."""
    by_step = Table('T', 'top-1', *(['top-5'] if steps and 'top5' in steps[0] else []), 'loss', title='early exit')
    for row in steps:
        cells = [percent(row, metric) for metric in ('top1', 'top5') if metric in row]
        by_step.add_row(str(row['num_steps']), *cells, f'{row["loss"]:.4f}')
    present = sorted((row for row in classes if row['samples']), key=lambda row: row['top1'])
    title = f'the worst of {len(present)} classes' if len(present) > worst else f'all {len(present)} classes'
    if len(present) < len(classes):
        title += f'; {len(classes) - len(present)} have no samples'
    per_class = Table('class', 'name', 'top-1', title=title)
    for row in present[:worst]:
        per_class.add_row(str(row['class']), escape(row['name']), percent(row, 'top1'))
    return [by_step, per_class] if steps else [per_class]


def read_options() -> argparse.Namespace:
    parser = make_parser(__doc__ or '', num_samples=None)
    add = parser.add_argument_group('evaluation').add_argument
    add('--steps', type=positive_int, nargs='+', help='report early exit after these; default: 1 to T')
    add('--amp', choices=('bfloat16', 'float16'), help='mixed precision')
    add('--channels-last', action='store_true')
    add('--worst', type=positive_int, default=10, help='so many classes on the terminal')
    add('--predictions', action='store_true', help='write predictions.csv, a line for every sample')
    add('--output', type=Path, default=Path('output/validate'))
    return parse_args(parser)


def main() -> None:
    args = read_options()
    model = open_model(args, args.model, **args.model_kwargs)
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last)
    has_steps = hasattr(model, 'forward_steps')
    if args.steps and not has_steps:
        raise SystemExit(f'error: {args.model} answers once, not after every time step: leave out --steps')
    if args.steps and max(args.steps) > model.num_steps:
        raise SystemExit(f'error: {args.model} runs for T = {model.num_steps}: pass --num-steps {max(args.steps)}')
    samples = open_samples(args, model)
    names, numbers = match_labels(args, model, samples.source)
    with one_line_errors(f'write to --output {args.output}'):
        args.output.mkdir(parents=True, exist_ok=True)

    start = time.perf_counter()
    with one_line_errors(f'evaluate {args.model!r} on {samples.description}'):
        loader = DataLoader(samples, args.batch_size, num_workers=args.workers)
        amp = getattr(torch, args.amp) if args.amp else None
        outcome = evaluate(model, loader, numbers, amp, args.channels_last)
    seconds = time.perf_counter() - start

    steps, classes = summarize(outcome, model.num_classes), by_class(outcome, names)
    wanted = [row for row in steps if not args.steps or row['num_steps'] in args.steps] if has_steps else []
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
        (args.output / 'results.json').write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')
        write_csv(args.output / 'per_class.csv', classes)
        if wanted:
            write_csv(args.output / 'steps.csv', wanted)
        if args.predictions:
            write_csv(args.output / 'predictions.csv', by_sample(outcome, samples, names))

    print_tables(*tables(wanted, classes, args.worst))
    metrics = (('top-1', 'top1'), ('top-5', 'top5'))
    shown = [f'{title} {percent(result, metric)}' for title, metric in metrics if metric in result]
    of_steps = f', T = {len(steps)}' if has_steps else ''
    print(f'{args.model}{of_steps}, {samples.description}, {result["dtype"]} on {args.device}:')
    print(f'{", ".join(shown)}, loss {result["loss"]:.4f}; {result["samples_per_s"]:.0f} samples/s with loading')
    print(f'written: {", ".join(str(args.output / name) for name in FILES if (args.output / name).is_file())}')


if __name__ == '__main__':
    main()
