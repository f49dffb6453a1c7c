"""Read recordings of event cameras: what cameras write today, published data sets, and plain arrays and text.

events = read_events('recording.raw')            # Events of four arrays: t, x, y, p
for part in iter_events('recording.raw'):        # the same in parts, in bounded memory
    ...
height, width = recording_info('recording.raw').sensor_size

A file is read whole or refused with EventFileError. What formats without a count cannot tell is a file that was cut
between two events or packets.
"""

import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

from .aedat4 import aedat4
from .arrays import npy, npz
from .binary import aedat2, aedat3, nmnist
from .columns import UNITS
from .detect import detect
from .hdf5 import hdf5
from .prophesee import dat, evt2, evt3, evt21
from .recording import MAX_UNPACKED, EventFileError, Events, Options, Recording, wrong_file
from .ros import mcap, rosbag
from .text import text

__all__ = [
    'EventFileError', 'Events', 'RecordingInfo', 'Trial', 'iter_events', 'read_events', 'read_gesture_labels',
    'recording_info',
]  # fmt: skip


class Format(NamedTuple):
    """The reader of a format, and which of order, time_unit and stream it takes."""

    read: Callable[[Recording, int], Iterator[Events]]
    options: tuple[str, ...] = ()


FORMATS = {
    'aedat3': Format(aedat3),
    'aedat2': Format(aedat2),
    'nmnist': Format(nmnist),
    'npy': Format(npy, ('order', 'time_unit')),
    'npz': Format(npz, ('order', 'time_unit')),
    'evt2': Format(evt2),
    'evt21': Format(evt21),
    'evt3': Format(evt3),
    'dat': Format(dat),
    'text': Format(text, ('order', 'time_unit')),
    'hdf5': Format(hdf5, ('order', 'time_unit', 'stream')),
    'aedat4': Format(aedat4, ('stream',)),
    'rosbag': Format(rosbag, ('stream',)),
    'mcap': Format(mcap, ('stream',)),
}
LABELS_LIMIT = 1 << 20  # bytes; real files have some 300
CHUNK = 1 << 20  # events: the default of iter_events


class RecordingInfo(NamedTuple):
    """What a recording says of itself; None where it says nothing."""

    kind: str  # the name of its format
    sensor_size: tuple[int, int] | None  # (H, W)
    events: int | None
    duration: int | None  # microseconds from the earliest event to the latest


class Trial(NamedTuple):
    """One gesture of a recording: the events with start <= t < end."""

    label: int  # 0 to 10: the class of the file, 1 to 11, less one
    start: int  # microseconds
    end: int


def read_events(
    path: str | os.PathLike[str],
    *,
    kind: str | None = None,
    order: str | None = None,
    time_unit: str | None = None,
    stream: str | None = None,
    max_unpacked: int = MAX_UNPACKED,
) -> Events:
    """All events of a recording; takes up to twice the memory that they need.

    Args:
        kind: The name of its format, as recording_info gives it; by default it follows from the first bytes of the
            file, and from the suffix where these say nothing (.bin is N-MNIST). A file may be compressed by gzip.
        order: Of columns without names, in arrays and text: 'txyp', 'xytp', 'xypt' or another order of these letters.
        time_unit: Of times in arrays, text and HDF5: 's', 'ms', 'us' or 'ns'. The default is microseconds or what the
            file says; floating-point times need it. Others have a unit of their own.
        stream: Which camera, where a file has several: a topic of a bag, a group in HDF5, the name of a stream of DV.
        max_unpacked: The most bytes that a compressed file may unpack to: a few kilobytes can hold gigabytes of zeros.

    Raises: EventFileError (a ValueError) if the file is not a whole recording with events, or leaves open which column
    is which; ModuleNotFoundError that says what to install; OSError from the system.
    """
    parts = list(
        iter_events(path, kind=kind, order=order, time_unit=time_unit, stream=stream, max_unpacked=max_unpacked)
    )
    return Events.concatenate(parts)


def iter_events(
    path: str | os.PathLike[str],
    *,
    kind: str | None = None,
    chunk_events: int = CHUNK,
    order: str | None = None,
    time_unit: str | None = None,
    stream: str | None = None,
    max_unpacked: int = MAX_UNPACKED,
) -> Iterator[Events]:
    """The same events in parts of 1 to chunk_events, in memory that does not grow with the file.

    Raises as read_events does, when it gets there: the parts before a fault in the file have been yielded by then.
    """
    if chunk_events < 1:
        raise ValueError(f'expected chunk_events >= 1, got {chunk_events}')
    options = _checked(kind, Options(order, time_unit, stream, max_unpacked))
    return (part for part, _, _ in _iterate(path, kind, options, chunk_events))


def recording_info(
    path: str | os.PathLike[str],
    *,
    scan: bool = False,
    kind: str | None = None,
    order: str | None = None,
    time_unit: str | None = None,
    stream: str | None = None,
    max_unpacked: int = MAX_UNPACKED,
) -> RecordingInfo:
    """Format and sensor size of a recording, and the number of its events where its header or its size says so.

    scan: Read it whole, for the number of events and the duration in any format.
    Raises as read_events does; without scan, only what the first events show.
    """
    options = _checked(kind, Options(order, time_unit, stream, max_unpacked))
    events = 0
    earliest, latest = 2**63 - 1, -(2**63)
    for part, recording, found in _iterate(path, kind, options, CHUNK if scan else 1):
        if not scan:
            return RecordingInfo(found, recording.sensor_size, recording.count, None)
        events += len(part.t)
        earliest, latest = min(earliest, int(part.t.min())), max(latest, int(part.t.max()))
    return RecordingInfo(found, recording.sensor_size, events, latest - earliest)


def _checked(kind: str | None, options: Options) -> Options:
    if kind is not None and kind not in FORMATS:
        raise ValueError(f'expected kind to be one of {", ".join(FORMATS)}, got {kind!r}')
    if (order := options.order) is not None and sorted(order) != sorted('txyp'):
        raise ValueError(f"expected order to be 'txyp', 'xytp', 'xypt' or another order of t, x, y, p, got {order!r}")
    if (unit := options.time_unit) is not None and unit not in UNITS:
        raise ValueError(f'expected time_unit to be one of {", ".join(UNITS)}, got {unit!r}')
    return options


def _iterate(
    path: str | os.PathLike[str], kind: str | None, options: Options, chunk_events: int
) -> Iterator[tuple[Events, Recording, str]]:
    with Recording(path, options) as recording:
        kind = kind or detect(recording)
        for name in ('order', 'time_unit', 'stream'):
            if (value := getattr(options, name)) is not None and name not in FORMATS[kind].options:
                raise wrong_file(path, f'expected no {name}, as {kind} has its own, got {value!r}: leave it out')
        found = False
        for part in FORMATS[kind].read(recording, chunk_events):
            if len(part.t):
                found = True
                yield part, recording, kind
        if not found:
            raise recording.error(recording.position, 'expected events, got none up to the end')


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
