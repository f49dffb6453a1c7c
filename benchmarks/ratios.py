"""Pictures of what was measured: how many times as fast as a peer, which stands at 1.

    python benchmarks/ratios.py                           # draw all of results/ again, from the tables there
    python benchmarks/ratios.py results/cpu/neurons.csv

Whiskers are as wide as the rounds differ, slowest from fastest, by the spread that tables hold; they are centred on the
median, since tables do not say where it lies between the two. A row whose peer was not measured is left out.
"""

import argparse
import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from timm_snn.profiling.style import CLASSES, INK, SOFT, label_ends, log_axis, new_figure, styled

__all__ = ['draw']

RESULTS = Path(__file__).parent / 'results'
TIMES = ('ms', 'median', 'ns per neuron-step')  # where less is better


@dataclass(frozen=True)
class Picture:
    """What of a table is drawn: `value` of every row, named by the columns `names`, in a panel for each of `panels`.

    The peer is the row with `peer` in the column `beside` that is the same in all other columns of both; '' for none.
    """

    tables: str
    value: str
    names: tuple[str, ...]
    panels: tuple[str, ...] = ()
    beside: str = 'variant'
    peer: str = ''


JELLY = 'spikingjelly 2'
PICTURES = (
    Picture('lif-sweep-*', 'ns per neuron-step', ('variant',), peer=JELLY),
    Picture('model-*-sweep-*', 'ms', ('variant',), peer=JELLY),
    Picture('lif-*', 'ms', ('variant',), ('pass',), peer=JELLY),
    Picture('model-*', 'ms', ('variant',), ('pass', 'dtype', 'batch'), peer=JELLY),
    Picture('int8-*', 'ms', ('variant',), ('batch',), peer='float32'),
    Picture('neurons', 'ms', ('neuron', 'variant'), ('pass',), peer='spikingjelly'),
    Picture('events', 'M events/s', ('variant',), ('format',), peer=JELLY),
    Picture('frames', 'ms', ('variant',), ('frames', 'events'), peer=JELLY),
    Picture('deploy', 'ms', ('form',), ('model',), beside='form', peer='model'),
    Picture('recipe', 'images/s', ('variant',), ('data',), peer='bare step'),
    Picture('stream-*', 'median', ('variant',), ('size', 'threads'), peer='the last T frames again'),
    Picture('family', 'images/s', ('model',)),
    Picture('sparse_conv', 'break-even', ('taps', 'channels'), ('dtype', 'pass')),
    Picture('rate_energy', 'top-1', ('weight',)),
)


def draw(table: str, head: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> Figure:
    """The picture of a table of this name. Raises: ValueError for a table that has none in PICTURES."""
    picture = next((picture for picture in PICTURES if fnmatch(table, picture.tables)), None)
    if picture is None:
        raise ValueError(f'how to draw the table {table!r} is not said in PICTURES of {Path(__file__).name}')
    axis = table.rpartition('-')[2] if '-sweep-' in table else ''
    measured = [row for row in rows if row.get(picture.value) not in (None, '')]
    names = [column for column in picture.names if column != picture.beside]
    panels: dict[tuple[str, ...], list[tuple[Mapping[str, Any], float]]] = {}
    for row in measured:
        same = [*names, *picture.panels, *([axis] if axis else [])] if picture.peer else []
        peer = next(
            (
                other
                for other in measured
                if other.get(picture.beside) == picture.peer and all(other.get(key) == row.get(key) for key in same)
            ),
            None,
        )
        if picture.peer and peer is None:
            continue
        value = float(row[picture.value])
        if peer is not None:
            beside = float(peer[picture.value])
            value = beside / value if picture.value in TIMES else value / beside
        panel = tuple(
            f'{key} {row[key]}' if key in ('batch', 'size', 'threads') else str(row[key])
            for key in picture.panels
            if row.get(key)
        )
        panels.setdefault(panel, []).append((row, value))
    what = f'times as fast as {picture.peer}' if picture.peer else picture.value
    title = f'{table}: {what}\n{head.get("device", "")}, {head.get("date", "")}'
    with styled():
        return _lines(panels, axis, what, title) if axis else _dots(panels, picture, what, title)


def _dots(
    panels: Mapping[Any, Sequence[tuple[Mapping[str, Any], float]]], picture: Picture, what: str, title: str
) -> Figure:
    sizes = [len(rows) for rows in panels.values()]
    figure = new_figure(8.0, 1.1 + 0.27 * sum(sizes) + 0.4 * len(sizes))
    grid = figure.subplots(len(panels), 1, squeeze=False, sharex=True, height_ratios=[size + 0.6 for size in sizes])
    for axes, (panel, rows) in zip(grid[:, 0], panels.items(), strict=True):
        for y, (row, ratio) in enumerate(rows):
            is_peer = bool(picture.peer) and row[picture.beside] == picture.peer
            color = SOFT if is_peer else CLASSES[0]
            if row.get('spread') not in (None, ''):
                spread = float(row['spread'])
                factor = (spread + math.sqrt(spread**2 + 4)) / 2  # factor - 1 / factor is the spread
                axes.plot([ratio / factor, ratio * factor], [y, y], color=color, alpha=0.45, linewidth=2)
            axes.plot(ratio, y, 'o', color=color, markersize=6)
            axes.annotate(
                f'{ratio:.3g}', (ratio, y), (0, 5), textcoords='offset points', ha='center', fontsize=8, color=color
            )
        axes.set_yticks(range(len(rows)), [', '.join(str(row[name]) for name in picture.names) for row, _ in rows])
        axes.set(ylim=(len(rows) - 0.4, -0.8))
        axes.grid(False, axis='y')
        axes.set_title(', '.join(panel), fontsize=9)
        if picture.peer:
            axes.axvline(1, color=SOFT, linewidth=1, linestyle='--')
    log_axis(grid[-1, 0], [ratio for rows in panels.values() for _, ratio in rows])
    whiskers = (
        '; whiskers as wide as slowest to fastest round'
        if any(row.get('spread') for rows in panels.values() for row, _ in rows)
        else ''
    )
    grid[-1, 0].set_xlabel(f'{what} (logarithmic{whiskers})')
    figure.suptitle(title, fontsize=10, color=INK)
    return figure


def _lines(panels: Mapping[Any, Sequence[tuple[Mapping[str, Any], float]]], axis: str, what: str, title: str) -> Figure:
    """Ratios over the numbers in a column."""
    figure = new_figure(7.0, 4.0)
    axes = figure.subplots()
    rows = [row for rows in panels.values() for row in rows]
    ends = []
    variants = list(dict.fromkeys(row['variant'] for row, _ in rows))
    for i, variant in enumerate(variants):
        points = [(float(row[axis]), ratio) for row, ratio in rows if row['variant'] == variant]
        color = SOFT if all(ratio == 1 for _, ratio in points) else CLASSES[i % len(CLASSES)]
        axes.plot(*zip(*points, strict=True), marker='o', color=color)
        ends.append((*points[-1], variant, color))
    log_axis(axes, [float(row[axis]) for row, _ in rows])
    log_axis(axes, [ratio for _, ratio in rows], 'y')
    axes.set(xlabel=f'{axis} (logarithmic)', ylabel=f'{what} (logarithmic)')
    label_ends(axes, ends)
    figure.suptitle(title, fontsize=10, color=INK)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('tables', nargs='*', type=Path, help='CSV files; default: all in results/ that have a picture')
    args = parser.parse_args(argv)
    for path in args.tables or [path for path in sorted(RESULTS.glob('*/*.csv')) if path.with_suffix('.png').exists()]:
        lines = path.read_text(encoding='utf-8').splitlines()
        head = dict(line[2:].split(': ', 1) for line in lines if line.startswith('# ') and ': ' in line)
        rows = list(csv.DictReader(line for line in lines if not line.startswith('#')))
        draw(path.stem, head, rows).savefig(path.with_suffix('.png'))


if __name__ == '__main__':
    main()
