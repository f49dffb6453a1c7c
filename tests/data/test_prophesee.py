"""EVT 2.0, 2.1, 3.0 and .dat: words made by hand from their public description, and a decoder of word after word."""

from pathlib import Path

import numpy as np
import pytest

from tests.support import writers
from timm_snn.data import EventFileError, iter_events, read_events, recording_info

DTYPES = {'evt2': '<u4', 'evt21': '<u8', 'evt3': '<u2'}


def raw(folder: Path, kind: str, *words: int, size: str = '1280x720') -> Path:
    version = {'evt2': '2.0', 'evt21': '2.1', 'evt3': '3.0'}[kind]
    head = f'% evt {version}\n% geometry {size}\n% endianness little\n% end\n'.encode()
    (folder / 'made.raw').write_bytes(head + np.array(words, DTYPES[kind]).tobytes())
    return folder / 'made.raw'


def rows(path: Path) -> list[tuple[int, ...]]:
    events = read_events(path)
    return list(zip(*(column.tolist() for column in events), strict=True))


def high(value: int) -> int:  # of EVT 3.0
    return 0x8 << 12 | value


def low(value: int) -> int:
    return 0x6 << 12 | value


def at_x(x: int, p: int) -> int:
    return 0x2 << 12 | p << 11 | x


def base(x: int, p: int) -> int:
    return 0x3 << 12 | p << 11 | x


def vector12(bits: int) -> int:
    return 0x4 << 12 | bits


def vector8(bits: int) -> int:
    return 0x5 << 12 | bits


def cd(t: int, x: int, y: int, p: int) -> int:  # of EVT 2.0
    return p << 28 | (t & 63) << 22 | x << 11 | y


def time_high(t: int) -> int:
    return 0x8 << 28 | t >> 6 & 0xFFFFFFF


def test_evt2_adds_the_upper_bits_of_its_time(tmp_path):
    path = raw(tmp_path, 'evt2', time_high(640), cd(3, 1279, 719, 1), cd(63, 0, 5, 0), time_high(704), cd(0, 7, 0, 1))
    assert rows(path) == [(643, 1279, 719, 1), (703, 0, 5, 0), (704, 7, 0, 1)]
    assert recording_info(path).kind == 'evt2' and recording_info(path).sensor_size == (720, 1280)


def test_evt2_goes_on_after_34_bits(tmp_path):
    end = 2**34 - 64
    words = [
        time_high(end),
        cd(60, 1, 2, 1),
        time_high(0),
        cd(5, 1, 2, 0),
        time_high(end),
        cd(1, 3, 4, 1),
        time_high(64),
    ]
    path = raw(tmp_path, 'evt2', *words, cd(2, 3, 4, 1))
    assert [t for t, *_ in rows(path)] == [end + 60, 2**34 + 5, 2**34 + end + 1, 2**35 + 66]


def test_words_that_are_no_events_are_skipped(tmp_path):
    trigger, other, continued = 0xA << 28 | 1 << 22 | 3 << 8 | 1, 0xE << 28 | 12345, 0xF << 28 | 0xFFFFFFF
    path = raw(tmp_path, 'evt2', time_high(64), trigger, cd(1, 2, 3, 0), other, continued, 0x5 << 28, cd(2, 2, 3, 1))
    assert rows(path) == [(65, 2, 3, 0), (66, 2, 3, 1)]
    trigger, other, continued4, continued12 = 0xA << 12 | 1 << 8 | 1, 0xE << 12 | 7, 0x7 << 12 | 9, 0xF << 12 | 0xFFF
    words = [
        high(0),
        low(9),
        5,
        trigger,
        at_x(3, 1),
        other,
        continued12,
        continued12,
        continued4,
        0x1 << 12,
        at_x(4, 0),
    ]
    assert rows(raw(tmp_path, 'evt3', *words)) == [(9, 3, 5, 1), (9, 4, 5, 0)]


def test_events_before_their_time_or_row_are_skipped(tmp_path):
    assert rows(raw(tmp_path, 'evt2', cd(3, 1, 1, 1), time_high(64), cd(3, 2, 2, 1))) == [(67, 2, 2, 1)]
    words = [at_x(1, 0), low(7), 4, at_x(2, 0), vector12(1), high(1), at_x(3, 0), vector12(1), base(20, 1), vector12(1)]
    assert rows(raw(tmp_path, 'evt3', *words)) == [(4096, 3, 4, 0), (4096, 20, 4, 1)]
    path = raw(tmp_path, 'evt3', at_x(1, 0), low(7))
    with pytest.raises(EventFileError, match='expected events, got none up to the end'):
        read_events(path)


def test_a_vector_of_evt3_begins_where_the_last_one_ended(tmp_path):
    vectors = [
        base(100, 1),
        vector12(0b100000000001),
        vector12(0),
        vector8(0b10000010),
        vector12(1),
        base(8, 0),
        vector8(1),
    ]
    path = raw(tmp_path, 'evt3', high(0), low(1), 2, *vectors, at_x(50, 1), vector8(2))
    columns = [100, 111, 125, 131, 132, 8, 50, 17]
    assert rows(path) == [(1, x, 2, p) for x, p in zip(columns, [1, 1, 1, 1, 1, 0, 1, 0], strict=True)]


def test_the_row_of_evt3_has_no_bit_of_the_camera(tmp_path):
    assert rows(raw(tmp_path, 'evt3', high(0), low(0), 1 << 11 | 700, at_x(1, 1))) == [(0, 1, 700, 1)]


def test_evt3_keeps_the_lower_bits_while_the_upper_ones_are_repeated(tmp_path):
    words = [high(3), low(5), 1, at_x(1, 1), high(3), at_x(2, 1), high(4), at_x(3, 1), low(6), at_x(4, 1)]
    assert [t for t, *_ in rows(raw(tmp_path, 'evt3', *words))] == [12293, 12293, 16384, 16390]


def test_evt3_goes_on_after_24_bits(tmp_path):
    turn = [high(0), low(1), at_x(1, 1), high(2000), at_x(1, 0), high(4095), low(4095), at_x(2, 1)]
    path = raw(tmp_path, 'evt3', high(0), low(0), 9, *turn * 3)
    expected = [n * 2**24 + t for n in range(3) for t in (1, 2000 << 12, 2**24 - 1)]
    assert [t for t, *_ in rows(path)] == expected
    parts = list(iter_events(path, chunk_events=1))
    assert [part.t.item() for part in parts] == expected


@pytest.mark.parametrize('endianness', ['little', 'legacy', None])
def test_evt21_has_32_pixels_a_word(tmp_path, endianness):
    """GenX320 writes the lower half of a word first, IMX636 the upper one."""
    words = [time_high(128) << 32, cd(1, 32, 7, 1) << 32 | 0x80000003, 0xA << 60 | 1, cd(2, 640, 8, 0) << 32 | 1 << 31]
    path = raw(tmp_path, 'evt21', *words)
    data = path.read_bytes()
    if endianness != 'little':
        head, body = data.split(b'% end\n')
        swapped = np.frombuffer(body, '<u4').reshape(-1, 2)[:, ::-1].tobytes()
        line = b'' if endianness is None else b'% endianness legacy\n'
        path.write_bytes(head.replace(b'% endianness little\n', line) + b'% end\n' + swapped)
    assert rows(path) == [(129, 32, 7, 1), (129, 33, 7, 1), (129, 63, 7, 1), (130, 671, 8, 0)]


def word_by_word(words: list[int]) -> list[tuple[int, ...]]:
    """EVT 3.0 as its description reads, one word after the other."""
    events = []
    turns, upper, lower, y, x, p = 0, None, 0, None, None, None
    for word in words:
        kind, value = word >> 12, word & 0xFFF
        pixels = []
        if kind == 0x8:
            turns += upper is not None and value < upper - 2048
            lower = lower if value == upper else 0
            upper = value
        elif kind == 0x6:
            lower = value
        elif kind == 0x0:
            y = value & 0x7FF
        elif kind == 0x2:
            pixels = [(value & 0x7FF, value >> 11)]
        elif kind == 0x3:
            x, p = value & 0x7FF, value >> 11
        elif kind in (0x4, 0x5) and x is not None:
            width = 12 if kind == 0x4 else 8
            pixels = [(x + i, p) for i in range(width) if value >> i & 1]
            x += width
        if upper is not None and y is not None:
            events += [((turns << 24) + (upper << 12) + lower, column, y, sign) for column, sign in pixels]
    return events


@pytest.mark.parametrize('seed', range(8))
def test_any_words_of_evt3_are_decoded_as_one_by_one(tmp_path, seed):
    rng = np.random.default_rng(seed)
    kinds = rng.choice([0, 2, 3, 4, 5, 6, 7, 8, 0xA, 0xE, 0xF], 400, p=np.array([2, 4, 3, 3, 2, 3, 1, 2, 1, 1, 1]) / 23)
    values = rng.integers(0, 1 << 12, 400) & np.where(np.isin(kinds, (0, 2, 3)), 0x9FF, 0xFFF)
    words = (kinds << 12 | values).tolist()
    path = raw(tmp_path, 'evt3', *words, size='2047x2047')
    expected = word_by_word(words)
    assert rows(path) == expected and len(expected) > 400
    for chunk in (1, 3, 50):
        parts = list(iter_events(path, chunk_events=chunk))
        assert all(len(part) == chunk for part in parts[:-1])
        assert [row for part in parts for row in zip(*(column.tolist() for column in part), strict=True)] == expected


@pytest.mark.parametrize(
    ('head', 'size'),
    [
        ('% Date 2020-01-01 10:00:00\n% evt 3.0\n', None),  # without an end, as older ones
        ('% evt 3.0\n% format EVT3;height=320;width=640\n% end\n', (320, 640)),
        ('% format EVT3\n% geometry 346x260\n% end\n', (260, 346)),
        ('% evt 3.0\n% end\n% ', None),  # no header line, but a word of EVT_ADDR_Y after the end
    ],
)
def test_headers(tmp_path, head, size):
    path = tmp_path / 'recording.raw'
    path.write_bytes(head.encode() + np.array([high(0), low(3), 2, at_x(1, 1)], '<u2').tobytes())
    assert rows(path) == [(3, 1, 2, 1)]
    assert recording_info(path).sensor_size == size


def test_another_encoding_is_named_with_what_converts_it(tmp_path):
    path = tmp_path / 'new.raw'
    for head in ('% evt 4.0\n% format EVT4;height=720;width=1280\n', '% evt 4.0\n'):
        path.write_bytes(f'{head}% end\n'.encode() + bytes(8))
        with pytest.raises(EventFileError, match=r'got a recording of Prophesee in the format EVT4') as caught:
            read_events(path)
        assert f'metavision_file_to_csv -i {path}' in str(caught.value)
        assert f"read_events('{tmp_path}/new.csv', order='xypt')" in str(caught.value)


def test_half_a_word_is_refused(tmp_path):
    for kind in DTYPES:
        path = raw(tmp_path, kind, 0, 0, 0)
        path.write_bytes(path.read_bytes() + b'\0')
        with pytest.raises(EventFileError, match='expected whole events of'):
            read_events(path)


@pytest.mark.parametrize(
    ('kind', 'words', 'index', 'got'),
    [
        ('evt2', [time_high(0), cd(1, 1280, 0, 1)], 1, r'\(1280, 0\)'),
        ('evt3', [high(0), low(0), 720, at_x(1, 1)], 3, r'\(1, 720\)'),
        ('evt3', [high(0), low(0), 1, base(1270, 0), vector12(1), vector8(1)], 5, r'\(1282, 1\)'),
        ('evt21', [time_high(0) << 32, cd(1, 1264, 1, 1) << 32 | 1 << 16], 1, r'\(1280, 1\)'),
    ],
)
def test_an_event_outside_of_the_sensor_is_refused_at_its_word(tmp_path, kind, words, index, got):
    path = raw(tmp_path, kind, *words)
    offset = path.stat().st_size - (len(words) - index) * np.dtype(DTYPES[kind]).itemsize
    with pytest.raises(EventFileError, match=f'byte {offset}: expected x below 1280 and y below 720, got {got}'):
        read_events(path)


def test_vectors_without_end_are_outside_of_any_sensor(tmp_path):
    path = raw(tmp_path, 'evt3', high(0), low(0), 1, base(2000, 1), *[vector12(0)] * 10_000, vector12(1), size='')
    with pytest.raises(EventFileError, match='expected x below 2048'):
        read_events(path)


def test_dat_goes_on_after_32_bits(tmp_path):
    events = writers.random_events(500, last=3 << 32)
    read = read_events(writers.dat(tmp_path / 'long.dat', events))
    assert np.array_equal(read.t, events.t) and np.array_equal(read.p, events.p)


def test_dat_without_a_header_needs_its_suffix(tmp_path):
    events = writers.random_events(20)
    path = writers.dat(tmp_path / 'recording.dat', events)
    path.write_bytes(path.read_bytes()[-20 * 8 - 2 :])
    assert np.array_equal(read_events(path).t, events.t)
    assert recording_info(path) == ('dat', None, 20, None)


@pytest.mark.parametrize(
    ('old', 'new', 'text'),
    [
        (b'Version 2', b'Version 3', 'version 3'),
        (bytes([12, 8]), bytes([10, 16]), 'got type 10 and 16 bytes'),
        (b'Width 128', b'Width 100', 'expected x below 100'),
    ],
)
def test_another_dat_is_refused(tmp_path, old, new, text):
    path = writers.dat(tmp_path / 'recording.dat', writers.random_events(50))
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    with pytest.raises(EventFileError, match=text):
        read_events(path)


@pytest.mark.parametrize('kind', ['evt2', 'dat'])
def test_expelliarmus_reads_the_same(tmp_path, kind):
    """Its EVT 3.0 is not compared: it adds 4096 us where the lower bits of the time fall."""
    expelliarmus = pytest.importorskip('expelliarmus')
    events = writers.random_events(2000, last=2**31)
    path = getattr(writers, kind)(tmp_path / f'recording.{"dat" if kind == "dat" else "raw"}', events)
    theirs = expelliarmus.Wizard(encoding=kind).read(str(path))
    assert all(np.array_equal(theirs[name], column) for name, column in events._asdict().items())
