"""A report as one HTML page: SVG inside, nothing to fetch, no scripts."""

import io
import re
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Any

from .energy import ANN_TWIN, CONVENTIONS
from .report import NOTICE, Report, shows
from .style import COLORS, STYLE
from .text import (
    ENERGY_HEADER,
    LAYER_HEADER,
    energy_rows,
    layer_rows,
    readable_bytes,
    readable_count,
    require,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ['check_prices', 'make_page']


@shows('page')
def make_page(report: Report, others: Sequence[Report] = ()) -> str:
    """HTML of the page, with `others` to compare with. Raises: ValueError for others with other prices."""
    check_prices(report.mac_pj, report.ac_pj, others)
    require('matplotlib')
    import matplotlib as mpl

    template = Template(files(__package__).joinpath('page.html').read_text(encoding='utf-8'))
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]  # a dict with literal keys
        plots = {
            'plot_conventions': svg(_conventions(report), 'conventions', 'Energy by convention'),
            'plot_stages': svg(_stages(report), 'stages', 'Energy by stage'),
            'comparison': _comparison([report, *others]) if others else '',
            'rates': _rates(report),
        }
    versions = ', '.join(f'{name} {version}' for name, version in report.versions.items())
    return template.substitute(
        title=escape(f'{report.model}: firing rates and energy'),
        model=escape(report.model),
        data=escape(f'{report.data}; {report.num_samples:,} samples, T = {report.num_steps}'),
        facts=''.join(f'<div class="fact"><b>{value}</b><span>{name}</span></div>' for name, value in _facts(report)),
        notice=NOTICE,
        prices=f'{report.mac_pj:g} pJ per multiply-accumulate (MAC), {report.ac_pj:g} pJ per accumulate (AC)',
        energy_table=table(ENERGY_HEADER, energy_rows(report)),
        stage_table=table(LAYER_HEADER, layer_rows(report, report.stages), has_sum=True),
        layer_table=table(LAYER_HEADER, layer_rows(report, report.layers), has_sum=True),
        num_layers=len(report.layers),
        footer=escape(f'{report.uncounted if report.not_counted else ""} Made with {versions}.'),
        **plots,
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


def _facts(report: Report) -> list[tuple[str, str]]:
    total = report.total
    facts = [
        ('parameters', f'{report.parameters:,}'),
        ('footprint', readable_bytes(report.footprint_bytes)),
        ('MACs per step', readable_count(total.dense_macs_per_step)),
        ('Effective_ACs', readable_count(total.effective_acs)),
        ('Effective_MACs', readable_count(total.effective_macs)),
    ]
    if total.firing_rate is not None:
        facts += [
            ('firing rate', f'{100 * total.firing_rate:.2f} %'),
            ('neuron updates', readable_count(total.neuron_updates)),
            ('membranes of a sample', readable_bytes(report.state_bytes)),
        ]
    if report.top1 is not None:
        facts.append((f'top-1 on {report.num_samples:,} samples', f'{report.top1:.2f} %'))
    return facts


def table(header: Sequence[str], rows: Sequence[Sequence[str]], has_sum: bool = False) -> str:
    lines = ['<tr>' + ''.join(f'<th>{escape(name)}</th>' for name in header) + '</tr>', '</thead><tbody>']
    for i, row in enumerate(rows):
        kind = ' class="sum"' if has_sum and i == len(rows) - 1 else ''
        lines.append(f'<tr{kind}>' + ''.join(f'<td>{escape(cell)}</td>' for cell in row) + '</tr>')
    return '<table><thead>' + '\n'.join(lines) + '</tbody></table>'


def svg(figure: 'Figure', name: str, label: str) -> str:
    """The figure's SVG, with ids that are its own on a page of several."""
    file = io.StringIO()
    figure.savefig(file, format='svg', metadata={'Date': None})
    text = file.getvalue()
    text = re.sub(r'<metadata>.*?</metadata>|<!--.*?-->', '', text[text.index('<svg') :], flags=re.S)
    text = re.sub(r'(id="|href="#|url\(#)', rf'\g<1>{name}-', text)
    return text.replace('<svg', f'<svg role="img" aria-label="{escape(label)}"', 1)


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout='constrained')
    return figure, figure.subplots()


def _conventions(report: Report) -> 'Figure':
    figure, axes = _figure(5.4, 3.4)
    for i, (name, energy) in enumerate(report.energy.items()):
        axes.bar(i, energy.mj, 0.62, yerr=energy.ci95, color=COLORS[name], ecolor='#1f2430', capsize=3)
        other = energy.mj_first_every_step if name == 'C' else energy.mj_first_once
        if name != ANN_TWIN and report.static:
            axes.plot(i, other, '_', color='#1f2430', markersize=17)
        top = max(energy.mj + (energy.ci95 or 0), other)
        axes.annotate(f'{energy.mj:.3g}', (i, top), (0, 4), textcoords='offset points', ha='center')
    axes.set_xticks(range(len(report.energy)), list(report.energy))
    axes.set(ylabel=f'mJ per sample\n({NOTICE})', title='Energy by convention')
    axes.margins(y=0.13)
    return figure


def _stages(report: Report) -> 'Figure':
    figure, axes = _figure(5.4, 3.4)
    names = [*CONVENTIONS, ANN_TWIN]
    for i, name in enumerate(names):
        at = [j + (i - 1.5) * 0.2 for j in range(len(report.stages))]
        axes.bar(at, [stage.energy_mj[name] for stage in report.stages], 0.19, color=COLORS[name], label=name)
    axes.set_xticks(range(len(report.stages)), [stage.name for stage in report.stages])
    if len(report.stages) > 6:
        axes.tick_params(axis='x', rotation=90)
    axes.set(ylabel=f'mJ per sample\n({NOTICE})', title='Energy by stage')
    axes.legend(ncols=2, fontsize=8.5)
    return figure


def _comparison(reports: Sequence[Report]) -> str:
    figure, axes = _figure(10.4, 1.3 + 0.62 * len(reports))
    names = [*CONVENTIONS, ANN_TWIN]
    for i, name in enumerate(names):
        at = [j + (i - 1.5) * 0.19 for j in range(len(reports))]
        values = [report.energy[name].mj for report in reports]
        axes.barh(at, values, 0.18, color=COLORS[name], label=name)
        for y, value in zip(at, values, strict=True):
            axes.annotate(f'{value:.3g}', (value, y), (3, 0), textcoords='offset points', va='center', fontsize=7.5)
    axes.set_yticks(range(len(reports)), [f'{report.model}, T = {report.num_steps}' for report in reports])
    axes.invert_yaxis()
    axes.set(xlabel=f'mJ per sample ({NOTICE})', title='Energy of each model and of its ANN twin')
    axes.legend(loc='upper left', bbox_to_anchor=(1, 1), fontsize=8.5)
    values = [energy.mj for report in reports for energy in report.energy.values() if energy.mj > 0]
    if values and max(values) > 30 * min(values):
        axes.set_xscale('log')  # models of different sizes
    axes.margins(x=0.08)
    rows = [
        [
            report.model,
            report.data,
            size_of(report),
            str(report.num_steps),
            '' if report.top1 is None else f'{report.top1:.2f}',
            f'{report.parameters:,}',
            '' if report.total.firing_rate is None else f'{100 * report.total.firing_rate:.2f}',
            readable_count(report.total.dense_macs_per_step),
            *(f'{report.energy[name].mj:.4g}' for name in names),
        ]
        for report in reports
    ]
    header = [
        'model',
        'data',
        'input',
        'T',
        'top-1 %',
        'parameters',
        'rate %',
        'MACs/step',
        *(f'{name}, mJ' for name in names),
    ]
    caption = 'A model without spikes costs the same under every convention, but for biases in A.'
    if len({size_of(report) for report in reports}) > 1:
        caption += ' The models do not look at the same size of input, which is work of its own: see the table.'
    return (
        '<h2>Against other models</h2><figure>'
        + svg(figure, 'comparison', 'Energy of several models')
        + f'<figcaption>{caption}</figcaption></figure><div class="scroll">{table(header, rows)}</div>'
    )


def _rates(report: Report) -> str:
    layers = [layer for layer in report.layers if layer.rate_by_step]
    if not layers:
        return '<p>This model has no spiking neurons.</p>'
    steps = len(layers[0].rate_by_step)
    figure, axes = _figure(10.4, 1.2 + 0.17 * len(layers))
    figure.set_layout_engine('constrained', w_pad=0.06)
    rates = [[100 * rate for rate in layer.rate_by_step] for layer in layers]
    image = axes.imshow(rates, aspect='auto', cmap='YlOrBr', vmin=0)
    axes.set_yticks(range(len(layers)), [layer.name for layer in layers], fontsize=7.5)
    axes.set_xticks(range(steps), [str(step + 1) for step in range(steps)])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set(xlabel='time step', title='Firing rate by layer and step, in %')
    limit = 0.6 * max(map(max, rates))
    if steps <= 16:
        for y, row in enumerate(rates):
            for x, rate in enumerate(row):
                color = 'white' if rate > limit else '#1f2430'
                axes.text(x, y, f'{rate:.1f}', ha='center', va='center', fontsize=7, color=color)
    bar = figure.colorbar(image, ax=axes, fraction=0.02, pad=0.01)
    bar.outline.set_visible(False)
    caption = 'Share of neurons that spike; "attn_lif" is what passes the attention.'
    return f'<figure>{svg(figure, "rates", "Firing rate by layer and step")}<figcaption>{caption}</figcaption></figure>'
