"""What `profile` found, as data, and as text for terminals, spreadsheets and model cards."""

import csv
import importlib.util
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .energy import CONVENTIONS, energy_mj, first_layer
from .recorder import Recorder, Site, plain_name

__all__ = ['NOTICE', 'Energy', 'Layer', 'Report', 'make_report']

NOTICE = 'estimate, arithmetic only'


@dataclass(frozen=True)
class Energy:
    """An estimate in mJ per sample under one convention: arithmetic only, no data movement, memory or neurons."""

    convention: str  # 'A', 'B', 'C', or 'ANN twin'
    mj: float
    ci95: float | None  # half the width of the 95 % interval for the mean over samples; None for one sample
    macs: float  # what is charged as multiply-accumulates
    acs: float  # and as accumulates
    mj_first_once: float  # with the first layer charged for one step of a static image
    mj_first_every_step: float  # and for all T


@dataclass(frozen=True)
class Layer:
    """A place in the model, or with `kind` 'stage' or 'model' the sum of those in it. Counts are means per sample."""

    name: str
    stage: str
    kind: str
    steps: int = 1  # how often it runs for a sample
    parameters: int = 0
    input: str = ''  # 'binary', 'integer' or 'real', over all data
    input_rate: float | None = None  # share of non-zero values
    input_mean: float | None = None
    input_largest: float | None = None
    firing_rate: float | None = None  # share of neurons and steps that spike
    firing_rate_ci95: float | None = None
    spike_count: float | None = None  # spikes per neuron and step
    largest: float | None = None  # largest integer that came out
    rate_by_step: list[float] = field(default_factory=list)
    dense_macs_per_step: float = 0.0  # convolutions, linear layers and products; padding included
    dense_macs: float = 0.0  # over all steps
    dense: float = 0.0  # NeuroBench's Dense: convolutions and linear layers, without padding
    effective_acs: float = 0.0  # NeuroBench's
    effective_macs: float = 0.0
    matmul_ops: float = 0.0  # products of activations, dense
    effective_matmul_ops: float = 0.0  # of two values that are not zero
    mask_ops: float = 0.0  # sums and masks of attention, dense
    effective_mask_ops: float = 0.0
    neurons: int = 0
    neuron_updates: float = 0.0
    state_bytes: float = 0.0  # membranes
    energy_mj: dict[str, float] = field(default_factory=dict)  # by convention


@dataclass(frozen=True)
class Report:
    """Firing rates, operations, memory and energy estimates of a model on data. All counts are means per sample."""

    model: str
    data: str
    num_samples: int
    num_steps: int
    input_shape: tuple[int, ...]  # of a sample
    static: bool  # images, shown at every step; False for frames
    mac_pj: float
    ac_pj: float
    parameters: int
    footprint_bytes: int  # parameters and buffers, NeuroBench's Footprint
    state_bytes: float  # membranes of one sample
    top1: float | None  # in percent, where the data has labels
    total: Layer
    effective_acs_ci95: float | None
    effective_macs_ci95: float | None
    energy: dict[str, Energy]
    stages: list[Layer]
    layers: list[Layer]
    not_counted: list[str]  # weights of two axes or more that no operation was seen with, as of embeddings
    versions: dict[str, str]
    notice: str = NOTICE

    @classmethod
    def from_json(cls, text: str) -> 'Report':
        """The inverse of `to_json`. Raises: ValueError for anything else."""
        try:
            values = json.loads(text)
            for name in ('stages', 'layers'):
                values[name] = [Layer(**row) for row in values[name]]
            values['total'] = Layer(**values['total'])
            values['energy'] = {name: Energy(**row) for name, row in values['energy'].items()}
            values['input_shape'] = tuple(values['input_shape'])
            return cls(**values)
        except (TypeError, KeyError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(
                f'this is no report of this version of timm_snn ({error}): profile the model again'
            ) from error

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    def to_csv(self) -> str:
        """A row per layer. Energies are in mJ, and their columns say what they are."""
        file = io.StringIO()
        names = [f.name for f in fields(Layer) if f.name not in ('rate_by_step', 'energy_mj')]
        energies = {name: f'energy {name}, mJ ({NOTICE})' for name in self.energy}
        writer = csv.writer(file, lineterminator='\n')
        writer.writerow([*names, 'rate_by_step', *energies.values()])
        for layer in [*self.layers, self.total]:
            values = ['' if (value := getattr(layer, name)) is None else value for name in names]
            rates = ' '.join(f'{rate:.6g}' for rate in layer.rate_by_step)
            writer.writerow([*values, rates, *(layer.energy_mj[name] for name in energies)])
        return file.getvalue()

    def to_markdown(self) -> str:
        """For a model card: what was measured on what, energy by convention, and a table of stages."""
        lines = [
            f'**{self.model}** on {self.data}: {self.describe()}.',
            '',
            f'Energy per sample ({self.caveat}):',
            '',
            *_markdown(ENERGY_HEADER, self.energy_rows()),
            '',
            *_markdown(STAGE_HEADER, self.layer_rows(self.stages)),
        ]
        return '\n'.join(lines) + '\n'

    def __str__(self) -> str:
        return self.to_markdown()

    def table(self) -> Any:
        """A `rich` renderable for terminals: energy by convention, then all layers by stage."""
        require('rich')
        from rich import box
        from rich.console import Group
        from rich.table import Table

        def table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
            made = Table(title=title, box=box.SIMPLE_HEAD, title_justify='left', title_style='bold')
            for i, name in enumerate(header):
                made.add_column(name, justify='left' if i == 0 else 'right', overflow='fold', no_wrap=i > 0)
            for row in rows:
                made.add_row(*row, style='bold' if row[0] in ('', self.total.name) else None)
            return made

        return Group(
            f'[bold]{self.model}[/bold] on {self.data}: {self.describe()}',
            table(f'Layers. Energy: {NOTICE}, mJ', STAGE_HEADER, self.layer_rows(self.layers)),
            table('Stages', STAGE_HEADER, self.layer_rows(self.stages)),
            table(f'Energy per sample: {self.caveat}', ENERGY_HEADER, self.energy_rows()),
            *([self.uncounted] if self.not_counted else []),
        )

    def to_html(self, others: Sequence['Report'] = ()) -> str:
        """One page with plots, without anything to fetch; `others` are models to compare with. Needs matplotlib.

        Raises: ValueError for others with other prices.
        """
        from .page import make_page

        return make_page(self, others)

    def save(self, folder: str | Path, others: Sequence['Report'] = ()) -> list[Path]:
        """Write report.json, .csv, .md and .html, the last with `others` to compare with. Raises: as `to_html`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        texts = {'json': self.to_json(), 'csv': self.to_csv(), 'md': self.to_markdown(), 'html': self.to_html(others)}
        for suffix, text in texts.items():
            (folder / f'report.{suffix}').write_text(text, encoding='utf-8')
        return [folder / f'report.{suffix}' for suffix in texts]

    @property
    def caveat(self) -> str:
        return f'{NOTICE}: {self.mac_pj:g} pJ per MAC, {self.ac_pj:g} pJ per AC, no data movement'

    @property
    def uncounted(self) -> str:
        return f'Not in these numbers, since no operation with them was seen: {", ".join(self.not_counted)}.'

    def describe(self) -> str:
        """Everything a number needs to be compared."""
        kind = 'images' if self.static else 'recordings'
        facts = [
            f'{self.num_samples:,} {kind} of {" x ".join(map(str, self.input_shape))}',
            f'T = {self.num_steps}',
            *([f'top-1 {self.top1:.2f} %'] if self.top1 is not None else []),
            f'{self.parameters:,} parameters',
            f'footprint {readable_bytes(self.footprint_bytes)}',
            f'membranes {readable_bytes(self.state_bytes)}',
        ]
        if self.total.firing_rate is not None:
            facts.append(
                f'firing rate {_with_interval(100 * self.total.firing_rate, self.total.firing_rate_ci95, 100)} %'
            )
        facts.append(f'{readable_count(self.total.dense_macs_per_step)} MACs per step')
        return ', '.join(facts)

    def energy_rows(self) -> list[list[str]]:
        return [
            [
                energy.convention,
                _with_interval(energy.mj, energy.ci95),
                readable_count(energy.macs),
                readable_count(energy.acs),
                *(['', ''] if name == ANN else [f'{energy.mj_first_once:.4g}', f'{energy.mj_first_every_step:.4g}']),
            ]
            for name, energy in self.energy.items()
        ]

    def layer_rows(self, layers: Sequence[Layer]) -> list[list[str]]:
        return [
            [
                layer.name,
                '' if layer.firing_rate is None else f'{100 * layer.firing_rate:.2f}',
                '' if layer.spike_count is None else f'{layer.spike_count:.4f}',
                '' if layer.largest is None else f'{layer.largest:g}',
                _entering(layer),
                *map(readable_count, (layer.dense_macs_per_step, layer.effective_acs, layer.effective_macs)),
                *map(readable_count, (layer.effective_matmul_ops, layer.effective_mask_ops, layer.neuron_updates)),
                *(f'{mj:.4g}' for mj in layer.energy_mj.values()),
            ]
            for layer in [*layers, self.total]
        ]


ANN = 'ANN twin'
ENERGY_HEADER = ['convention', 'mJ', 'MACs', 'ACs', 'mJ, first layer once', 'mJ, first layer x T']
STAGE_HEADER = [
    *('', 'rate %', 'spikes', 'max', 'input', 'MACs/step', 'Effective_ACs', 'Effective_MACs', 'matmul', 'mask'),
    *('updates', *(f'{name}, mJ' for name in (*CONVENTIONS, ANN))),
]


def make_report(
    recorder: Recorder, *, mac_pj: float, ac_pj: float, input_shape: tuple[int, ...], top1: float | None, **names: str
) -> Report:
    """Sum up what the recorder has seen."""
    import timm

    from .. import __version__

    model, sites = recorder.model, list(recorder.sites.values())
    num_samples = sum(recorder.batch_sizes)
    prices = (mac_pj, ac_pj)
    stages: dict[str, list[Site]] = {}
    in_model = all(site.name.startswith('model.') for site in sites)
    for site in sites:
        stages.setdefault(stage_of(site.name, in_model), []).append(site)
    parameters: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        stage = stage_of(plain_name(name), in_model)
        parameters[stage] = parameters.get(stage, 0) + parameter.numel()
    modules = {name: module for module, name in recorder.names.items()}

    names_of_sites = {site.name for site in sites}

    def own(site: Site) -> int:
        """Parameters of its module, without those of sites inside it."""
        module = modules.get(site.name)
        if module is None:
            return 0
        parts = [module] if site.kind == 'product' else module.modules()
        return sum(
            p.numel()
            for part in parts
            if part is module or recorder.names[part] not in names_of_sites
            for p in part.parameters(recurse=False)
        )

    layers = [
        _layer(site.name, stage, site.kind, [site], recorder, prices, own(site))
        for stage, members in stages.items()
        for site in members
    ]
    total = _layer('total', '', 'model', sites, recorder, prices, sum(parameters.values()))
    acs, macs = _effective(sites, num_samples)
    buffers = [*model.parameters(), *model.buffers()]
    return Report(
        model=names['model_name'],
        data=names['data_name'],
        num_samples=num_samples,
        num_steps=recorder.num_steps,
        input_shape=input_shape,
        static=recorder.static,
        mac_pj=mac_pj,
        ac_pj=ac_pj,
        parameters=total.parameters,
        footprint_bytes=sum(x.numel() * x.element_size() for x in buffers),
        state_bytes=total.state_bytes,
        top1=top1,
        total=total,
        effective_acs_ci95=_ci95(acs),
        effective_macs_ci95=_ci95(macs),
        energy=_energies(sites, num_samples, recorder.num_steps, prices),
        stages=[
            _layer(stage, stage, 'stage', members, recorder, prices, parameters.get(stage, 0))
            for stage, members in stages.items()
        ],
        layers=layers,
        not_counted=_not_counted(recorder),
        versions={'timm_snn': __version__, 'torch': torch.__version__, 'timm': timm.__version__},
    )


def stage_of(name: str, in_model: bool = False) -> str:
    """'stages.1.blocks.0.mlp' -> 'stages.1', 'head.fc' -> 'head'; timm's feature nets keep all in 'model'."""
    parts = name.split('.')[in_model:]
    return '.'.join(parts[: 1 + (len(parts) > 1 and parts[1].isdigit())])


def _layer(
    name: str,
    stage: str,
    kind: str,
    sites: Sequence[Site],
    recorder: Recorder,
    prices: tuple[float, float],
    parameters: int,
) -> Layer:
    n, T = sum(recorder.batch_sizes), recorder.num_steps
    operations = [op for site in sites for op in site.operations.values()]
    outputs = [site.output for site in sites if site.output is not None]
    entering = sites[0].input if len(sites) == 1 and kind not in ('stage', 'model') else None

    def mean(kinds: Sequence[str], what: str) -> float:
        return sum(getattr(op, what).all().sum().item() / n for op in operations if op.kind in kinds)

    acs, macs = _effective(sites, n)
    row: dict[str, Any] = {}
    if outputs:
        updates = sum((out.count.all() for out in outputs), torch.zeros(n, dtype=torch.float64))
        fired = sum((out.nonzero.all() for out in outputs), torch.zeros(n, dtype=torch.float64))
        spikes = sum(out.magnitude.all().sum().item() for out in outputs)
        # neurons that do not run at every step have no rate by step
        by_step = [out.by_step.tolist() for out in outputs if out.by_step is not None and len(out.by_step) == T]
        per_step = updates.sum().item() / T
        row = {
            'firing_rate': (fired.sum() / updates.sum()).item(),
            'firing_rate_ci95': _ci95(fired / updates.clamp(min=1)),
            'spike_count': spikes / updates.sum().item(),
            'largest': max(out.largest for out in outputs),
            'rate_by_step': [sum(step) / per_step for step in zip(*by_step, strict=True)]
            if len(by_step) == len(outputs)
            else [],
            'neurons': sum(site.neurons for site in sites),
            'neuron_updates': updates.mean().item(),
            'state_bytes': float(sum(site.state_bytes for site in sites)),
        }
    if entering is not None:
        row |= {
            'input': entering.kind,
            'input_rate': (entering.nonzero.all().sum() / entering.count.all().sum()).item(),
            'input_mean': (entering.magnitude.all().sum() / entering.count.all().sum()).item(),
            'input_largest': entering.largest,
        }
    return Layer(
        name=name,
        stage=stage,
        kind=kind,
        steps=max((_steps(op.calls, T) for op in operations), default=T),
        parameters=parameters,
        dense_macs_per_step=sum(
            op.dense.all().sum().item() / n / _steps(op.calls, T)
            for op in operations
            if op.kind in ('connection', 'matmul')
        ),
        dense_macs=mean(('connection', 'matmul'), 'dense'),
        dense=mean(('connection',), 'reached'),
        effective_acs=acs.mean().item(),
        effective_macs=macs.mean().item(),
        matmul_ops=mean(('matmul',), 'dense'),
        effective_matmul_ops=mean(('matmul',), 'effective'),
        mask_ops=mean(('sum', 'mask'), 'dense'),
        effective_mask_ops=mean(('sum', 'mask'), 'effective'),
        energy_mj={name: energy.mj for name, energy in _energies(sites, n, T, prices).items()},
        **row,
    )


def _steps(calls: int, num_steps: int) -> int:
    return num_steps if calls and calls % num_steps == 0 else 1


def _effective(sites: Sequence[Site], n: int) -> tuple[Tensor, Tensor]:
    """NeuroBench's Effective_ACs and Effective_MACs of every sample."""
    acs, macs = torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    for site in sites:
        for op in site.operations.values():
            if op.kind == 'connection':
                target = acs if op.operands[0].ternary else macs
                target += op.effective.all()
    return acs, macs


def _energies(sites: Sequence[Site], n: int, num_steps: int, prices: tuple[float, float]) -> dict[str, Energy]:
    operations = [op for site in sites for op in site.operations.values()]
    energies = {}
    for name, convention in CONVENTIONS.items():
        macs, acs = torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
        first_once = first_every_step = 0.0
        for op in operations:
            charge = convention(op)
            macs += charge[0]
            acs += charge[1]
            if op.is_first and op.static:
                own = energy_mj(charge, *prices).mean().item()
                once, every_step = (energy_mj(c, *prices).mean().item() for c in first_layer(name, op))
                first_once, first_every_step = once - own, every_step - own
        mj = energy_mj((macs, acs), *prices)
        energies[name] = Energy(
            convention=name,
            mj=mj.mean().item(),
            ci95=_ci95(mj),
            macs=macs.mean().item(),
            acs=acs.mean().item(),
            mj_first_once=mj.mean().item() + first_once,
            mj_first_every_step=mj.mean().item() + first_every_step,
        )
    twin = torch.zeros(n, dtype=torch.float64)
    for op in operations:
        if op.kind in ('connection', 'matmul'):
            twin += op.dense.all() / _steps(op.calls, num_steps)
    twin_mj = energy_mj((twin, torch.zeros_like(twin)), *prices).mean().item()
    energies[ANN] = Energy(ANN, twin_mj, None, twin.mean().item(), 0.0, twin_mj, twin_mj)
    return energies


def _ci95(samples: Tensor) -> float | None:
    """Half the width of the 95 % interval for the mean, by the normal approximation."""
    return None if len(samples) < 2 else 1.96 * samples.std().item() / math.sqrt(len(samples))


def _not_counted(recorder: Recorder) -> list[str]:
    """Weights of two axes or more that no site covers: of unknown layers, embeddings, layers that did not run."""
    return [
        f'{name}.{parameter_name}'.lstrip('.')
        for module, name in recorder.names.items()
        for parameter_name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim > 1 and name not in recorder.sites and name.rpartition('.')[0] not in recorder.sites
    ]


def _entering(layer: Layer) -> str:
    return (
        f'0 .. {layer.input_largest:g}'
        if layer.input == 'integer'
        else {'binary': '0, 1'}.get(layer.input, layer.input)
    )


def require(library: str) -> None:
    """Raises: ModuleNotFoundError that says what to install."""
    if importlib.util.find_spec(library) is None:
        raise ModuleNotFoundError(f"this needs {library}: pip install 'timm-snn[profile]'", name=library)


def readable_count(number: float) -> str:
    """1234567 -> '1.235 M'."""
    for unit, size in (('G', 1e9), ('M', 1e6), ('k', 1e3)):
        if number >= size:
            return f'{number / size:.4g} {unit}'
    return f'{number:.4g}'


def readable_bytes(number: float) -> str:
    return f'{readable_count(number)}B' if number >= 1000 else f'{number:.0f} B'


def _with_interval(value: float, ci95: float | None, scale: float = 1.0) -> str:
    return f'{value:.4g}' if ci95 is None else f'{value:.4g} ± {scale * ci95:.2g}'


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [header, ['---', *['---:'] * (len(header) - 1)], *rows]
    return ['| ' + ' | '.join(line) + ' |' for line in lines]
