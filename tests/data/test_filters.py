"""Crops and filters keep exactly the events that they say."""

import numpy as np
import pytest

from tests.support import writers
from tests.support.readings import same
from timm_snn.data import Events, crop_events, drop_pixels, drop_refractory, find_hot_pixels, iter_events


def test_a_crop_by_time_has_the_events_from_start_until_before_end():
    events = writers.random_events(1000)
    first, last = int(events.t[100]), int(events.t[800])
    expected = events[(events.t >= first) & (events.t < last)]
    assert same(crop_events(events, start=first, end=last), expected)
    assert same(crop_events(events, start=first), events[events.t >= first])
    assert np.shares_memory(crop_events(events, end=last).t, events.t)
    order = np.random.default_rng(0).permutation(1000)
    assert same(crop_events(events[order], start=first, end=last), events[order[np.isin(order, range(100, 800))]])
    assert crop_events(events) is events


def test_a_crop_by_region_counts_from_its_corner():
    events = writers.random_events(1000, size=20)
    cropped = crop_events(events, region=(3, 5, 4, 10))
    kept = events[(events.y >= 3) & (events.y < 7) & (events.x >= 5) & (events.x < 15)]
    assert same(cropped, kept._replace(y=kept.y - 3, x=kept.x - 5))
    assert len(cropped) and cropped.y.max() == 3 and cropped.x.max() == 9
    unsigned = events._replace(x=events.x.astype(np.uint16))
    assert crop_events(unsigned, region=(3, 5, 4, 10)).x.tolist() == cropped.x.tolist()


def test_hot_pixels_are_those_that_fire_alone():
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:30, :40]
    counts = random.poisson(np.where(columns < 20, 0.5, 200.0))  # a dark half, and one in which all pixels fire often
    hot = np.zeros((30, 40), bool)
    for row, column in ((0, 0), (29, 39), (10, 5), (10, 6), (15, 20), (3, 30)):
        counts[row, column] = 40 if column < 20 else 4000
        hot[row, column] = True
    y, x = (np.repeat(axis.ravel(), counts.ravel()).astype(np.int16) for axis in (rows, columns))
    t = random.permutation(len(y))
    events = Events(t, x, y, np.zeros(len(y), np.uint8))
    found = find_hot_pixels(events, (30, 40))
    np.testing.assert_array_equal(found, hot)
    quiet = drop_pixels(events, found)
    assert same(quiet, events[~hot[events.y, events.x]]) and not find_hot_pixels(quiet, (30, 40)).any()
    assert find_hot_pixels(events, (30, 40), factor=0.1).sum() > hot.sum()


def test_hot_pixels_of_a_line_sensor_and_of_no_events():
    zeros = np.zeros(50, np.int16)
    events = Events(np.arange(50), zeros + 3, zeros, zeros.astype(np.uint8))
    assert find_hot_pixels(events, (1, 9)).nonzero()[1].tolist() == [3]
    assert not find_hot_pixels(events[:0], (4, 4)).any()


def loop(events: Events, period: int) -> Events:
    last, kept = {}, []
    for index in np.argsort(events.t, kind='stable'):
        pixel = (int(events.x[index]), int(events.y[index]))
        if pixel not in last or events.t[index] - last[pixel] >= period:
            last[pixel] = events.t[index]
            kept.append(index)
    return events[np.sort(kept)]


@pytest.mark.parametrize('period', [1, 7, 100, 5000, 10**6])
@pytest.mark.parametrize('shuffled', [False, True])
def test_a_pixel_is_blind_for_a_period_after_each_event_that_it_keeps(period, shuffled):
    events = writers.random_events(3000, size=4, last=20_000)
    if shuffled:
        events = events[np.random.default_rng(0).permutation(3000)]
    kept = drop_refractory(events, period)
    assert same(kept, loop(events, period))
    assert same(drop_refractory(kept, period), kept)
    assert len(drop_refractory(events[:0], period)) == 0


def test_filters_work_on_parts(tmp_path):
    events = writers.random_events(1000)
    path = writers.npy(tmp_path / 'events.npy', events)
    pixels = find_hot_pixels(events, (128, 128), factor=0.5)
    parts = [drop_pixels(part, pixels) for part in iter_events(path, chunk_events=100)]
    assert same(Events.concatenate(parts), drop_pixels(events, pixels))


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda events: crop_events(events, region=(0, -1, 4, 4)), 'expected a region .top, left, height, width.'),
        (lambda events: crop_events(events, region=(0, 0, 0, 4)), r'got \(0, 0, 0, 4\)'),
        (lambda events: crop_events(events, region=(0, 0, 0.5, 4)), 'region must be a whole number'),
        (lambda events: find_hot_pixels(events, (128, 100)), 'not one of 0 to 99'),
        (lambda events: find_hot_pixels(events, (128, 128), 0), 'factor must be positive'),
        (lambda events: drop_pixels(events, np.zeros((4, 4), bool)), 'not one of 0 to 3'),
        (lambda events: drop_refractory(events, 0), 'period must be at least 1 us, not 0'),
        (lambda events: drop_refractory(events, 1e-3), 'period must be a whole number'),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(writers.random_events(100))
