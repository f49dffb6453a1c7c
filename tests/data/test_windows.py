"""Windows slide over recordings of any length, and show every event."""

import pickle
import warnings

import numpy as np
import pytest
import torch

from tests.support import writers
from timm_snn.data import (
    EventFolder,
    Events,
    WindowDataset,
    crop_events,
    iter_events,
    iter_frames,
    iter_windows,
    to_frames,
)

SENSOR = (128, 128)


def at(*times: int) -> Events:
    zeros = np.zeros(len(times), np.int16)
    return Events(np.array(times, np.int64), zeros, zeros, zeros.astype(np.uint8))


def spans(windows) -> list[tuple[int, list[int]]]:
    return [(start, events.t.tolist()) for start, events in windows]


def test_windows_lie_side_by_side_from_the_first_event_until_all_are_shown():
    assert spans(iter_windows(at(30, 35, 50, 69, 75), 20)) == [(30, [30, 35]), (50, [50, 69]), (70, [75])]
    assert spans(iter_windows(at(30, 35, 50), 20)) == [(30, [30, 35]), (50, [50])]
    assert spans(iter_windows(at(7), 20)) == [(7, [7])]


def test_windows_overlap_or_leave_gaps():
    events = at(0, 5, 10, 15, 20)
    assert spans(iter_windows(events, 10, 5)) == [(0, [0, 5]), (5, [5, 10]), (10, [10, 15]), (15, [15, 20])]
    assert spans(iter_windows(events, 4, 10)) == [(0, [0]), (10, [10]), (20, [20])]
    assert spans(iter_windows(at(0, 15), 4, 10)) == [(0, [0]), (10, [])]


def test_start_and_end_say_which_windows_there_are():
    events = at(30, 35, 50)
    assert spans(iter_windows(events, 20, start=0, end=100)) == [
        (0, []), (20, [30, 35]), (40, [50]), (60, []), (80, []),
    ]  # fmt: skip
    assert spans(iter_windows(events, 20, start=32)) == [(32, [35, 50])]
    assert spans(iter_windows(events, 10, end=50)) == [(30, [30, 35]), (40, [])]
    assert spans(iter_windows(at(), 10, start=0, end=20)) == [(0, []), (10, [])]
    assert spans(iter_windows(at(), 10)) == []
    with pytest.raises(ValueError, match='a window of 20 us apart, got 0 and 10 us'):
        iter_windows(events, 20, start=0, end=10)


@pytest.mark.parametrize('chunk', [1, 7, 100, 10_000])
@pytest.mark.parametrize(('window', 'stride'), [(10_000, None), (25_000, 7_000), (3_000, 11_000), (10**6, 10**5)])
def test_parts_of_any_size_give_the_same_windows(tmp_path, chunk, window, stride):
    events = writers.random_events(500)
    path = writers.npy(tmp_path / 'events.npy', events)
    whole = spans(iter_windows(events, window, stride))
    assert spans(iter_windows(iter_events(path, chunk_events=chunk), window, stride)) == whole
    assert spans(iter_windows(path, window, stride)) == whole
    step = stride or window
    assert [start for start, _ in whole] == [int(events.t[0]) + step * k for k in range(len(whole))]
    for start, times in whole:
        assert times == events.t[(events.t >= start) & (events.t < start + window)].tolist()


def test_frames_of_windows_are_bins_of_fixed_duration(tmp_path):
    events = writers.random_events(2000)
    path = writers.npy(tmp_path / 'events.npy', events)
    frames = list(iter_frames(path, 4, window=40_000, sensor_size=SENSOR, channels=3, size=32))
    bins = to_frames(events, bin_us=10_000, sensor_size=SENSOR, channels=3, size=32)
    together = np.concatenate([made for _, made in frames])
    np.testing.assert_array_equal(together[: len(bins)], bins)
    assert not together[len(bins) :].any()
    for start, made in iter_frames(events, 4, window=40_000, sensor_size=SENSOR, split_by='number', dtype=np.uint8):
        inside = events[(events.t >= start) & (events.t < start + 40_000)]
        np.testing.assert_array_equal(made, to_frames(inside, 4, sensor_size=SENSOR, dtype=np.uint8))


def test_frames_have_the_sensor_size_that_the_file_says(tmp_path):
    events = writers.random_events(200, size=40)
    path = writers.evt2(tmp_path / 'recording.raw', events, size=50)
    frames = [made for _, made in iter_frames(path, window=100_000)]
    assert frames[0].shape == (1, 2, 50, 50) and sum(made.sum() for made in frames) == 200
    with pytest.raises(ValueError, match=r'expected sensor_size=\(height, width\)'):
        iter_frames(events, window=100_000)


def test_reading_is_in_bounded_memory():
    """Parts are asked for as windows are, and left behind."""
    asked = []

    def camera():
        for second in range(10**6):
            asked.append(second)
            yield at(*range(second * 10**6, (second + 1) * 10**6, 10**5))

    windows = iter_windows(camera(), 2 * 10**6, 10**6)
    for expected in range(50):
        start, events = next(windows)
        assert (start, len(events), len(asked)) == (expected * 10**6, 20, expected + 3)


def test_an_event_that_is_late_is_said_and_counts_where_it_came():
    events = at(0, 9, 12, 8, 7, 13, 25)
    with pytest.warns(UserWarning, match='event 4 is 5 us earlier than one before it') as caught:
        assert spans(iter_windows(events, 10)) == [(0, [0, 9]), (10, [12, 12, 12, 13]), (20, [25])]
    assert len(caught) == 1
    parts = [events[:3], events[3:4], events[4:]]
    with pytest.warns(UserWarning, match='event 3 is 4 us earlier'):
        assert spans(iter_windows(iter(parts), 10)) == [(0, [0, 9]), (10, [12, 12, 12, 13]), (20, [25])]


def test_a_clock_that_was_reset_is_an_error():
    windows = iter_windows([at(0, 100, 200), at(300), at(5, 10)], 50)
    with pytest.raises(ValueError, match='event 4 is 295 us earlier than one before it, which is more than a window'):
        list(windows)


def test_an_hour_without_events_is_said():
    with pytest.warns(UserWarning, match='no events for 305.4 hours before event 1'):
        next(iter_windows(at(0, 2**40), 10**9))


def test_structured_arrays_are_a_recording():
    events = at(0, 5, 10)
    array = np.array(list(zip(*events, strict=True)), dtype='i8,i2,i2,u1')
    array.dtype.names = ('t', 'x', 'y', 'p')
    assert spans(iter_windows(array, 10)) == spans(iter_windows(events, 10))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'window': 0}, 'window must be at least 1 us, not 0'),
        ({'window': 0.1}, 'window must be a whole number .times are in microseconds., not 0.1'),
        ({'window': 10, 'stride': 0}, 'stride must be at least 1 us'),
        ({'window': 10, 'split_by': 'x'}, 'split_by must be'),
        ({'window': 10, 'channels': 1}, 'channels must be 2'),
    ],
)
def test_unknown_options_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message), warnings.catch_warnings():
        iter_frames(at(0), sensor_size=SENSOR, **options)


@pytest.fixture
def folder(tmp_path):
    """Two classes, with recordings of 100 ms, 35 ms and one event."""
    for name, count, last in (('left/a', 400, 100_000), ('left/b', 300, 35_000), ('right/c', 1, 2)):
        path = tmp_path / 'train' / f'{name}.npy'
        path.parent.mkdir(parents=True, exist_ok=True)
        events = writers.random_events(count, size=16, seed=count, last=last)
        events.t[[0, -1]] = 7, last + 6
        writers.npy(path, events)
    return tmp_path


@pytest.mark.parametrize('split_by', ['number', 'time'])
@pytest.mark.parametrize('cache', [None, True])
def test_windows_are_samples_with_the_label_of_their_recording(folder, split_by, cache):
    options = dict(sensor_size=(16, 16), num_steps=4, split_by=split_by, channels=3, size=8, cache=cache)
    recordings = EventFolder(folder, **options)
    windows = WindowDataset(recordings, 40_000, 20_000)
    places = [(0, 7), (0, 20_007), (0, 40_007), (0, 60_007), (1, 7), (2, recordings.recording(2).t[0])]
    assert windows.places == places and len(windows) == 6
    assert windows.targets == [0, 0, 0, 0, 0, 1] and windows.classes == ('left', 'right')
    for (frames, label), (recording, start) in zip([windows[i] for i in range(6)], places, strict=True):
        expected = to_frames(
            recordings.recording(recording),
            4,
            start=start,
            end=start + 40_000,
            sensor_size=(16, 16),
            split_by=split_by,
            channels=3,
            size=8,
        )
        np.testing.assert_array_equal(frames, expected)
        assert frames.dtype == torch.float32 and label == (recording == 2)


def test_a_recording_is_read_once_for_all_its_windows_where_there_is_a_cache(folder, monkeypatch):
    read = []
    real = EventFolder.read
    monkeypatch.setattr(EventFolder, 'read', lambda self, file: read.append(file) or real(self, file))
    recordings = EventFolder(folder, sensor_size=(16, 16), num_steps=2)
    windows = WindowDataset(recordings, 10_000)
    first = [frames for frames, _ in windows]
    assert len(read) == 2 * len(recordings)  # for their lengths, and for the frames
    again = [frames for frames, _ in WindowDataset(recordings, 10_000)]
    assert len(read) == 2 * len(recordings) and all(map(torch.equal, first, again))
    assert len(WindowDataset(recordings, 20_000)) < len(windows)
    file = folder / 'train' / 'left' / 'b.npy'
    writers.npy(file, writers.random_events(100, size=16, last=90_000))
    assert len(WindowDataset(recordings, 10_000)) > len(windows)


def test_filter_and_transform_of_the_recordings_are_those_of_windows(folder):
    recordings = EventFolder(
        folder,
        sensor_size=(16, 16),
        num_steps=2,
        filter=lambda events: crop_events(events, start=50_000) if len(events) == 400 else events,
        transform=lambda frames: frames.sum().item(),
    )
    assert recordings.cache is None
    whole = recordings.recording(0)
    assert recordings[0][0] == (whole.t >= 50_000).sum() and recordings[1][0] == 300
    windows = WindowDataset(recordings, 25_000)
    start = int(whole.t[whole.t >= 50_000][0])
    assert windows.places[:2] == [(0, start), (1, 7)]
    assert windows[0][0] == ((whole.t >= start) & (whole.t < start + 25_000)).sum()


def test_windows_are_loaded_by_workers_and_are_no_windows_of_frames(folder):
    recordings = EventFolder(folder, sensor_size=(16, 16), num_steps=2)
    windows = WindowDataset(recordings, 10_000)
    assert torch.equal(pickle.loads(pickle.dumps(windows))[0][0], windows[0][0])
    with pytest.raises(TypeError, match='expected a data set of recordings, as EventFolder, got a Subset'):
        WindowDataset(torch.utils.data.Subset(recordings, [0]), 10_000)
    with pytest.raises(ValueError, match='window must be at least 1 us'):
        WindowDataset(recordings, 0)
    with pytest.raises(ValueError, match='the 2 bins of 3000 us of the data set are not a window of 10000 us'):
        WindowDataset(EventFolder(folder, sensor_size=(16, 16), num_steps=2, bin_us=3000), 10_000)
    recordings.filter = lambda events: events[:0]
    with pytest.raises(ValueError, match=r'left/a\.npy has no events to take windows of'):
        WindowDataset(recordings, 10_001)
