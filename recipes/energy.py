"""Firing rates, synaptic operations and energy estimates of a trained model on real data.

    python recipes/energy.py --model local-dir:output/digits/model --dataset digits
    python recipes/energy.py --model hf-hub:USER/NAME --dataset '' --data-dir IMAGENET --split val -n 2000 \\
        --compare output/other/report.json deit_small_patch16_224
    python recipes/energy.py --model msvit_4_384.cifar10 --checkpoint weights.pth --dataset hfds/uoft-cs/cifar10 \\
        --input-key img --target-key label --split test

Prints a table and leaves report.json, report.csv, report.md (for a model card) and report.html (with plots) in
--output. All energies are estimates of arithmetic only, under the conventions A, B and C that are defined in
timm_snn/profiling/energy.py. The model runs as it is, not fused: the report counts its parameters, and its accuracy is
that of the same pass.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import timm_snn
from timm_snn.profiling import AC_PJ, MAC_PJ, NOTICE, Report
from timm_snn.profiling.page import check_prices, size_of
from timm_snn.progress import waiting
from timm_snn.training.console import give, say
from timm_snn.training.data import open_samples
from timm_snn.training.errors import one_line_errors, script
from timm_snn.training.labels import labelled_batches
from timm_snn.training.models import is_trained, open_model
from timm_snn.training.options import (
    ArgumentParser,
    data_source,
    evaluation_parser,
    image_options,
    model_options,
)


def make_parser() -> ArgumentParser:
    parser = evaluation_parser('recipes/energy.py', __doc__, num_samples=1000)
    add = parser.add_argument_group('report').add_argument
    add(
        '--compare', nargs='+', default=[], help='more models by name, on the same data, or report.json of earlier runs'
    )
    add('--mac-pj', type=float, default=MAC_PJ, help='price of a multiply-accumulate in pJ')
    add('--ac-pj', type=float, default=AC_PJ, help='price of an accumulate in pJ')
    add('--output', type=Path, default=Path('output/energy'))
    return parser


@script
def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    if args.num_threads:
        torch.set_num_threads(args.num_threads)
    source = data_source(args)

    def report_of(model: Any, name: str, labels: Path | None, is_trained: bool) -> Report:
        samples = open_samples(source, args.split, model, args.num_samples, **image_options(args))
        with one_line_errors(f'profile {name!r}'):
            return timm_snn.profile(
                model,
                labelled_batches(
                    model, samples, args.batch_size, args.workers, is_folder=source.is_folder, file=labels
                ),
                mac_pj=args.mac_pj,
                ac_pj=args.ac_pj,
                data_name=samples.description,
                model_name=None if is_trained else f'{name} (random weights)',
            )

    def report_of_another(name: str, in_chans: int) -> Report:
        model = open_model(name, pretrained=args.pretrained, device=args.device, model_kwargs={'in_chans': in_chans})
        if args.num_steps and hasattr(model, 'num_steps'):
            model.num_steps = args.num_steps
        return report_of(model, name, None, is_trained(name, None, args.pretrained))

    earlier = {}
    for name in args.compare:
        if name.endswith('.json'):
            with one_line_errors(f'compare with the report {name}'):
                earlier[name] = Report.from_json(Path(name).read_text(encoding='utf-8'))
                check_prices(args.mac_pj, args.ac_pj, [earlier[name]])
    model = open_model(args.model, **model_options(args))
    report = report_of(model, args.model, args.labels, is_trained(args.model, args.checkpoint, args.pretrained))
    others = [earlier.get(name) or report_of_another(name, report.input_shape[-3]) for name in args.compare]
    for name, other in zip(args.compare, others, strict=True):
        if size_of(other) != size_of(report):
            say(
                f'note: {name} looks at {size_of(other)} and {args.model} at {size_of(report)}, so that their energies '
                'are of different work; --img-size gives all models that take it one size'
            )
    what = f'write to --output {args.output}'
    with one_line_errors(what), waiting(what):
        files = report.save(args.output, others)
    energies = ', '.join(f'{name} {energy.mj:.4g} mJ' for name, energy in report.energy.items())
    give(
        json.loads(report.to_json()) | {'files': files},
        report.table(),
        f'energy per sample ({NOTICE}): {energies}',
        f'written: {", ".join(map(str, files))}',
    )


if __name__ == '__main__':
    main()
