"""What spiking costs and what it saves: accuracy against time steps, energy and time, beside an artificial twin.

    python recipes/tradeoff.py msvit_4_96.digits msvit_4_96.event_digits
    python recipes/tradeoff.py msvit_4_96.fashion_mnist --data-dir data --twin local-dir:output/fashion_mnist_relu/model
    python recipes/tradeoff.py msvit_4_96.fashion_mnist --data-dir data --time --num-threads 1

Every model answers with each T of --steps, with the weights that were trained at one of them. The twin is the same
network with ReLU for neurons and one step, trained by the same recipe: `recipes/train.py --config ... --model-kwargs
act=relu`. Data are those of the config that trains NAME.TAG; a model in a folder needs --dataset. Recordings are made
into T frames as the model says its frames are made.

Leaves tradeoff.csv and tradeoff.png in --output. A row that is there is not measured again, so that a run that was
stopped goes on, and rows of several runs come together; --again measures anew. Images per second are measured by --time
alone, which adds them to rows that are there: on a machine that does nothing else.

Energies are estimates of arithmetic only, under the conventions A, B and C of docs/energy.md; that of the twin is
the price of its multiply-accumulates. The models run as they are for the accuracy, and fused for the time.
"""

import platform
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch.utils.benchmark import Timer

import timm_snn
from timm_snn.files import write_whole
from timm_snn.profiling import NOTICE
from timm_snn.profiling.energy import ANN_TWIN
from timm_snn.profiling.style import COLORS, INK, MARKERS, log_axis, new_figure, styled
from timm_snn.progress import track
from timm_snn.training.console import give, say
from timm_snn.training.data import open_samples
from timm_snn.training.errors import UserError, one_line_errors, script
from timm_snn.training.labels import labelled_batches
from timm_snn.training.models import fused, open_model, steps_of
from timm_snn.training.options import ArgumentParser, add_source_options, positive_int
from timm_snn.training.sources import source_of
from timm_snn.training.tables import make_table, read_csv, write_csv

CONVENTIONS = ('A', 'B', 'C')
COLUMNS = (
    *('model', 'network', 'T', 'data', 'top1', 'firing_rate'),
    *(f'mj_{name.lower()}' for name in CONVENTIONS),
    *('mj_dense', 'images_per_s', 'hardware'),
)
SHOWN = 16  # points below the best that the picture has room for; with too few steps a network says nothing


def make_parser() -> ArgumentParser:
    parser = ArgumentParser('recipes/tradeoff.py', __doc__)
    add = parser.add_argument
    add('models', nargs='+', metavar='MODEL', help="NAME.TAG with published weights, or 'local-dir:FOLDER'")
    add('--twin', nargs='+', default=[], metavar='MODEL', help='the twin of each model, in their order')
    add('--steps', type=positive_int, nargs='+', default=list(range(1, 9)), help='T to compare; default: 1 to 8')
    add_source_options(add)
    add('--max-val-samples', type=positive_int, help='so many, evenly spread over the split; default: all')
    add('--batch-size', '-b', type=positive_int, default=64)
    add('--num-threads', type=positive_int, help='default: all cores')
    add('--time', action='store_true', help='measure images per second, and nothing else')
    add('--again', action='store_true', help='measure rows that are there too')
    add('--output', type=Path, default=Path('output/tradeoff'))
    return parser


def runs(args: Namespace) -> Iterator[tuple[str, str, Any, int]]:
    """(model, network, its source, T) of every row."""
    for i, name in enumerate(args.models):
        for T in args.steps:
            yield name, 'spiking', name, T
        if args.twin:
            yield name, 'twin', args.twin[i], 1


def opened(source: str, network: str, T: int) -> Any:
    model = open_model(source, pretrained=':' not in source)
    if network == 'twin' and steps_of(model) != 1:
        raise UserError(
            f'{source} has T = {steps_of(model)} and is no twin: train it with --model-kwargs act=relu, which has one'
        )
    if hasattr(model, 'num_steps'):
        model.num_steps = T
    return model


def measure(name: str, network: str, source: str, T: int, args: Namespace, known: dict[str, str]) -> dict[str, Any]:
    """Accuracy, rate and energy of one row; as `known` where that is of the same samples."""
    (data, split), model = source_of(name, args), opened(source, network, T)
    samples = open_samples(data, split, model, args.max_val_samples)
    if known.get('data') == samples.description and not args.again:
        return known
    with one_line_errors(f'profile {source!r} with T = {T}'):
        batches = labelled_batches(model, samples, args.batch_size, 0, is_folder=data.is_folder)
        report = timm_snn.profile(model, batches)
    spiking = network == 'spiking'
    return {
        'model': name,
        'network': network,
        'T': str(T),
        'data': samples.description,
        'top1': f'{report.top1:.2f}',
        'firing_rate': f'{report.total.firing_rate:.4f}' if spiking and report.total.firing_rate is not None else '',
        **{f'mj_{c.lower()}': f'{report.energy[c].mj:.4g}' if spiking else '' for c in CONVENTIONS},
        'mj_dense': f'{report.energy["ANN twin"].mj:.4g}',
        'images_per_s': '',
        'hardware': '',
    }


def timed(name: str, network: str, source: str, T: int, args: Namespace, known: dict[str, str]) -> dict[str, Any]:
    """The row with its images per second: the median batch of a second, of the fused model."""
    if not known:
        raise UserError(f'{name} with T = {T} has no row in {args.output}: measure its accuracy first, without --time')
    if known['images_per_s'] and not args.again:
        return known
    model = opened(source, network, T)
    samples = open_samples(*source_of(name, args), model, args.batch_size)
    images = torch.stack([image for image, _ in (samples[i] for i in range(len(samples)))])
    threads = torch.get_num_threads()
    with torch.inference_mode(), one_line_errors(f'run {source!r} with T = {T}'):
        timer = Timer('model(images)', globals={'model': fused(model, source), 'images': images}, num_threads=threads)
        seconds = timer.blocked_autorange(min_run_time=1).median
    return known | {
        'images_per_s': f'{len(images) / seconds:.1f}',
        'hardware': f'{threads} thread{"s" * (threads > 1)} of {processor()}, batch {len(images)}',
    }


def processor() -> str:
    """Its name as Linux knows it, or what Python calls it elsewhere."""
    info = Path('/proc/cpuinfo')
    lines = info.read_text(encoding='utf-8').splitlines() if info.is_file() else []
    names = [line.partition(': ')[2] for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()


def draw(rows: Sequence[dict[str, str]]) -> Figure:
    """For every model top-1 against T, energy, and time per image; the twin is a dashed line or a diamond."""
    names = list(dict.fromkeys(row['model'] for row in rows))
    with styled():
        figure = new_figure(11, 3.2 * len(names))
        grid = figure.subplots(len(names), 3, squeeze=False, sharey='row')
        for (steps, energy, time), name in zip(grid, names, strict=True):
            of = {kind: [r for r in rows if (r['model'], r['network']) == (name, kind)] for kind in ('spiking', 'twin')}
            spiking = sorted(of['spiking'], key=lambda row: int(row['T']))
            top1 = [float(row['top1']) for row in spiking]
            best = max(float(row['top1']) for rows_of in of.values() for row in rows_of)
            steps.set_ylim(best - SHOWN, best + 1)
            shown = [i for i, value in enumerate(top1) if value >= best - SHOWN] or [len(top1) - 1]
            steps.plot([int(row['T']) for row in spiking], top1, marker='o', color=INK)
            mj = {c: [float(row[f'mj_{c.lower()}']) for row in spiking] for c in CONVENTIONS}
            for c, values in mj.items():
                energy.plot(values, top1, marker=MARKERS[c], color=COLORS[c])
            fast = [row for row in spiking if row['images_per_s']]
            ms = [1e3 / float(row['images_per_s']) for row in fast]
            time.plot(ms, [float(row['top1']) for row in fast], marker='o', color=INK)
            twin = MARKERS[ANN_TWIN], COLORS[ANN_TWIN]
            for row in of['twin']:
                top1_of_twin = float(row['top1'])
                steps.axhline(top1_of_twin, color=twin[1], linestyle='--')
                steps.annotate(ANN_TWIN, (1, top1_of_twin), (0, 4), textcoords='offset points', color=twin[1])
                energy.plot(float(row['mj_dense']), top1_of_twin, twin[0], color=twin[1], markersize=7)
                if row['images_per_s']:
                    time.plot(1e3 / float(row['images_per_s']), top1_of_twin, twin[0], color=twin[1], markersize=7)
            steps.set(xlabel='time steps T', ylabel='top-1 (%)', title=f'{name}\nAccuracy against time steps')
            energy.set(xlabel=f'mJ per sample ({NOTICE})', title='Accuracy against energy')
            log_axis(
                energy, [*(x for values in mj.values() for x in values), *(float(r['mj_dense']) for r in of['twin'])]
            )
            first = {c: values[shown[0]] for c, values in mj.items()}  # that is shown, where the lines are apart
            for rank, c in enumerate(sorted(CONVENTIONS, key=first.__getitem__)):
                point, place = (first[c], top1[shown[0]]), (-9 if rank == 0 else 9, -4)
                energy.annotate(c, point, place, textcoords='offset points', ha='center', color=COLORS[c])
            for row in of['twin']:
                point = float(row['mj_dense']), float(row['top1'])
                energy.annotate(ANN_TWIN, point, (0, -13), textcoords='offset points', ha='center', color=twin[1])
            time.set(xlabel='ms per image', title='Accuracy against time')
            if not fast:
                time.text(0.5, 0.5, 'not measured', transform=time.transAxes, ha='center')
    return figure


@script(kept='rows that are measured are kept')
def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.twin and len(args.twin) != len(args.models):
        parser.error(f'argument --twin: {len(args.twin)} for {len(args.models)} models: one for each, in their order')
    if args.num_threads:
        torch.set_num_threads(args.num_threads)
    file = args.output / 'tradeoff.csv'
    rows = {(row['model'], row['network'], row['T']): row for row in read_csv(file)}
    with one_line_errors(f'write to --output {args.output}'):
        args.output.mkdir(parents=True, exist_ok=True)
    for name, network, source, T in track(list(runs(args)), 'measure', unit='rows'):
        key = name, network, str(T)
        known = rows.get(key, {})
        row = (timed if args.time else measure)(name, network, source, T, args, known)
        say(f'{name}, {network}, T = {T}: top-1 {row["top1"]} %' + (', was there' if row is known else ''))
        rows[key] = row
        if row is not known:  # now, so that a run that is stopped goes on
            write_csv(file, list(rows.values()), lineterminator='\n')
    with write_whole(args.output / 'tradeoff.png') as unfinished:
        draw(list(rows.values())).savefig(unfinished, format='png')
    give(
        {'rows': list(rows.values()), 'files': [file, args.output / 'tradeoff.png']},
        make_table(COLUMNS, ([row[column] for column in COLUMNS] for row in rows.values())),
        f'written: {file}, {args.output / "tradeoff.png"}',
    )


if __name__ == '__main__':
    main()
