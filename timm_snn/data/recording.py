"""What every reader of recordings shares: the events, the error, and a file that is never believed."""

import io
import os
import stat
from types import TracebackType
from typing import NamedTuple

import numpy as np

from ..files import printable

__all__ = ['MAX_UNPACKED', 'EventFileError', 'Events', 'Recording', 'wrong_file']

BUFFER = 1 << 16  # bytes: packets of AEDAT 3.1 are small, and so are whole files of N-MNIST
MAX_UNPACKED = 1 << 32  # bytes: some 200 million events


class Events(NamedTuple):
    """Four arrays of one length, in the order of the file, which need not be that of time."""

    t: np.ndarray  # int64, microseconds, as in the file
    x: np.ndarray  # int16, column
    y: np.ndarray  # int16, row
    p: np.ndarray  # uint8, 0 negative (off), 1 positive (on)


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

    def __enter__(self) -> 'Recording':
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
