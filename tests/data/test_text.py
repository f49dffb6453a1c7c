"""Events in text: headers, orders, units, and what is refused because it cannot be told."""

from pathlib import Path

import numpy as np
import pytest

from tests.support import writers
from tests.support.readings import refused
from timm_snn.data import EventFileError, Events, iter_events, read_events, recording_info

EVENTS = writers.random_events(300)


def write(path: Path, head: str, *columns: object, end: str = '\n', sep: str = ',') -> Path:
    lines = [sep.join(str(cell) for cell in row) for row in zip(*columns, strict=True)]
    path.write_bytes((head + end.join([*lines, ''])).encode())
    return path


def same(events: Events, expected: Events = EVENTS) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(events, expected, strict=True))


@pytest.mark.parametrize(
    ('head', 'order', 'sep'),
    [
        ('timestamp,x,y,polarity\n', 'txyp', ','),  # DV's
        ('x,y,p,t\r\n', 'xypt', ','),
        ('"t_us";"pol";"X";"Y"\n', 'tpxy', ';'),
        ('time [us]\ton\tx\ty\n', 'tpxy', '\t'),
        ('ts xs ys ps\n', 'txyp', ' '),
        ('# recorded today\n\n# t x y p\n', 'txyp', '  '),
        ('% geometry 128x128\n% t,x,y,p\n', 'txyp', ','),
        ('\ufefft,x,y,p\n', 'txyp', ','),
    ],
)
def test_columns_are_found_by_their_names(tmp_path, head, order, sep):
    path = write(tmp_path / 'a.csv', head, *(getattr(EVENTS, name) for name in order), sep=sep)
    assert same(read_events(path))
    assert same(Events.concatenate(list(iter_events(path, chunk_events=7))))


def test_other_columns_are_left_out(tmp_path):
    path = write(tmp_path / 'a.csv', 'frame,x,y,t,p\n', range(300), EVENTS.x, EVENTS.y, EVENTS.t, EVENTS.p)
    assert same(read_events(path))


@pytest.mark.parametrize('ends', ['\n', '\r\n'])
def test_the_order_of_columns_without_names_is_said(tmp_path, ends):
    path = write(tmp_path / 'a.csv', '', EVENTS.x, EVENTS.y, EVENTS.p, EVENTS.t, end=ends)
    assert same(read_events(path, order='xypt'))
    refused(path, r"line 1: expected names above the columns, got none: say order='xypt' \(Metavision's\)$")
    refused(path, r'line \d+: expected p in', order='txyp')
    path = write(tmp_path / 'b.txt', '', [5, 6], [1, 1], [1, 1], [0, 1], sep=' ')  # any of three
    refused(path, "order='txyp' .* or order='xytp' .* or order='xypt'")


@pytest.mark.parametrize('head', ['', '128 128\n', '# events\n'])
def test_e2vids_layout_needs_nothing(tmp_path, head):
    seconds = [f'{t / 1e6:.6f}' for t in EVENTS.t]
    path = write(tmp_path / 'events.txt', head, seconds, EVENTS.x, EVENTS.y, EVENTS.p, sep=' ')
    assert same(read_events(path))
    assert recording_info(path).sensor_size == ((128, 128) if head.startswith('128') else None)


def test_times_since_1970_keep_their_microseconds(tmp_path):
    t = 1_468_941_032_229_165 + np.arange(300)
    seconds = [f'{n // 10**6}.{n % 10**6:06d}' for n in t.tolist()]
    path = write(tmp_path / 'events.txt', '', seconds, EVENTS.x, EVENTS.y, EVENTS.p, sep=' ')
    assert same(read_events(path), EVENTS._replace(t=t))


@pytest.mark.parametrize(
    ('unit', 'times'),
    [
        ('ns', [f'{t}999' for t in EVENTS.t]),
        ('us', [f'{t:.18e}' for t in EVENTS.t]),
        ('ms', [f'{t / 1000:.3f}' for t in EVENTS.t]),
        ('s', [f'{t / 1e6:.6e}'.replace('e', 'E') for t in EVENTS.t]),
    ],
)
def test_units_of_time(tmp_path, unit, times):
    path = write(tmp_path / 'a.csv', 't,x,y,p\n', times, EVENTS.x, EVENTS.y, EVENTS.p)
    assert same(read_events(path, time_unit=unit))
    path = write(tmp_path / 'a.csv', f't [{unit}],x,y,p\n', times, EVENTS.x, EVENTS.y, EVENTS.p)
    assert same(read_events(path))


def test_a_fraction_without_a_unit_is_refused(tmp_path):
    path = write(tmp_path / 'a.csv', 't,x,y,p\n', EVENTS.t / 1e6, EVENTS.x, EVENTS.y, EVENTS.p)
    refused(path, "got t of float64: say its unit, time_unit='s'")


@pytest.mark.parametrize(('off', 'on'), [('0', '1'), ('-1', '1'), ('False', 'True')])
def test_polarities(tmp_path, off, on):
    path = write(tmp_path / 'a.csv', 't,x,y,p\n', EVENTS.t, EVENTS.x, EVENTS.y, np.where(EVENTS.p, on, off))
    assert same(read_events(path))


def test_numpy_savetxt_is_read(tmp_path):
    np.savetxt(tmp_path / 'a.txt', np.stack([column.astype(float) for column in EVENTS], 1))
    assert same(read_events(tmp_path / 'a.txt', order='txyp'))
    np.savetxt(tmp_path / 'a.txt', np.stack([c.astype(int) for c in EVENTS], 1), '%d', header='t x y p')
    assert same(read_events(tmp_path / 'a.txt'))


@pytest.mark.parametrize(
    ('content', 'text'),
    [
        ('t,x,y,p\n1,2,3,1\n\n2,3,4\n', "byte 17: line 4: expected 4 numbers, got '2,3,4'"),
        ('t,x,y,p\n1,2,3,1\n2,3,4,1,5\n', 'line 3: expected 4 numbers'),
        ('t,x,y,p\n1,2,3,1\n# note\n2,3,four,1\n', "line 4: expected 4 numbers, got '2,3,four,1'"),
        ('t,x,y,p\n1,2,3,1\n2,,4,1\n', 'line 3: expected 4 numbers'),
        ('t,x,y,p\n1,2,3,1\n2,40000,4,1\n', 'line 3: expected x in 0 ... 32767, got 40000'),
        ('t,x,y,p\n1,2,3,1\n2,-4,4,1\n', 'line 3: expected x in 0 ... 32767, got -4'),
        ('t,x,y,p\n1,2,3,2\n', 'line 2: expected p in -1 ... 1, got 2'),
        ('t,x,y,p\n1,2,3,0\n2,2,3,-1\n', 'line 3: expected p in 0, 1 or in -1, 1, got -1'),
        ('t,x,y,p\n1,2.5,3,0\n', 'line 2: expected integers'),
        ('t,x,y,p\nnan,2,3,0\n', 'line 2: expected'),
        ('t,x,y,p\n99999999999999999999,2,3,0\n', 'line 2: expected 4 numbers'),
        ('t,x,y,p\n', 'expected events, got none up to the end'),
        ('t,x,y\n1,2,3\n', 'expected names such as t,x,y,p in the first line.*got the names t, x, y'),
        ('t,x,x,y,p\n1,2,2,3,1\n', 'expected names such as'),
        ('1 2 3\n', 'got 3 columns without names'),
        ('1 2 3 1 5\n', 'got 5 columns without names'),
        ('x' * 100_000, 'expected at most 65536 bytes'),
        ('\n\n', 'expected events, got the end'),
    ],
)
def test_other_text_is_refused_at_its_line(tmp_path, content, text):
    (tmp_path / 'a.csv').write_text(content)
    refused(tmp_path / 'a.csv', text)


def test_an_order_for_columns_with_names_is_refused(tmp_path):
    path = write(tmp_path / 'a.csv', 't,x,y,p\n', *EVENTS)
    refused(path, 'expected columns without names', order='txyp')
    path = write(tmp_path / 'b.csv', 'a,b,c,d\n', *EVENTS)  # which say nothing
    assert same(read_events(path, order='txyp'))


def test_a_fault_in_a_later_block_has_its_line(tmp_path):
    count = 40_000
    lines = [f'{i},1,2,1' for i in range(count)]
    lines[35_000] = '35000,1,2,7'
    path = tmp_path / 'a.csv'
    path.write_text('\n'.join(['t,x,y,p', *lines, '']))
    offset = path.read_bytes().index(b'35000,1,2,7')
    refused(path, f'byte {offset}: line 35002: expected p in')


def test_a_fault_in_the_middle_is_found_after_the_parts_before(tmp_path):
    path = write(tmp_path / 'a.csv', 't,x,y,p\n', range(40_000), [1] * 40_000, [1] * 40_000, [1] * 39_999 + ['x'])
    parts = iter_events(path, chunk_events=1000)
    assert len(next(parts)) == 1000
    with pytest.raises(EventFileError, match='line 40001'):
        list(parts)
