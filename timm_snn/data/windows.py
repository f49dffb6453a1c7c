"""Windows of fixed duration that slide over recordings: their events, their frames, and a data set of them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch.utils.data import Dataset

from .bins import check_columns, count_before, in_order, whole
from .cache import FrameCache
from .datasets import EventDataset
from .events import iter_events, recording_info
from .frames import check_frame_options, count_events, frames_of_counts, to_frames
from .recording import DTYPES, Events

__all__ = ['WindowDataset', 'iter_frames', 'iter_windows']

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
    sensor_size: tuple[int, int] | None = None,
    split_by: str = 'time',
    channels: int = 2,
    size: int | tuple[int, int] | None = None,
    dtype: DTypeLike = np.float32,
) -> Iterator[tuple[int, np.ndarray]]:
    """(start, frames [T, C, H, W]) of every window of a recording, one after the other, in bounded memory.

    for start, frames in iter_frames('drive.raw', window=10_000):
        ...

    A window has T bins of window / T microseconds, or with `split_by='number'` of as many events. The other options are
    those of `to_frames`, and `source`, `window`, `stride`, `start` and `end` those of `iter_windows`. `sensor_size` is
    what the file says, if it does, by default.
    Raises: ValueError as both do, and for an unknown `sensor_size`.
    """
    check_frame_options(num_steps, split_by, channels, size)
    if sensor_size is None and isinstance(source, (str, os.PathLike)):
        sensor_size = recording_info(source).sensor_size
    if sensor_size is None:
        raise ValueError('expected sensor_size=(height, width), which these events do not come with')
    windows = iter_windows(source, window, stride, start=start, end=end)

    def frames() -> Iterator[tuple[int, np.ndarray]]:
        for begin, events in windows:
            made = to_frames(
                events,
                num_steps,
                sensor_size=sensor_size,
                split_by=split_by,
                start=begin,
                end=begin + window,
                channels=channels,
                size=size,
                dtype=dtype,
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
    check_window(window, stride)
    if start is not None and end is not None and whole('end', end) - whole('start', start) < window:
        raise ValueError(f'expected start and end at least a window of {window} us apart, got {start} and {end} us')
    return _slide(_in_order(_parts(source), window), window, stride or window, start, end)


def check_window(window: int, stride: int | None) -> None:
    for name, value in (('window', window), ('stride', window if stride is None else stride)):
        if whole(name, value) < 1:
            raise ValueError(f'{name} must be at least 1 us, not {value}')


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


class WindowDataset(Dataset):
    """Windows of the recordings of a data set, each with the label of its recording: `windows[i]` is (frames, label).

    Window k of a recording begins k strides after its first event. Only those that lie before the end of the last event
    are samples, as the rest of a recording shows less than its label says; of a shorter recording the first one is.
    `windows.places[i]` is (recording, start in microseconds). Frames are made as the data set says: of T bins of
    window / T microseconds with its `split_by='time'`, or of as many events with 'number'; `filter` and `transform` are
    applied too.

    All recordings are read once to see how long they are. Where the data set has a cache, that and the counts are kept
    in it; without one each window reads its recording again.

    Args:
        dataset: An `EventDataset`, as `EventFolder`; rows of frames have no recordings.
        window, stride: Microseconds; the stride is the window's own length by default, and with smaller ones windows
            overlap.

    Raises: ValueError for windows less than 1 us long or apart, TypeError for other data sets.
    """

    def __init__(self, dataset: EventDataset, window: int, stride: int | None = None) -> None:
        if not isinstance(dataset, EventDataset):
            raise TypeError(
                f'expected a data set of recordings, as EventFolder, got a {type(dataset).__name__}: take windows of '
                'the data set first, and then a part of them'
            )
        check_window(window, stride)
        if (bin_us := dataset.bins.get('bin_us')) and dataset.num_steps * bin_us != window:
            raise ValueError(
                f'the {dataset.num_steps} bins of {bin_us} us of the data set are not a window of {window} us: leave '
                'out bin_us, or change one of them'
            )
        self.dataset, self.window, self.stride = dataset, window, stride or window
        self.classes, self.sensor_size, self.num_steps = dataset.classes, dataset.sensor_size, dataset.num_steps
        self.cache: FrameCache | None = None
        if dataset.cache is not None:
            settings = dataset.cache.settings | {'window': window, 'stride': self.stride}
            self.cache = FrameCache(dataset.cache.folder / f'windows-{window}-{self.stride}', settings)
        self.places = [(index, start) for index in range(len(dataset)) for start in self.starts(index)]

    def __len__(self) -> int:
        return len(self.places)

    @property
    def targets(self) -> list[int]:
        labels = self.dataset.targets
        return [labels[recording] for recording, _ in self.places]

    def __getitem__(self, index: int) -> tuple[Any, int]:
        dataset = self.dataset
        frames = torch.from_numpy(frames_of_counts(self.counts(index), channels=dataset.channels, size=dataset.size))
        return dataset.transform(frames) if dataset.transform else frames, dataset.samples[self.places[index][0]][1]

    def counts(self, index: int) -> np.ndarray:
        """The counts of one window, as those of `EventDataset`."""
        recording, start = self.places[index]
        if self.cache is None:
            return self.count(self.events(recording), start)
        name, stamp = self.dataset.samples[recording][0], self.cache.stamp(self.dataset.sources(recording))
        counts = self.cache.load(f'{name}/{start}', stamp)
        if counts is None:  # the recording is read once for all of its windows
            events = self.events(recording)
            every = {other: self.count(events, other) for other in self.starts(recording)}
            for other, counts_of_other in every.items():
                self.cache.store(f'{name}/{other}', stamp, counts_of_other)
            counts = every[start]
        return counts

    def count(self, events: Events, start: int) -> np.ndarray:
        end = start + self.window
        return count_events(
            _between(events, start, end),
            self.num_steps,
            sensor_size=self.sensor_size,
            split_by=self.dataset.split_by,
            start=start,
            end=end,
            **self.dataset.bins,
        )

    def events(self, recording: int) -> Events:
        """The events of a recording, in order of time."""
        events = self.dataset.events(recording)
        return events if in_order(events.t) else events[np.argsort(events.t, kind='stable')]

    def starts(self, recording: int) -> range:
        """When the windows of a recording begin."""
        first, last = self.span(recording)
        count = max(1, (last + 1 - first - self.window) // self.stride + 1)
        return range(first, first + count * self.stride, self.stride)

    def span(self, recording: int) -> tuple[int, int]:
        """The times of the first and of the last event."""
        name, stamp = self.dataset.samples[recording][0], ''
        if self.cache is not None:
            stamp = self.cache.stamp(self.dataset.sources(recording))
            if (kept := self.cache.load(f'{name}/span', stamp)) is not None:
                return int(kept[0]), int(kept[1])
        t = self.events(recording).t
        if not len(t):
            raise ValueError(f'recording {name} has no events to take windows of')
        if self.cache is not None:
            self.cache.store(f'{name}/span', stamp, t[[0, -1]])
        return int(t[0]), int(t[-1])
