"""Damaged recordings: whatever is done to a file, its reader gives Events or EventFileError, and soon.

The default, 1,000 files of each format, is quick and the same every time. For more, with other files each time and
8 GB of address space to live in, or by `make campaign`, which tries other kinds of files, too:

    (ulimit -v 8000000; TIMM_SNN_FUZZ=100000 python -m pytest -rA tests/data/test_fuzz.py)
"""

import io
import os
import zipfile
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from random import Random

import numpy as np
import pytest

from tests.support import writers
from timm_snn.data import EventFileError, iter_events, read_events, read_gesture_labels

pytest.importorskip('hypothesis')
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.filterwarnings(
    'ignore:Reading .* required additional header parsing', 'ignore:invalid escape sequence'
)
COUNT = int(os.environ.get('TIMM_SNN_FUZZ', 0))
BATCH = 50  # files of one random seed: hypothesis takes longer to draw than a reader to read
SUFFIXES = {
    'nmnist': '.bin',
    'aedat2': '.aedat',
    'aedat3': '.aedat',
    'npy': '.npy',
    'npz': '.npz',
    'evt2': '.raw',
    'evt21': '.raw',
    'evt3': '.raw',
    'dat': '.dat',
    'text': '.csv',
    'aedat4': '.aedat4',
}
# not HDF5: its library crashed, and the process with it, at one of some thousand damaged files
LIBRARIES = {'rosbag': ('rosbags', '.bag'), 'mcap': ('mcap', '.mcap')}
SUFFIXES |= {kind: suffix for kind, (library, suffix) in LIBRARIES.items() if find_spec(library)}
LABELS = b'class,startTime_usec,endTime_usec\n1,80048239,85092709\n2,89431170,95231007\n11,95938861,103200075\n'
NUMBERS = [bytes(4), b'\xff' * 4, b'\xff\xff\xff\x7f', b'\x00\x00\x00\x80', b'#', b'\n', b'9999']


def damaged(data: bytes, random: Random) -> bytes:
    """With one to four faults; those of half of the files lie near their start."""
    within = random.choice([0.15, 1])
    for _ in range(random.randint(1, 4)):
        at = int(random.random() * within * len(data))
        text = random.choice([random.choice(NUMBERS), random.randbytes(random.randint(1, 12))])
        match random.choice(['flip', 'overwrite', 'insert', 'delete', 'repeat', 'cut']):
            case 'flip':
                data = data[:at] + bytes(byte ^ 1 << random.randrange(8) for byte in data[at : at + 1]) + data[at + 1 :]
            case 'overwrite':
                data = data[:at] + text + data[at + len(text) :]
            case 'insert':
                data = data[:at] + text + data[at:]
            case 'delete':
                data = data[:at] + data[at + len(text) :]
            case 'repeat':
                data = data[: at + len(text)] + data[at:]
            case 'cut':
                data = data[:at]
    return data


def fuzz(path: Path, damage: Callable[[Random], bytes], check: Callable[[], bool]) -> None:
    """Write damaged files and check them; it is printed how many were read and not refused."""
    outcomes: Counter[bool] = Counter()

    @settings(
        max_examples=max(1, (COUNT or 1000) // BATCH),
        derandomize=not COUNT,
        deadline=BATCH * 500,  # milliseconds: half a second a file, on a busy machine
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=True))
    def run(random: Random) -> None:
        for _ in range(BATCH):
            data = damage(random)
            path.write_bytes(data)
            try:
                outcomes[check()] += 1
            except BaseException:
                note(f'the damaged file: {data!r}')
                raise

    run()
    print(f'{outcomes.total()} files, {outcomes[True]} of them read, {outcomes[False]} refused')
    assert outcomes[True] and outcomes[False]


def is_read(path: Path, kind: str | None) -> bool:
    """The file is read, and in parts gives the same events, or refused by its name, either way."""
    try:
        events = read_events(path, kind=kind)
    except EventFileError as error:
        message = str(error)
    except ModuleNotFoundError:  # for a compression that the damage names
        return False
    else:
        assert [array.dtype for array in events] == [np.int64, np.int16, np.int16, np.uint8]
        assert len({len(array) for array in events}) == 1 and len(events.t) > 0
        assert events.x.min() >= 0 and events.y.min() >= 0 and events.p.max() <= 1
        parts = zip(*iter_events(path, kind=kind, chunk_events=7), strict=True)
        assert all(np.array_equal(np.concatenate(part), array) for part, array in zip(parts, events, strict=True))
        return True
    assert message.startswith(f'{path}: byte ') and 'expected' in message
    with pytest.raises(EventFileError):
        list(iter_events(path, kind=kind, chunk_events=7))
    return False


def labels_are_read(path: Path) -> bool:
    try:
        trials = read_gesture_labels(path)
    except EventFileError as error:
        message = str(error)
    else:
        assert trials and all(0 <= label <= 10 and 0 <= start < end for label, start, end in trials)
        return True
    assert message.startswith((f'{path}: line ', f'{path}: byte 0: '))
    return False


@pytest.mark.parametrize('named', [False, True])
@pytest.mark.parametrize('kind', SUFFIXES)
def test_damaged_recordings_are_read_or_refused(tmp_path, kind, named):
    path = tmp_path / f'recording{SUFFIXES[kind]}'
    events = writers.random_events(40, 34 if kind == 'nmnist' else 128, last=5 << 31 if kind == 'aedat3' else 10**6)
    whole = getattr(writers, kind)(path, events).read_bytes()
    fuzz(path, lambda random: damaged(whole, random), lambda: is_read(path, kind if named else None))


def test_what_is_read_of_a_damaged_archive_is_what_was_saved(tmp_path):
    path = tmp_path / 'recording.npz'
    events = writers.random_events(40)
    whole = writers.npz(path, events).read_bytes()

    def is_sound() -> bool:
        try:
            got = read_events(path)
        except EventFileError:
            return False
        assert all(np.array_equal(a, b) for a, b in zip(got, events, strict=True))
        return True

    fuzz(path, lambda random: damaged(whole, random), is_sound)


def test_damaged_arrays_in_sound_archives_are_read_or_refused(tmp_path):
    """Their checksums are right, so that what is damaged gets past zipfile."""
    path = tmp_path / 'arrays.npz'
    arrays = {}
    for name, array in writers.random_events(40)._asdict().items():
        np.save(buffer := io.BytesIO(), array)
        arrays[f'{name}.npy'] = buffer.getvalue()

    def damage(random: Random) -> bytes:
        broken = random.choice(list(arrays))
        method = random.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
        with zipfile.ZipFile(buffer := io.BytesIO(), 'w', method) as archive:
            for name, data in arrays.items():
                archive.writestr(name, damaged(data, random) if name == broken else data)
        return buffer.getvalue()

    fuzz(path, damage, lambda: is_read(path, 'npz'))


def test_damaged_labels_are_read_or_refused(tmp_path):
    path = tmp_path / 'labels.csv'
    fuzz(path, lambda random: damaged(LABELS, random), lambda: labels_are_read(path))
