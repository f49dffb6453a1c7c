"""Readers of event recordings, on files of small writers, on real ones, and against SpikingJelly."""

import io
import os
import struct
import tracemalloc
import zipfile
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.support import writers
from timm_snn.data import EventFileError, Events, Trial, iter_events, read_events, read_gesture_labels

REAL = sorted((Path(__file__).parent / 'nmnist').glob('*/*/*.bin'))
FORMATS = {  # writer, suffix, pixels
    'nmnist': (writers.nmnist, '.bin', 34),
    'aedat2': (writers.aedat2, '.aedat', 128),
    'aedat3': (writers.aedat3, '.aedat', 128),
    'npy': (writers.npy, '.npy', 128),
    'npz': (writers.npz, '.npz', 128),
    'evt2': (writers.evt2, '.raw', 128),
    'evt21': (writers.evt21, '.raw', 128),
    'evt3': (writers.evt3, '.raw', 128),
    'dat': (writers.dat, '.dat', 128),
    'text': (writers.text, '.csv', 128),
    'aedat4': (writers.aedat4, '.aedat4', 128),
    'hdf5': (writers.hdf5, '.h5', 128),
    'rosbag': (partial(writers.rosbag, kind='EventPacket'), '.bag', 128),
    'mcap': (partial(writers.mcap, kind='EventPacket'), '.mcap', 128),
}
LIBRARIES = {'hdf5': ['h5py'], 'rosbag': ['rosbags'], 'mcap': ['mcap', 'rosbags']}  # of which rosbags writes messages
BY_SUFFIX = ('nmnist', 'text')  # which begin with no bytes of their own
ALL = pytest.mark.parametrize('kind', FORMATS)


def write(folder: Path, kind: str, count: int = 2500, **kwargs: int) -> tuple[Path, Events]:
    for library in LIBRARIES.get(kind, []):
        pytest.importorskip(library)
    writer, suffix, size = FORMATS[kind]
    events = writers.random_events(count, size, **kwargs)
    return writer(folder / f'{kind}{suffix}', events), events


def joined(parts: list[Events]) -> Events:
    return Events(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def same(got: Events, expected: Events) -> bool:
    assert [array.dtype for array in got] == [np.int64, np.int16, np.int16, np.uint8]
    return all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))


def refused(path: Path, *texts: str, kind: str | None = None) -> None:
    with pytest.raises(EventFileError) as caught:
        read_events(path, kind=kind)
    message = str(caught.value)
    assert message.startswith(f'{path}: ') and all(text in message for text in texts), message


@ALL
def test_what_is_written_is_read(tmp_path, kind):
    path, events = write(tmp_path, kind)
    assert same(read_events(path), events)
    assert same(read_events(str(path), kind=kind), events)
    renamed = path.rename(tmp_path / 'recording')
    assert same(read_events(renamed, kind=kind), events)
    if kind in BY_SUFFIX:
        refused(renamed, 'suffix', 'kind=')
    else:
        assert same(read_events(renamed), events)


@ALL
@pytest.mark.parametrize('chunk', [1, 7, 999, 1000, 1001, 10**9])
def test_parts_are_the_whole(tmp_path, kind, chunk):
    path, events = write(tmp_path, kind, 2003)
    parts = list(iter_events(path, chunk_events=chunk))
    assert all(1 <= len(part.t) <= chunk for part in parts) and len(parts) >= 2003 / chunk
    assert same(joined(parts), events)


@pytest.mark.parametrize('kind', [kind for kind in FORMATS if kind not in ('rosbag', 'mcap')])  # see docs/events.md
def test_memory_does_not_grow_with_the_file(tmp_path, kind):
    peaks = []
    for count in (50_000, 200_000):
        path, _ = write(tmp_path, kind, count)
        tracemalloc.start()
        assert sum(len(part.t) for part in iter_events(path, chunk_events=5000)) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] < 2e6


@pytest.mark.parametrize('kind', [kind for kind in FORMATS if kind not in ('text', *LIBRARIES)])
def test_every_truncation_is_an_error_or_ends_between_two_events(tmp_path, kind):
    """Between events of formats without a count, a cut cannot be seen; npy and npz, and packets, have one.

    In text, half a number is a number.
    """
    path, events = write(tmp_path, kind, 23)
    if kind == 'aedat3':
        writers.aedat3(path, events, packet_events=10)
    data = path.read_bytes()
    whole = 0
    for cut in range(len(data)):
        path.write_bytes(data[:cut])
        try:
            got = read_events(path)
        except EventFileError:
            continue
        whole += 1
        assert same(got, Events(*(array[: len(got.t)] for array in events)))
    assert whole == {'nmnist': 22, 'aedat2': 22, 'aedat3': 2, 'npy': 0, 'npz': 0, 'dat': 22}.get(kind, whole)


@ALL
def test_a_file_without_events_is_refused(tmp_path, kind):
    path, _ = write(tmp_path, kind, 1)
    nothing = Events(*(np.zeros(0, np.int64) for _ in range(4)))
    if kind == 'aedat3':
        path.write_bytes(writers.AEDAT3_HEADER + writers.packet(nothing))
    else:
        FORMATS[kind][0](path, nothing)
    refused(path, 'expected')
    path.write_bytes(b'')
    refused(path, 'byte 0', 'empty')


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / 'pipe.bin')
    refused(tmp_path / 'pipe.bin', 'regular file')  # opening it would wait for a writer
    refused(tmp_path, 'regular file')
    (tmp_path / 'metadata.yaml').touch()
    refused(tmp_path, 'of a bag of ROS 2, name the file in it')
    with pytest.raises(FileNotFoundError):
        read_events(tmp_path / 'missing.bin')


def test_arguments_are_checked_before_the_file(tmp_path):
    with pytest.raises(ValueError, match=r"one of aedat3, aedat2, .*, got 'aedat5'"):
        iter_events(tmp_path / 'missing', kind='aedat5')
    with pytest.raises(ValueError, match='chunk_events >= 1, got 0'):
        iter_events(tmp_path / 'missing', chunk_events=0)


@pytest.mark.parametrize('path', REAL, ids=lambda path: path.stem)
def test_real_recordings_are_read(path):
    events = read_events(path)
    assert len(events.t) == path.stat().st_size / 5 > 1000
    assert (np.diff(events.t) >= 0).all() and 280_000 < events.t[-1] < 320_000
    assert set(np.unique(events.p)) == {0, 1} and max(events.x.max(), events.y.max()) <= 33


def test_a_known_event_of_nmnist(tmp_path):
    (tmp_path / 'one.bin').write_bytes(bytes([11, 20, 128 + 127, 19, 25]))
    assert [array.item() for array in read_events(tmp_path / 'one.bin')] == [127 << 16 | 19 << 8 | 25, 11, 20, 1]


@pytest.mark.parametrize(('i', 'name'), [(0, 'x'), (1, 'y')])
def test_a_pixel_outside_nmnist_is_refused(tmp_path, i, name):
    path, _ = write(tmp_path, 'nmnist')
    data = bytearray(path.read_bytes())
    data[5 * 1234 + i] = 34
    path.write_bytes(data)
    refused(path, f'byte {5 * 1234}:', '0 ... 33', '34')


def test_aedat2_flips_axes_as_spikingjelly_does(tmp_path):
    path = tmp_path / 'one.aedat'
    path.write_bytes(writers.AEDAT2_HEADER + struct.pack('>II', 2 << 8 | 3 << 1 | 1, 0xFFFFFFFF))
    assert [array.item() for array in read_events(path)] == [2**32 - 1, 125, 124, 0]


def test_pulses_on_the_input_of_the_camera_are_no_events(tmp_path):
    path, events = write(tmp_path, 'aedat2', 3)
    pulse = struct.pack('>II', 0x8000, 5)
    path.write_bytes(path.read_bytes() + pulse)
    assert same(read_events(path), events)
    path.write_bytes(writers.AEDAT2_HEADER + pulse)
    refused(path, 'got none')


def test_addresses_of_other_cameras_are_refused(tmp_path):
    path, _ = write(tmp_path, 'aedat2', 3)
    path.write_bytes(path.read_bytes() + struct.pack('>II', 0x10000, 5))
    refused(path, f'byte {len(writers.AEDAT2_HEADER) + 24}:', '0x10000')


def test_aedat2_without_a_version_needs_its_kind(tmp_path):
    events = writers.random_events(3)
    for header in (b'', b'# comment\r\n'):
        path = writers.aedat2(tmp_path / 'old.aedat', events, header)
        refused(path, '2.0, 3.1, 4.0', 'None')
        assert same(read_events(path, kind='aedat2'), events)


@pytest.mark.parametrize('found', ['1.0', '3.0', '5.0', '2.00', '', 'x' * 100])
@pytest.mark.parametrize('kind', ['aedat2', 'aedat3'])
def test_other_versions_are_refused(tmp_path, kind, found):
    path, _ = write(tmp_path, kind)
    rest = path.read_bytes().split(b'\r\n', 1)[1]
    path.write_bytes(b'#!AER-DAT' + found.encode() + b'\r\n' + rest)
    refused(path, 'byte 0:', '2.0, 3.1, 4.0', found[:10])
    refused(path, 'byte 0:', kind=kind)
    refused(path, 'byte 0:', kind={'aedat2': 'aedat3', 'aedat3': 'aedat2'}[kind])


@pytest.mark.parametrize('kind', ['aedat2', 'aedat3'])
def test_a_header_without_an_end_is_refused(tmp_path, kind):
    path, _ = write(tmp_path, kind)
    first = path.read_bytes().split(b'\r\n')[0] + b'\r\n'
    for endless in (b'#' * (2 << 20), b'# line\r\n' * (1 << 18)):
        path.write_bytes(first + endless)
        refused(path, f'header of more than {1 << 20} bytes')


def test_packets_of_several_overflows_and_types(tmp_path):
    first, second, other = (writers.random_events(count, seed=count) for count in (5, 300, 7))
    path = tmp_path / 'mixed.aedat'
    nothing = Events(*(array[:0] for array in other))
    packets = [
        writers.packet(other, kind=0),
        writers.packet(first),
        writers.packet(nothing),
        struct.pack('<hhiiiiii', 3, 1, 36, 4, 0, 2, 2, 2) + bytes(72),  # as of an inertial sensor
        writers.packet(second, overflow=2),
        writers.packet(other, kind=100),
    ]
    path.write_bytes(writers.AEDAT3_HEADER + b''.join(packets))
    expected = joined([first, second._replace(t=second.t + (2 << 31))])
    for chunk in (1, 4, 6, 10**6):
        assert same(joined(list(iter_events(path, chunk_events=chunk))), expected)


def test_the_writer_splits_packets_where_time_overflows(tmp_path):
    events = writers.random_events(100, last=5 << 31)
    assert len(np.unique(events.t >> 31)) == 5
    assert same(read_events(writers.aedat3(tmp_path / 'long.aedat', events)), events)


def test_invalid_events_are_dropped(tmp_path):
    events = writers.random_events(50)
    valid = np.arange(50) % 3 > 0
    outside = np.where(valid, events.x, 129).astype(np.int16)  # what is invalid may hold anything
    path = tmp_path / 'invalid.aedat'
    path.write_bytes(writers.AEDAT3_HEADER + writers.packet(events._replace(x=outside), valid=valid))
    expected = Events(*(array[valid] for array in events))
    assert same(read_events(path), expected)
    assert same(joined(list(iter_events(path, chunk_events=1))), expected)


@pytest.mark.parametrize(('bit', 'text'), [(31, '(16384,'), (24, '(128,'), (16, ', 16384)'), (9, ', 128)')])
def test_a_pixel_outside_128_is_refused_at_its_byte(tmp_path, bit, text):
    events = Events(*(array * 0 for array in writers.random_events(30)))
    path = writers.aedat3(tmp_path / 'outside.aedat', events, packet_events=10)
    data = bytearray(path.read_bytes())
    offset = len(writers.AEDAT3_HEADER) + 2 * (28 + 80) + 28 + 8 * 4
    data[offset : offset + 4] = struct.pack('<I', 1 | 1 << bit)
    path.write_bytes(data)
    refused(path, f'byte {offset}:', text)


def test_timestamps_have_31_bits(tmp_path):
    path = tmp_path / 'negative.aedat'
    path.write_bytes(
        writers.AEDAT3_HEADER + struct.pack('<hhiiiiii', 1, 1, 8, 4, 0, 1, 1, 1) + struct.pack('<II', 1, 2**31)
    )
    refused(path, f'byte {len(writers.AEDAT3_HEADER) + 28}:', str(2**31))


@pytest.mark.parametrize(
    'header',
    [
        (1, 1, 8, 4, 0, 2**31 - 1, 2**31 - 1, 0),
        (0, 1, 2**31 - 1, 4, 0, 2**31 - 1, 2**31 - 1, 0),
        (1, 1, 8, 4, 0, -1, -1, 0),
        (0, 1, -8, 4, 0, 1, 1, 0),
        (1, 1, 8, 4, 0, 4, 3, 0),
        (1, 1, 8, 4, 0, 3, 4, 0),
        (1, 1, 16, 4, 0, 1, 1, 0),
        (1, 1, 8, 0, 0, 1, 1, 0),
        (1, 1, 8, 4, -1, 1, 1, 0),
    ],
)
def test_hostile_packets_cost_no_memory(tmp_path, header):
    path = tmp_path / 'hostile.aedat'
    path.write_bytes(writers.AEDAT3_HEADER + struct.pack('<hhiiiiii', *header) + bytes(24))
    tracemalloc.start()
    refused(path, f'byte {len(writers.AEDAT3_HEADER)}:')
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6


@pytest.mark.parametrize(
    ('header', 'text'),
    [
        (writers.AEDAT3_HEADER.replace(b'RAW', b'PNG'), '#Format: PNG'),
        (writers.AEDAT3_HEADER.replace(b'#!END-HEADER\r\n', b''), '#!END-HEADER'),
        (writers.AEDAT3_HEADER.replace(b'#Source', b'Source'), "b'Source 1"),
    ],
)
def test_other_headers_of_aedat3_are_refused(tmp_path, header, text):
    events = writers.random_events(4)._replace(t=np.full(4, 10))  # with bytes that end a line
    refused(writers.aedat3(tmp_path / 'header.aedat', events, header=header), text)


@pytest.mark.parametrize('layout', ['structured', 'more fields', 'by column', 'big-endian', 'small integers'])
def test_arrays_of_several_layouts(tmp_path, layout):
    events = writers.random_events(2003, last=32_000)
    array = np.stack([column.astype(np.int64) for column in events], 1)
    if 'structured' in layout or 'fields' in layout:
        kinds = [('x', '<i2'), ('p', '?'), ('t', '>u8'), ('y', 'u1')]
        structured = np.zeros(2003, kinds + [('z', 'S3')] * (layout == 'more fields'))
        for name in 'txyp':
            structured[name] = getattr(events, name)
        array = structured
    elif layout == 'by column':
        array = np.asfortranarray(array)
    else:
        array = array.astype({'big-endian': '>i8', 'small integers': '<u2'}[layout])
    np.save(tmp_path / 'a.npy', array)
    assert same(read_events(tmp_path / 'a.npy'), events)
    assert same(joined(list(iter_events(tmp_path / 'a.npy', chunk_events=100))), events)


def test_a_stored_npz_with_other_arrays(tmp_path):
    events = writers.random_events(300)
    np.savez(tmp_path / 'a.npz', label=np.array(['cat']), **events._asdict())
    assert same(read_events(tmp_path / 'a.npz'), events)


@pytest.mark.parametrize(
    'array',
    [
        np.zeros((3, 4)),
        np.zeros((3, 5), int),
        np.zeros((4, 3), int),
        np.zeros(12, int),
        np.zeros((), int),
        np.zeros(3, [('t', int), ('x', int), ('y', int)]),
        np.zeros(3, [('t', int), ('x', int), ('y', int), ('p', float)]),
        np.zeros(3, [('t', int), ('x', int), ('y', int), ('p', int, 2)]),
        np.array([[1, 2, 3, 4]], object),
        np.array(['text']),
    ],
    ids=lambda array: f'{array.dtype.kind}{array.shape}',
)
def test_other_arrays_are_refused(tmp_path, array):
    np.save(tmp_path / 'a.npy', array)
    refused(tmp_path / 'a.npy', 'byte', 'expected')
    np.savez(tmp_path / 'a.npz', t=array, x=array, y=array, p=array)
    if not (array.shape == (12,) and array.dtype == int):  # of four of those, an npz is right
        refused(tmp_path / 'a.npz', 'byte', 'expected')


@pytest.mark.parametrize('layout', ['by row', 'by column', 'npz'])
@pytest.mark.parametrize(('column', 'value'), [(1, 32768), (1, -1), (2, 2**40), (3, 2), (3, -1)])
def test_values_that_events_cannot_hold_are_refused_at_their_byte(tmp_path, layout, column, value):
    array = np.stack([field.astype(np.int64) for field in writers.random_events(2003)], 1)
    array[1500, column] = value
    path = tmp_path / ('a.npz' if layout == 'npz' else 'a.npy')
    if layout == 'npz':
        np.savez(path, **dict(zip('txyp', array.T.copy(), strict=True)))
    else:
        np.save(path, np.asfortranarray(array) if layout == 'by column' else array)
    offset = 128 + 8 * {'by row': 1500 * 4 + column, 'by column': column * 2003 + 1500, 'npz': 1500}[layout]
    with pytest.raises(EventFileError, match=rf'byte {offset}\b.*expected {"txyp"[column]} in .*, got {value}$'):
        list(iter_events(path, chunk_events=400))


def npy_header(text: str, version: int = 1, length: int | None = None) -> bytes:
    head = text.encode()
    return b'\x93NUMPY' + bytes([version, 0]) + (length or len(head)).to_bytes(2 * version, 'little') + head


HOSTILE_NPY = {
    'a huge shape': npy_header("{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000, 4)}"),
    'a negative shape': npy_header("{'descr': '<i8', 'fortran_order': False, 'shape': (-1, -4)}"),
    'a huge number': npy_header(f"{{'descr': '<i8', 'fortran_order': False, 'shape': (1{'0' * 4000}, 4)}}"),
    'huge items': npy_header("{'descr': '<V2000000000', 'fortran_order': False, 'shape': (1, 4)}"),
    'a pickle': npy_header("{'descr': '|O', 'fortran_order': False, 'shape': (1, 4)}"),
    'a huge header': npy_header('{', 2, 2**32 - 1) + bytes(1000),
    'deep nesting': npy_header('(' * 9000),
    'deep signs': npy_header('-' * 9000 + '1'),
    'an open string': npy_header("{'descr"),
    'no dict': npy_header('1'),
    'another version': npy_header('{}', 3),
    'no type': npy_header("{'descr': 'what', 'fortran_order': False, 'shape': (1, 4)}"),
    'nothing': b'\x93NUMPY',
}


@pytest.mark.parametrize('name', HOSTILE_NPY)
def test_hostile_npy_headers_cost_no_memory(tmp_path, name):
    (tmp_path / 'a.npy').write_bytes(HOSTILE_NPY[name] + bytes(32 if name == 'a pickle' else 0))
    with zipfile.ZipFile(tmp_path / 'a.npz', 'w', zipfile.ZIP_DEFLATED) as archive:
        for member in 'txyp':
            archive.writestr(f'{member}.npy', HOSTILE_NPY[name])
    for path in (tmp_path / 'a.npy', tmp_path / 'a.npz'):
        tracemalloc.start()
        refused(path, 'byte', 'expected')
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4e6


def test_an_npz_that_unpacks_to_much_is_streamed(tmp_path):
    """200 MB of zeros in 200 kB: one event at a time is all that is held."""
    count = 5_000_000
    with zipfile.ZipFile(tmp_path / 'bomb.npz', 'w', zipfile.ZIP_DEFLATED) as archive:
        for name in 'txyp':
            with archive.open(f'{name}.npy', 'w') as member:
                text = f"{{'descr': '<i8', 'fortran_order': False, 'shape': ({count},)}}"
                member.write(npy_header(text))
                for _ in range(8):
                    member.write(bytes(count))
    tracemalloc.start()
    first = next(iter_events(tmp_path / 'bomb.npz', chunk_events=1000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(first.t) == 1000 and peak < 2e6


def npz_of(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive:
        for name, data in members.items():
            archive.writestr(f'{name}.npy', data)
    return buffer.getvalue()


def array_bytes(count: int) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(count, np.int64))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ('lengths', 'text'),
    [({'t': 3, 'x': 3, 'y': 3}, 'no p.npy among t.npy, x.npy'), ({'t': 3, 'x': 3, 'y': 2, 'p': 3}, '[3, 3, 2, 3]')],
)
def test_incomplete_archives_are_refused(tmp_path, lengths, text):
    (tmp_path / 'a.npz').write_bytes(npz_of(**{name: array_bytes(count) for name, count in lengths.items()}))
    refused(tmp_path / 'a.npz', text)


def test_a_wrong_checksum_is_an_error(tmp_path):
    data = npz_of(**{name: array_bytes(1000) for name in 'txyp'})
    crc = struct.pack('<I', zlib.crc32(array_bytes(1000)))
    assert data.count(crc) == 8  # of each array, beside it and in the directory
    (tmp_path / 'a.npz').write_bytes(data.replace(crc, struct.pack('<I', 1)))
    refused(tmp_path / 'a.npz', 'CRC')


def test_other_compressions_and_encryption_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / 'a.npz', 'w', zipfile.ZIP_LZMA) as archive:
        for name in 'txyp':
            archive.writestr(f'{name}.npy', array_bytes(100))
    refused(tmp_path / 'a.npz', 'stored or deflated')
    data = bytearray(npz_of(**{name: array_bytes(1000) for name in 'txyp'}))
    for start in [i for i in range(len(data)) if data[i : i + 4] in (b'PK\x01\x02', b'PK\x03\x04')]:
        data[start + (8 if data[start + 2] == 1 else 6)] |= 1
    (tmp_path / 'a.npz').write_bytes(data)
    refused(tmp_path / 'a.npz', 'encrypted')


LABELS = 'class,startTime_usec,endTime_usec\n'


def test_labels_count_from_zero_and_keep_times(tmp_path):
    """Lines end in either way, and the overlap in the official user22_led stays."""
    text = LABELS + '1,5,9\r\n9,93000000,110590564\n10,104600000,110600000\n\n11,200000000,210000000'
    (tmp_path / 'labels.csv').write_bytes(text.encode())
    trials = read_gesture_labels(tmp_path / 'labels.csv')
    assert trials[:2] == [Trial(label=0, start=5, end=9), (8, 93_000_000, 110_590_564)]
    assert [trial.label for trial in trials] == [0, 8, 9, 10]


@pytest.mark.parametrize(
    ('text', 'where'),
    [
        ('', 'byte 0'),
        (LABELS + '1,2,3\n' * 200_000, 'byte 0'),
        ('\n', 'line 1'),
        ('1,2,3\n', 'line 1'),
        (LABELS, 'line 2'),
        (LABELS + '1,2\n', 'line 2'),
        (LABELS + '1,2,3,4\n', 'line 2'),
        (LABELS + '1,2,3\n12,4,5\n', 'line 3'),
        (LABELS + '0,4,5\n', 'line 2'),
        (LABELS + '1,5,5\n', 'line 2'),
        (LABELS + '1,5,4\n', 'line 2'),
        (LABELS + '1,-1,4\n', 'line 2'),
        (LABELS + '1,1.5,4\n', 'line 2'),
        (LABELS + '1,2,3\n\n1,x,4\n', 'line 4'),
        (LABELS + '\x93NUMPY\n', 'line 2'),
    ],
)
def test_wrong_labels_are_refused_at_their_line(tmp_path, text, where):
    path = tmp_path / 'labels.csv'
    path.write_text(text, encoding='latin-1')
    with pytest.raises(EventFileError) as caught:
        read_gesture_labels(path)
    assert str(caught.value).startswith(f'{path}: {where}: expected ')


@pytest.fixture(scope='module')
def spikingjelly():
    return pytest.importorskip('spikingjelly.datasets')


def equals(got: Events, theirs: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(getattr(got, name), theirs[name]) for name in 'txyp')


@pytest.mark.parametrize('path', REAL, ids=lambda path: path.stem)
def test_nmnist_equals_spikingjelly(spikingjelly, path):
    assert equals(read_events(path), spikingjelly.load_ATIS_bin(path))


def test_aedat3_equals_spikingjelly(spikingjelly, tmp_path):
    path, _ = write(tmp_path, 'aedat3', last=3 << 31)
    assert equals(read_events(path), spikingjelly.load_aedat_v3(path))


def test_aedat2_equals_spikingjelly(spikingjelly, tmp_path):
    from spikingjelly.datasets import cifar10_dvs

    path, _ = write(tmp_path, 'aedat2', last=1 << 32)
    assert equals(read_events(path), cifar10_dvs._load_origin_data(path))


def test_trials_equal_spikingjelly(spikingjelly, tmp_path):
    from spikingjelly.datasets import dvs128_gesture

    path, events = write(tmp_path, 'aedat3')
    labels = tmp_path / 'labels.csv'
    labels.write_text(LABELS + '1,1000,90000\n2,80000,200000\n1,200000,400000\n')
    for label in range(11):
        (tmp_path / str(label)).mkdir()
    dvs128_gesture._split_aedat_files_to_np('clip', path, labels, tmp_path)
    counts = [0] * 11
    for label, start, end in read_gesture_labels(labels):
        inside = (events.t >= start) & (events.t < end)
        theirs = np.load(tmp_path / str(label) / f'clip_{counts[label]}.npz')
        counts[label] += 1
        assert inside.any() and equals(Events(*(array[inside] for array in events)), theirs)


HEADERS = {
    'an empty descr': "{'descr': (), 'fortran_order': False, 'shape': (1, 4), }\n",
    'a descr of one': "{'descr': ('<i8',), 'fortran_order': False, 'shape': (1, 4), }\n",
    'a number without end': "{'descr': '<i8', 'fortran_order': False, 'shape': (0x" + 'F' * 9000 + ', 4), }\n',
    'a negative size': "{'descr': '<i8', 'fortran_order': False, 'shape': (-1, 4), }\n",
    'a deep nest': "{'descr': '<i8', 'fortran_order': False, 'shape': " + '(' * 4000 + '\n',
    'a comma string': "{'descr': ',', 'fortran_order': False, 'shape': (1, 4), }\n",
    'no dictionary': '[]\n',
    'an escape': "{'\x1b[31m': 1}\n",
}


@pytest.mark.parametrize('text', HEADERS.values(), ids=HEADERS)
@pytest.mark.parametrize('version', [(1, 0), (1, 7), (3, 0)])
def test_no_header_of_an_array_raises_another_error(text, version, tmp_path):
    path = tmp_path / 'a.npy'
    path.write_bytes(b'\x93NUMPY' + bytes(version) + struct.pack('<H', len(text)) + text.encode('latin-1') + bytes(32))
    with pytest.raises(EventFileError) as raised:
        read_events(path)
    assert str(raised.value).isprintable() and len(str(raised.value)) < 800


def test_names_in_an_archive_reach_no_terminal(tmp_path):
    with zipfile.ZipFile(tmp_path / 'a.npz', 'w') as archive:
        for number in range(20):
            archive.writestr(f'\x1b[31mEVIL{number}\n' * 100, b'')
    with pytest.raises(EventFileError, match='expected arrays t, x, y, p') as raised:
        read_events(tmp_path / 'a.npz')
    assert str(raised.value).isprintable() and len(str(raised.value)) < 800


def test_an_archive_may_unpack_to_what_is_allowed(tmp_path):
    zeros = np.zeros(1000, np.uint8)
    np.savez_compressed(tmp_path / 'a.npz', t=zeros, x=zeros, y=zeros, p=zeros)
    size = 4 * (128 + 1000)
    assert len(read_events(tmp_path / 'a.npz', max_unpacked=size).t) == 1000
    with pytest.raises(EventFileError, match=f'unpacks to {size} bytes, and at most {size - 1} are allowed: max_unp'):
        read_events(tmp_path / 'a.npz', max_unpacked=size - 1)
