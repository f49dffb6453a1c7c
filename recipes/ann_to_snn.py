"""Convert a trained network into a spiking one, and measure its accuracy against the time steps T.

    python recipes/ann_to_snn.py --model local-dir:output/mst_cifar10/model --dataset hfds/uoft-cs/cifar10 \
        --input-key img --target-key label --split test --num-steps 32
    python recipes/ann_to_snn.py --model resnet18 --pretrained --levels 16 --dataset '' --data-dir IMAGENET --split val

The first network was trained with quantised activations (docs/conversion.md), and the second gets them here, of
--levels, without fine-tuning. The mean of the first t outputs is what the spiking network answers with T = t, so that
one run gives the accuracy at every t. All steps run at once: memory grows with --num-steps x --batch-size.

Leaves in --output: results.json, steps.csv, accuracy.png and report.txt, which lists what stays real-valued.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch.utils.data import DataLoader

import timm_snn
from timm_snn.files import write_whole, write_whole_text
from timm_snn.models import convert, quantize_activations
from timm_snn.profiling.style import SOFT, SPIKE, label_ends, new_figure, styled
from timm_snn.progress import waiting
from timm_snn.training.console import give, say
from timm_snn.training.data import open_samples
from timm_snn.training.errors import UserError, one_line_errors, script
from timm_snn.training.evaluation import evaluate, summarize
from timm_snn.training.labels import match_labels
from timm_snn.training.models import open_model
from timm_snn.training.options import (
    ArgumentParser,
    data_source,
    evaluation_parser,
    image_options,
    model_options,
    positive_int,
)
from timm_snn.training.tables import write_csv

CALIBRATION = 64  # images that thetas start from with --levels


def make_parser() -> ArgumentParser:
    parser = evaluation_parser('recipes/ann_to_snn.py', __doc__, num_samples=None)
    add = parser.add_argument_group('conversion').add_argument
    add('--levels', type=positive_int, help='replace ReLU, GELU and SiLU by activations of so many levels first')
    add('--mask-ratio', type=float, help='spikes to drop at random; default: what the network was made with')
    add('--within', type=float, default=1.0, help='report the smallest T within so many points of the network')
    add('--output', type=Path, default=Path('output/convert'))
    parser.set_defaults(num_steps=32, batch_size=16)
    return parser


def draw(ann: float, rows: Sequence[dict[str, Any]], reached: int | None, title: str) -> Figure:
    """Top-1 against T on a logarithmic axis, beside that of the network which was converted."""
    with styled():
        figure = new_figure(5.8, 3.5)
        axes = figure.subplots()
        axes.axhline(ann, color=SOFT, linestyle='--', linewidth=1)
        axes.annotate(f'artificial network, {ann:.2f} %', (1, ann), (0, 4), textcoords='offset points', color=SOFT)
        steps, top1 = [row['num_steps'] for row in rows], [row['top1'] for row in rows]
        axes.plot(steps, top1, color=SPIKE)
        if reached:
            at = rows[reached - 1]['top1']
            axes.plot(reached, at, 'o', color=SPIKE)
            label = f'T = {reached}, {at:.2f} %'
            axes.annotate(label, (reached, at), (4, -13), textcoords='offset points', color=SPIKE)
        ticks = [2**i for i in range(steps[-1].bit_length())]
        axes.set_xscale('log', base=2)
        axes.set(xlabel='time steps T', ylabel='top-1 (%)', xticks=ticks, xticklabels=map(str, ticks))
        axes.set_title(f'Accuracy of the converted network\n{title}')
        label_ends(axes, [(steps[-1], top1[-1], 'converted', SPIKE)])
    return figure


@script
def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    if args.num_threads:
        torch.set_num_threads(args.num_threads)
    ann = open_model(args.model, **{**model_options(args), 'num_steps': None})
    if hasattr(ann, 'num_steps'):
        raise UserError(f'{args.model} has time steps already: pass the artificial network that it is made of')
    source = data_source(args)
    samples = open_samples(source, args.split, ann, args.num_samples, **image_options(args))
    _, numbers = match_labels(ann, samples.source, is_folder=source.is_folder, file=args.labels)
    what = f'convert {args.model!r}'
    with one_line_errors(what), waiting(what):
        if args.levels:
            first = torch.stack([samples[i][0] for i in range(min(CALIBRATION, len(samples)))])
            ann = quantize_activations(ann, args.levels, first.to(args.device)).eval()
        snn = convert(ann, num_steps=args.num_steps, mask_ratio=args.mask_ratio).to(args.device)
    say(str(snn.report))
    with one_line_errors(f'evaluate {args.model!r} on {samples.description}'):
        loader = DataLoader(samples, args.batch_size, num_workers=args.workers)
        before = summarize(evaluate(ann, loader, numbers=numbers), ann.num_classes)[-1]['top1']
        rows = summarize(evaluate(snn, loader, numbers=numbers), ann.num_classes)
    reached = next((row['num_steps'] for row in rows if row['top1'] >= before - args.within), None)

    result = {
        'model': args.model,
        'data': samples.description,
        'samples': len(samples),
        'ann_top1': before,
        'num_steps': args.num_steps,
        'top1': rows[-1]['top1'],
        'within': args.within,
        'smallest_num_steps': reached,
        'levels': args.levels,
        'mask_ratio': args.mask_ratio,
        'torch': torch.__version__,
        'timm_snn': timm_snn.__version__,
    }
    with one_line_errors(f'write to --output {args.output}'):
        args.output.mkdir(parents=True, exist_ok=True)
        write_whole_text(args.output / 'results.json', json.dumps(result, indent=2) + '\n')
        write_whole_text(args.output / 'report.txt', f'{snn.report}\n')
        write_csv(args.output / 'steps.csv', rows)
        with write_whole(args.output / 'accuracy.png') as unfinished:
            draw(before, rows, reached, samples.description).savefig(unfinished, format='png', dpi=120)
    give(
        result,
        f'{args.model} on {samples.description}: top-1 {before:.2f} %, converted {rows[-1]["top1"]:.2f} % with '
        f'T = {args.num_steps}; '
        + (
            f'within {args.within:g} points from T = {reached}'
            if reached
            else f'not within {args.within:g} points: pass a larger --num-steps, or fine-tune the activations'
        ),
    )


if __name__ == '__main__':
    main()
