"""Event data: damaged recordings, labels, rows and cached frames. Read as they are, or refused by name."""

import io
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import numpy as np
import torch

from tests.campaign.runner import check_message
from tests.data.test_fuzz import LABELS, SUFFIXES, damaged, is_read, labels_are_read
from tests.support import writers
from timm_snn.data import NMNIST, EventRows, read_events, to_frames, write_rows

NUMBERS = [-1, 0, 1, 2**31, 2**40, 2**63, 10**30, 0.5, True, None, 'x', (), [4]]
DTYPES = ["'<i8'", "'|O'", "'<f8'", "'>u8'", "'<U9'", "'|V8'", "'<M8[us]'", "[('t', '<i8'), ('x', '<i2')]", "'i9'", '5']


@contextmanager
def trials(folder: Path) -> Iterator[Callable[[Random], str]]:
    whole = {kind: _recording(kind, folder / 'whole') for kind in SUFFIXES}
    root = folder / 'nmnist'
    for number, (split, digit) in enumerate((split, digit) for split in ('Train', 'Test') for digit in range(10)):
        (root / split / str(digit)).mkdir(parents=True)
        writers.nmnist(root / split / str(digit) / '1.bin', writers.random_events(40, 34, seed=number))
    expected = [frames for frames, _ in NMNIST(root, num_steps=2)]
    os.environ['HF_DATASETS_CACHE'] = str(folder / 'datasets')  # read when it is imported, which write_rows does
    rows = write_rows(NMNIST(root, num_steps=2), folder / 'rows', 'train')[0]
    whole_rows = rows.read_bytes()

    def recording(random: Random) -> str:
        kind = random.choice(list(SUFFIXES))
        path = folder / f'recording{SUFFIXES[kind]}'
        edit = random.choice([damaged, _with_another_header]) if kind in ('npy', 'npz') else damaged
        path.write_bytes(edit(whole[kind], random))
        named = random.choice([kind, None])
        if not is_read(path, named):
            return 'refused'
        try:
            events = read_events(path, kind=named)
            frames = to_frames(events, 4, split_by=random.choice(['time', 'number']), sensor_size=(128, 128))
        except ValueError as error:
            check_message(error)
            return 'read, not made frames'
        assert frames.shape == (4, 2, 128, 128) and np.isfinite(frames).all()
        return 'read'

    def labels(random: Random) -> str:
        path = folder / 'labels.csv'
        path.write_bytes(damaged(LABELS, random))
        return 'read' if labels_are_read(path) else 'refused'

    def cached_frames(random: Random) -> str:
        cache = folder / 'cache'
        shutil.rmtree(cache, ignore_errors=True)
        dataset = NMNIST(root, num_steps=2, cache=cache)
        for index in random.sample(range(10), 3):
            assert torch.equal(dataset[index][0], expected[index])
            assert dataset.cache
            _spoil(dataset.cache.path(dataset.samples[index][0]), random)
            assert torch.equal(dataset[index][0], expected[index]), 'other frames than those of the recording'
        return 'frames made anew'

    def rows_of_frames(random: Random) -> str:
        rows.write_bytes(damaged(whole_rows, random))
        shutil.rmtree(folder / 'datasets', ignore_errors=True)
        try:
            frames, label = EventRows(rows.parent, 'train')[random.randrange(10)]
        except (ValueError, OSError):  # of pyarrow, which says it in its own words
            return 'refused'
        assert frames.shape == (2, 2, 34, 34) and 0 <= label < 10
        return 'read'

    def trial(random: Random) -> str:
        kinds = [recording, labels, cached_frames, rows_of_frames]
        return random.choices(kinds, weights=[40, 10, 5, 1])[0](random)

    yield trial


def _recording(kind: str, path: Path) -> bytes:
    events = writers.random_events(40, 34 if kind == 'nmnist' else 128, last=5 << 31 if kind == 'aedat3' else 10**6)
    # np.save would append the suffix
    return getattr(writers, kind)(path.with_suffix(SUFFIXES[kind]), events).read_bytes()


def _with_another_header(data: bytes, random: Random) -> bytes:
    """An array, or an archive with one, whose header claims another type or shape."""
    if not data.startswith(b'PK'):
        return _claiming(data, random)
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(buffer, 'w') as target:
        broken = random.choice(source.namelist())
        for name in source.namelist():
            target.writestr(name, _claiming(source.read(name), random) if name == broken else source.read(name))
    return buffer.getvalue()


def _claiming(data: bytes, random: Random) -> bytes:
    header_end = 10 + int.from_bytes(data[8:10], 'little')
    shape = tuple(random.choice([40, 4, *NUMBERS]) for _ in range(random.randint(0, 3)))
    descr = random.choice(DTYPES)
    header = f"{{'descr': {descr}, 'fortran_order': {random.choice([True, False, None])}, 'shape': {shape}}}\n".encode()
    return data[:8] + len(header).to_bytes(2, 'little') + header + data[header_end:]


def _spoil(path: Path, random: Random) -> None:
    """A file that is cut, changed, gone, or is no file any more."""
    match random.choice(['damage', 'remove', 'remove all', 'folder', 'dangling link']):
        case 'damage':
            path.write_bytes(damaged(path.read_bytes(), random))
        case 'remove':
            path.unlink()
        case 'remove all':
            shutil.rmtree(path.parents[2])
        case 'folder':
            path.unlink()
            path.mkdir()
        case 'dangling link':
            path.unlink()
            path.symlink_to('nowhere')
