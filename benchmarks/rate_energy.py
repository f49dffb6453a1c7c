"""Accuracy against firing rate against energy: one training for each weight of firing-rate regularisation.

    python benchmarks/rate_energy.py --weights 0 1 4 16 64 --output output/rate_energy -- \\
        --config recipes/configs/family/msvit.yaml --dataset hfds/uoft-cs/cifar10 --input-key img --target-key label \\
        --val-split test --in-chans 3 --mean 0.4914 0.4822 0.4465 --std 0.2470 0.2435 0.2616 --data-on-device --seed 0

What follows `--` goes to recipes/train.py. Accuracy is that of the last epoch on the whole validation split; firing
rate, operations and energy are those of `timm_snn.profile` on the first --num-samples of it, evenly spread. A training
that is done in --output is not repeated. Leaves rate_energy.csv in --out, and the picture in --picture.
"""

import argparse
import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import timm
from matplotlib.figure import Figure
from timing import Clock, Table

import timm_snn
from timm_snn.profiling import NOTICE
from timm_snn.profiling.style import COLORS, INK, MARKERS, log_axis, new_figure, styled
from timm_snn.training import options
from timm_snn.training.data import open_samples
from timm_snn.training.models import open_model

ROOT = Path(__file__).parents[1]
COLUMNS = ['model', 'weight', 'target', 'top-1', 'firing rate', 'ACs', 'MACs', *(f'mJ, {name}' for name in 'ABC')]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--weights', type=float, nargs='+', default=[0, 1, 4, 16, 64])
    parser.add_argument('--target', type=float, default=0.0, help='firing rate of every layer')
    parser.add_argument('--num-samples', '-n', type=int, default=500, help='to profile on')
    parser.add_argument('--threads', type=int, default=1, help="torch's")
    parser.add_argument('--output', type=Path, default=Path('output/rate_energy'), help='of the trainings')
    parser.add_argument('--out', type=Path, default=Path(__file__).parent / 'results' / 'cpu')
    parser.add_argument('--picture', type=Path, default=ROOT / 'docs' / 'rate_energy.png')
    parser.add_argument('training', nargs='+', help='options of recipes/train.py, after --')
    args = parser.parse_args(argv)

    head = Clock('cpu', args.threads).environment() | {'timm': timm.__version__, 'timm_snn': timm_snn.__version__}
    del head['times']  # nothing is timed
    table = Table('rate_energy', head, COLUMNS)
    for weight in args.weights:
        folder = args.output / f'weight_{weight:g}'
        rates = ['--rate-weight', str(weight), '--rate-target', str(args.target)] if weight else []
        if not (folder / 'model').is_dir():
            train = [sys.executable, str(ROOT / 'recipes' / 'train.py'), *args.training, *rates]
            subprocess.run([*train, '--num-threads', str(args.threads), '--output', str(folder)], check=True)
        table.add(weight=weight, target=args.target if weight else None, **measure(folder, args.num_samples))
    table.save(args.out)
    (args.out / 'rate_energy.png').unlink()  # the picture says more
    draw(table.rows).savefig(args.picture, dpi=110)


def measure(folder: Path, num_samples: int) -> dict[str, Any]:
    """The columns of a trained model, by what its run left in the folder."""
    run = options.training_options(['--config', str(folder / 'config.yaml')])
    with open(folder / 'summary.csv', newline='', encoding='utf-8') as file:
        last = list(csv.DictReader(file))[-1]
    model = open_model(f'local-dir:{folder / "model"}')
    samples = open_samples(options.data_source(run), run.val_split, model, num_samples)
    report = timm_snn.profile(model, samples, progress=False)
    return {
        'model': run.model,
        'top-1': float(last['eval_top1']),
        'firing rate': report.total.firing_rate,
        'ACs': report.total.effective_acs,
        'MACs': report.total.effective_macs,
        **{f'mJ, {name}': report.energy[name].mj for name in 'ABC'},
    }


def draw(rows: list[dict[str, Any]]) -> Figure:
    with styled():
        figure = new_figure(8.8, 3.5)
        left, right = figure.subplots(1, 2, sharey=True)
        rates, top1 = [100 * row['firing rate'] for row in rows], [row['top-1'] for row in rows]
        left.plot(rates, top1, marker='o', color=INK)
        for row, rate in zip(rows, rates, strict=True):
            place = (rate, row['top-1'])
            left.annotate(f'{row["weight"]:g}', place, (5, -11), textcoords='offset points', fontsize=8)
        left.set(
            xlabel='firing rate (%)', ylabel='top-1 (%)', title='Accuracy against firing rate\nnumbers: --rate-weight'
        )
        energies = {name: [1e3 * row[f'mJ, {name}'] for row in rows] for name in 'ABC'}
        for name, energy in energies.items():
            right.plot(energy, top1, marker=MARKERS[name], color=COLORS[name])
            last = (energy[-1], top1[-1])
            right.annotate(name, last, (8, 0), textcoords='offset points', color=COLORS[name])
        right.set(xlabel=f'µJ per image, logarithmic\n({NOTICE})')
        right.set_title('Accuracy against energy\nunder conventions A, B, C')
        log_axis(right, [value for energy in energies.values() for value in energy])
    return figure


if __name__ == '__main__':
    main()
