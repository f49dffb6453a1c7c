"""A report: what `profile` found, as data that can be written and read back."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from ..files import write_whole_text

__all__ = ['NOTICE', 'Energy', 'Layer', 'Report', 'shows']

NOTICE = 'estimate, arithmetic only'

View = TypeVar('View', bound=Callable[..., Any])

_VIEWS: dict[str, Callable[..., Any]] = {}


def shows(name: str) -> Callable[[View], View]:
    """Decorator: the function that shows a report in this way.

    `text.py` and `page.py` import the report, so it cannot import them: it finds what they make of it by this name.
    """

    def add(view: View) -> View:
        _VIEWS[name] = view
        return view

    return add


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


@dataclass(frozen=True, repr=False)
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

    @property
    def caveat(self) -> str:
        return f'{NOTICE}: {self.mac_pj:g} pJ per MAC, {self.ac_pj:g} pJ per AC, no data movement'

    @property
    def uncounted(self) -> str:
        return f'Not in these numbers, since no operation with them was seen: {", ".join(self.not_counted)}.'

    def describe(self) -> str:
        """One line with everything a number needs to be compared."""
        return _VIEWS['line'](self)

    def to_markdown(self) -> str:
        """For a model card: what was measured on what, energy by convention, and a table of stages."""
        return _VIEWS['markdown'](self)

    def __str__(self) -> str:
        return self.to_markdown()

    def __repr__(self) -> str:
        return f'Report({self.model} on {self.data}: {self.describe()})'

    def _repr_markdown_(self) -> str:  # what a notebook shows
        return self.to_markdown()

    def table(self) -> Any:
        """A `rich` renderable for terminals: energy by convention, then all layers by stage."""
        return _VIEWS['terminal'](self)

    def to_html(self, others: Sequence['Report'] = ()) -> str:
        """One page with plots, without anything to fetch; `others` are models to compare with.

        Raises: ValueError for others with other prices.
        """
        return _VIEWS['page'](self, others)

    def save(self, folder: str | Path, others: Sequence['Report'] = ()) -> list[Path]:
        """Write report.json, .csv, .md and .html, the last with `others` to compare with. Raises: as `to_html`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        texts = {'json': self.to_json(), 'csv': self.to_csv(), 'md': self.to_markdown(), 'html': self.to_html(others)}
        for suffix, text in texts.items():
            write_whole_text(folder / f'report.{suffix}', text)
        return [folder / f'report.{suffix}' for suffix in texts]
