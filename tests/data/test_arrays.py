"""Columns of arrays: their order, names, unit of time and polarity."""

import re
from functools import partial

import numpy as np
import pytest

from tests.support import writers
from tests.support.readings import gives, refused
from timm_snn.data import EventFileError, iter_events, read_events, recording_info

EVENTS = writers.random_events(5000)
same = partial(gives, EVENTS)
ORDERS = ('txyp', 'xytp', 'xypt', 'ptyx')


def columns(order: str, dtype: type = np.int64) -> np.ndarray:
    return np.stack([getattr(EVENTS, name).astype(dtype) for name in order], 1)


@pytest.mark.parametrize('order', ORDERS)
@pytest.mark.parametrize('memory', ['C', 'F'])
@pytest.mark.parametrize('suffix', ['.npy', '.npz'])
def test_any_order_of_columns(tmp_path, order, memory, suffix):
    array = np.asarray(columns(order), order=memory)
    path = tmp_path / f'a{suffix}'
    if suffix == '.npy':
        np.save(path, array)
    else:
        np.savez_compressed(path, events=array)
    assert same(path, order=order)
    assert recording_info(path, order=order).events == 5000
    if order in ('xytp', 'xypt'):
        refused(path, f"expected columns t, x, y, p, got what fits another order: say order='{order}'")


def test_times_out_of_order_are_no_sign_of_another_order(tmp_path):
    shuffled = np.random.default_rng(0).permutation(columns('txyp'))
    np.save(tmp_path / 'a.npy', shuffled)
    assert np.array_equal(read_events(tmp_path / 'a.npy').t, shuffled[:, 0])


NAMES = [('t', 'x', 'y', 'p'), ('timestamp', 'x', 'y', 'polarity'), ('ts', 'xs', 'ys', 'ps'), ('t_us', 'x', 'y', 'on')]


@pytest.mark.parametrize('names', NAMES, ids=lambda names: names[0])
def test_names_of_columns(tmp_path, names):
    """timestamp, x, y, polarity are DV's."""
    array = np.zeros(5000, [(names[2], '<i2'), (names[0], '<i8'), (names[3], '?'), (names[1], '<i2'), ('rest', 'f4')])
    for name, column in zip(names, EVENTS, strict=True):
        array[name] = column
    np.save(tmp_path / 'a.npy', array)
    np.savez(tmp_path / 'a.npz', events=array, label=3)
    np.savez(tmp_path / 'b.npz', **dict(zip(names, EVENTS, strict=True)))
    for path in (tmp_path / 'a.npy', tmp_path / 'a.npz', tmp_path / 'b.npz'):
        assert same(path)
        refused(path, 'expected columns without names', order='txyp')


def test_two_columns_for_one_are_refused(tmp_path):
    np.savez(tmp_path / 'a.npz', **EVENTS._asdict(), timestamp=EVENTS.t)
    refused(tmp_path / 'a.npz', 'got no more than one of a kind')


UNITS = {'s': 1e-6, 'ms': 1e-3, 'us': 1.0, 'ns': 1e3}


@pytest.mark.parametrize('unit', UNITS)
def test_units_of_time(tmp_path, unit):
    array = columns('txyp', np.float64)
    array[:, 0] *= UNITS[unit]
    np.save(tmp_path / 'a.npy', array)
    assert same(tmp_path / 'a.npy', time_unit=unit)
    refused(tmp_path / 'a.npy', "expected integers, t in microseconds, got t of float64: say its unit, time_unit='s'")
    named = {f't_{unit}': array[:, 0], 'x': EVENTS.x, 'y': EVENTS.y, 'p': EVENTS.p}
    np.savez(tmp_path / 'a.npz', **named)
    assert same(tmp_path / 'a.npz')


def test_integer_times_of_another_unit(tmp_path):
    np.savez(tmp_path / 'a.npz', **(EVENTS._asdict() | {'t': EVENTS.t * 1000 + 999}))
    assert same(tmp_path / 'a.npz', time_unit='ns')
    np.savez(tmp_path / 'a.npz', **(EVENTS._asdict() | {'t': EVENTS.t // 1000}))
    assert np.array_equal(read_events(tmp_path / 'a.npz', time_unit='ms').t, EVENTS.t // 1000 * 1000)


@pytest.mark.parametrize(
    ('column', 'value', 'text'),
    [
        ('t', np.nan, 'expected t in .*, got nan'),
        ('t', np.inf, 'expected t in .*, got inf'),
        ('t', 1e14, 'expected t in .*, got 1000'),
        ('x', 0.5, 'expected x in 0 ... 32767, got 0.5'),
        ('p', 0.5, 'expected p in -1 ... 1, got 0.5'),
    ],
)
def test_floating_point_values_that_events_cannot_hold_are_refused(tmp_path, column, value, text):
    array = columns('txyp', np.float64)
    array[3000, 'txyp'.index(column)] = value
    np.save(tmp_path / 'a.npy', array)
    refused(tmp_path / 'a.npy', text, time_unit='s')


def test_polarity_of_minus_one(tmp_path):
    np.savez(tmp_path / 'a.npz', **(EVENTS._asdict() | {'p': np.where(EVENTS.p, 1, -1).astype(np.int8)}))
    assert same(tmp_path / 'a.npz')


@pytest.mark.parametrize('chunk', [1, 1000, 10_000])
def test_both_ways_to_write_polarity_in_one_file_are_refused(tmp_path, chunk):
    p = np.where(np.arange(5000) < 4000, EVENTS.p, np.where(EVENTS.p, 1, -1)).astype(np.int8)
    np.savez(tmp_path / 'a.npz', **(EVENTS._asdict() | {'p': p}))
    with pytest.raises(EventFileError, match=r'p.npy.*expected p in 0, 1 or in -1, 1, got -1') as caught:
        list(iter_events(tmp_path / 'a.npz', chunk_events=chunk))
    byte = re.search(r'byte (\d+) in it', str(caught.value))
    assert byte and int(byte[1]) - 128 == int((p == -1).argmax())


@pytest.mark.parametrize(
    ('options', 'text'),
    [
        ({'order': 'txy'}, "expected order to be 'txyp'.*got 'txy'"),
        ({'order': 'txyq'}, "got 'txyq'"),
        ({'time_unit': 'min'}, "expected time_unit to be one of s, ms, us, ns, got 'min'"),
    ],
)
def test_options_are_checked_before_the_file(tmp_path, options, text):
    for function in (read_events, iter_events, recording_info):
        with pytest.raises(ValueError, match=text):
            function(tmp_path / 'missing.npy', **options)


def test_options_that_a_format_has_no_use_for_are_refused(tmp_path):
    path = writers.nmnist(tmp_path / 'a.bin', writers.random_events(5, 34))
    for name, value in {'order': 'txyp', 'time_unit': 's', 'stream': '/events'}.items():
        refused(path, f'expected no {name}, as nmnist has its own, got {value!r}', **{name: value})
