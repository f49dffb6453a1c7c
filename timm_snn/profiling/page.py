"""A report as one HTML page: SVG inside, nothing to fetch, no scripts, as wide as a phone or a desktop."""

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from string import Template

from .energy import ANN_TWIN, CONVENTIONS
from .report import NOTICE, Report, shows
from .style import COLORS, DARK_COLORS
from .svg import Mark, Row, dots, key, percent, strips
from .text import (
    ENERGY_HEADER,
    LAYER_HEADER,
    energy_rows,
    layer_rows,
    readable_bytes,
    readable_count,
    significant,
)

__all__ = ['check_prices', 'make_page']

PAPERS = {
    'A': 'A (Spikingformer)',
    'B': 'B (Spike-driven Transformer)',
    'C': 'C (Spikformer, MSViT)',
    ANN_TWIN: ANN_TWIN,
}
EVERYTHING = [*CONVENTIONS, ANN_TWIN]


@shows('page')
def make_page(report: Report, others: Sequence[Report] = ()) -> str:
    """HTML of the page, with `others` to compare with. Raises: ValueError for others with other prices."""
    check_prices(report.mac_pj, report.ac_pj, others)
    template = Template(files(__package__).joinpath('page.html').read_text(encoding='utf-8'))
    versions = ', '.join(f'{name} {version}' for name, version in report.versions.items())
    return template.substitute(
        title=escape(f'{report.model}: firing rates and energy'),
        light=_css_variables(COLORS),
        dark=_css_variables(DARK_COLORS),
        model=escape(report.model),
        data=escape(f'{report.data}; {report.num_samples:,} samples of {size_of(report)}, T = {report.num_steps}'),
        headline=''.join(
            f'<div class="fact"><b>{value}</b><span>{name}</span></div>' for name, value in _headline(report)
        ),
        facts=''.join(f'<div><dt>{name}</dt><dd>{value}</dd></div>' for name, value in _facts(report)),
        notice=NOTICE,
        prices=f'{report.mac_pj:g} pJ per multiply-accumulate (MAC), {report.ac_pj:g} pJ per accumulate (AC)',
        plot_conventions=_conventions(report),
        hollow='A hollow mark charges the first layer the other way: once for an image, or at every step. '
        if report.static
        else '',
        key=key(EVERYTHING),
        plot_stages=_stages(report),
        energy_table=table('Energy by convention', *_energy_table(report, digits=3)),
        comparison=_comparison([report, *others]) if others else '',
        rates=_rates(report),
        stage_table=table('Stages', LAYER_HEADER, layer_rows(report, report.stages, digits=3), has_sum=True),
        full_energy_table=table('Energy by convention, all digits', *_energy_table(report, digits=6)),
        layer_table=table('Layers', LAYER_HEADER, layer_rows(report, report.layers, digits=6), has_sum=True),
        num_layers=len(report.layers),
        uncounted=f'<p>{escape(report.uncounted)}</p>' if report.not_counted else '',
        footer=escape(f'Made with {versions}.'),
    )


def size_of(report: Report) -> str:
    """Channels and pixels of a sample, as '3 x 224 x 224'."""
    return ' x '.join(map(str, report.input_shape))


def check_prices(mac_pj: float, ac_pj: float, others: Sequence[Report]) -> None:
    for other in others:
        if (other.mac_pj, other.ac_pj) != (mac_pj, ac_pj):
            raise ValueError(
                f'{other.model} was priced at {other.mac_pj:g} and {other.ac_pj:g} pJ per MAC and AC, here they are '
                f'{mac_pj:g} and {ac_pj:g}: only energies at the same prices can be compared'
            )


def table(name: str, header: Sequence[str], rows: Sequence[Sequence[str]], has_sum: bool = False) -> str:
    """A table in a box of its own that scrolls where the table is wider."""
    lines = ['<tr>' + ''.join(f'<th scope="col">{escape(title)}</th>' for title in header) + '</tr></thead><tbody>']
    for i, (first, *cells) in enumerate(rows):
        kind = ' class="sum"' if has_sum and i == len(rows) - 1 else ''
        shown = ''.join(f'<td>{escape(cell)}</td>' for cell in cells)
        lines.append(f'<tr{kind}><th scope="row">{escape(first)}</th>{shown}</tr>')
    inner = '<table><thead>' + '\n'.join(lines) + '</tbody></table>'
    return f'<div class="scroll" role="region" aria-label="{escape(name)}" tabindex="0">{inner}</div>'


def _css_variables(colors: dict[str, str]) -> str:
    return ' '.join(f'--{name.replace(" ", "-").lower()}: {color};' for name, color in colors.items())


def _times_the_twin(report: Report, convention: str) -> str:
    twin = report.energy[ANN_TWIN].mj
    return f'{significant(report.energy[convention].mj / twin, 3)} x' if twin else ''


def _headline(report: Report) -> list[tuple[str, str]]:
    """What matters first."""
    facts = []
    if report.top1 is not None:
        facts.append((f'top-1 accuracy on {report.num_samples:,} samples', f'{report.top1:.2f} %'))
    if report.energy[ANN_TWIN].mj:
        facts += [
            (f'the energy of the ANN twin, convention {name}', _times_the_twin(report, name)) for name in CONVENTIONS
        ]
    if report.total.firing_rate is not None:
        facts.append(('firing rate, mean over neurons and steps', f'{100 * report.total.firing_rate:.3g} %'))
    return facts


def _facts(report: Report) -> list[tuple[str, str]]:
    total = report.total
    facts = [
        ('parameters', f'{readable_count(report.parameters, 3)}'),
        ('footprint', readable_bytes(report.footprint_bytes, 3)),
        ('MACs per step', readable_count(total.dense_macs_per_step, 3)),
        ('Effective_ACs', readable_count(total.effective_acs, 3)),
        ('Effective_MACs', readable_count(total.effective_macs, 3)),
    ]
    if total.firing_rate is not None:
        facts += [
            ('neuron updates', readable_count(total.neuron_updates, 3)),
            ('membranes', readable_bytes(report.state_bytes, 3)),
        ]
    return facts


def _energy_table(report: Report, digits: int) -> tuple[list[str], list[list[str]]]:
    rows = energy_rows(report, digits)
    with_ratio = [[name, mj, _times_the_twin(report, name), *others] for name, mj, *others in rows]
    return [*ENERGY_HEADER[:2], f'of the {ANN_TWIN}', *ENERGY_HEADER[2:]], with_ratio


def _conventions(report: Report) -> str:
    rows = []
    for name, energy in report.energy.items():
        times = '' if name == ANN_TWIN else f', {_times_the_twin(report, name)}'
        other = energy.mj_first_every_step if name == 'C' else energy.mj_first_once
        shown = other if report.static and name != ANN_TWIN else None
        mark = Mark(name, energy.mj, energy.ci95, shown)
        rows.append(Row(PAPERS[name], f'{significant(energy.mj, 3)} mJ{times}', [mark]))
    return dots(rows, 'mJ per sample', 'Energy by convention', report.energy[ANN_TWIN].mj)


def _stages(report: Report) -> str:
    rows = [
        Row(stage.name, '', [Mark(name, stage.energy_mj[name]) for name in EVERYTHING])
        for stage in report.stages
        if any(stage.energy_mj.values())
    ]
    return dots(rows, 'mJ per sample', 'Energy by stage')


def _comparison(reports: Sequence[Report]) -> str:
    models = [
        Row(
            f'{report.model}, T = {report.num_steps}',
            '' if report.top1 is None else f'top-1 {report.top1:.1f} %',
            [Mark(name, report.energy[name].mj, report.energy[name].ci95) for name in EVERYTHING],
        )
        for report in reports
    ]
    plot = dots(models, 'mJ per sample', 'Energy of several models')
    rows = [
        [
            report.model,
            report.data,
            size_of(report),
            str(report.num_steps),
            '' if report.top1 is None else f'{report.top1:.2f}',
            readable_count(report.parameters, 3),
            '' if report.total.firing_rate is None else f'{100 * report.total.firing_rate:.3g}',
            readable_count(report.total.dense_macs_per_step, 3),
            *(significant(report.energy[name].mj, 3) for name in EVERYTHING),
        ]
        for report in reports
    ]
    header = [
        *('model', 'data', 'input', 'T, steps', 'top-1, %', 'parameters', 'rate, %', 'MACs/step'),
        *(f'{name}, mJ' for name in EVERYTHING),
    ]
    caption = (
        'How to read it: a row is a model, and a mark further left costs less. Each grid line is a fixed factor. '
        'A model without spikes costs the same under every convention, but for biases in A.'
    )
    if len({size_of(report) for report in reports}) > 1:
        caption += ' The models do not look at the same size of input, which is work of its own: see the table.'
    return (
        f'<h2>Against other models</h2><figure>{key(EVERYTHING)}{plot}<figcaption>{caption}</figcaption></figure>'
        + table('Models', header, rows)
    )


def _rates(report: Report) -> str:
    layers = [layer for layer in report.layers if layer.rate_by_step]
    if not layers:
        return '<p>This model has no spiking neurons.</p>'
    highest = max(rate for layer in layers for rate in layer.rate_by_step)
    figures = []
    for stage in dict.fromkeys(layer.stage for layer in layers):
        rows = [(layer.name.removeprefix(f'{stage}.'), layer.rate_by_step) for layer in layers if layer.stage == stage]
        title = escape(stage)
        figures.append(f'<figure><h3>{title}</h3>{strips(rows, highest, f"Firing rates in {stage}")}</figure>')
    caption = (
        'How to read it: a strip is a layer, from its first time step at the left to the last one at the right; the '
        f'stronger its colour, the more neurons spike, up to {percent(highest)}. The number is the mean over the '
        'steps, and "attn_lif" is what passes the attention.'
    )
    return f'<div class="strips">{"".join(figures)}</div><p class="caption">{caption}</p>'
