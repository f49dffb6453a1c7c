"""Plots of a page as SVG that is as wide as its place.

Horizontal places are percentages and letters keep their size, so that a plot is read on a phone as on a desktop.
Colours are those of the page, by its classes, and follow its dark mode. Every plot says in words what it shows, for
those who do not see it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from .style import MARKERS, nice_ticks

__all__ = ['Mark', 'Row', 'dots', 'key', 'strips']

ROW = 46  # pixels of height
SHAPES = {
    'o': '<circle r="5"/>',
    's': '<rect x="-4.5" y="-4.5" width="9" height="9"/>',
    '^': '<path d="M0 -6 L5.6 4.4 H-5.6 Z"/>',
    'D': '<path d="M0 -6 L6 0 L0 6 L-6 0 Z"/>',
}


@dataclass(frozen=True)
class Mark:
    """A value in the colour and shape of a convention, with an interval around it, or `other` as a hollow mark."""

    convention: str
    value: float
    ci95: float | None = None
    other: float | None = None


@dataclass(frozen=True)
class Row:
    name: str
    note: str  # at the right
    marks: Sequence[Mark]


def dots(rows: Sequence[Row], unit: str, title: str, reference: float | None = None) -> str:
    """Marks on a logarithmic axis, a row below the other; a dashed line at `reference`. Values of zero have no mark."""
    shown = [x for row in rows for mark in row.marks for x in (mark.value, mark.other) if x is not None and x > 0]
    if not shown:
        return f'<p>{escape(title)}: all values are zero.</p>'
    low, high = math.log10(min(shown)), math.log10(max(shown))
    span = max(high - low, 0.2)

    def at(value: float) -> str:
        return f'{4 + 92 * min(max((math.log10(value) - low) / span, -0.04), 1.04):.2f}%' if value > 0 else '0%'

    bottom = ROW * len(rows)
    parts = []
    for tick in nice_ticks(10 ** (low - 0.04 * span), 10 ** (low + 1.04 * span)):
        x = at(tick)
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="0" y2="{bottom}"/>')
        parts.append(f'<text class="soft" x="{x}" y="{bottom + 15}" text-anchor="middle">{tick:g}</text>')
    if reference:
        x = at(reference)
        parts.append(f'<line class="reference" x1="{x}" x2="{x}" y1="0" y2="{bottom}"/>')
    for i, row in enumerate(rows):
        top = i * ROW
        line = top + 31
        parts.append(f'<text class="halo" x="0" y="{top + 15}">{escape(row.name)}</text>')
        parts.append(f'<text class="halo" x="100%" y="{top + 15}" text-anchor="end">{escape(row.note)}</text>')
        parts.append(f'<line class="track" x1="0" x2="100%" y1="{line}" y2="{line}"/>')
        for j, mark in enumerate(row.marks):
            y = line + 3.4 * (j - (len(row.marks) - 1) / 2)  # so that equal ones do not cover each other
            parts.append(f'<g class="{_class(mark.convention)}">')
            if mark.ci95 and mark.value > 0:
                x1, x2 = at(mark.value - mark.ci95), at(mark.value + mark.ci95)
                parts.append(f'<line class="whisker" x1="{x1}" x2="{x2}" y1="{y}" y2="{y}"/>')
            for value, hollow in ((mark.other, ' class="hollow"'), (mark.value, '')):
                if value:
                    what = f'<title>{escape(row.name)}, {mark.convention}: {value:.3g} {unit}</title>'
                    shape = SHAPES[MARKERS[mark.convention]]
                    parts.append(f'<svg x="{at(value)}" y="{y}" overflow="visible"><g{hollow}>{shape}{what}</g></svg>')
            parts.append('</g>')
    parts.append(f'<text class="soft" x="100%" y="{bottom + 32}" text-anchor="end">{unit}, logarithmic axis</text>')
    words = '; '.join(
        f'{row.name}: ' + ', '.join(f'{mark.convention} {mark.value:.3g} {unit}' for mark in row.marks) for row in rows
    )
    return _svg(parts, bottom + 38, f'{title}. {words}.')


def strips(rows: Sequence[tuple[str, Sequence[float]]], highest: float, title: str) -> str:
    """Rates over time, from 0 to 1: a row of cells per name, strongest at `highest`, and its mean."""
    parts = []
    for i, (name, rates) in enumerate(rows):
        top, width = 30 * i, 100 / len(rates)
        mean = sum(rates) / len(rates)
        parts.append(f'<text x="0" y="{top + 13}">{escape(name)}</text>')
        parts.append(f'<text x="100%" y="{top + 13}" text-anchor="end">{percent(mean)}</text>')
        for step, rate in enumerate(rates):
            strength = 0.07 + 0.93 * rate / highest if highest else 0.07
            parts.append(
                f'<rect class="cell" x="{step * width:.3f}%" y="{top + 17}" width="{width:.3f}%" height="9"'
                f' fill-opacity="{strength:.3f}"><title>step {step + 1}: {percent(rate)}</title></rect>'
            )
    bottom = 30 * len(rows)
    steps = len(rows[0][1])
    parts.append(f'<text class="soft" x="0" y="{bottom + 12}">step 1</text>')
    if steps > 1:
        parts.append(f'<text class="soft" x="100%" y="{bottom + 12}" text-anchor="end">step {steps}</text>')
    words = ', '.join(f'{name} {percent(sum(rates) / len(rates))}' for name, rates in rows)
    return _svg(parts, bottom + 18, f'{title}: {words}.')


def key(names: Sequence[str]) -> str:
    """What the marks stand for, as a line of the page."""
    shown = [
        f'<span><svg width="14" height="14" viewBox="-7 -7 14 14" aria-hidden="true" class="{_class(name)}">'
        f'{SHAPES[MARKERS[name]]}</svg> {name}</span>'
        for name in names
    ]
    return f'<p class="key">{"".join(shown)}</p>'


def percent(rate: float) -> str:
    return f'{100 * rate:.1f} %'


def _class(convention: str) -> str:
    return f'of-{convention.replace(" ", "-").lower()}'


def _svg(parts: Sequence[str], height: int, words: str) -> str:
    return f'<svg role="img" aria-label="{escape(words)}" width="100%" height="{height}">{"".join(parts)}</svg>'
