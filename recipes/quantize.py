"""A trained model as a network of whole numbers, with the accuracy of both on a data set.

    python recipes/quantize.py --model msvit_4_96.fashion_mnist --dataset torch/fashion_mnist \\
        --data-dir data --train-split train --split validation
    python recipes/validate.py --model local-dir:output/quantize/model --dataset torch/fashion_mnist --data-dir data

Calibration takes --calibration samples of --train-split, as the model sees them in evaluation; --split measures. The
float model runs fused. docs/quantization.md says what is done and what was measured.

Leaves in --output: model/ (for timm_snn.load_quantized and 'local-dir:') and results.json.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

import timm_snn
from timm_snn.files import write_whole_text
from timm_snn.progress import track, waiting
from timm_snn.training.console import give
from timm_snn.training.data import open_samples
from timm_snn.training.errors import one_line_errors, script
from timm_snn.training.evaluation import evaluate, summarize
from timm_snn.training.labels import match_labels
from timm_snn.training.models import fused, open_model
from timm_snn.training.options import (
    ArgumentParser,
    data_source,
    evaluation_parser,
    image_options,
    model_options,
    positive_int,
)


def make_parser() -> ArgumentParser:
    parser = evaluation_parser('recipes/quantize.py', __doc__, num_samples=None)
    add = parser.add_argument_group('quantisation').add_argument
    add('--train-split', default='train', help='the split that calibration takes samples of')
    add('--calibration', type=positive_int, default=512, metavar='N', help='so many samples')
    add('--method', choices=('max', 'percentile', 'mse'), default='max', help='how ranges are chosen')
    add('--round-tau', action='store_true', help='take the nearest power of two for a tau that is none')
    add('--output', type=Path, default=Path('output/quantize'))
    return parser


def megabytes(model: torch.nn.Module) -> float:
    return sum(t.numel() * t.element_size() for t in model.state_dict().values()) / 1e6


@script
def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    if args.num_threads:
        torch.set_num_threads(args.num_threads)
    model = open_model(args.model, **model_options(args))
    source = data_source(args)
    calibration = open_samples(source, args.train_split, model, args.calibration, **image_options(args))
    what = f'quantise {args.model!r}'
    with one_line_errors(what), waiting(what):
        loader = DataLoader(calibration, args.batch_size, num_workers=args.workers)
        quantized = timm_snn.quantize(
            model,
            track(loader, 'calibrate', unit='batches'),
            method=args.method,
            num_samples=args.calibration,
            round_tau=args.round_tau,
        )
    with one_line_errors(f'write to --output {args.output}'):
        args.output.mkdir(parents=True, exist_ok=True)
        quantized.save(args.output / 'model')
    samples = open_samples(source, args.split, model, args.num_samples, **image_options(args))
    _, numbers = match_labels(model, samples.source, is_folder=source.is_folder, file=args.labels)

    def measured(candidate: Any) -> dict[str, Any]:
        loader = DataLoader(samples, args.batch_size, num_workers=args.workers)
        row = summarize(evaluate(candidate, loader, numbers=numbers), model.num_classes)[-1]
        return {**row, 'megabytes': megabytes(candidate)}

    with one_line_errors(f'evaluate {args.model!r} on {samples.description}'):
        rows = {'float32': measured(fused(model, args.model)), 'quantised': measured(quantized)}
    result = dict(model=args.model, data=samples.description, calibration=calibration.description, method=args.method)
    with one_line_errors(f'write to --output {args.output}'):
        write_whole_text(args.output / 'results.json', json.dumps({**result, **rows}, indent=2) + '\n')
    files = [args.output / 'model', args.output / 'results.json']
    give(
        {**result, **rows, 'files': files},
        f'{args.model}, {samples.description}, calibrated on {calibration.description}:',
        *(
            f'{name:9}  top-1 {row["top1"]:.2f} % ({row["top1_correct"]} of {row["samples"]}), '
            f'{row["megabytes"]:.2f} MB'
            for name, row in rows.items()
        ),
        f'written: {", ".join(map(str, files))}',
    )


if __name__ == '__main__':
    main()
