"""Columns of numbers to events: which column is which, the unit of time, and how polarity is written.

Arrays, text and HDF5 say none of the three, or each in its own words. What they leave open is refused, not guessed.
"""

import re
from collections.abc import Iterable, Sequence

import numpy as np

from .recording import Events

__all__ = ['ORDERS', 'UNITS', 'Converter', 'fitting_orders', 'named_columns']

ORDERS = {'txyp': "E2VID's", 'xytp': "tonic's", 'xypt': "Metavision's"}  # those in use
UNITS = {'s': 1_000_000, 'ms': 1000, 'us': 1, 'ns': 1}  # microseconds in one, or nanoseconds
RANGES = {'t': (-(2**63), 2**63 - 1), 'x': (0, 32767), 'y': (0, 32767), 'p': (-1, 1)}
NAMES = {
    't': ('t', 'ts', 'time', 'times', 'timestamp', 'timestamps'),
    'x': ('x', 'xs'),
    'y': ('y', 'ys'),
    'p': ('p', 'ps', 'pol', 'polarity', 'polarities', 'on'),
}
COLUMNS = {name: column for column, names in NAMES.items() for name in names}


def named_columns(names: Iterable[str]) -> tuple[dict[str, str], str | None] | None:
    """The name that each of t, x, y and p has among these, and the unit of time where its name ends in one.

    Such as timestamp, x, y, polarity of DV, or `t_us` or `time [s]`. None if one is missing or there twice.
    """
    found: dict[str, str] = {}
    unit = None
    for name in names:
        word, *rest = re.findall('[a-z]+', name.lower()) or ['']
        column = COLUMNS.get(word)
        if column is None or (rest and not (column == 't' and len(rest) == 1 and rest[0] in UNITS)):
            continue
        if column in found:
            return None
        found[column] = name
        unit = rest[0] if rest else unit
    return (found, unit) if len(found) == 4 else None


def fitting_orders(columns: Sequence[np.ndarray]) -> list[str]:
    """Those of ORDERS in which four columns can be events: times in order, pixels in range, polarity of two values."""
    return [order for order in ORDERS if _fits(dict(zip(order, columns, strict=True)))]


def _fits(column: dict[str, np.ndarray]) -> bool:
    pixels = all((column[c] >= 0).all() and (column[c] <= 32767).all() for c in 'xy')
    whole = all((column[c] == np.rint(column[c])).all() for c in 'xyp')
    two = any(np.isin(column['p'], values).all() for values in ((0, 1), (-1, 1)))
    return bool(pixels and whole and two and (column['t'][1:] >= column['t'][:-1]).all())


class Converter:
    """Columns t, x, y, p of numbers to Events, chunk after chunk of one recording.

    time_unit: Of t, one of UNITS. Without it t is in microseconds, and no column may hold floating-point numbers.
    Polarity is 0 and 1, or -1 and 1; -1 becomes 0. A recording that has both 0 and -1 is refused.
    """

    def __init__(self, time_unit: str | None):
        self.time_unit = time_unit
        self.zero = self.minus = False  # whether a polarity of 0, or of -1, was met

    def check(self, dtypes: Iterable[np.dtype]) -> str | None:
        """What is wrong with these types of the columns t, x, y, p."""
        for name, dtype in zip(RANGES, dtypes, strict=True):
            if dtype.kind == 'f' and self.time_unit is None:
                return f"expected integers, t in microseconds, got {name} of {dtype}: say its unit, time_unit='s'"
            if dtype.kind not in 'iubf' or dtype.shape:
                return f'expected a column {name} of numbers, got {dtype}'
        return None

    def wrong(self, columns: Sequence[np.ndarray]) -> tuple[int, int, str] | None:
        """Column, index and text of the first value that Events cannot hold."""
        for c, ((name, (low, high)), column) in enumerate(zip(RANGES.items(), columns, strict=True)):
            if name == 't':
                scale = 1 if self.time_unit is None else UNITS[self.time_unit]
                low, high = -(2**63 // scale), (2**63 - 1) // scale
            if column.dtype.kind == 'f':
                bad = ~((column >= low) & (column < high + 1))  # not a number is no number in the range
                if name != 't':
                    bad |= column != np.rint(column)
            elif int(column.min()) < low or int(column.max()) > high:
                bad = (column < low) | (column > high)
            else:
                continue
            if bad.any():
                i = int(bad.argmax())
                return c, i, f'expected {name} in {low} ... {high}, got {column[i]}'
        return self._mixed_polarity(columns[3])

    def _mixed_polarity(self, p: np.ndarray) -> tuple[int, int, str] | None:
        if (lowest := int(p.min())) >= 0 and not self.minus:
            self.zero = self.zero or lowest == 0
            return None
        zero, minus = p == 0, p == -1
        has_zero, has_minus = bool(zero.any()), bool(minus.any())
        if (self.zero or has_zero) and (self.minus or has_minus):
            firsts = [int(values.argmax()) for seen, has, values in (
                (self.zero, has_zero, zero), (self.minus, has_minus, minus)
            ) if has and not seen]  # fmt: skip
            i = max(firsts, default=0)
            return 3, i, f'expected p in 0, 1 or in -1, 1, got {p[i]}'
        self.zero, self.minus = self.zero or has_zero, self.minus or has_minus
        return None

    def events(self, columns: Sequence[np.ndarray]) -> Events:
        t, x, y, p = columns
        return Events(self._microseconds(t), x.astype(np.int16), y.astype(np.int16), (p > 0).astype(np.uint8))

    def _microseconds(self, t: np.ndarray) -> np.ndarray:
        if self.time_unit == 'ns':
            t = np.floor(t / 1000) if t.dtype.kind == 'f' else t // 1000
        elif self.time_unit is not None:
            scale = UNITS[self.time_unit]
            t = np.rint(t.astype(np.float64) * scale) if t.dtype.kind == 'f' else t.astype(np.int64) * scale
        return t.astype(np.int64)
