"""Event recordings as frames: T bins by number or by time, counts per pixel and polarity."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import DTypeLike

from .bins import bin_events, check_bins, check_columns, warn_of_order
from .recording import Events
from .resize import Resize, add_counts, add_shares

__all__ = ['check_frame_options', 'count_events', 'frames_of_counts', 'to_frames']

GROUP = 1 << 16  # pixels that are resized at once
CHUNK = 1 << 13  # events that are counted at once: what they need stays in the cache, however many there are


def to_frames(
    events: Events | np.ndarray,
    num_steps: int | None = None,
    *,
    sensor_size: tuple[int, int],
    split_by: str | None = None,
    start: int | None = None,
    end: int | None = None,
    bin_us: int | None = None,
    events_per_bin: int | None = None,
    channels: int = 2,
    size: int | tuple[int, int] | None = None,
    dtype: DTypeLike = np.float32,
) -> np.ndarray:
    """Count the events of each of T bins in every pixel: [T, C, H, W]. Counts are neither scaled nor clipped.

    `split_by='number'`, which is the default: N // T events a bin in the order of the file, the last takes the rest, as
    SpikingJelly does; of fewer than T events the last bin has all. `events_per_bin` makes bins of so many events
    instead; without `num_steps` as many as needed, with it the first T, of which the last may stay empty.

    `'time'`: bin floor((t - start) T / (end - start)) of the events with start <= t < end, in whole microseconds. An
    event on an edge opens a bin, and order does not matter. Where `start`, `end` or `bin_us` is given, this is the
    default. `start` is the first event's time unless given, and `end` the last one's plus 1. `bin_us` makes bins of so
    many microseconds instead, T of them or as many as needed: from `start` on, or up to `end` if only that is given.

    No events give zeros. Warns by number of times that are not in order; by time of a clock that went back, as one that
    was reset or whose counter is full, and of a bin that has nearly all events, as when one time is wrong.

    `events` may be a structured array. `sensor_size` and `size` are (height, width), `channels` 2 for (negative,
    positive), or 3 for (positive, negative, sum), which MSViT shows in place of red, green and blue (arXiv 2505.14719).
    `size` resizes by area: a pixel shares its count among those that it covers, which keeps the number of events, where
    interpolation would not. Besides the frames this takes half a megabyte, however large the sensor.

    Raises ValueError for events outside of the sensor; for columns that are not whole numbers or differ in length, as
    times in seconds; for bins that contradict each other; and where `dtype` cannot hold a count exactly: one beyond its
    range, or the fractions that sizes give which do not divide the sensor's.
    """
    if not isinstance(events, Events):
        events = Events.from_structured(events)
    bins = dict(start=start, end=end, bin_us=bin_us, events_per_bin=events_per_bin)
    split_by = check_frame_options(num_steps, split_by, channels, size, **bins)
    check_events(events, sensor_size)
    if split_by == 'number':
        warn_of_order(events.t)
    events, borders = bin_events(events, num_steps, split_by=split_by, **bins)
    resize = resize_to(size, sensor_size, dtype)

    def add(sums: np.ndarray) -> None:
        add_events(sums, events, borders, resize)

    count = int(borders[-1] - borders[0])
    return exact_frames(add, (len(borders) - 1, channels, *resize.shape), count, resize.unit, dtype)


def check_frame_options(
    num_steps: int | None,
    split_by: str | None,
    channels: int,
    size: int | tuple[int, int] | None,
    **bins: int | None,
) -> str:
    """'number' or 'time', as `check_bins`; ValueError for what `to_frames` does not know."""
    if channels not in (2, 3):
        raise ValueError(f'channels must be 2 (negative, positive) or 3 (positive, negative, sum), not {channels!r}')
    if size is not None and min(pair(size)) < 1:
        raise ValueError(f'size must be at least 1, not {size!r}')
    return check_bins(num_steps, split_by, **bins)


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def count_events(
    events: Events,
    num_steps: int | None = None,
    *,
    sensor_size: tuple[int, int],
    split_by: str | None = None,
    **bins: int | None,
) -> np.ndarray:
    """The counts of `to_frames` of both polarities at the sensor's size, in the smallest unsigned type that holds them.

    `bins` are its `start`, `end`, `bin_us` and `events_per_bin`. Shape: [T, 2, H, W], negative before positive.
    """
    check_events(events, sensor_size)
    events, borders = bin_events(events, num_steps, split_by=split_by, **bins)
    resize = Resize.between(sensor_size, sensor_size)
    for dtype in (np.uint8, np.uint16, np.uint32):
        counts = np.zeros((len(borders) - 1, 2, *sensor_size), dtype)
        add_events(counts, events, borders, resize)
        if is_exact(counts, int(borders[-1] - borders[0])):
            break
    return counts


def frames_of_counts(
    counts: np.ndarray,
    *,
    channels: int = 2,
    size: int | tuple[int, int] | None = None,
    dtype: DTypeLike = np.float32,
) -> np.ndarray:
    """From `count_events` [T, 2, H, W] to the channels, size and dtype of `to_frames`, the same to the last bit."""
    resize = resize_to(size, counts.shape[-2:], dtype)

    def add(sums: np.ndarray) -> None:
        if resize.is_none:
            for polarity, channel in enumerate(channels_of_polarities(channels)):
                sums[:, channel] += counts[:, polarity].astype(sums.dtype)
        else:
            steps = max(1, GROUP // counts[0].size)
            for first in range(0, len(counts), steps):
                part = slice(first, first + steps)
                add_counts(sums[part], counts[part], channels_of_polarities(channels), resize)

    return exact_frames(add, (len(counts), channels, *resize.shape), int(counts.sum()), resize.unit, dtype)


def check_events(events: Events, sensor_size: tuple[int, int]) -> None:
    """Raises ValueError for columns as `check_columns`, and for events outside of the sensor."""
    check_columns(events)
    height, width = sensor_size
    for name, values, limit in (('x', events.x, width), ('y', events.y, height), ('p', events.p, 2)):
        if len(values) and (values.min() < 0 or values.max() >= limit):
            index = int(np.flatnonzero((values < 0) | (values >= limit))[0])
            raise ValueError(
                f'event {index} has {name} = {values[index]}, not one of 0 to {limit - 1}: '
                + ('0 is off and 1 is on' if name == 'p' else f'sensor_size (height, width) is ({height}, {width})')
            )


def resize_to(size: int | tuple[int, int] | None, sensor_size: Sequence[int], dtype: DTypeLike) -> Resize:
    """Raises ValueError for fractions of counts that an integer type cannot hold."""
    (height, width), (new_height, new_width) = sensor_size, sensor_size if size is None else pair(size)
    resize = Resize.between(sensor_size, (new_height, new_width))
    if resize.unit > 1 and np.dtype(dtype).kind != 'f':
        raise ValueError(
            f'size {new_height} x {new_width} does not divide the {height} x {width} pixels of the sensor, which '
            f'splits counts into fractions: {np.dtype(dtype)} cannot hold them, use a floating-point dtype'
        )
    return resize


def channels_of_polarities(channels: int) -> list[int]:
    """The channels in which negative and positive events are counted."""
    return [0, 1] if channels == 2 else [1, 0]


def add_events(sums: np.ndarray, events: Events, borders: np.ndarray, resize: Resize) -> None:
    """Add `resize.unit` for each event to sums [T, C, h, w], shared among the pixels that it covers."""
    T, C, height, width = sums.shape
    of_step = np.arange(T) * (C * height * width)
    of_polarity = np.array(channels_of_polarities(C)) * (height * width)
    for first in range(borders[0], borders[-1], CHUNK):
        part = events[first : min(first + CHUNK, borders[-1])]
        place = np.repeat(of_step, np.diff(borders.clip(first, first + len(part))))
        y, x, p = (column.astype(np.intp) for column in (part.y, part.x, part.p))
        place += of_polarity.take(p)
        add_shares(sums, place, y, x, None, resize)


def exact_frames(
    add: Callable[[np.ndarray], None], shape: tuple[int, ...], count: int, unit: int, dtype: DTypeLike
) -> np.ndarray:
    """What `add` adds to zeros of this shape [T, C, h, w], whole numbers of `unit` for each of `count` events, / unit.

    They are summed in the result itself, and in float64 where its type would round or overflow.
    Raises ValueError where the type cannot hold a count.
    """
    dtype = np.dtype(dtype)
    if dtype.kind not in 'iuf':
        raise ValueError(f'dtype must be an integer or floating-point type, not {dtype}')
    channels = shape[1]

    def summed(accumulator: DTypeLike) -> np.ndarray:
        sums = np.zeros(shape, accumulator)
        add(sums)
        if channels == 3:
            np.add(sums[:, 0], sums[:, 1], out=sums[:, 2])
        return sums

    frames = None if dtype == np.float16 else summed(dtype)
    if frames is None or not is_exact(frames, count * unit * (channels - 1)):
        del frames
        frames = summed(np.float64)
    if count > (limit := largest(dtype)) and frames.max() > limit * unit:
        step, channel, row, column = np.unravel_index(frames.argmax(), shape)
        raise ValueError(
            f'step {step} counts {frames.max() / unit:.10g} events in channel {channel}, row {row}, column {column}, '
            f'and {dtype} holds whole numbers up to {limit} only: use a larger dtype or more steps'
        )
    if unit > 1:
        frames /= unit
    return frames.astype(dtype, copy=False)


def largest(dtype: np.dtype) -> int:
    """Up to where all whole numbers are exact."""
    return 2 ** (np.finfo(dtype).nmant + 1) if dtype.kind == 'f' else int(np.iinfo(dtype).max)


def is_exact(sums: np.ndarray, total: int) -> bool:
    """Whether whole numbers, `total` in all, were summed without rounding and overflow."""
    limit = largest(sums.dtype)
    if total <= limit:
        return True
    if sums.dtype.kind == 'f':
        return bool(sums.max() < limit)  # they only grow, and below it nothing is rounded
    return int(sums.sum(dtype=np.int64)) == total  # each overflow takes 2 ** bits away
