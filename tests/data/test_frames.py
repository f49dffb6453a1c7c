"""Frames count every event once, in the right bin, channel and pixel."""

import tracemalloc

import numpy as np
import pytest

import timm_snn.data.frames as frames_module
from tests.support.writers import random_events
from timm_snn.data import Events, resize, to_frames
from timm_snn.data.frames import count_events, frames_of_counts

SENSOR = (5, 7)


def some_events(count: int, seed: int = 0, last: int = 1000) -> Events:
    """On the pixels of SENSOR, which is not square."""
    events = random_events(count, seed=seed, last=last)
    return events._replace(x=events.x % SENSOR[1], y=events.y % SENSOR[0])


def loop(events: Events, num_steps: int, bins: list[int]) -> np.ndarray:
    """The definition, event by event: the bin of each is given."""
    frames = np.zeros((num_steps, 2, *SENSOR))
    for step, x, y, p in zip(bins, events.x, events.y, events.p, strict=True):
        frames[step, p, y, x] += 1
    return frames


@pytest.mark.parametrize('count', [0, 1, 3, 4, 5, 17, 1000])
@pytest.mark.parametrize('num_steps', [1, 4, 5])
def test_frames_by_number_are_those_of_spikingjelly(count, num_steps):
    datasets = pytest.importorskip('spikingjelly.datasets')
    events = some_events(count)
    theirs = datasets.integrate_events_by_fixed_frames_number(events._asdict(), 'number', num_steps, *SENSOR)
    frames = to_frames(events, num_steps, sensor_size=SENSOR)
    assert frames.dtype == np.float32
    np.testing.assert_array_equal(frames, theirs)


@pytest.mark.parametrize('count', [0, 1, 3, 4, 17, 1000])
def test_by_number_the_last_bin_takes_the_rest_in_the_order_of_the_file(count):
    events = some_events(count)
    events = events._replace(t=events.t[::-1])
    bins = [min(index // (count // 4), 3) if count >= 4 else 3 for index in range(count)]
    np.testing.assert_array_equal(to_frames(events, 4, sensor_size=SENSOR), loop(events, 4, bins))


@pytest.mark.parametrize('count', [0, 1, 3, 17, 1000])
@pytest.mark.parametrize('last', [1, 2, 3, 7, 1000, 2**40])
@pytest.mark.parametrize('num_steps', [1, 3, 4])
def test_by_time_bins_are_equal_spans_and_order_does_not_matter(count, last, num_steps):
    events = some_events(count, last=last)
    t = [int(time) for time in events.t]
    bins = [(time - min(t)) * num_steps // (max(t) - min(t) + 1) for time in t]
    frames = to_frames(events, num_steps, sensor_size=SENSOR, split_by='time')
    np.testing.assert_array_equal(frames, loop(events, num_steps, bins))
    order = np.random.default_rng(1).permutation(count)
    shuffled = Events(*(column[order] for column in events))
    np.testing.assert_array_equal(to_frames(shuffled, num_steps, sensor_size=SENSOR, split_by='time'), frames)


def test_by_time_an_event_on_an_edge_opens_a_bin_and_the_last_event_is_in_the_last_bin():
    t = np.array([100, 104, 105, 109, 110, 114, 115, 119])  # 20 us in 4 bins: 100, 105, 110, 115
    zeros = np.zeros(8, np.int16)
    events = Events(t, zeros, zeros, zeros.astype(np.uint8))
    assert to_frames(events, 4, sensor_size=(1, 1), split_by='time').ravel().tolist() == [2, 0, 2, 0, 2, 0, 2, 0]


def test_times_at_the_ends_of_int64_do_not_overflow():
    t = np.array([np.iinfo(np.int64).min, 0, np.iinfo(np.int64).max])
    events = Events(t, np.zeros(3, np.int16), np.zeros(3, np.int16), np.zeros(3, np.uint8))
    assert to_frames(events, 2, sensor_size=(1, 1), split_by='time')[:, 0].ravel().tolist() == [1, 2]


def test_three_channels_are_positive_negative_and_sum():
    events = some_events(500)
    two, three = (to_frames(events, 4, sensor_size=SENSOR, channels=channels) for channels in (2, 3))
    np.testing.assert_array_equal(three, np.stack([two[:, 1], two[:, 0], two[:, 0] + two[:, 1]], axis=1))


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.int32, np.float16, np.float64])
def test_every_dtype_holds_the_same_counts(dtype):
    events = some_events(500)
    frames = to_frames(events, 4, sensor_size=SENSOR, dtype=dtype)
    assert frames.dtype == dtype
    np.testing.assert_array_equal(frames, to_frames(events, 4, sensor_size=SENSOR))


@pytest.mark.parametrize(
    ('dtype', 'largest'), [(np.uint8, 255), (np.int8, 127), (np.uint16, 65535), (np.float16, 2048)]
)
def test_a_count_that_the_dtype_cannot_hold_is_an_error_that_names_it(dtype, largest):
    def repeated(count):
        return Events(np.arange(count), np.full(count, 2, np.int16), np.ones(count, np.int16), np.ones(count, np.uint8))

    assert to_frames(repeated(largest), 1, sensor_size=SENSOR, dtype=dtype).max() == largest
    with pytest.raises(ValueError, match=f'step 0 counts {largest + 1} events in channel 1, row 1, column 2'):
        to_frames(repeated(largest + 1), 1, sensor_size=SENSOR, dtype=dtype)


@pytest.mark.parametrize('size', [(5, 7), (10, 14), (3, 4), (1, 1), (2, 9), (1, 7), 6])
def test_resizing_shares_every_count_by_area(size):
    """By the definition: cut each pixel into so many parts that they fit both sizes, then sum."""
    frames = to_frames(some_events(500), 3, sensor_size=SENSOR)
    height, width = (size, size) if isinstance(size, int) else size
    parts = frames.repeat(height, axis=2).repeat(width, axis=3) / (height * width)
    expected = parts.reshape(3, 2, height, SENSOR[0], width, SENSOR[1]).sum((3, 5))
    resized = to_frames(some_events(500), 3, sensor_size=SENSOR, size=size)
    assert resized.shape == (3, 2, height, width)
    np.testing.assert_allclose(resized, expected, rtol=1e-5, atol=1e-6)
    assert resized.sum() == pytest.approx(500, rel=1e-5)


def test_a_size_that_divides_the_sensor_keeps_whole_counts():
    events = random_events(5000)
    frames = to_frames(events, 2, sensor_size=(128, 128), size=(32, 64), dtype=np.uint16)
    whole = to_frames(events, 2, sensor_size=(128, 128), dtype=np.uint16)
    np.testing.assert_array_equal(frames, whole.reshape(2, 2, 32, 4, 64, 2).sum((3, 5)))
    with pytest.raises(ValueError, match='size 48 x 48 does not divide the 128 x 128 pixels'):
        to_frames(events, 2, sensor_size=(128, 128), size=48, dtype=np.uint16)


@pytest.mark.parametrize(('column', 'value'), [('x', 7), ('x', -1), ('y', 5), ('y', -1), ('p', 2)])
def test_an_event_outside_of_the_sensor_is_an_error_that_names_it(column, value):
    events = some_events(10)
    values = getattr(events, column).copy()
    values[3] = value
    with pytest.raises(ValueError, match=f'event 3 has {column} = {value}'):
        to_frames(events._replace(**{column: values}), 2, sensor_size=SENSOR)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'num_steps': 0}, 'num_steps must be at least 1'),
        ({'split_by': 'count'}, "split_by must be 'number' or 'time', not 'count'"),
        ({'channels': 1}, r'channels must be 2 \(negative, positive\) or 3'),
        ({'size': 0}, 'size must be at least 1'),
        ({'size': (4, -1)}, 'size must be at least 1'),
        ({'dtype': bool}, 'dtype must be an integer or floating-point type, not bool'),
        ({'dtype': complex}, 'dtype must be'),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        to_frames(some_events(10), **{'num_steps': 2, 'sensor_size': SENSOR, **options})


def clock(count=1000, span=1_500_000, seed=0):
    random = np.random.default_rng(seed)
    t = np.sort(random.integers(0, span, count))
    return t, *(random.integers(0, n, count) for n in (34, 34, 2))


def by_time(t, x, y, p, num_steps=4):
    return to_frames(Events(t, x, y, p), num_steps, sensor_size=(34, 34), split_by='time')


@pytest.mark.parametrize(
    'change',
    [
        lambda t: t * 1000,  # nanoseconds
        lambda t: t - 10**9,
        lambda t: t + 2**62,
        lambda t: t.astype(np.uint64) + np.uint64(2**63),
        lambda t: t.astype(np.uint64) + np.uint64(2**64 - 2_000_000),
        lambda t: t.astype(np.int32),
        lambda t: t.astype(np.uint32) + np.uint32(2**32 - 2_000_000),
    ],
    ids=['nanoseconds', 'negative', 'large', 'beyond int64', 'the last of uint64', 'int32', 'the last of uint32'],
)
@pytest.mark.filterwarnings('error')
def test_a_clock_may_start_anywhere(change):
    t, *rest = clock()
    assert np.array_equal(by_time(change(t), *rest), by_time(t, *rest))


@pytest.mark.parametrize(
    'change',
    [
        lambda t: t / 1e6,
        lambda t: t.astype(np.float32),
        lambda t: t.astype(float),
        lambda t: t.astype('timedelta64[us]'),
        lambda t: t.astype('datetime64[us]'),
        lambda t: t.astype(object),
        lambda t: np.where(t > 10**6, np.nan, t),
    ],
)
@pytest.mark.parametrize('split_by', ['time', 'number'])
def test_times_that_are_no_integers_are_refused(change, split_by):
    t, *rest = clock()
    with pytest.raises(ValueError, match=r'expected t as integers, got .* seconds times 1e6, rounded'):
        to_frames(Events(change(t), *rest), 4, sensor_size=(34, 34), split_by=split_by)


@pytest.mark.parametrize('field', ['x', 'y', 'p'])
def test_positions_that_are_no_integers_are_refused(field):
    events = Events(*clock())
    with pytest.raises(ValueError, match=f'expected {field} as integers, got float64'):
        to_frames(events._replace(**{field: getattr(events, field) + 0.5}), 4, sensor_size=(34, 34))
    with pytest.raises(ValueError, match='of one length'):
        to_frames(events._replace(**{field: getattr(events, field)[1:]}), 4, sensor_size=(34, 34))


def test_polarities_of_minus_one_are_named():
    t, x, y, p = clock()
    with pytest.raises(ValueError, match='p = -1, not one of 0 to 1: 0 is off and 1 is on'):
        by_time(t, x, y, 2 * p - 1)
    assert np.array_equal(by_time(t, x, y, p.astype(bool)), by_time(t, x, y, p))


@pytest.mark.parametrize(
    'change',
    [
        lambda t: (t + 2**23 - 700_000) % 2**23,
        lambda t: t % 2**20,
        lambda t: np.where(t > 700_000, t - 700_000, t),
        lambda t: (t + 2**32 - 200_000) % 2**32,
    ],
    ids=['23 bits', '20 bits', 'reset', '32 bits'],
)
def test_a_clock_that_went_back_is_warned_of(change):
    t, *rest = clock()
    with pytest.warns(UserWarning, match=r'times go back by \d+ us at event \d+'):
        by_time(change(t), *rest)


def test_one_wrong_time_is_warned_of():
    t, *rest = clock()
    t[-1] = 2**40
    with pytest.warns(UserWarning, match=r'99.9% of the events lie in one of 4 bins'):
        by_time(t, *rest)
    with pytest.warns(UserWarning, match=r'100.0% of the events'):
        by_time(t // 2**41, *rest)


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.filterwarnings('error')
def test_an_order_that_is_not_that_of_time_changes_nothing(seed):
    t, x, y, p = clock(seed=seed)
    random = np.random.default_rng(seed)
    for order in (random.permutation(len(t)), np.argsort(t + random.normal(0, 2000, len(t)))):
        assert np.array_equal(by_time(t[order], x[order], y[order], p[order]), by_time(t, x, y, p))


@pytest.mark.parametrize('unit', [1000, 10**6], ids=['milliseconds', 'seconds'])
def test_times_in_coarser_integers_are_warned_of(unit):
    events = some_events(1000, last=1_500_000)
    with pytest.warns(UserWarning, match='are their times in milliseconds or seconds'):
        to_frames(events._replace(t=events.t // unit), 4, sensor_size=SENSOR, split_by='time')


def test_a_clock_that_was_reset_early_is_warned_of():
    events = some_events(1000, last=1_500_000)
    t = np.where(np.arange(1000) < 200, events.t, events.t - events.t[200])
    with pytest.warns(UserWarning, match='times go back by'):
        to_frames(events._replace(t=t), 4, sensor_size=SENSOR, split_by='time')


def test_pixels_as_uint64_are_counted():
    events = some_events(100)
    wide = events._replace(x=events.x.astype(np.uint64), y=events.y.astype(np.uint64))
    np.testing.assert_array_equal(to_frames(wide, 4, sensor_size=SENSOR), to_frames(events, 4, sensor_size=SENSOR))


def counts_of(frames: np.ndarray) -> list[int]:
    """The number of events of each bin."""
    return frames.sum((1, 2, 3)).astype(int).tolist()


def at(*times: int) -> Events:
    zeros = np.zeros(len(times), np.int16)
    return Events(np.array(times, np.int64), zeros, zeros, zeros.astype(np.uint8))


def bins(events: Events, num_steps: int | None = None, **options) -> list[int]:
    return counts_of(to_frames(events, num_steps, sensor_size=(1, 1), **options))


def test_bins_between_start_and_end_are_of_fixed_duration():
    """100 ms in bins of 20 ms, with events at 30, 35 and 50 ms."""
    events = at(30_000, 35_000, 50_000)
    assert bins(events, 5, start=0, end=100_000) == [0, 2, 1, 0, 0]
    assert bins(events, 5, split_by='time') == [1, 1, 0, 0, 1]  # from the first event to the last
    assert bins(events, start=0, end=100_000, bin_us=20_000) == [0, 2, 1, 0, 0]
    assert bins(events, 5, start=0, bin_us=20_000) == [0, 2, 1, 0, 0]
    assert bins(events, 5, end=100_000, bin_us=20_000) == [0, 2, 1, 0, 0]
    assert bins(events, start=0, bin_us=20_000) == [0, 2, 1]
    assert bins(events, bin_us=10_000) == [2, 0, 1]
    assert bins(events, 2, bin_us=20_000) == [2, 1]
    assert bins(events, 2, start=35_000) == [1, 1]
    assert bins(events, 2, end=50_000) == [2, 0]


def test_events_outside_of_start_and_end_are_not_counted():
    events = at(9, 10, 14, 15, 19, 20)
    assert bins(events, 2, start=10, end=20) == [2, 2]
    assert bins(events, 2, start=10, end=20, split_by='number') == [2, 2]
    assert bins(events[::-1], 1, start=10, end=20) == [4]
    with pytest.warns(UserWarning, match='times are not in order, 19 us at event 1 comes after 20 us'):
        assert bins(events[::-1], 3, start=10, end=20, split_by='number') == [1, 1, 2]
    assert bins(events, 3, start=100, end=200) == [0, 0, 0]
    assert bins(events[:0], 3, start=100, end=200) == bins(events[:0], 3, bin_us=10) == [0, 0, 0]
    assert bins(events[:0], bin_us=10) == bins(events[:0], events_per_bin=10) == [0]


def test_bins_of_fixed_counts():
    assert bins(at(*range(10)), events_per_bin=4) == [4, 4, 2]
    assert bins(at(*range(10)), 2, events_per_bin=4) == [4, 4]
    assert bins(at(*range(10)), 4, events_per_bin=4) == [4, 4, 2, 0]
    assert bins(at(*range(10)), events_per_bin=2, start=3, end=6) == [2, 1]


@pytest.mark.parametrize('dtype', [np.int64, np.int32, np.uint64, np.uint8])
def test_bounds_beyond_the_type_of_the_times_are_bounds(dtype):
    events = at(0, 100, 127)._replace(t=np.array([0, 100, 127], dtype))
    assert bins(events, 2, start=-(2**70), end=2**70) == [0, 3]
    assert bins(events, 2, start=0, end=256) == [3, 0]
    most = int(np.iinfo(dtype).max)
    assert bins(events._replace(t=np.array([0, 1, most], dtype)), 1, start=1, end=most + 1) == [2]


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({}, 'expected num_steps, or bin_us or events_per_bin'),
        ({'bin_us': 0}, 'bin_us must be at least 1'),
        ({'events_per_bin': 0}, 'events_per_bin must be at least 1'),
        ({'bin_us': 0.02}, 'bin_us must be a whole number .times are in microseconds., not 0.02'),
        ({'num_steps': 2, 'start': 0.5}, 'start must be a whole number'),
        ({'bin_us': 5, 'events_per_bin': 5}, 'bin_us makes bins by time: leave out events_per_bin'),
        ({'bin_us': 5, 'split_by': 'number'}, "bin_us makes bins by time: leave out .* split_by='number'"),
        ({'events_per_bin': 5, 'split_by': 'time'}, "events_per_bin makes bins by number: leave out split_by='time'"),
        ({'num_steps': 2, 'start': 5, 'end': 5}, 'from start to a later end, got 5 and 5 us'),
        ({'num_steps': 2, 'start': 10**9}, 'from start to a later end, got 1000000000 and'),
        ({'bin_us': 7, 'start': 0, 'end': 20}, 'expected whole bins of 7 us from start to end, got 2.85714'),
        ({'bin_us': 10, 'num_steps': 3, 'start': 0, 'end': 20}, 'expected 3 whole bins of 10 us from start to end'),
        ({'bin_us': 1, 'start': 0, 'end': 2**40}, 'bins from 0 to 1099511627776 us are more than 1,000,000: is a time'),
    ],
)  # fmt: skip
def test_bins_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        to_frames(some_events(10), sensor_size=SENSOR, **options)


def test_times_out_of_order_are_said_by_number():
    events = some_events(100)
    with pytest.warns(UserWarning, match=r'times are not in order.*events.t.argsort'):
        bins(events._replace(t=events.t[::-1], x=events.x * 0, y=events.y * 0), 4)


def test_a_structured_array_is_counted():
    events = some_events(100)
    array = np.zeros(100, [('x', '<u2'), ('y', '<u2'), ('polarity', '<i2'), ('timestamp', '<i8')])  # as Metavision's
    array['x'], array['y'], array['polarity'], array['timestamp'] = events.x, events.y, 2 * events.p - 1.0, events.t
    np.testing.assert_array_equal(to_frames(array, 3, sensor_size=SENSOR), to_frames(events, 3, sensor_size=SENSOR))


@pytest.mark.parametrize('size', [None, 5, (3, 4), (11, 13), (1, 7)])
@pytest.mark.parametrize('channels', [2, 3])
@pytest.mark.parametrize('dtype', [np.float16, np.float32, np.float64])
def test_frames_of_kept_counts_are_those_of_events_to_the_last_bit(monkeypatch, size, channels, dtype):
    monkeypatch.setattr(frames_module, 'CHUNK', 17)
    events = some_events(700)
    options = dict(channels=channels, size=size, dtype=dtype)
    counts = count_events(events, 3, sensor_size=SENSOR)
    direct = to_frames(events, 3, sensor_size=SENSOR, **options)
    assert counts.dtype == np.uint8
    for cost in (1, 10**9):  # pixel by pixel, and by matrices
        monkeypatch.setattr(resize, 'PRODUCTS_PER_PIXEL', cost)
        np.testing.assert_array_equal(frames_of_counts(counts, **options), direct)
    monkeypatch.setattr(frames_module, 'is_exact', lambda sums, total: sums.dtype == np.float64)
    np.testing.assert_allclose(to_frames(events, 3, sensor_size=SENSOR, **options), direct, rtol=1e-3)


def test_sums_that_a_float32_would_round_are_exact():
    """One event after 2**24 in the same pixel, and shares of 127 x 127 units each."""
    counts = np.zeros((1, 2, 128, 128), np.uint32)
    counts[0, 0, 0, 0] = 2**24
    counts[0, 1, 127, 127] = 4001
    frames = frames_of_counts(counts, channels=3, size=127, dtype=np.float64)
    assert frames[0, 1].sum() == pytest.approx(2**24, rel=1e-12)
    np.testing.assert_array_equal(frames_of_counts(counts, channels=3, size=127), frames.astype(np.float32))
    counts[0, 0, 0, 0] += 1
    with pytest.raises(ValueError, match='step 0 counts 16777217 events in channel 0, row 0, column 0, and float32'):
        frames_of_counts(counts)


@pytest.mark.parametrize(('count', 'dtype'), [(255, np.uint8), (256, np.uint8), (65535, np.uint16), (65536, np.uint16)])
def test_an_overflow_is_never_a_small_count(count, dtype):
    zeros = np.zeros(count, np.int16)
    events = Events(np.arange(count), zeros, zeros, zeros.astype(np.uint8))
    counts = count_events(events, 1, sensor_size=(2, 2))
    assert counts.dtype == np.min_scalar_type(count) and counts[0, 0, 0, 0] == count == counts.sum(dtype=int)
    if count > np.iinfo(dtype).max:
        with pytest.raises(ValueError, match=f'step 0 counts {count} events in channel 0'):
            to_frames(events, 1, sensor_size=(2, 2), dtype=dtype)
    mixed = events._replace(p=(np.arange(count) % 2).astype(np.uint8))
    with pytest.raises(ValueError, match=f'step 0 counts {count} events in channel 2'):
        to_frames(mixed, 1, sensor_size=(2, 2), channels=3, dtype=np.int16 if count > 300 else np.int8)


@pytest.mark.parametrize('size', [None, (48, 64), (50, 70)])
def test_memory_is_that_of_the_frames(size):
    random = np.random.default_rng(0)
    events = Events(np.arange(300_000), *(random.integers(0, n, 300_000).astype(np.int16) for n in (320, 240)), None)
    events = events._replace(p=(events.x % 2).astype(np.uint8))
    steps = 20 if size is None else 400
    tracemalloc.start()
    frames = to_frames(events, steps, sensor_size=(240, 320), size=size)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert frames.sum(dtype=float) == pytest.approx(300_000)
    assert peak < 1.5 * frames.nbytes
