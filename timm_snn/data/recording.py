"""What every reader of recordings shares: the events, the error, and a file that is never believed."""

from __future__ import annotations

import gzip
import importlib
import io
import os
import stat
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, TracebackType
from typing import IO, Any, ClassVar, NamedTuple, overload

import numpy as np

from ..files import printable

__all__ = [
    'MAX_UNPACKED', 'EventFileError', 'Events', 'Options', 'Recording', 'gather', 'library', 'wrong_file',
]  # fmt: skip

BUFFER = 1 << 16  # bytes: packets of AEDAT 3.1 are small, and so are whole files of N-MNIST
GZIP = b'\x1f\x8b\x08'
MAX_UNPACKED = 1 << 32  # bytes: some 200 million events
DTYPES: tuple[type[np.integer], ...] = (np.int64, np.int16, np.int16, np.uint8)  # of t, x, y and p


@dataclass(frozen=True, eq=False, slots=True)
class Events:
    """Four arrays of one length, in the order of the file, which need not be that of time.

    They are indexed as one structured array is: `events[10:20]`, `events[events.p == 1]` and `events[order]` are events
    again, `events[0]` is the first one, `events['t']` is a column, and `len(events)` counts events. Slices are views.
    Unpacked they are the columns: `t, x, y, p = events`, `for column in events`, `Events(*columns)`.
    """

    t: np.ndarray  # int64, microseconds, as in the file
    x: np.ndarray  # int16, column
    y: np.ndarray  # int16, row
    p: np.ndarray  # uint8, 0 negative (off), 1 positive (on)

    _fields: ClassVar[tuple[str, ...]] = ('t', 'x', 'y', 'p')

    @classmethod
    def from_structured(cls, array: np.ndarray) -> Events:
        """From a structured array, as Metavision's, tonic's and DV's, with the types of columns that readers give.

        Its fields are t, x, y, p, or timestamp and polarity, in any order; polarity is 0 and 1, or -1 and 1.
        Raises: ValueError for other fields, times that are no integers, and values beyond the range of their column.
        """
        found = array.dtype.names or ()
        columns = []
        for name, other, dtype in zip(cls._fields, ('timestamp', 'x', 'y', 'polarity'), DTYPES, strict=True):
            field = next((field for field in (name, other) if field in found), None)
            if field is None:
                raise ValueError(
                    f'expected a structured array with fields t (or timestamp), x, y and p (or polarity), got '
                    f'{array.dtype}: Events(t, x, y, p) takes four arrays'
                )
            column = array[field]
            if column.dtype.kind not in 'iub':
                raise ValueError(
                    f'expected {field} as integers, got {column.dtype}: times are whole microseconds, seconds times '
                    '1e6, rounded'
                )
            if name == 'p' and column.dtype.kind == 'i':
                column = np.where(column == -1, 0, column)
            limits = np.iinfo(dtype)
            if len(column) and not (limits.min <= int(column.min()) and int(column.max()) <= limits.max):
                index = int(((column < limits.min) | (column > limits.max)).argmax())
                raise ValueError(f'expected {field} in {limits.min} ... {limits.max}, got {column[index]} at {index}')
            columns.append(column.astype(dtype))
        return cls(*columns)

    @classmethod
    def concatenate(cls, parts: Sequence[Events]) -> Events:
        """One recording of one part or more, as `iter_events` yields them."""
        return parts[0] if len(parts) == 1 else cls(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter((self.t, self.x, self.y, self.p))

    def __len__(self) -> int:
        return len(self.t)

    @overload
    def __getitem__(self, index: str) -> np.ndarray: ...

    @overload
    def __getitem__(self, index: int | slice | np.ndarray | Sequence[int]) -> Events: ...

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, str):
            return self._asdict()[index]
        return Events(*(column[index] for column in self))

    def _replace(self, **columns: np.ndarray) -> Events:
        """The same with other columns; this, `_asdict` and `_fields` are those of a named tuple, which it once was."""
        return replace(self, **columns)

    def _asdict(self) -> dict[str, np.ndarray]:
        return dict(zip(self._fields, self, strict=True))


class EventFileError(ValueError):
    """A file that is not what it should be; the message has its name, the byte offset, what was expected and came."""


def wrong_file(path: str | os.PathLike[str], text: str) -> EventFileError:
    """The error, with as much of the names and texts of a stranger as a message may show."""
    return EventFileError(f'{printable(os.fsdecode(path), 1000)}: {printable(text, 500)}')


def library(name: str, what: str) -> ModuleType:
    """The library that a format needs. Raises: ModuleNotFoundError that says what to install."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = f"{what} needs {name}: pip install 'timm-snn[events]'"
        raise ModuleNotFoundError(missing, name=name) from error


def gather(pieces: Iterable[Events], chunk: int) -> Iterator[Events]:
    """The same events in parts of `chunk` events, the last of what is left: pieces may be of any length."""
    waiting: list[Events] = []
    count = 0
    for piece in pieces:
        start = 0
        while start < len(piece):
            part = piece[start : start + chunk - count]
            waiting.append(part)
            start, count = start + len(part), count + len(part)
            if count == chunk:
                yield Events.concatenate(waiting)
                waiting, count = [], 0
    if waiting:
        yield Events.concatenate(waiting)


class Options(NamedTuple):
    """What read_events says of its arguments."""

    order: str | None = None
    time_unit: str | None = None
    stream: str | None = None
    max_unpacked: int = MAX_UNPACKED


class Recording:
    """A regular file with bytes in it, read from front to back; sizes that it claims are checked before any use.

    Offsets in a file that gzip compressed are those of the unpacked bytes, which are in a temporary file meanwhile.
    sensor_size, count: (H, W) and the number of events, which a reader sets before it yields any where the file says.
    Raises: EventFileError if it is empty or no regular file (a pipe could block forever); OSError from the system.
    """

    def __init__(self, path: str | os.PathLike[str], options: Options = Options()):  # noqa: B008 (it is immutable)
        self.path, self.options = os.fspath(path), options
        self.sensor_size: tuple[int, int] | None = None
        self.count: int | None = None
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            bag = (
                ': of a bag of ROS 2, name the file in it'
                if os.path.exists(os.path.join(path, 'metadata.yaml'))
                else ''
            )
            raise wrong_file(path, f'expected a regular file, got a folder, a device or a pipe{bag}')
        self.file: IO[bytes] = io.BufferedReader(io.FileIO(path), BUFFER)
        self.position = 0
        try:
            self.size = status.st_size
            if self.peek(len(GZIP)) == GZIP:
                self.file = self._unpacked(self.file)
                self.size = self.file.tell()
                self.file.seek(0)
            if self.size == 0:
                raise self.error(0, 'expected a recording, got an empty file')
        except BaseException:
            self.file.close()
            raise

    def _unpacked(self, packed: IO[bytes]) -> IO[bytes]:
        with ExitStack() as stack:
            # with a name, for the libraries that want one
            unpacked = stack.enter_context(tempfile.NamedTemporaryFile(buffering=BUFFER))
            left = self.options.max_unpacked
            try:
                with packed, gzip.GzipFile(fileobj=packed) as content:
                    while data := content.read(min(BUFFER, left + 1)):
                        if len(data) > left:
                            raise self.too_large('more')
                        left -= unpacked.write(data)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise self.error(0, f'expected a whole file of gzip, got {type(error).__name__}: {error}') from error
            stack.pop_all()
        return unpacked

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.file.close()

    @property
    def left(self) -> int:
        """Bytes from here to the end."""
        return self.size - self.position

    def error(self, offset: int, text: str) -> EventFileError:
        return wrong_file(self.path, f'byte {offset}: {text}')

    def other(self, what: str, *commands: str) -> EventFileError:
        """That it is something that has no reader, and the two commands that make a recording of it."""
        path = Path(os.fsdecode(self.path))
        names = {'file': path, 'stem': path.with_suffix(''), 'folder': path.parent}
        command, python = (
            text.format(**{name: printable(value, 150) for name, value in names.items()}) for text in commands
        )
        return EventFileError(f'{self.error(0, f"got {what}, expected events")}. Convert it: {command}; {python}')

    @contextmanager
    def sound(self, what: str) -> Iterator[None]:
        """Turn all that a library says of a damaged file into our error; no code but the library's runs inside."""
        try:
            yield
        except (EventFileError, ImportError):
            raise
        except Exception as error:  # damage has been seen to raise six kinds in zipfile and zlib alone
            raise self.error(0, f'expected a sound {what}, got {type(error).__name__}: {error}') from error

    def too_large(self, unpacked: int | str) -> EventFileError:
        limit = self.options.max_unpacked
        text = f'it unpacks to {unpacked} bytes, and at most {limit} are allowed: max_unpacked=... takes more'
        return self.error(0, text)

    def peek(self, count: int) -> bytes:
        """Up to that many of the next bytes; does not move."""
        data = self.file.read(count)
        self.file.seek(self.position)  # within the buffer, which costs no call of the system
        return data

    def read(self, count: int, what: str) -> bytes:
        """Exactly that many bytes."""
        if count > self.left:
            raise self.error(self.position, f'expected {count} bytes of {what}, got {self.left} before the end')
        data = self.file.read(count)
        if len(data) != count:
            raise self.error(self.position, f'expected {count} bytes of {what}, got {len(data)}: did the file shrink?')
        self.position += count
        return data

    def seek(self, position: int) -> None:
        self.file.seek(position)
        self.position = position

    def line(self, limit: int) -> bytes:
        """Up to and with the next newline, or `limit` bytes, or the end."""
        line = self.file.readline(limit)
        self.position += len(line)
        return line

    def whole(self, width: int, chunk: int) -> Iterator[tuple[int, bytes]]:
        """The rest of the file by at most `chunk` events or words of `width` bytes, each with its offset."""
        if extra := self.left % width:
            raise self.error(self.size - extra, f'expected whole events of {width} bytes, got {extra} bytes at the end')
        while self.left:
            yield self.position, self.read(min(self.left, width * chunk), 'events')
