"""How all pictures look: colours that the colour-blind tell apart, quiet axes, names at the ends of lines.

    with styled():
        figure = new_figure(6.4, 3.0)
        axes = figure.subplots()
        for name, values in curves.items():
            axes.plot(steps, values, color=COLORS[name])
        label_ends(axes, [(steps[-1], values[-1], name, COLORS[name]) for name, values in curves.items()])

A title says what was measured, an axis its unit. Energies are on a logarithmic axis, since conventions differ by a
factor of ten and more.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .energy import ANN_TWIN
from .text import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    'CLASSES',
    'COLORS',
    'DARK_COLORS',
    'INK',
    'LINE',
    'MARKERS',
    'SOFT',
    'SPIKE',
    'STYLE',
    'label_ends',
    'log_axis',
    'new_figure',
    'nice_ticks',
    'styled',
]

INK, SOFT, LINE = '#1f2430', '#5b6472', '#c6ccd4'
# Okabe and Ito's colours, which the colour-blind tell apart
BLUE, GREEN, VERMILION, PINK = '#0072b2', '#009e73', '#d55e00', '#cc79a7'
COLORS = {'A': BLUE, 'B': GREEN, 'C': VERMILION, ANN_TWIN: '#6b7280'}
DARK_COLORS = {'A': '#56b4e9', 'B': '#2fc796', 'C': '#ff8f3f', ANN_TWIN: '#a9b2be'}  # on a dark page
MARKERS = {'A': 'o', 'B': 's', 'C': '^', ANN_TWIN: 'D'}  # and without colours
CLASSES = (BLUE, VERMILION, GREEN, PINK)
SPIKE = VERMILION
STYLE: dict[str, Any] = {
    'axes.edgecolor': LINE,
    'axes.grid': True,
    'axes.axisbelow': True,
    'axes.labelcolor': SOFT,
    'axes.spines.right': False,
    'axes.spines.top': False,
    'axes.titlecolor': INK,
    'axes.titlelocation': 'left',
    'axes.titlesize': 10.5,
    'axes.titleweight': 'bold',
    'figure.dpi': 110,
    'font.family': ['sans-serif'],
    'font.size': 9.5,
    'grid.color': '#e8ebef',
    'grid.linewidth': 0.7,
    'legend.frameon': False,
    'lines.linewidth': 1.6,
    'lines.markersize': 4.5,
    'xtick.color': LINE,
    'xtick.labelcolor': SOFT,
    'ytick.color': LINE,
    'ytick.labelcolor': SOFT,
}


@contextmanager
def styled() -> Iterator[None]:
    """Figures that are made inside look like ours. Raises: ModuleNotFoundError without matplotlib."""
    require('matplotlib')
    import matplotlib as mpl

    with mpl.rc_context(STYLE):  # type: ignore[arg-type]  # a dict with literal keys
        yield


def new_figure(width: float, height: float) -> 'Figure':
    """A figure of this size in inches, outside of pyplot, which would keep it."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout='constrained')


def log_axis(axes: 'Axes', values: Iterable[float], which: str = 'x') -> None:
    """A logarithmic axis around the positive `values`, with ticks as people write them: 0.002, 0.005, 0.01.

    Without positive values the axis stays linear.
    """
    positive = [value for value in values if value > 0]
    if not positive:
        return
    low, high = min(positive) / 1.3, max(positive) * 1.3
    ticks = nice_ticks(low, high)
    axis = axes.xaxis if which == 'x' else axes.yaxis
    axes.set(**{f'{which}scale': 'log', f'{which}lim': (low, high)})
    axis.set_ticks(ticks, [f'{tick:g}' for tick in ticks])
    axis.set_ticks([], minor=True)


def nice_ticks(low: float, high: float) -> list[float]:
    """At most seven of 1, 2, 5 times powers of ten, or of these powers alone, between two positive numbers."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1, 3), (1,)):
        ticks = [digit * 10.0**decade for decade in decades for digit in digits]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= 7:
            return ticks
    return ticks[:: -(-len(ticks) // 7)]


def label_ends(axes: 'Axes', labels: Sequence[tuple[float, float, str, str]], gap: float = 0.075) -> None:
    """Names beside points (x, y, name, colour), such as the last ones of lines, instead of a legend.

    Labels that would cover each other move up; `gap` is the least distance, as a part of the height of the axes.
    Limits and scales of the axes have to be set before.
    """
    axes.get_xlim(), axes.get_ylim()  # which settles automatic limits
    places = axes.transData + axes.transAxes.inverted()
    points = [(*places.transform((x, y)), name, color) for x, y, name, color in labels]
    lowest = -math.inf
    for x, y, name, color in sorted(points, key=lambda point: point[1]):
        lowest = max(y, lowest)
        axes.annotate(
            name,
            (x, lowest),
            (7, 0),
            xycoords='axes fraction',
            textcoords='offset points',
            va='center',
            color=color,
            fontsize=9,
        )
        lowest += gap
