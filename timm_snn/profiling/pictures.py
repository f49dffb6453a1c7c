"""Pictures of a spiking model at work, as matplotlib figures: spikes, attention, membranes, answers, events, accuracy.

Spikes, attention and membranes are drawn from what `timm_snn.record` has recorded, of one sample of the last pass:

    with timm_snn.record(model, membranes=True) as r:
        model(images)
    spike_raster(r, sample=3)

Given a model and an image instead, they record it by themselves: at rest, in eval mode.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..layers import MultiScaleSpikingAttention
from ..modes import evaluating
from .energy import ANN_TWIN
from .profiler import eager, profile
from .recording import Recording, record
from .report import NOTICE, Report
from .state import ModuleState
from .steps import is_neuron
from .style import CLASSES, COLORS, INK, LINE, MARKERS, SOFT, SPIKE, label_ends, log_axis, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    'accuracy_and_energy',
    'attention_maps',
    'energy_parts',
    'event_frames',
    'evidence',
    'membrane_traces',
    'paint_events',
    'profile_steps',
    'spike_raster',
]

INPUTS = {'real': 'real numbers', 'integer': 'whole numbers', 'binary': '0 and 1', '': 'sums and masks of attention'}


def spike_raster(
    source: nn.Module | Recording,
    image: Tensor | None = None,
    layers: Sequence[str] | None = None,
    num_neurons: int = 48,
    sample: int = 0,
) -> 'Figure':
    """Which neurons fire at which step: a panel per layer, a row per neuron, evenly spaced over channels and positions.

    `source` is a recording, or a model with an `image` [C, H, W] or frames [T, C, H, W]; `layers` are names from a
    record or a report, all that fire by default.
    Raises: ValueError for names that do not exist, and for none.
    """
    fired = _recording_of(source, image).spikes
    shown = [_find(name, fired) for name in (fired if layers is None else layers)]
    if not shown:
        reason = 'no layer is named' if fired else 'no neurons ran in this model'
        raise ValueError(f'there is nothing to show: {reason}')
    columns = min(8, len(shown))
    rows = -(-len(shown) // columns)
    with styled():
        figure, grid = _grid(rows, columns, max(5.8, 1.45 * columns), 0.2 + 2.0 * rows)  # room for the title
        for axes, name in zip(grid.flat, shown, strict=False):
            spikes = fired[name][:, sample].detach().flatten(1).float().cpu()  # [T, neurons]
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
            axes.grid(False)
            rate = 100 * spikes.ne(0).float().mean()
            axes.set_title(f'{_short(name)}\n{rate:.1f} % of {total:,}', fontsize=8, fontweight='normal')
        for axes in grid.flat[len(shown) :]:
            axes.set_visible(False)
        figure.suptitle('Spikes by time step: a row is a neuron; firing rate and number of neurons above', fontsize=10)
        figure.supxlabel('time step', fontsize=9)
    return figure


def attention_maps(source: nn.Module | Recording, image: Tensor, sample: int = 0) -> 'Figure':
    """Where MSSA attends: per layer, the share of spikes at every token, in each scale of the query and in the gates A.

    Columns are the image, Q (kernel 1), P (kernel 3) and A = SN(sum_d Q + sum_d P), which decides whether a token's key
    passes; values are means over heads, channels and steps. `source` is as in `spike_raster`, and `image` is the sample
    itself, to draw below the maps. Raises: ValueError for a model without MSSA.
    """
    _check_image(image)
    recording = _recording_of(source, image)
    spikes = recording.spikes
    layers: dict[str, Any] = {
        name: layer
        for name, layer in recording.modules.items()
        if isinstance(layer, MultiScaleSpikingAttention) and f'{name}.attn_lif' in spikes
    }
    if not layers:
        raise ValueError('this model has no multi-scale spiking attention (MSSA), there are no maps to show')
    first = image if image.ndim == 3 else image.mean(0)
    most = max(len(layer.q) for layer in layers.values())
    with styled():
        figure, grid = _grid(len(layers), most + 2, 2.3 * (most + 2), 2.35 * len(layers))
        for row, (name, layer) in zip(grid, layers.items(), strict=True):
            shown = [
                (
                    f'{"QP"[unit.conv.kernel_size[0] > 1]}, kernel {unit.conv.kernel_size[0]}',
                    spikes[f'{name}.q.{i}.lif'],
                )
                for i, unit in enumerate(layer.q)
            ]
            shown.append(('A, tokens that pass', spikes[f'{name}.attn_lif']))
            maps = [(title, x[:, sample].detach().float().flatten(0, -2).mean(0).cpu()) for title, x in shown]
            _show_image(row[0], first)
            row[0].set_ylabel(_short(name), fontsize=8)
            for axes, (title, values) in zip(row[1:], maps, strict=False):
                _show_image(axes, first)
                drawn = axes.imshow(
                    values.reshape(_map_size(len(values), first)).numpy(),
                    cmap='inferno',
                    vmin=0,
                    alpha=0.78,
                    extent=(-0.5, first.shape[2] - 0.5, first.shape[1] - 0.5, -0.5),
                )
                axes.set_title(f'{title}: {100 * values.mean():.0f} %', fontsize=9, fontweight='normal')
                figure.colorbar(drawn, ax=axes, fraction=0.045, pad=0.02).outline.set_visible(False)
            for axes in row[1 + len(maps) :]:
                axes.set_visible(False)
        figure.suptitle('Share of spikes at every token, a row per attention layer; means above', fontsize=10)
    return figure


def membrane_traces(
    source: nn.Module | Recording,
    image: Tensor | None = None,
    layer: str = 'stem.units.0',
    num_neurons: int = 4,
    sample: int = 0,
) -> 'Figure':
    """Membrane potential over time of neurons of a layer, with their spikes.

    Shown is the potential before the reset; neurons that fire often are first. `source` is as in `spike_raster`, a
    recording of membranes and spikes; `layer` is a name from it, or from a report.
    Raises: ValueError if there is no such layer or its neurons are not `LIF`.
    """
    recording = _recording_of(source, image, membranes=True)
    name = _find(layer, recording.membranes, 'LIF neurons')
    potential, spikes = (
        x[name][:, sample].detach().flatten(1).float().cpu() for x in (recording.membranes, recording.spikes)
    )  # [T, neurons]
    neuron_layer: Any = recording.modules.get(name.partition('#')[0])
    order = (spikes.sum(0) + potential.amax(0).clamp(-9, 9) * 1e-3).argsort(descending=True)
    active = order[: max(num_neurons, int((spikes.sum(0) > 0).sum()))]
    taken = active[torch.linspace(0, len(active) - 1, min(num_neurons, len(active))).long()].tolist()
    T = len(potential)
    with styled():
        figure, grid = _grid(len(taken), 1, 6.4, 1.25 * len(taken) + 0.5, sharex=True)
        for axes, neuron in zip(grid.flat, taken, strict=True):
            steps = range(1, T + 1)
            axes.axhline(getattr(neuron_layer, 'v_threshold', 1.0), color=SOFT, linewidth=0.9, linestyle='--')
            axes.plot(steps, potential[:, neuron].numpy(), color=COLORS['A'], marker='o', markersize=3.5, linewidth=1.4)
            fired = [t for t in steps if spikes[t - 1, neuron] > 0]
            axes.plot(fired, potential[[t - 1 for t in fired], neuron].numpy(), 'o', color=SPIKE, markersize=7)
            axes.set(xticks=_ticks(T), ylabel=f'neuron\n{neuron:,}')
        title = f'Membrane potential in {layer} before the reset\nspikes orange, threshold dashed'
        figure.suptitle(title, fontsize=10)
        grid.flat[-1].set_xlabel('time step')
    return figure


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
    with styled():
        figure, grid = _grid(1, 2, 8.6, 3.3)
        left, right = grid.flat
        if all(report.top1 is not None for report in reports):
            left.plot(steps, [report.top1 for report in reports], marker='o', color=INK)
            for report in reports:
                point = (report.num_steps, report.top1)
                left.annotate(f'{report.top1:.1f}', point, (0, 6), textcoords='offset points', ha='center', fontsize=8)
            left.margins(y=0.18)
        else:
            left.text(0.5, 0.5, 'the data has no labels', transform=left.transAxes, ha='center')
        data = f'{reports[0].model}, {reports[0].num_samples:,} samples'
        left.set(xlabel='time steps T', ylabel='top-1 (%)', title=f'Accuracy of\n{data}', xticks=steps)
        energies = {name: [report.energy[name].mj for report in reports] for name in COLORS}
        for name, values in energies.items():
            right.plot(steps, values, marker=MARKERS[name], color=COLORS[name], label=name)
        right.set(xlabel='time steps T', ylabel=f'mJ per sample\n({NOTICE})', xticks=steps)
        right.set_title('Energy under conventions A, B, C\nand of the ANN twin')
        log_axis(right, [value for values in energies.values() for value in values], 'y')
        label_ends(right, [(steps[-1], values[-1], name, COLORS[name]) for name, values in energies.items()])
    return figure


def energy_parts(report: Report, by: str = 'input') -> 'Figure':
    """Energy under every convention and of the ANN twin, split up by what enters a layer, or by stage.

    `by` is 'input', which shows why conventions disagree, or 'stage'. The label of a bar is its sum, and how many times
    the twin's that is. Raises: ValueError for another `by`.
    """
    if by not in ('input', 'stage'):
        raise ValueError(f"expected by='input' or by='stage', got {by!r}")
    twin = report.energy[ANN_TWIN].mj
    keys = list(INPUTS) if by == 'input' else [stage.name for stage in report.stages]
    parts = {key: [layer for layer in report.layers if getattr(layer, by) == key] for key in keys}
    parts = {key: layers for key, layers in parts.items() if layers}
    with styled():
        import matplotlib as mpl

        colors = CLASSES if by == 'input' else mpl.colormaps['cividis'](np.linspace(0.05, 0.95, len(parts)))
        figure, grid = _grid(1, 1, 7.2, 2.9)
        axes = grid[0, 0]
        left = np.zeros(len(report.energy))
        for (key, layers), color in zip(parts.items(), colors, strict=False):
            values = np.array([sum(layer.energy_mj[name] for layer in layers) for name in report.energy])
            name = f'fed {INPUTS[key]}' if by == 'input' and key else INPUTS.get(key, key)
            axes.barh(list(report.energy), values, 0.62, left, color=color, label=name)
            left += values
        for name, energy in report.energy.items():
            times = '' if name == ANN_TWIN or not twin else f', {energy.mj / twin:.2g} x the twin'
            label = f'{energy.mj:.3g} mJ{times}'
            axes.annotate(label, (energy.mj, name), (5, 0), textcoords='offset points', va='center', fontsize=8.5)
        axes.invert_yaxis()
        axes.margins(x=0.36)  # for the labels
        axes.set(xlabel=f'mJ per sample ({NOTICE})', xlim=(0, None))
        axes.set_title(f'Energy by convention, and {"what layers are fed" if by == "input" else "stage"}')
        figure.legend(loc='outside lower center', ncols=min(5, len(parts)), fontsize=8.5)
    return figure


def evidence(answers: Tensor, names: Sequence[str] | None = None) -> 'Figure':
    """Probabilities of the classes after every step, of logits [T, classes] such as `timm_snn.stream(model)(x)[0]`.

    The four classes that are likeliest at any step are named at the ends of their lines, all others are grey.
    Raises: ValueError for answers of another shape, and for another number of names.
    """
    if answers.ndim != 2 or 0 in answers.shape:
        raise ValueError(f'expected logits [T, classes] of one sample, got {list(answers.shape)}')
    T, num_classes = answers.shape
    names = [str(i) for i in range(num_classes)] if names is None else names
    if len(names) != num_classes:
        raise ValueError(f'expected a name for each of {num_classes} classes, got {len(names)}')
    percent = 100 * answers.detach().float().cpu().softmax(1)  # [T, classes]
    named = percent.amax(0).topk(min(len(CLASSES), num_classes)).indices.tolist()
    steps = range(1, T + 1)
    with styled():
        figure, grid = _grid(1, 1, 6.4, 3.0)
        axes = grid[0, 0]
        for index in set(range(num_classes)) - set(named):
            axes.plot(steps, percent[:, index].numpy(), color=LINE, linewidth=1, marker='o', markersize=2.5)
        for index, color in zip(named, CLASSES, strict=False):
            axes.plot(steps, percent[:, index].numpy(), color=color, linewidth=1.8, marker='o', markersize=4)
        axes.set(xticks=_ticks(T), ylim=(-3, 103), xlabel='time step', ylabel='probability (%)')
        ends = [(percent[-1, index].item(), names[index], color) for index, color in zip(named, CLASSES, strict=False)]
        label_ends(axes, [(T, at, f'{name}: {at:.0f} %', color) for at, name, color in ends])
        axes.set_title('Probability of each class after every time step')
    return figure


def event_frames(counts: Any, titles: Sequence[str] = (), name: str = '') -> 'Figure':
    """Frames of events side by side, in the colours of `paint_events`, of counts [T, 2, H, W] as `to_frames` gives.

    Each frame has its number for a title unless `titles` are given; `name` is that of the recording.
    Raises: as `paint_events`.
    """
    images = paint_events(counts)
    rows = -(-len(images) // 10)
    columns = -(-len(images) // rows)
    height, width = images.shape[1:3]
    with styled():
        lines = 1 + max((str(title).count('\n') for title in titles), default=0)
        figure, grid = _grid(rows, columns, 1.5 * columns, 0.4 + (0.15 + 0.15 * lines + 1.5 * height / width) * rows)
        for axes in grid.flat:
            axes.axis('off')
        for axes, image, title in zip(grid.flat, images, titles or range(1, len(images) + 1), strict=False):
            axes.imshow(image, interpolation='nearest')
            axes.set_title(str(title), fontsize=7, loc='center')
        shown = f'positive red, negative blue, full colour from {_full_color(counts):g} events'
        figure.suptitle(': '.join(filter(None, (name, shown))), fontsize=9)
    return figure


def paint_events(counts: Any) -> np.ndarray:
    """Counts of events [T, 2, H, W], negative first, as ink on white: uint8 [T, H, W, 3].

    Positive events are red, negative ones blue, and a pixel that has both is dark. The 99th percentile of the counts
    that are not zero is a full colour. Raises: ValueError for counts of another shape.
    """
    counts = np.asarray(counts)
    if counts.ndim != 4 or counts.shape[1] != 2 or not len(counts):
        raise ValueError(f'expected counts [T, 2, H, W] of negative and positive events, got {list(counts.shape)}')
    negative, positive = np.moveaxis(np.minimum(counts / _full_color(counts), 1), 1, 0)
    ink = np.stack([negative, np.maximum(negative, positive), positive], axis=-1)
    return (255 * (1 - ink)).round().astype(np.uint8)


def _full_color(counts: Any) -> float:
    counts = np.asarray(counts)
    return max(1.0, float(np.percentile(counts[counts > 0], 99))) if counts.any() else 1.0


def _recording_of(source: nn.Module | Recording, image: Tensor | None, membranes: bool = False) -> Recording:
    """The recording itself, or that of a model's run on one image [C, H, W] or frames [T, C, H, W]."""
    if isinstance(source, Recording):
        return source
    model, image = eager(source), _check_image(image)
    weight = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    state = ModuleState(model, is_neuron)
    state.rest()
    try:
        with evaluating(model), torch.no_grad(), record(model, membranes=membranes) as recording:
            model(image.unsqueeze(0).to(weight))
    finally:
        state.restore()
    return recording


def _check_image(image: Any) -> Tensor:
    if not isinstance(image, Tensor) or image.ndim not in (3, 4):
        found = list(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise ValueError(f'expected one image [C, H, W] or frames [T, C, H, W], got {found}')
    return image


def _find(name: str, recorded: Mapping[str, Tensor], what: str = 'neurons') -> str:
    """The name in a record of what a report calls so: a unit there, its neuron here."""
    for found in (name, f'{name}.lif'):
        if found in recorded:
            return found
    raise ValueError(f'no {what} called {name!r}; there are {", ".join(recorded) or "none"}')


def _map_size(num_tokens: int, image: Tensor) -> tuple[int, int]:
    """H and W of a map of so many tokens, whose shape is next to that of the image."""
    aspect = image.shape[-2] / image.shape[-1]
    heights = [h for h in range(1, num_tokens + 1) if num_tokens % h == 0]
    height = min(heights, key=lambda h: abs(math.log(h * h / num_tokens / aspect)))
    return height, num_tokens // height


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
    return name.removesuffix('.lif').replace('stages.', '').replace('blocks.', '').replace('units.', '')


def _grid(rows: int, columns: int, width: float, height: float, **kwargs: Any) -> Any:
    figure = new_figure(width, height)
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)
