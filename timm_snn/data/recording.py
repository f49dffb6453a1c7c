"""What every reader of recordings shares: the events, the error, and a file that is never believed."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, ClassVar, overload

import numpy as np

from ..files import printable

__all__ = ['MAX_UNPACKED', 'EventFileError', 'Events', 'Recording', 'wrong_file']

BUFFER = 1 << 16  # bytes: packets of AEDAT 3.1 are small, and so are whole files of N-MNIST
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


class Recording:
    """A regular file with bytes in it, read from front to back; sizes that it claims are checked before any use.

    max_unpacked: The most bytes that a compressed file may unpack to.
    Raises: EventFileError if it is empty or no regular file (a pipe could block forever); OSError from the system.
    """

    def __init__(self, path: str | os.PathLike[str], max_unpacked: int = MAX_UNPACKED):
        self.path, self.max_unpacked = os.fspath(path), max_unpacked
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise wrong_file(path, 'expected a regular file, got a folder, a device or a pipe')
        self.file = io.BufferedReader(io.FileIO(path), BUFFER)
        self.size = status.st_size
        self.position = 0
        if self.size == 0:
            self.file.close()
            raise self.error(0, 'expected a recording, got an empty file')

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
