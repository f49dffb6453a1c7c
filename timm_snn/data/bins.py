"""Which events are in which of T bins: by number, by time, of fixed duration, or of fixed counts."""

from __future__ import annotations

import operator
import warnings
from typing import Any

import numpy as np

from .recording import Events

__all__ = ['bin_events', 'check_bins', 'check_columns', 'count_before', 'in_order', 'inside', 'warn_of_order', 'whole']

SHORTEST = 10_000  # us: recordings are longer, and in milliseconds or seconds they look shorter
MOST_BINS = 1_000_000  # so many are of a wrong time, or of a recording that one array of frames cannot hold


def bin_events(
    events: Events,
    num_steps: int | None = None,
    *,
    split_by: str | None = None,
    start: int | None = None,
    end: int | None = None,
    bin_us: int | None = None,
    events_per_bin: int | None = None,
) -> tuple[Events, np.ndarray]:
    """The events in the order of the bins, and borders [T + 1]: bin i has those from borders[i] until borders[i + 1].

    The options are those of `to_frames`, which defines the bins.
    """
    if check_bins(num_steps, split_by, start, end, bin_us, events_per_bin) == 'time':
        ordered = events if in_order(events.t) else events[np.argsort(events.t, kind='stable')]
        edges = edges_of_bins(ordered.t, num_steps, start, end, bin_us)
        borders = count_before(ordered.t, edges)
        if len(events) >= 100 and len(borders) > 2:  # fewer are too few to tell from chance
            warn_of_clock(events.t, borders, stretched=bin_us is start is end is None)
        return ordered, borders
    if start is not None or end is not None:
        events = events[inside(events.t, start, end)]
    each = events_per_bin or len(events) // (num_steps or 1)
    steps = num_steps or max(1, -(-len(events) // each))
    borders = np.minimum(np.arange(steps + 1) * each, len(events))
    if events_per_bin is None:
        borders[-1] = len(events)
    return events, borders


def check_bins(
    num_steps: int | None,
    split_by: str | None = None,
    start: int | None = None,
    end: int | None = None,
    bin_us: int | None = None,
    events_per_bin: int | None = None,
) -> str:
    """'number' or 'time', whichever these options of `to_frames` mean; ValueError where they contradict each other."""
    for name, value in (('num_steps', num_steps), ('bin_us', bin_us), ('events_per_bin', events_per_bin)):
        if value is not None and whole(name, value) < 1:
            raise ValueError(f'{name} must be at least 1, not {value}')
    for name, value in (('start', start), ('end', end)):
        if value is not None:
            whole(name, value)
    if split_by not in (None, 'number', 'time'):
        raise ValueError(f"split_by must be 'number' or 'time', not {split_by!r}")
    if num_steps is None and bin_us is None and events_per_bin is None:
        raise ValueError('expected num_steps, or bin_us or events_per_bin in its place')
    if bin_us is not None and (events_per_bin is not None or split_by == 'number'):
        raise ValueError("bin_us makes bins by time: leave out events_per_bin and split_by='number'")
    if events_per_bin is not None and split_by == 'time':
        raise ValueError("events_per_bin makes bins by number: leave out split_by='time'")
    if split_by is None:
        by_time = events_per_bin is None and not bin_us is start is end is None
        return 'time' if by_time else 'number'
    return split_by


def whole(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f'{name} must be a whole number (times are in microseconds), not {value!r}') from None


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


def in_order(t: np.ndarray) -> bool:
    return bool((t[1:] >= t[:-1]).all())


def inside(t: np.ndarray, start: int | None, end: int | None) -> slice | np.ndarray:
    """What takes the events with start <= t < end: a slice, which copies nothing, if they are in order of time."""
    lowest, highest = (-(2**64) if start is None else start), (2**64 if end is None else end)
    if in_order(t):
        return slice(*count_before(t, [lowest, highest]).tolist())
    return (t >= lowest) & (t < highest)


def count_before(t: np.ndarray, edges: list[int]) -> np.ndarray:
    """For each edge the number of events before it, of times in order; edges may lie beyond the type of the times."""
    least, most = np.iinfo(t.dtype).min, np.iinfo(t.dtype).max
    counts = np.searchsorted(t, np.array([min(max(edge, least), most) for edge in edges], t.dtype))
    counts[[edge > most for edge in edges]] = len(t)
    return counts


def edges_of_bins(
    t: np.ndarray, num_steps: int | None, start: int | None, end: int | None, bin_us: int | None
) -> list[int]:
    """The T + 1 times, in whole microseconds, at which the bins begin and the last one ends; `t` is in order."""
    if num_steps is not None and bin_us is not None and start is None and end is not None:
        start = end - num_steps * bin_us
    first = int(t[0]) if len(t) else 0
    first = first if start is None else start
    if end is not None:
        last = end
    elif num_steps is not None and bin_us is not None:
        last = first + num_steps * bin_us
    else:
        last = int(t[-1]) + 1 if len(t) else first + 1
        last += (first - last) % (bin_us or 1)
    span = last - first
    if span < 1:
        raise ValueError(f'expected bins from start to a later end, got {first} and {last} us')
    if bin_us is None:
        steps = num_steps or 1
    elif span % bin_us or num_steps not in (None, span // bin_us):
        count = '' if num_steps is None else f'{num_steps} '
        raise ValueError(
            f'expected {count}whole bins of {bin_us} us from start to end, got {span / bin_us:g} from {first} to {last}'
        )
    else:
        steps = span // bin_us
    if steps > MOST_BINS:
        raise ValueError(
            f'{steps:,} bins from {first} to {last} us are more than {MOST_BINS:,}: is a time wrong? iter_frames takes '
            'recordings of any length'
        )
    return [first - (-step * span // steps) for step in range(steps + 1)]


def warn_of_clock(t: np.ndarray, borders: np.ndarray, *, stretched: bool) -> None:
    """Warns where the times are those of no clock that ran through the recording.

    `stretched` says that the bins reach from the first event to the last, so that one wrong time moves them all.
    """
    span = int(t.max()) - int(t.min()) + 1
    if not in_order(t):
        # differences modulo 2**64, which are right for times as large as int64 or uint64 allows
        before, after = t[:-1].astype(np.uint64), t[1:].astype(np.uint64)
        back = np.where(t[:-1] > t[1:], before - after, np.uint64(0))
        # a recording that is only out of order goes back often, by a little or by anything
        if (far := back > span // 10).any() and (back > span // 100).sum() <= len(t) // 10:
            index = int(far.argmax()) + 1
            warnings.warn(
                f'times go back by {back[index - 1]} us at event {index}, as of a clock that was reset or whose '
                "counter is full: frames by time mix what came before and after. split_by='number' takes the order of "
                'the file',
                stacklevel=4,
            )
    if not stretched:
        return
    share = np.diff(borders).max() / len(t)
    if share > 0.99:
        warnings.warn(
            f'{share:.1%} of the events lie in one of {len(borders) - 1} bins by time, of {span} us in all: is a time '
            "wrong, or not in microseconds? split_by='number' does not look at times",
            stacklevel=4,
        )
    elif span < SHORTEST:
        warnings.warn(
            f'all events lie within {span} us, which is less than {SHORTEST // 1000} ms: are their times in '
            'milliseconds or seconds? By time, frames count in whole microseconds',
            stacklevel=4,
        )


def warn_of_order(t: np.ndarray) -> None:
    """Warns where bins by number, which follow the order of the file, mix times."""
    if not in_order(t):
        index = int((t[1:] < t[:-1]).argmax()) + 1
        warnings.warn(
            f'times are not in order, {t[index]} us at event {index} comes after {t[index - 1]} us: bins by number '
            "follow the order of the file; events[events.t.argsort(kind='stable')] is in order of time",
            stacklevel=3,
        )
