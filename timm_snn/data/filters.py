"""Parts of a recording, and what a camera adds to it: crops, hot pixels, events that follow too fast.

Each takes events and gives events, so that they chain, work on the parts of `iter_events` (where nothing else is said),
and serve as `filter` of a data set: `EventFolder(..., filter=lambda events: drop_refractory(events, 1000))`.
"""

from __future__ import annotations

import math

import numpy as np

from .bins import inside, whole
from .frames import check_events
from .recording import Events

__all__ = ['crop_events', 'drop_pixels', 'drop_refractory', 'find_hot_pixels']


def crop_events(
    events: Events,
    *,
    start: int | None = None,
    end: int | None = None,
    region: tuple[int, int, int, int] | None = None,
) -> Events:
    """The events with start <= t < end, in microseconds, in a region (top, left, height, width), in pixels.

    Rows and columns are counted from the region's corner then, and (height, width) is the sensor's size. Times stay.
    Raises: ValueError for a region without pixels or beyond the upper left corner.
    """
    if start is not None or end is not None:
        events = events[inside(events.t, start, end)]
    if region is None:
        return events
    top, left, height, width = (whole('region', value) for value in region)
    if min(top, left) < 0 or min(height, width) < 1:
        raise ValueError(f'expected a region (top, left, height, width) in pixels of the sensor, got {region}')
    kept = (events.y >= top) & (events.y < top + height) & (events.x >= left) & (events.x < left + width)
    t, x, y, p = events[kept]
    return Events(t, x - x.dtype.type(left), y - y.dtype.type(top), p)


def find_hot_pixels(events: Events, sensor_size: tuple[int, int], factor: float = 10.0) -> np.ndarray:
    """Pixels that fire by themselves, true in [H, W]: those with more than `factor` (1 + m) events.

    m is the median of the eight pixels around, which see nearly the same: an edge that moves, however fast, makes them
    fire alike. The longer the recording, the weaker the pixels that are found; those of a still scene serve for all
    recordings of the camera.
    """
    if not (factor > 0 and math.isfinite(factor)):
        raise ValueError(f'factor must be positive, not {factor}')
    check_events(events, sensor_size)
    height, width = sensor_size
    pixel = events.y.astype(np.intp) * width + events.x
    counts = np.bincount(pixel, minlength=height * width).reshape(height, width)
    padded = np.pad(counts, 1, mode='reflect' if min(sensor_size) > 1 else 'edge')
    around = [
        padded[1 + down : 1 + down + height, 1 + right : 1 + right + width]
        for down in (-1, 0, 1)
        for right in (-1, 0, 1)
        if down or right
    ]
    return counts > factor * (1 + np.median(around, axis=0))


def drop_pixels(events: Events, pixels: np.ndarray) -> Events:
    """The events outside of `pixels`, bool [H, W], as `find_hot_pixels` gives them.

    Raises: ValueError for events outside of its height and width.
    """
    check_events(events, pixels.shape)
    return events[~pixels[events.y, events.x]]


def drop_refractory(events: Events, period: int) -> Events:
    """The events that a pixel keeps which, after each, is blind for `period` microseconds, to both polarities.

    A pixel keeps its first event, the first at least `period` after that one, and so on; of events out of order those
    are first that are in time. On a part of a recording a pixel begins anew.
    """
    if whole('period', period) < 1:
        raise ValueError(f'period must be at least 1 us, not {period}')
    if not len(events):
        return events
    pixel = events.y.astype(np.int64) << 32 | events.x.astype(np.int64)
    order = np.lexsort((events.t, pixel))
    t, pixel = events.t[order], pixel[order]
    # One line of time for all pixels, one after the other: what matters is whether two events are a period apart, so
    # longer pauses count as one, and so do the borders between pixels.
    pauses = np.where(pixel[1:] == pixel[:-1], np.minimum(t[1:] - t[:-1], period), period)
    line = np.concatenate([[0], np.cumsum(pauses)])
    follower = np.append(np.searchsorted(line, line + period), len(line))  # of each event, were it kept; then the end
    kept = np.zeros(len(line) + 1, bool)
    kept[0], count = True, 0
    while count < (count := int(kept.sum())):  # followers of followers: twice as far in every round
        kept[follower[kept]] = True
        follower = follower[follower]
    mask = np.empty(len(events), bool)
    mask[order] = kept[:-1]
    return events[mask]
