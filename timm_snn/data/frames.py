"""Event recordings as frames: T bins by number or by time, counts per pixel and polarity."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import DTypeLike

if TYPE_CHECKING:
    from .events import Events

__all__ = ['check_frame_options', 'count_events', 'frames_of_counts', 'to_frames']

SHORTEST = 10_000  # us: recordings are longer, and in milliseconds or seconds they look shorter


def to_frames(
    events: Events,
    num_steps: int,
    *,
    sensor_size: tuple[int, int],
    split_by: str = 'number',
    channels: int = 2,
    size: int | tuple[int, int] | None = None,
    dtype: DTypeLike = np.float32,
) -> np.ndarray:
    """Count the events of each of T bins in every pixel: [T, C, H, W]. Counts are neither scaled nor clipped.

    `split_by='number'`: N // T events a bin in the order of the file, the last takes the rest, as SpikingJelly does; of
    fewer than T events the last bin has all. `'time'`: bin floor((t - t0) T / (t1 - t0 + 1)) for the first and last
    time t0 and t1 in whole microseconds, so an event on an edge opens a bin, the last one is in the last bin, and order
    does not matter. No events give zeros. By time it warns of a clock that went back, as one that was reset or whose
    counter is full, and of a bin that has nearly all events, as when one time is wrong.

    `sensor_size` and `size` are (height, width), `channels` 2 for (negative, positive), or 3 for (positive, negative,
    sum), which MSViT shows in place of red, green and blue (arXiv 2505.14719). `size` resizes by area: a pixel shares
    its count among those that it covers, which keeps the number of events, where interpolation would not.

    Raises ValueError for events outside of the sensor; for columns that are not whole numbers or differ in length, as
    times in seconds; and where `dtype` cannot hold a count exactly: one beyond its range, or the fractions that sizes
    give which do not divide the sensor's.
    """
    check_frame_options(num_steps, split_by, channels, size)
    counts = count_events(events, num_steps, sensor_size=sensor_size, split_by=split_by)
    return frames_of_counts(counts, channels=channels, size=size, dtype=dtype)


def check_frame_options(num_steps: int, split_by: str, channels: int, size: int | tuple[int, int] | None) -> None:
    """Raises ValueError for what `to_frames` does not know."""
    if num_steps < 1:
        raise ValueError(f'num_steps must be at least 1, not {num_steps}')
    if split_by not in ('number', 'time'):
        raise ValueError(f"split_by must be 'number' or 'time', not {split_by!r}")
    if channels not in (2, 3):
        raise ValueError(f'channels must be 2 (negative, positive) or 3 (positive, negative, sum), not {channels!r}')
    if size is not None and min(pair(size)) < 1:
        raise ValueError(f'size must be at least 1, not {size!r}')


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def count_events(
    events: Events, num_steps: int, *, sensor_size: tuple[int, int], split_by: str = 'number'
) -> np.ndarray:
    """The counts of `to_frames` of both polarities at the sensor's size, in the smallest unsigned type that holds them.

    Shape: [T, 2, H, W], negative before positive.
    """
    height, width = sensor_size
    check_columns(events)
    for name, values, limit in (('x', events.x, width), ('y', events.y, height), ('p', events.p, 2)):
        if len(values) and (values.min() < 0 or values.max() >= limit):
            index = int(np.flatnonzero((values < 0) | (values >= limit))[0])
            raise ValueError(
                f'event {index} has {name} = {values[index]}, not one of 0 to {limit - 1}: '
                + ('0 is off and 1 is on' if name == 'p' else f'sensor_size (height, width) is ({height}, {width})')
            )
    p, x, y = (values.astype(np.int64) for values in (events.p, events.x, events.y))  # with uint64 they would be floats
    pixel = (p * height + y) * width + x
    pixel += step_of_events(events.t, num_steps, split_by) * (2 * height * width)
    counts = np.bincount(pixel, minlength=num_steps * 2 * height * width)
    return counts.reshape(num_steps, 2, height, width).astype(np.min_scalar_type(counts.max()))


def check_columns(events: Events) -> None:
    """Raises ValueError unless all four are whole numbers, N of each."""
    lengths = [len(values) for values in events]
    if len(set(lengths)) > 1:
        raise ValueError(f'expected t, x, y and p of one length, got {", ".join(map(str, lengths))}')
    for name, values in zip(events._fields, events, strict=True):
        kind = values.dtype.kind
        if kind not in 'iu' and not (kind == 'b' and name == 'p'):
            advice = 'whole microseconds: seconds times 1e6, rounded' if name == 't' else 'whole numbers'
            raise ValueError(
                f'expected {name} as integers, got {values.dtype}: convert to {advice}, with '
                f'events._replace({name}=...)'
            )


def step_of_events(t: np.ndarray, num_steps: int, split_by: str) -> np.ndarray:
    """The bin of each event, int64 [N]; the bins are defined at `to_frames`."""
    if split_by == 'number':
        each = len(t) // num_steps
        return np.repeat(np.arange(num_steps), [each] * (num_steps - 1) + [len(t) - each * (num_steps - 1)])
    if not len(t):
        return np.zeros(0, np.int64)
    first = int(t.min())
    span = int(t.max()) - first + 1
    # Differences modulo 2**64, which are right for times as large as int64 or uint64 allows.
    since = t.astype(np.uint64) - np.uint64(first % 2**64)
    edges = np.array([-(-step * span // num_steps) for step in range(1, num_steps)], np.uint64)
    steps = np.searchsorted(edges, since, side='right')
    warn_of_clock(since, span, steps, num_steps)
    return steps


def warn_of_clock(since: np.ndarray, span: int, steps: np.ndarray, num_steps: int) -> None:
    """Warns where the times since the first one are those of no clock that ran through the recording."""
    if len(since) < 100 or num_steps == 1:  # too few to tell from chance
        return
    before, after = since[:-1], since[1:]
    back = np.where(before > after, before - after, np.uint64(0))
    # a recording that is only out of order goes back often, by a little or by anything
    if (far := back > span // 10).any() and (back > span // 100).sum() <= len(since) // 10:
        index = int(far.argmax()) + 1
        warnings.warn(
            f'times go back by {back[index - 1]} us at event {index}, as of a clock that was reset or whose counter is '
            "full: frames by time mix what came before and after. split_by='number' takes the order of the file",
            stacklevel=5,
        )
    share = np.bincount(steps, minlength=num_steps).max() / len(steps)
    if share > 0.99:
        warnings.warn(
            f'{share:.1%} of the events lie in one of {num_steps} bins by time, of {span} us in all: is a time wrong, '
            "or not in microseconds? split_by='number' does not look at times",
            stacklevel=5,
        )
    elif span < SHORTEST:
        warnings.warn(
            f'all events lie within {span} us, which is less than {SHORTEST // 1000} ms: are their times in '
            'milliseconds or seconds? By time, frames count in whole microseconds',
            stacklevel=5,
        )


def frames_of_counts(
    counts: np.ndarray,
    *,
    channels: int = 2,
    size: int | tuple[int, int] | None = None,
    dtype: DTypeLike = np.float32,
) -> np.ndarray:
    """From `count_events` [T, 2, H, W] to the channels, size and dtype of `to_frames`."""
    dtype = np.dtype(dtype)
    if dtype.kind not in 'iuf':
        raise ValueError(f'dtype must be an integer or floating-point type, not {dtype}')
    if channels == 3:
        negative, positive = np.moveaxis(counts.astype(np.int64), 1, 0)
        counts = np.stack([positive, negative, positive + negative], axis=1)
    if size is not None and pair(size) != counts.shape[-2:]:
        (height, width), (new_height, new_width) = counts.shape[-2:], pair(size)
        if dtype.kind != 'f' and (height % new_height or width % new_width):
            raise ValueError(
                f'size {new_height} x {new_width} does not divide the {height} x {width} pixels of the sensor, which '
                f'splits counts into fractions: {dtype} cannot hold them, use a floating-point dtype'
            )
        # Sums of integers below 2 ** 53 are exact in float64.
        counts = shares(height, new_height) @ counts @ shares(width, new_width).T
    limit = 2 ** (np.finfo(dtype).nmant + 1) if dtype.kind == 'f' else np.iinfo(dtype).max
    if counts.max(initial=0) > limit:
        step, channel, row, column = np.unravel_index(counts.argmax(), counts.shape)
        raise ValueError(
            f'step {step} counts {counts.max():.10g} events in channel {channel}, row {row}, column {column}, '
            f'and {dtype} holds whole numbers up to {limit} only: use a larger dtype or more steps'
        )
    return counts.astype(dtype)


def shares(old: int, new: int) -> np.ndarray:
    """The part of each of `old` pixels that lies in each of `new` ones of the same total width: [new, old]."""
    start, end = np.arange(old) * new, np.arange(1, old + 1) * new  # in units in which both have whole edges
    new_start, new_end = np.arange(new)[:, None] * old, np.arange(1, new + 1)[:, None] * old
    return np.maximum(np.minimum(end, new_end) - np.maximum(start, new_start), 0) / new
