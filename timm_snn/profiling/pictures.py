"""Pictures of a spiking model at work, as matplotlib figures: spikes, attention, membranes, accuracy against T.

All of them run the model once more on one image, as `profile` does: from outside, fused or not.
"""

from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..layers import LIF, ConvBnLif, MultiScaleSpikingAttention
from ..modes import evaluating
from ..ops import lif_stream
from .page import COLORS, STYLE
from .profiler import eager, profile
from .recorder import Recorder
from .report import NOTICE, Report
from .rules import gates
from .site import AttentionCall, Site, UnitCall
from .text import require

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.figure import Figure

__all__ = ['accuracy_and_energy', 'attention_maps', 'membrane_traces', 'profile_steps', 'spike_raster']

INK, SPIKE = '#1f2430', '#b4532a'


def spike_raster(
    model: nn.Module, image: Tensor, layers: Sequence[str] | None = None, num_neurons: int = 48
) -> 'Figure':
    """Which neurons fire at which step: a panel per layer, a row per neuron, evenly spaced over channels and positions.

    `image` is [C, H, W] or frames [T, C, H, W]; `layers` are names from a report, all that fire by default.
    Raises: ValueError for names that do not exist, and for none.
    """
    sites = _watch(model, image).record.sites
    fired = {name: site.spikes for name, site in sites.items() if site.spikes is not None}
    shown = list(fired) if layers is None else list(layers)
    if missing := [name for name in shown if name not in fired]:
        raise ValueError(f'no neurons called {missing[0]!r}; there are {", ".join(fired) or "none"}')
    if not shown:
        reason = 'no layer is named' if fired else 'no neurons ran in this model'
        raise ValueError(f'there is nothing to show: {reason}')
    columns = min(8, len(shown))
    rows = -(-len(shown) // columns)
    with _style():
        figure, grid = _grid(rows, columns, 1.45 * columns, 2.0 * rows)
        for axes, name in zip(grid.flat, shown, strict=False):
            spikes = fired[name][:, 0].flatten(1).float().cpu()  # [T, neurons]
            T, total = spikes.shape
            taken = spikes[:, torch.linspace(0, total - 1, min(num_neurons, total)).long()]
            step, neuron = taken.nonzero(as_tuple=True)
            axes.scatter(
                (step + 1).numpy(),
                neuron.numpy(),
                marker='|' if T > 8 else 's',
                s=9 if T > 8 else 6,
                color=SPIKE,
                linewidths=0.6,
            )
            axes.set(xlim=(0.5, T + 0.5), ylim=(-1, taken.shape[1]), xticks=_ticks(T), yticks=[])
            rate = f'{100 * spikes.ne(0).float().mean():.1f} %' if spikes.any() else 'silent, all'
            axes.set_title(f'{_short(name)}\n{rate} of {total:,}', fontsize=7)
            axes.spines[['left', 'bottom']].set_color('#c6ccd4')
        for axes in grid.flat[len(shown) :]:
            axes.set_visible(False)
        figure.supxlabel('time step', fontsize=9)
    return figure


def attention_maps(model: nn.Module, image: Tensor) -> 'Figure':
    """Where MSSA attends: per layer, the share of spikes at every token, in each scale of the query and in the gates A.

    Columns are the image, Q (kernel 1), P (kernel 3) and A = SN(sum_d Q + sum_d P), which decides whether a token's key
    passes; values are means over heads, channels and steps. `image` is as in `spike_raster`.
    Raises: ValueError for a model without MSSA.
    """
    recorder = _watch(model, image)
    calls = [site.call for site in recorder.record.sites.values() if isinstance(site.call, AttentionCall)]
    calls = [call for call in calls if isinstance(call.layer, MultiScaleSpikingAttention)]
    if not calls:
        raise ValueError('this model has no multi-scale spiking attention (MSSA), there are no maps to show')
    first = image if image.ndim == 3 else image.mean(0)
    most = max(len(call.layer.q) for call in calls)
    with _style():
        figure, grid = _grid(len(calls), most + 2, 2.3 * (most + 2), 2.35 * len(calls))
        for row, (layer, spikes, size) in zip(grid, calls, strict=True):
            queries = [spikes[f'q.{i}'] for i in range(len(layer.q))]
            maps = {
                f'{"QP"[unit.conv.kernel_size[0] > 1]}, kernel {unit.conv.kernel_size[0]}': query.mean((0, 1, 2))
                for unit, query in zip(layer.q, queries, strict=True)
            }
            maps['A, tokens that pass'] = gates(layer, queries).mean((0, 1, 2, 3))
            _show_image(row[0], first)
            row[0].set_ylabel(_short(recorder.names[layer]), fontsize=8)
            for axes, (title, values) in zip(row[1:], maps.items(), strict=False):
                _show_image(axes, first)
                shown = axes.imshow(
                    values.reshape(size).float().cpu().numpy(),
                    cmap='inferno',
                    vmin=0,
                    alpha=0.78,
                    extent=(-0.5, first.shape[2] - 0.5, first.shape[1] - 0.5, -0.5),
                )
                axes.set_title(f'{title}: {100 * values.mean():.0f} %', fontsize=8.5)
                figure.colorbar(shown, ax=axes, fraction=0.045, pad=0.02).outline.set_visible(False)
            for axes in row[1 + len(maps) :]:
                axes.set_visible(False)
    return figure


def membrane_traces(model: nn.Module, image: Tensor, layer: str, num_neurons: int = 4) -> 'Figure':
    """Membrane potential over time of neurons in a `ConvBnLif`, recomputed from its input, with their spikes.

    Shown is the potential before the reset; neurons that fire often are first. `layer` is a name from a report, `image`
    is as in `spike_raster`. Raises: ValueError if there is no such layer or its neurons are not `LIF`.
    """
    sites = _watch(model, image).record.sites
    calls = {name: call for name, site in sites.items() if (call := _call_of_lif_unit(site))}
    if layer not in calls:
        raise ValueError(f'expected a unit with LIF neurons, got {layer!r}; there are {", ".join(calls) or "none"}')
    unit, x, repeats = calls[layer]
    with evaluating(unit), torch.no_grad():
        potential, spikes = membrane(unit.lif, unit.current(x).repeat_interleave(repeats, 0))
    potential, spikes = potential[:, 0].flatten(1).float().cpu(), spikes[:, 0].flatten(1).float().cpu()  # [T, neurons]
    order = (spikes.sum(0) + potential.amax(0).clamp(-9, 9) * 1e-3).argsort(descending=True)
    active = order[: max(num_neurons, int((spikes.sum(0) > 0).sum()))]
    taken = active[torch.linspace(0, len(active) - 1, min(num_neurons, len(active))).long()].tolist()
    T, learned = len(potential), unit.lif.learned_threshold()
    thresholds = [unit.lif.v_threshold] if learned is None else learned.flatten().tolist()  # of all, or each channel
    with _style():
        figure, grid = _grid(len(taken), 1, 6.4, 1.25 * len(taken) + 0.5, sharex=True)
        for axes, neuron in zip(grid.flat, taken, strict=True):
            steps = range(1, T + 1)
            threshold = thresholds[neuron * len(thresholds) // potential.shape[1]]
            axes.axhline(threshold, color='#9aa3af', linewidth=0.9, linestyle='--')
            axes.plot(steps, potential[:, neuron].numpy(), color=COLORS['A'], marker='o', markersize=3.5, linewidth=1.4)
            fired = [t for t in steps if spikes[t - 1, neuron] > 0]
            axes.plot(fired, potential[[t - 1 for t in fired], neuron].numpy(), 'o', color=SPIKE, markersize=7)
            axes.set(xticks=_ticks(T), ylabel=f'neuron\n{neuron}')
        figure.suptitle(f'{layer}\nmembrane before the reset, spikes in red, threshold dashed', fontsize=9.5)
        grid.flat[-1].set_xlabel('time step')
    return figure


@torch.no_grad()
def membrane(lif: LIF, current: Tensor) -> tuple[Tensor, Tensor]:
    """The potential before the reset and the spikes, both [T, B, ...], of `lif` driven by `current` [T, B, ...]."""
    tau, threshold = lif.learned_tau(), lif.learned_threshold()
    settings: dict[str, Any] = dict(
        tau=lif.tau if tau is None else tau, v_reset=lif.v_reset, decay_input=lif.decay_input
    )
    v_threshold = lif.v_threshold if threshold is None else threshold
    v = None
    potentials, spikes = [], []
    for x in current.split(1):
        # what the membrane becomes if it cannot fire, then what it does
        potentials.append(lif_stream(x, v, v_threshold=torch.finfo(torch.float32).max, **settings)[1])
        fired, v = lif_stream(x, v, v_threshold=v_threshold, **settings)
        spikes.append(fired)
    return torch.stack(potentials), torch.cat(spikes)


def profile_steps(model: Any, data: Any, steps: Sequence[int], **kwargs: Any) -> list[Report]:
    """A report for every T in `steps`, of a model that has `num_steps`, on images; `kwargs` are those of `profile`.

    The weights stay those that were trained, at whatever T. Raises: ValueError for a model without `num_steps`.
    """
    model = eager(model)
    if not isinstance(before := getattr(model, 'num_steps', None), int):
        raise ValueError(f'{type(model).__name__} has no num_steps to change')
    reports = []
    try:
        for T in steps:
            model.num_steps = T
            reports.append(profile(model, data, **kwargs))
    finally:
        model.num_steps = before
    return reports


def accuracy_and_energy(reports: Sequence[Report]) -> 'Figure':
    """Top-1 accuracy and energy against T, from `profile_steps` on data with labels."""
    steps = [report.num_steps for report in reports]
    with _style():
        figure, grid = _grid(1, 2, 8.4, 3.1)
        left, right = grid.flat
        if all(report.top1 is not None for report in reports):
            left.plot(steps, [report.top1 for report in reports], marker='o', color=INK)
            for report in reports:
                point = (report.num_steps, report.top1)
                left.annotate(f'{report.top1:.1f}', point, (0, 6), textcoords='offset points', ha='center', fontsize=8)
            left.margins(y=0.18)
        else:
            left.text(0.5, 0.5, 'the data has no labels', transform=left.transAxes, ha='center')
        left.set(xlabel='time steps T', ylabel='top-1 (%)', title=f'{reports[0].model}', xticks=steps)
        for name, color in COLORS.items():
            right.plot(steps, [report.energy[name].mj for report in reports], marker='o', color=color, label=name)
        right.set(
            xlabel='time steps T', ylabel=f'mJ per sample\n({NOTICE})', title='Energy by convention', xticks=steps
        )
        right.set_ylim(bottom=0)
        right.legend(fontsize=8)
    return figure


def _watch(model: nn.Module, image: Tensor) -> Recorder:
    """The model's run on one image [C, H, W] or on frames [T, C, H, W], with what it computed."""
    if not isinstance(image, Tensor) or image.ndim not in (3, 4):
        found = list(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise ValueError(f'expected one image [C, H, W] or frames [T, C, H, W], got {found}')
    recorder = Recorder(eager(model), keep_tensors=True)
    weight = next((p for p in recorder.model.parameters() if p.is_floating_point()), torch.empty(0))
    with recorder:
        recorder.run(image.unsqueeze(0).to(weight))
    return recorder


def _call_of_lif_unit(site: Site) -> UnitCall | None:
    """The call of a unit with our neurons, whose membranes can be computed again."""
    call = site.call
    if isinstance(call, UnitCall) and isinstance(call.unit, ConvBnLif) and isinstance(call.unit.lif, LIF):
        return call
    return None


def _show_image(axes: Any, image: Tensor) -> None:
    shown = image.float().cpu()
    shown = (shown - shown.min()) / (shown.max() - shown.min()).clamp(min=1e-6)
    shown = shown.permute(1, 2, 0) if len(shown) == 3 else shown.mean(0)
    axes.imshow(shown.numpy(), cmap=None if shown.ndim == 3 else 'gray')
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _ticks(num_steps: int) -> list[int]:
    return list(range(1, num_steps + 1, max(1, num_steps // 8)))


def _short(name: str) -> str:
    """'stages.0.blocks.1.attn.q.0' -> '0.1.attn.q.0'."""
    return name.replace('stages.', '').replace('blocks.', '').replace('units.', '')


@contextmanager
def _style() -> 'Iterator[None]':
    require('matplotlib')
    import matplotlib as mpl

    with mpl.rc_context(STYLE):  # type: ignore[arg-type]  # a dict with literal keys
        yield


def _grid(rows: int, columns: int, width: float, height: float, **kwargs: Any) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout='constrained', dpi=110)
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)
