"""Windows of fixed duration that slide over a recording of any length: their events, and their frames."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import DTypeLike

from .bins import check_columns, count_before, in_order, whole
from .events import iter_events
from .frames import check_frame_options, to_frames
from .recording import DTYPES, Events

__all__ = ['iter_frames', 'iter_windows']

NO_EVENTS = Events(*(np.zeros(0, dtype) for dtype in DTYPES))
Source = str | os.PathLike[str] | Events | np.ndarray | Iterable[Events]
LONG_SILENCE = 3_600_000_000  # us: an hour without any event is rather a wrong time


def iter_frames(
    source: Source,
    num_steps: int = 1,
    *,
    window: int,
    stride: int | None = None,
    start: int | None = None,
    end: int | None = None,
    sensor_size: tuple[int, int],
    split_by: str = 'time',
    channels: int = 2,
    size: int | tuple[int, int] | None = None,
    dtype: DTypeLike = np.float32,
) -> Iterator[tuple[int, np.ndarray]]:
    """(start, frames [T, C, H, W]) of every window of a recording, one after the other, in bounded memory.

    for start, frames in iter_frames('drive.raw', window=10_000, sensor_size=(480, 640)):
        ...

    A window has T bins of window / T microseconds, or with `split_by='number'` of as many events. The other options are
    those of `to_frames`, and `source`, `window`, `stride`, `start` and `end` those of `iter_windows`.
    Raises: ValueError as both do.
    """
    check_frame_options(num_steps, split_by, channels, size)
    windows = iter_windows(source, window, stride, start=start, end=end)

    def frames() -> Iterator[tuple[int, np.ndarray]]:
        for begin, events in windows:
            bins = dict(start=begin, end=begin + window) if split_by == 'time' else {}
            made = to_frames(
                events,
                num_steps,
                sensor_size=sensor_size,
                split_by=split_by,
                channels=channels,
                size=size,
                dtype=dtype,
                **bins,
            )
            yield begin, made

    return frames()


def iter_windows(
    source: Source, window: int, stride: int | None = None, *, start: int | None = None, end: int | None = None
) -> Iterator[tuple[int, Events]]:
    """(start, events with start <= t < start + window) of every window of a recording, in bounded memory.

    Window k begins at start + k stride. There are as many as show every event, so the last one may reach beyond the
    last event; with `end` as many as lie before it. A window without events has none.

    Args:
        source: A file, which is read in parts; events or a structured array; or parts of events as they come, from
            `iter_events` with options of its own or from a camera.
        window: Microseconds.
        stride: Microseconds from one window to the next, the window's own length by default.
        start: Microseconds, the time of the first event by default; earlier events are left out.
        end: Microseconds; later events are not read.

    An event whose time is before that of the one in front of it counts as if it were at the same time, with one
    warning. Raises: ValueError if it is earlier by more than a window, as after a reset of the clock, and as
    `iter_events` does.
    """
    for name, value in (('window', window), ('stride', window if stride is None else stride)):
        if whole(name, value) < 1:
            raise ValueError(f'{name} must be at least 1 us, not {value}')
    if start is not None and end is not None and whole('end', end) - whole('start', start) < window:
        raise ValueError(f'expected start and end at least a window of {window} us apart, got {start} and {end} us')
    return _slide(_in_order(_parts(source), window), window, stride or window, start, end)


def _parts(source: Source) -> Iterable[Events]:
    if isinstance(source, (str, os.PathLike)):
        return iter_events(source)
    if isinstance(source, np.ndarray):
        source = Events.from_structured(source)
    return [source] if isinstance(source, Events) else source


def _in_order(parts: Iterable[Events], window: int) -> Iterator[Events]:
    """The parts that have events, with times that never go back."""
    latest, seen, warned = None, 0, False
    for part in parts:
        check_columns(part)
        if not len(part):
            continue
        part = part._replace(t=part.t.astype(np.int64, copy=False))
        latest = int(part.t[0]) if latest is None else latest
        if not in_order(part.t) or part.t[0] < latest:
            forward = np.maximum.accumulate(np.maximum(part.t, latest))
            back = forward - part.t
            index = int(back.argmax())
            late = f'event {seen + index} is {back[index]} us earlier than one before it'
            if back[index] > window:
                raise ValueError(
                    f'expected events in order of time, and {late}, which is more than a window of {window} us: was '
                    "the clock reset? events[events.t.argsort(kind='stable')] of read_events is in order"
                )
            if not warned:
                warnings.warn(f'{late}: such events count as if they were at the same time', stacklevel=4)
                warned = True
            part = part._replace(t=forward)
        silence = np.diff(part.t, prepend=latest)
        if (longest := int(silence.max())) > LONG_SILENCE:
            warnings.warn(
                f'there are no events for {longest / 3.6e9:.4g} hours before event {seen + int(silence.argmax())}: is '
                'a time wrong? All windows in between are empty',
                stacklevel=4,
            )
        latest = int(part.t[-1])
        seen += len(part)
        yield part


def _slide(
    parts: Iterable[Events], window: int, stride: int, start: int | None, end: int | None
) -> Iterator[tuple[int, Events]]:
    held: list[Events] = []  # what windows from `start` on may have
    latest = shown = start  # until when windows have been yielded
    for part in parts:
        if start is None:
            start = shown = int(part.t[0])
        latest = int(part.t[-1])
        held.append(_between(part, start, None))
        if latest < start + window:
            continue
        events = Events.concatenate(held)
        while latest >= start + window and (end is None or start + window <= end):
            yield start, _between(events, start, start + window)
            shown, start = start + window, start + stride
        if end is not None and start + window > end:
            return
        held = [_between(events, start, None)]
    if start is None or latest is None or shown is None:  # there are no events at all, and nobody said when to start
        return
    events = Events.concatenate(held or [NO_EVENTS])
    while max(start, shown) <= latest if end is None else start + window <= end:
        yield start, _between(events, start, start + window)
        shown, start = start + window, start + stride


def _between(events: Events, start: int, end: int | None) -> Events:
    """Events with start <= t < end, of events in order of time."""
    first, last = count_before(events.t, [start, 2**64 if end is None else end])
    return events[first:last]
