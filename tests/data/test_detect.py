"""What a file is follows from its first bytes; what is known and not read says how to convert it."""

import gzip
import os
from functools import partial

import pytest

from tests.support import writers
from tests.support.readings import gives
from timm_snn.data import EventFileError, iter_events, read_events, recording_info

EVENTS = writers.random_events(1500, 34)
same = partial(gives, EVENTS)
KINDS = ('aedat2', 'aedat3', 'aedat4', 'npy', 'npz', 'evt2', 'evt21', 'evt3', 'dat')


@pytest.mark.parametrize('kind', KINDS)
def test_a_wrong_suffix_does_not_matter(tmp_path, kind):
    made = tmp_path / f'recording.{kind if kind.startswith("np") else "tmp"}'
    getattr(writers, kind)(made, EVENTS)
    for suffix in ('.raw', '.dat', '.bin', '.csv', '.h5', '.npy', ''):
        path = made.rename(tmp_path / f'recording{suffix}')
        assert same(path) and recording_info(path).kind == kind
        made = path


@pytest.mark.parametrize('kind', [*KINDS, 'nmnist', 'text'])
def test_gzip_is_unpacked(tmp_path, kind):
    suffix = {'nmnist': '.bin', 'text': '.csv'}.get(kind, '.npy' if kind == 'npy' else '.npz')
    plain = getattr(writers, kind)(tmp_path / f'recording{suffix}', EVENTS)
    packed = tmp_path / f'recording{suffix}.gz'
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert same(packed) and recording_info(packed) == recording_info(plain)
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(EventFileError, match='expected a whole file of gzip'):
        read_events(packed)


def test_gzip_unpacks_to_what_is_allowed(tmp_path):
    path = tmp_path / 'bomb.csv.gz'
    path.write_bytes(gzip.compress(bytes(1_000_000)))
    with pytest.raises(EventFileError, match='unpacks to more bytes, and at most 999999 are allowed'):
        read_events(path, max_unpacked=999_999)
    path.write_bytes(gzip.compress(b''))
    with pytest.raises(EventFileError, match='expected a recording, got an empty file'):
        read_events(path)


def test_nothing_is_left_of_what_was_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path / 'temporary'))
    (tmp_path / 'temporary').mkdir()
    path = tmp_path / 'a.bin.gz'
    path.write_bytes(gzip.compress(writers.nmnist(tmp_path / 'a.bin', EVENTS).read_bytes()))
    parts = iter_events(path, chunk_events=10)
    next(parts)
    assert len(os.listdir(tmp_path / 'temporary')) == 1
    parts.close()
    assert not os.listdir(tmp_path / 'temporary')


@pytest.mark.parametrize(
    ('name', 'head', 'what', 'commands'),
    [
        ('a.db3', b'SQLite format 3\0', 'a bag of ROS 2 in SQLite', ('rosbags-convert --src ', "read_events('")),
        ('a.es', b'Event Stream\x02\0\0\x01', 'an Event Stream', ('event_stream.Decoder(', 'read_events(')),
        ('a.mp4', b'\0\0\0\x20ftypisom', 'a video', ('v2e -i ', "read_events('events.txt')")),
        ('a.avi', b'RIFF\x10\0\0\0AVI LIST', 'a video', ('v2e -i ', "read_events('events.txt')")),
        ('a.raw', b'\x1aE\xdf\xa3', 'a video', ('v2e -i ', "read_events('events.txt')")),
        ('a.png', b'\x89PNG\r\n\x1a\n', 'a picture', ('v2e -i ', "read_events('events.txt')")),
        ('a.mat', b'MATLAB 5.0 MAT-file', 'a file of MATLAB', ('scipy.io.loadmat(', 'np.savez(')),
    ],
)
def test_what_is_known_and_not_read_says_how_to_convert_it(tmp_path, name, head, what, commands):
    path = tmp_path / name
    path.write_bytes(head + bytes(100))
    with pytest.raises(EventFileError) as caught:
        read_events(path)
    message = str(caught.value)
    assert message.startswith(f'{path}: byte 0: got {what}') and 'expected events' in message and '\n' not in message
    first, second = message.split('Convert it: ')[1].split('; ')
    assert commands[0] in first and commands[1] in second and '{' not in first


def test_what_is_not_known_says_what_is(tmp_path):
    (tmp_path / 'a.xyz').write_bytes(b'something else')
    with pytest.raises(
        EventFileError, match=r"expected what one of .aedat, .*got b'something else' and '.xyz': say kind"
    ):
        read_events(tmp_path / 'a.xyz')


def test_info_is_what_the_header_says_or_the_whole_file(tmp_path):
    path = writers.evt3(tmp_path / 'a.raw', EVENTS)
    assert recording_info(path) == ('evt3', (128, 128), None, None)
    assert recording_info(path, scan=True) == ('evt3', (128, 128), 1500, int(EVENTS.t.max() - EVENTS.t.min()))
    assert recording_info(writers.dat(tmp_path / 'a.dat', EVENTS)) == ('dat', (128, 128), 1500, None)
    assert recording_info(writers.npz(tmp_path / 'a.npz', EVENTS)) == ('npz', None, 1500, None)
    with pytest.raises(EventFileError, match='got none up to the end'):
        recording_info(writers.dat(tmp_path / 'b.dat', EVENTS[:0]))
