"""Read recordings of event cameras: DVS128 Gesture, CIFAR10-DVS, N-MNIST, and plain NumPy files.

events = read_events('user01_natural.aedat')     # Events of four arrays: t, x, y, p
for part in iter_events('user01_natural.aedat'): # the same in parts, in bounded memory
    ...

A file is read whole or refused with EventFileError. What formats without a count cannot tell is a file that was cut
between two events (N-MNIST, AEDAT 2.0) or two packets (AEDAT 3.1).
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .arrays import npy, npz
from .binary import aedat2, aedat3, nmnist, version
from .recording import MAX_UNPACKED, EventFileError, Events, Recording, wrong_file

__all__ = ['EventFileError', 'Events', 'Trial', 'iter_events', 'read_events', 'read_gesture_labels']

READERS: dict[str, Callable[[Recording, int], Iterator[Events]]] = {
    'aedat3': aedat3,
    'aedat2': aedat2,
    'nmnist': nmnist,
    'npy': npy,
    'npz': npz,
}
SUFFIXES = {'.bin': 'nmnist', '.npy': 'npy', '.npz': 'npz'}
LABELS_LIMIT = 1 << 20  # bytes; real files have some 300
VERSIONS = {'2.0': 'aedat2', '3.1': 'aedat3'}


class Trial(NamedTuple):
    """One gesture of a recording: the events with start <= t < end."""

    label: int  # 0 to 10: the class of the file, 1 to 11, less one
    start: int  # microseconds
    end: int


def read_events(path: str | os.PathLike[str], *, kind: str | None = None, max_unpacked: int = MAX_UNPACKED) -> Events:
    """All events of a recording; takes up to twice the memory that they need.

    kind: one of 'aedat3', 'aedat2', 'nmnist', 'npy', 'npz'; by default it follows from the suffix (.bin is N-MNIST)
        and, for .aedat, from the version in the first line.
    max_unpacked: the most bytes that a compressed file, .npz, may unpack to: a few kilobytes can hold gigabytes of
        zeros. Others are as large as what is read.
    Raises: EventFileError (a ValueError) if the file is not a whole recording with events; OSError from the system.
    """
    parts = list(iter_events(path, kind=kind, max_unpacked=max_unpacked))
    return parts[0] if len(parts) == 1 else Events(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def iter_events(
    path: str | os.PathLike[str],
    *,
    kind: str | None = None,
    chunk_events: int = 1 << 20,
    max_unpacked: int = MAX_UNPACKED,
) -> Iterator[Events]:
    """The same events in parts of 1 to chunk_events, in memory that does not grow with the file.

    Raises as read_events does, when it gets there: the parts before a fault in the file have been yielded by then.
    """
    if kind is not None and kind not in READERS:
        raise ValueError(f'expected kind to be one of {", ".join(READERS)}, got {kind!r}')
    if chunk_events < 1:
        raise ValueError(f'expected chunk_events >= 1, got {chunk_events}')
    return _iterate(path, kind, chunk_events, max_unpacked)


def _iterate(path: str | os.PathLike[str], kind: str | None, chunk_events: int, max_unpacked: int) -> Iterator[Events]:
    with Recording(path, max_unpacked) as recording:
        found = False
        for part in READERS[kind or _kind(recording)](recording, chunk_events):
            if len(part.t):
                found = True
                yield part
        if not found:
            raise recording.error(recording.position, 'expected events, got none up to the end')


def _kind(recording: Recording) -> str:
    suffix = Path(os.fsdecode(recording.path)).suffix.lower()
    if suffix == '.aedat':
        if (found := version(recording)) not in VERSIONS:
            raise recording.error(0, f'expected #!AER-DAT{" or ".join(VERSIONS)} in the first line, got {found}')
        return VERSIONS[found]
    if suffix not in SUFFIXES:
        expected = ', '.join(['.aedat', *SUFFIXES])
        raise wrong_file(recording.path, f'expected a suffix among {expected}, got {suffix!r}: say kind=...')
    return SUFFIXES[suffix]


def read_gesture_labels(path: str | os.PathLike[str]) -> list[Trial]:
    """The trials of a recording of DVS128 Gesture, in the order of its labels file, `<recording>_labels.csv`.

    Times are those of the file, as in SpikingJelly. In the official user22_led_labels.csv class 9 ends after class 10
    begins (its end, 110590564, is a known mistake), so both share events; the file is not repaired here.
    Raises: EventFileError with the line if it is not three integers: a class from 1 to 11, a start and a later end.
    """
    with Recording(path) as recording:
        if recording.size > LABELS_LIMIT:
            raise recording.error(0, f'expected labels of at most {LABELS_LIMIT} bytes, got {recording.size}')
        content = recording.read(recording.size, 'labels')
    name = os.fspath(path)
    lines = [line.decode('utf-8-sig', 'replace') for line in content.splitlines()]
    header = 'class,startTime_usec,endTime_usec'
    if lines[0].replace(' ', '') != header:
        raise wrong_file(name, f'line 1: expected {header}, got {lines[0][:80]!r}')
    trials = []
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        try:
            label, start, end = (int(cell) for cell in line.split(','))
        except ValueError:
            raise wrong_file(name, f'line {number}: expected three integers, got {line[:80]!r}') from None
        if not (1 <= label <= 11 and 0 <= start < end):
            raise wrong_file(
                name, f'line {number}: expected a class from 1 to 11 and 0 <= start < end, got {line[:80]!r}'
            )
        trials.append(Trial(label - 1, start, end))
    if not trials:
        raise wrong_file(name, 'line 2: expected a trial, got the end of the file')
    return trials
