"""A report as text: tables for terminals and model cards, and numbers as people read them."""

import importlib.util
import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from .energy import ANN_TWIN, CONVENTIONS
from .report import NOTICE, Layer, Report, shows

__all__ = [
    'ENERGY_HEADER',
    'LAYER_HEADER',
    'energy_rows',
    'layer_rows',
    'readable_bytes',
    'readable_count',
    'require',
    'significant',
]

ENERGY_HEADER = ['convention', 'mJ', 'MACs', 'ACs', 'mJ, first layer once', 'mJ, first layer x T']
LAYER_HEADER = [
    *('', 'rate, %', 'spikes/step', 'max', 'input', 'MACs/step', 'Effective_ACs', 'Effective_MACs'),
    *('matmul ops', 'mask ops'),
    *('updates', *(f'{name}, mJ' for name in (*CONVENTIONS, ANN_TWIN))),
]


@shows('line')
def describe(report: Report) -> str:
    kind = 'images' if report.static else 'recordings'
    facts = [
        f'{report.num_samples:,} {kind} of {" x ".join(map(str, report.input_shape))}',
        f'T = {report.num_steps}',
        *([f'top-1 {report.top1:.2f} %'] if report.top1 is not None else []),
        f'{report.parameters:,} parameters',
        f'footprint {readable_bytes(report.footprint_bytes)}',
        f'membranes {readable_bytes(report.state_bytes)}',
    ]
    total = report.total
    if total.firing_rate is not None:
        facts.append(f'firing rate {_with_interval(100 * total.firing_rate, total.firing_rate_ci95, 100)} %')
    facts.append(f'{readable_count(total.dense_macs_per_step)} MACs per step')
    return ', '.join(facts)


@shows('markdown')
def markdown(report: Report) -> str:
    lines = [
        f'**{report.model}** on {report.data}: {describe(report)}.',
        '',
        f'Energy per sample ({report.caveat}):',
        '',
        *_markdown_table(ENERGY_HEADER, energy_rows(report)),
        '',
        *_markdown_table(LAYER_HEADER, layer_rows(report, report.stages)),
    ]
    return '\n'.join(lines) + '\n'


@shows('terminal')
def terminal(report: Report) -> Any:
    require('rich')
    from rich import box
    from rich.console import Group
    from rich.table import Table

    def table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
        made = Table(title=title, box=box.SIMPLE_HEAD, title_justify='left', title_style='bold')
        for i, name in enumerate(header):
            made.add_column(name, justify='left' if i == 0 else 'right', overflow='fold', no_wrap=i > 0)
        for row in rows:
            made.add_row(*row, style='bold' if row[0] in ('', report.total.name) else None)
        return made

    return Group(
        f'[bold]{report.model}[/bold] on {report.data}: {describe(report)}',
        table(f'Layers. Energy: {NOTICE}, mJ', LAYER_HEADER, layer_rows(report, report.layers)),
        table('Stages', LAYER_HEADER, layer_rows(report, report.stages)),
        table(f'Energy per sample: {report.caveat}', ENERGY_HEADER, energy_rows(report)),
        *([report.uncounted] if report.not_counted else []),
    )


def energy_rows(report: Report, digits: int = 4) -> list[list[str]]:
    """A row per convention, under `ENERGY_HEADER`."""
    count, mj = partial(readable_count, digits=digits), partial(significant, digits=digits)
    return [
        [
            energy.convention,
            mj(energy.mj) + ('' if energy.ci95 is None else f' ± {significant(energy.ci95, 2)}'),
            count(energy.macs),
            count(energy.acs),
            *(['', ''] if name == ANN_TWIN else [mj(energy.mj_first_once), mj(energy.mj_first_every_step)]),
        ]
        for name, energy in report.energy.items()
    ]


def layer_rows(report: Report, layers: Sequence[Layer], digits: int = 4) -> list[list[str]]:
    """A row for each of these layers or stages and one for the sum, under `LAYER_HEADER`."""
    count = partial(readable_count, digits=digits)
    return [
        [
            layer.name,
            '' if layer.firing_rate is None else significant(100 * layer.firing_rate, digits),
            '' if layer.spike_count is None else significant(layer.spike_count, digits),
            '' if layer.largest is None else f'{layer.largest:g}',
            _entering(layer),
            *map(count, (layer.dense_macs_per_step, layer.effective_acs, layer.effective_macs)),
            *map(count, (layer.effective_matmul_ops, layer.effective_mask_ops, layer.neuron_updates)),
            *(significant(mj, digits) for mj in layer.energy_mj.values()),
        ]
        for layer in [*layers, report.total]
    ]


def significant(number: float, digits: int) -> str:
    """0.0000123456 with three digits is '0.0000123'; powers of ten are for what is below 0.00001."""
    if number == 0 or abs(number) < 1e-5:
        return f'{number:.{digits}g}'
    return f'{number:.{max(0, digits - 1 - math.floor(math.log10(abs(number))))}f}'


def readable_count(number: float, digits: int = 4) -> str:
    """1234567 -> '1.235 M'."""
    for unit, size in (('G', 1e9), ('M', 1e6), ('k', 1e3)):
        if number >= size:
            return f'{number / size:.{digits}g} {unit}'
    return f'{number:.{digits}g}'


def readable_bytes(number: float, digits: int = 4) -> str:
    return f'{readable_count(number, digits)}B' if number >= 1000 else f'{number:.0f} B'


def require(library: str) -> None:
    """Raises: ModuleNotFoundError that says what to install."""
    if importlib.util.find_spec(library) is None:
        raise ModuleNotFoundError(f"this needs {library}: pip install 'timm-snn[profile]'", name=library)


def _entering(layer: Layer) -> str:
    if layer.input == 'integer':
        return f'0 .. {layer.input_largest:g}'
    return '0, 1' if layer.input == 'binary' else layer.input


def _with_interval(value: float, ci95: float | None, scale: float = 1.0) -> str:
    return f'{value:.4g}' if ci95 is None else f'{value:.4g} ± {scale * ci95:.2g}'


def _markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [header, ['---', *['---:'] * (len(header) - 1)], *rows]
    return ['| ' + ' | '.join(line) + ' |' for line in lines]
