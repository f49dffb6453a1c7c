"""Events are indexed as one structured array is, and unpack to four columns."""

import copy
import pickle

import numpy as np
import pytest

from tests.support import writers
from tests.support.readings import same
from timm_snn.data import Events

EVENTS = writers.random_events(100)


def test_they_unpack_to_four_columns():
    t, x, y, p = EVENTS
    assert t is EVENTS.t and x is EVENTS.x and y is EVENTS.y and p is EVENTS.p
    assert same(Events(*EVENTS), EVENTS) and same(Events(**EVENTS._asdict()), EVENTS)
    assert list(EVENTS._asdict()) == list(Events._fields) == ['t', 'x', 'y', 'p']


def test_their_length_is_the_number_of_events():
    assert len(EVENTS) == 100 and len(EVENTS[:0]) == 0 and EVENTS and not EVENTS[:0]


@pytest.mark.parametrize(
    'index', [slice(10, 20), slice(None, None, -1), EVENTS.p == 1, np.array([5, 3]), [7, 7], np.zeros(100, bool)]
)
def test_slices_masks_and_indices_are_events(index):
    taken = EVENTS[index]
    assert isinstance(taken, Events)
    assert same(taken, Events(EVENTS.t[index], EVENTS.x[index], EVENTS.y[index], EVENTS.p[index]))
    assert np.shares_memory(taken.t, EVENTS.t) is isinstance(index, slice)


def test_an_integer_gives_one_event_and_a_name_a_column():
    t, x, y, p = EVENTS[-1]
    assert (t, x, y, p) == (EVENTS.t[-1], EVENTS.x[-1], EVENTS.y[-1], EVENTS.p[-1])
    assert EVENTS['y'] is EVENTS.y
    with pytest.raises(KeyError, match='z'):
        EVENTS['z']
    with pytest.raises(IndexError):
        EVENTS[100]


def test_columns_are_replaced_in_a_copy():
    later = EVENTS._replace(t=EVENTS.t + 5)
    assert later.x is EVENTS.x and (later.t - EVENTS.t == 5).all()
    with pytest.raises(AttributeError):
        EVENTS.t = later.t
    with pytest.raises(TypeError, match='z'):
        EVENTS._replace(z=later.t)


def test_they_are_copied_to_workers():
    assert same(pickle.loads(pickle.dumps(EVENTS)), EVENTS)
    assert same(copy.deepcopy(EVENTS), EVENTS)


def test_parts_are_put_together():
    assert same(Events.concatenate([EVENTS[:30], EVENTS[30:30], EVENTS[30:]]), EVENTS)
    assert Events.concatenate([EVENTS]) is EVENTS


@pytest.mark.parametrize(
    ('names', 'types', 'signed'),
    [
        ('txyp', ('<i8', '<i2', '<i2', 'u1'), False),
        ('xypt', ('<u2', '<u2', '<i2', '<i8'), False),  # Metavision's
        ('xytp', ('<i8', '<i8', '<i8', '<i8'), True),
        ('xytp', ('>u4', '>u4', '>u8', '?'), False),
        (('timestamp', 'x', 'y', 'polarity', '_p1'), ('<i8', '<i2', '<i2', 'i1', 'u1'), False),  # DV's
    ],
)
def test_structured_arrays_become_events(names, types, signed):
    array = np.zeros(100, list(zip(names, types, strict=True)))
    columns = {**EVENTS._asdict(), 'timestamp': EVENTS.t, 'polarity': EVENTS.p}
    if signed:
        columns['p'] = np.where(EVENTS.p == 1, 1, -1)
    for name in set(names) & set(columns):
        array[name] = columns[name]
    assert same(Events.from_structured(array), EVENTS)


@pytest.mark.parametrize(
    ('dtype', 'message'),
    [
        ([('t', 'i8'), ('x', 'i2'), ('y', 'i2')], r'fields t .or timestamp., x, y and p .or polarity., got'),
        ('i8', 'expected a structured array'),
        ([('t', 'f8'), ('x', 'i2'), ('y', 'i2'), ('p', 'i2')], 'expected t as integers, got float64: .* 1e6, rounded'),
        ([('t', 'i8'), ('x', 'i4'), ('y', 'i2'), ('p', 'i2')], 'expected x in -32768 ... 32767, got 40000 at 2'),
    ],
)
def test_what_is_no_array_of_events_is_refused(dtype, message):
    array = np.zeros(5, dtype)
    if 'x' in (array.dtype.names or ()) and array.dtype['x'] == 'i4':
        array['x'][2] = 40_000
    with pytest.raises(ValueError, match=message):
        Events.from_structured(array)
