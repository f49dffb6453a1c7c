"""Counts in pixels of another size: each pixel shares its count among those that it covers, in whole numbers."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

__all__ = ['Resize', 'add_counts', 'add_shares']

PRODUCTS_PER_PIXEL = 1000  # of two matrices take as long as one pixel that shares its count, on one core with AVX2


class Axis(NamedTuple):
    """How the pixels of one axis share their counts among as many or fewer or more pixels of the same total length."""

    first: np.ndarray  # [old]: the first new pixel that each covers
    parts: np.ndarray  # [span, old]: how much of each lies in that one and those behind it, in units
    unit: int  # units that an old pixel has; the least that gives whole numbers, 1 where `new` divides `old`

    @classmethod
    def between(cls, old: int, new: int) -> Axis:
        unit, length = new // math.gcd(old, new), old // math.gcd(old, new)  # of an old pixel, and of a new one
        start = np.arange(old) * unit
        first = start // length
        span = int(((start + unit - 1) // length - first).max()) + 1
        edges = (first + np.arange(span + 1)[:, None]) * length  # [span + 1, old]
        return cls(first, np.diff(edges.clip(start, start + unit), axis=0), unit)


class Resize(NamedTuple):
    """From the sensor's pixels to those of a frame, by area; sums are whole numbers, `unit` of them an event."""

    rows: Axis
    columns: Axis
    shape: tuple[int, int]

    @classmethod
    def between(cls, old: Sequence[int], new: Sequence[int]) -> Resize:
        """From (height, width) to (height, width)."""
        return cls(Axis.between(old[0], new[0]), Axis.between(old[1], new[1]), (new[0], new[1]))

    @property
    def unit(self) -> int:
        return self.rows.unit * self.columns.unit

    @property
    def is_none(self) -> bool:
        return self.shape == (len(self.rows.first), len(self.columns.first))


def add_shares(
    sums: np.ndarray, place: np.ndarray, y: np.ndarray, x: np.ndarray, counts: np.ndarray | None, resize: Resize
) -> None:
    """Add to flat `sums`, in the image that begins at `place`, the shares of pixels (y, x), as often as `counts` says.

    `place` is changed.
    """
    rows, columns, width = resize.rows, resize.columns, resize.shape[1]
    sums = sums.reshape(-1)
    place += (rows.first * width).take(y)
    place += columns.first.take(x)
    if counts is None and resize.unit == 1:
        np.add.at(sums, place, sums.dtype.type(1))  # of another type it would be thirty times slower
        return
    for down, in_rows in enumerate(rows.parts):
        for right, in_columns in enumerate(columns.parts):
            share = in_rows.take(y) * in_columns.take(x)
            here = share.nonzero()[0] if down or right else slice(None)  # most pixels lie in one new pixel
            share = share[here] if counts is None else share[here] * counts[here]
            np.add.at(sums, place[here] + (down * width + right), share.astype(sums.dtype))


def add_counts(sums: np.ndarray, counts: np.ndarray, channels: Sequence[int], resize: Resize) -> None:
    """Add `resize.unit` for each event of counts [T, 2, H, W] to these two channels of zeros [T, C, h, w]."""
    height, width = counts.shape[2:]
    new_height, new_width = resize.shape
    products = counts[:, :, 0, 0].size * new_height * width * (height + new_width)  # of the two matrices
    if np.count_nonzero(counts) > products // PRODUCTS_PER_PIXEL:
        resized = shares(height, new_height) @ counts @ shares(width, new_width).T
        sums[:, channels] = resized.astype(np.int64)  # whole numbers below 2 ** 53 are exact in float64
        return
    flat = counts.ravel()
    pixels = (flat != 0).nonzero()[0]  # of booleans it is fast
    image, y, x = np.unravel_index(pixels, (len(counts) * 2, height, width))
    step, polarity = np.divmod(image, 2)
    place = (step * sums.shape[1] + np.array(channels).take(polarity)) * (new_height * new_width)
    add_shares(sums, place, y, x, flat[pixels], resize)


@functools.lru_cache(maxsize=16)
def shares(old: int, new: int) -> np.ndarray:
    """The parts of `Axis.between` as float64 [new, old]."""
    axis = Axis.between(old, new)
    matrix = np.zeros((new, old))
    for step, parts in enumerate(axis.parts):
        covered = parts.nonzero()[0]
        matrix[axis.first[covered] + step, covered] = parts[covered]
    return matrix
