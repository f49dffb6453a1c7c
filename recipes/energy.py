"""Firing rates, synaptic operations and energy estimates of a trained model on real data.

    python recipes/energy.py --model local-dir:output/digits/model --dataset digits
    python recipes/energy.py --model hf-hub:USER/NAME --dataset '' --data-dir IMAGENET --split val -n 2000 \\
        --compare output/other/report.json deit_small_patch16_224
    python recipes/energy.py --model msvit_4_384.cifar10 --checkpoint weights.pth --dataset hfds/uoft-cs/cifar10 \\
        --input-key img --target-key label --split test

Prints a table and leaves report.json, report.csv, report.md (for a model card) and report.html (with plots) in
--output. All energies are estimates of arithmetic only, under the conventions A, B and C that are defined in
timm_snn/profiling/energy.py.
"""

from pathlib import Path

from evaluation import is_trained, make_parser, open_model, open_samples, parse_args
from labels import labelled_batches
from options import one_line_errors
from rich.console import Console

import timm_snn
from timm_snn.profiling import AC_PJ, MAC_PJ, NOTICE, Report
from timm_snn.profiling.page import check_prices


def main() -> None:
    parser = make_parser(__doc__ or '', num_samples=1000)
    add = parser.add_argument_group('report').add_argument
    add(
        '--compare', nargs='+', default=[], help='more models by name, on the same data, or report.json of earlier runs'
    )
    add('--mac-pj', type=float, default=MAC_PJ, help='price of a multiply-accumulate in pJ')
    add('--ac-pj', type=float, default=AC_PJ, help='price of an accumulate in pJ')
    add('--output', type=Path, default=Path('output/energy'))
    args = parse_args(parser)

    def report_of(name: str, **kwargs: object) -> Report:
        model = open_model(args, name, **kwargs)
        samples = open_samples(args, model)
        with one_line_errors(f'profile {name!r}'):
            return timm_snn.profile(
                model,
                labelled_batches(args, model, samples),
                mac_pj=args.mac_pj,
                ac_pj=args.ac_pj,
                data_name=samples.description,
                model_name=None if is_trained(args, name) else f'{name} (random weights)',
            )

    earlier = {}
    for name in args.compare:
        if name.endswith('.json'):
            with one_line_errors(f'compare with the report {name}'):
                earlier[name] = Report.from_json(Path(name).read_text(encoding='utf-8'))
                check_prices(args.mac_pj, args.ac_pj, [earlier[name]])
    report = report_of(args.model, **args.model_kwargs)
    args.checkpoint = args.labels = None  # which are those of --model
    others = [earlier.get(name) or report_of(name, in_chans=report.input_shape[-3]) for name in args.compare]
    with one_line_errors(f'write to --output {args.output}'):
        files = report.save(args.output, others)
    console = Console()
    # as wide as the table, where a file or a pipe has no width of its own
    Console(width=console.width if console.is_terminal else 220).print(report.table())
    energies = ', '.join(f'{name} {energy.mj:.4g} mJ' for name, energy in report.energy.items())
    print(f'energy per sample ({NOTICE}): {energies}')
    print(f'written: {", ".join(map(str, files))}')


if __name__ == '__main__':
    main()
