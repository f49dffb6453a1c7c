"""What a model does and what it costs, as a page: accuracy, firing rates, operations and energy.

    python recipes/report.py msvit_4_96.digits
    python recipes/report.py msvit_4_96.fashion_mnist --data-dir data
    python recipes/report.py local-dir:output/digits/model --dataset digits --output output/digits_report

Data are the validation split of what the config of NAME.TAG trains on; a model in a folder needs --dataset. Leaves
report.html, report.json, report.csv and report.md in --output. recipes/energy.py has more options, and compares models.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch

import timm_snn
from timm_snn.progress import waiting
from timm_snn.training.console import give
from timm_snn.training.data import open_samples
from timm_snn.training.errors import one_line_errors, script
from timm_snn.training.labels import labelled_batches
from timm_snn.training.models import open_model
from timm_snn.training.options import ArgumentParser, add_source_options, positive_int
from timm_snn.training.sources import source_of


def make_parser() -> ArgumentParser:
    parser = ArgumentParser('recipes/report.py', __doc__)
    add = parser.add_argument
    add('model', metavar='MODEL', help="NAME.TAG with weights, 'local-dir:FOLDER' or 'hf-hub:USER/NAME'")
    add_source_options(add)
    add('--num-samples', '-n', type=positive_int, default=1000, help='so many, evenly spread; default: 1000')
    add('--batch-size', '-b', type=positive_int, default=32)
    add('--num-threads', type=positive_int, help='default: all cores')
    add('--output', type=Path, default=Path('output/report'))
    return parser


@script
def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    if args.num_threads:
        torch.set_num_threads(args.num_threads)
    data, split = source_of(args.model, args)
    model = open_model(args.model, pretrained=':' not in args.model)
    samples = open_samples(data, split, model, args.num_samples)
    batches = labelled_batches(model, samples, args.batch_size, 0, is_folder=data.is_folder)
    with one_line_errors(f'profile {args.model!r}'):
        report = timm_snn.profile(model, batches, data_name=samples.description)
    what = f'write to --output {args.output}'
    with one_line_errors(what), waiting(what):
        files = report.save(args.output)
    give(json.loads(report.to_json()) | {'files': files}, report.table(), f'written: {", ".join(map(str, files))}')


if __name__ == '__main__':
    main()
