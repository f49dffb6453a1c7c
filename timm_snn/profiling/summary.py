"""Numbers of a report from what a recorder has seen."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from ..version import __version__
from .counts import Activity, Operation
from .energy import ANN_TWIN, CONVENTIONS, energy_mj, first_layer
from .recorder import Recorder, before_compiling, name_before_compiling
from .report import Energy, Layer, Report
from .site import Record, Site

__all__ = ['summarize']


class Prices(NamedTuple):
    mac_pj: float
    ac_pj: float


def summarize(
    recorder: Recorder,
    *,
    mac_pj: float,
    ac_pj: float,
    model_name: str,
    data_name: str,
    input_shape: tuple[int, ...],
    top1: float | None,
) -> Report:
    """The report of a run, with energies at these prices."""
    model, record, prices = recorder.model, recorder.record, Prices(mac_pj, ac_pj)
    sites = list(record.sites.values())
    depth = _depth_of_model(model, [site.name for site in sites])
    stages: dict[str, list[Site]] = {}
    for site in sites:
        stages.setdefault(_stage_of(site.name, depth), []).append(site)
    stage_parameters: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        stage = _stage_of(name_before_compiling(name), depth)
        stage_parameters[stage] = stage_parameters.get(stage, 0) + parameter.numel()
    site_parameters = _parameters_of_sites(recorder)
    total = _layer('total', '', 'model', sites, record, prices, sum(stage_parameters.values()))
    acs, macs = _effective(sites, record)
    return Report(
        model=model_name,
        data=data_name,
        num_samples=record.num_samples,
        num_steps=record.num_steps,
        input_shape=input_shape,
        static=record.static,
        mac_pj=mac_pj,
        ac_pj=ac_pj,
        parameters=total.parameters,
        footprint_bytes=sum(x.numel() * x.element_size() for x in [*model.parameters(), *model.buffers()]),
        state_bytes=total.state_bytes,
        top1=top1,
        total=total,
        effective_acs_ci95=_ci95(acs),
        effective_macs_ci95=_ci95(macs),
        energy=_energies(sites, record, prices),
        stages=[
            _layer(stage, stage, 'stage', members, record, prices, stage_parameters.get(stage, 0))
            for stage, members in stages.items()
        ],
        layers=[
            _layer(site.name, stage, site.kind, [site], record, prices, site_parameters[site.name], site.input)
            for stage, members in stages.items()
            for site in members
        ],
        not_counted=_not_counted(recorder),
        versions={'timm_snn': __version__, 'torch': torch.__version__, 'timm': timm.__version__},
    )


def _depth_of_model(model: Any, names: Sequence[str]) -> int:
    """How many parts of all names lead to the model inside a wrapper that runs too: timm's feature nets, a Sequential.

    One that has no other modules that count, such as one of a normalisation and a model.
    """
    parts = [name.split('.') for name in names]
    depth = 0
    while parts and all(len(p) > depth + 1 and p[depth] == parts[0][depth] for p in parts):
        name = parts[0][depth]
        if name not in _WRAPPERS and not isinstance(model, nn.Sequential):
            break
        model, depth = before_compiling(getattr(model, name)), depth + 1
    return depth


_WRAPPERS = ('model', 'body', 'module', 'backbone', 'network')  # what modules call the model in them


def _stage_of(name: str, depth: int) -> str:
    """'stages.1.blocks.0.mlp' -> 'stages.1', 'head.fc' -> 'head'; a wrapper's part in front is left out.

    So is that of a model with others beside it: 'backbone.model.stages.1' of a segmenter, which has a 'decoder' too.
    """
    parts = name.split('.')[depth:]
    while len(parts) > 1 and parts[0] in _WRAPPERS:
        parts = parts[1:]
    return '.'.join(parts[: 1 + (len(parts) > 1 and parts[1].isdigit())])


def _parameters_of_sites(recorder: Recorder) -> dict[str, int]:
    """How many parameters the module of each site has, without those of sites inside it."""
    sites = recorder.record.sites
    modules = {name: module for module, name in recorder.names.items()}

    def own(site: Site) -> int:
        module = modules.get(site.name)  # the neuron of attention may be a site without being called
        if module is None:
            return 0
        parts = [module] if site.kind == 'product' else module.modules()
        return sum(
            parameter.numel()
            for part in parts
            if part is module or recorder.names[part] not in sites
            for parameter in part.parameters(recurse=False)
        )

    return {name: own(site) for name, site in sites.items()}


def _layer(
    name: str,
    stage: str,
    kind: str,
    sites: Sequence[Site],
    record: Record,
    prices: Prices,
    parameters: int,
    entering: Activity | None = None,
) -> Layer:
    """A row of the report: the sum of these sites."""
    n, T = record.num_samples, record.num_steps
    operations = _operations(sites)

    def mean(what: str, *kinds: str) -> float:
        return sum(getattr(op, what).all().sum().item() / n for op in operations if op.kind in kinds)

    acs, macs = _effective(sites, record)
    return Layer(
        name=name,
        stage=stage,
        kind=kind,
        steps=max((_steps(op, T) for op in operations), default=T),
        parameters=parameters,
        dense_macs_per_step=sum(
            op.dense.all().sum().item() / n / _steps(op, T) for op in operations if op.kind in ('connection', 'matmul')
        ),
        dense_macs=mean('dense', 'connection', 'matmul'),
        dense=mean('reached', 'connection'),
        effective_acs=acs.mean().item(),
        effective_macs=macs.mean().item(),
        matmul_ops=mean('dense', 'matmul'),
        effective_matmul_ops=mean('effective', 'matmul'),
        mask_ops=mean('dense', 'sum', 'mask'),
        effective_mask_ops=mean('effective', 'sum', 'mask'),
        energy_mj={name: energy.mj for name, energy in _energies(sites, record, prices).items()},
        **_firing(sites, record),
        **_entering(entering),
    )


def _operations(sites: Sequence[Site]) -> list[Operation]:
    return [op for site in sites for op in site.operations.values()]


def _steps(op: Operation, num_steps: int) -> int:
    return num_steps if op.calls and op.calls % num_steps == 0 else 1


def _firing(sites: Sequence[Site], record: Record) -> dict[str, Any]:
    """What a row says of its neurons; nothing if there are none."""
    outputs = [site.output for site in sites if site.output is not None]
    if not outputs:
        return {}
    n, T = record.num_samples, record.num_steps
    updates = sum((out.count.all() for out in outputs), torch.zeros(n, dtype=torch.float64))
    fired = sum((out.nonzero.all() for out in outputs), torch.zeros(n, dtype=torch.float64))
    spikes = sum(out.magnitude.all().sum().item() for out in outputs)
    # neurons that do not run at every step have no rate by step
    by_step = [out.by_step.tolist() for out in outputs if out.by_step is not None and len(out.by_step) == T]
    per_step = updates.sum().item() / T
    return {
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


def _entering(x: Activity | None) -> dict[str, Any]:
    """What a row says of its input; a stage or a model has none that is the same for all in it."""
    if x is None:
        return {}
    return {
        'input': x.kind,
        'input_rate': (x.nonzero.all().sum() / x.count.all().sum()).item(),
        'input_mean': (x.magnitude.all().sum() / x.count.all().sum()).item(),
        'input_largest': x.largest,
    }


def _effective(sites: Sequence[Site], record: Record) -> tuple[Tensor, Tensor]:
    """NeuroBench's Effective_ACs and Effective_MACs of every sample."""
    acs, macs = (torch.zeros(record.num_samples, dtype=torch.float64) for _ in range(2))
    for op in _operations(sites):
        if op.kind == 'connection':
            target = acs if op.operands[0].ternary else macs
            target += op.effective.all()
    return acs, macs


def _energies(sites: Sequence[Site], record: Record, prices: Prices) -> dict[str, Energy]:
    operations = _operations(sites)
    energies = {name: _energy(name, operations, record.num_samples, prices) for name in CONVENTIONS}
    twin = torch.zeros(record.num_samples, dtype=torch.float64)
    for op in operations:
        if op.kind in ('connection', 'matmul'):
            twin += op.dense.all() / _steps(op, record.num_steps)
    mj = energy_mj((twin, torch.zeros_like(twin)), *prices).mean().item()
    return energies | {ANN_TWIN: Energy(ANN_TWIN, mj, None, twin.mean().item(), 0.0, mj, mj)}


def _energy(convention: str, operations: Sequence[Operation], num_samples: int, prices: Prices) -> Energy:
    macs, acs = (torch.zeros(num_samples, dtype=torch.float64) for _ in range(2))
    first_once = first_every_step = 0.0
    for op in operations:
        charge = CONVENTIONS[convention](op)
        macs += charge[0]
        acs += charge[1]
        if op.is_first and op.static:
            own, once, every_step = (
                energy_mj(c, *prices).mean().item() for c in (charge, *first_layer(convention, op))
            )
            first_once, first_every_step = once - own, every_step - own
    mj = energy_mj((macs, acs), *prices)
    return Energy(
        convention=convention,
        mj=mj.mean().item(),
        ci95=_ci95(mj),
        macs=macs.mean().item(),
        acs=acs.mean().item(),
        mj_first_once=mj.mean().item() + first_once,
        mj_first_every_step=mj.mean().item() + first_every_step,
    )


def _ci95(samples: Tensor) -> float | None:
    """Half the width of the 95 % interval for the mean, by the normal approximation."""
    return None if len(samples) < 2 else 1.96 * samples.std().item() / math.sqrt(len(samples))


def _not_counted(recorder: Recorder) -> list[str]:
    """Weights of two axes or more that no site covers: of unknown layers, embeddings, layers that did not run."""
    sites = recorder.record.sites
    return [
        f'{name}.{parameter_name}'.lstrip('.')
        for module, name in recorder.names.items()
        for parameter_name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim > 1 and name not in sites and name.rpartition('.')[0] not in sites
    ]
