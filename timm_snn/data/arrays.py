"""Events in NumPy's own files: .npy and .npz. Nothing is unpickled, and no claimed size is allocated.

Each reader yields Events of at most `chunk` events, in memory that does not grow with the file.
"""

import io
import math
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from ..files import printable
from .recording import EventFileError, Events, Recording

__all__ = ['npy', 'npz']

RANGES = {'t': (-(2**63), 2**63 - 1), 'x': (0, 32767), 'y': (0, 32767), 'p': (0, 1)}
HEADER_LIMIT = 10_000  # numpy's own
READ_HEADER = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}


class Header(NamedTuple):
    shape: tuple[int, ...]
    by_column: bool
    dtype: np.dtype
    size: int  # bytes of the header itself


def npy(recording: Recording, chunk: int) -> Iterator[Events]:
    """A structured array with fields t, x, y, p, or an [N, 4] array of (t, x, y, p), of integers."""
    shape, by_column, dtype, base = _header(recording.read, recording.error)
    width = dtype.itemsize
    if math.prod(shape) * width != recording.left:
        raise recording.error(base, f'expected {shape} times {width} bytes, got {recording.left} bytes')
    if dtype.fields is not None and len(shape) == 1 and set(RANGES) <= set(dtype.fields):
        fields = [dtype.fields[name][:2] for name in RANGES]
        row, by_column = width, False
    elif dtype.fields is None and len(shape) == 2 and shape[1] == 4:
        row = width if by_column else 4 * width
        fields = [(dtype, column * width * (shape[0] if by_column else 1)) for column in range(4)]
    else:
        raise recording.error(base, f'expected fields t, x, y, p or an [N, 4] array, got shape {shape} of {dtype}')
    for kind, _ in fields:
        _integers_only(kind, recording.error)
    for start in range(0, shape[0], chunk):
        count = min(chunk, shape[0] - start)
        offsets = [base + start * row + offset for _, offset in fields]
        if by_column:
            columns = []
            for offset in offsets:
                recording.seek(offset)
                columns.append(np.frombuffer(recording.read(count * row, 'a column'), dtype))
        else:
            rows = recording.read(count * row, 'events')
            columns = [np.ndarray(count, kind, rows, offset, (row,)) for kind, offset in fields]
        if wrong := _wrong(columns):
            column, i, text = wrong
            raise recording.error(offsets[column] + i * row, text)
        yield _events(columns)


def npz(recording: Recording, chunk: int) -> Iterator[Events]:
    """Four arrays of one length, t, x, y and p, of integers, compressed or not."""
    with _sound(recording):
        archive = zipfile.ZipFile(recording.file)
        members = [_Member(recording, archive, f'{name}.npy') for name in RANGES]
    if (unpacked := sum(member.info.file_size for member in members)) > recording.max_unpacked:
        raise recording.error(
            0, f'it unpacks to {unpacked} bytes, and at most {recording.max_unpacked} are allowed: max_unpacked=... '
            'takes more'
        )  # fmt: skip
    length = members[0].length
    if any(member.length != length for member in members):
        raise recording.error(0, f'expected t, x, y, p of one length, got {[member.length for member in members]}')
    for start in range(0, length, chunk):
        with _sound(recording):
            columns = [member.take(min(chunk, length - start)) for member in members]
        if wrong := _wrong(columns):
            column, i, text = wrong
            raise members[column].error(members[column].base + (start + i) * columns[column].itemsize, text)
        yield _events(columns)


class _Member:
    """One array of an archive, read from front to back; its offsets are those of the unpacked file."""

    def __init__(self, recording: Recording, archive: zipfile.ZipFile, name: str):
        if name not in archive.namelist():
            found = printable(', '.join(archive.namelist()[:10]), 100) or 'no files'
            raise recording.error(0, f'expected arrays t, x, y, p, got no {name} among {found}')
        info = archive.getinfo(name)
        self.recording, self.info = recording, info
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise self.error(0, f'expected it stored or deflated, as numpy does, got method {info.compress_type}')
        self.file = archive.open(info)
        shape, _, self.dtype, self.base = _header(self.read, self.error)
        _integers_only(self.dtype, self.error)
        if len(shape) != 1 or self.base + shape[0] * self.dtype.itemsize != info.file_size:
            got = f'shape {shape} of {self.dtype} in {info.file_size - self.base} bytes'
            raise self.error(self.base, f'expected one dimension and the bytes for it, got {got}')
        self.length = self.left = shape[0]

    def error(self, offset: int, text: str) -> EventFileError:
        return self.recording.error(self.info.header_offset, f'{self.info.filename}, byte {offset} in it: {text}')

    def read(self, count: int, what: str) -> bytes:
        data = self.file.read(count)
        if len(data) != count:
            raise self.error(0, f'expected {count} bytes of {what}, got {len(data)}')
        return data

    def take(self, count: int) -> np.ndarray:
        array = np.frombuffer(self.read(count * self.dtype.itemsize, 'events'), self.dtype)
        self.left -= count
        if self.left == 0:
            self.file.read(1)  # at the end, zipfile compares checksums
        return array


@contextmanager
def _sound(recording: Recording) -> Iterator[None]:
    """Turn all that zipfile and zlib say of damaged archives into our error."""
    try:
        yield
    except EventFileError:
        raise
    except Exception as error:  # no code but theirs runs inside; damage has been seen to raise six kinds
        raise recording.error(0, f'expected a sound .npz archive, got {type(error).__name__}: {error}') from error


def _header(read: Callable[[int, str], bytes], fail: Callable[[int, str], EventFileError]) -> Header:
    """Of a .npy file; its length is checked before numpy reads it, and it is parsed from memory."""
    magic = read(8, 'the .npy header')
    if magic[:6] != b'\x93NUMPY' or magic[6] not in READ_HEADER or magic[7] != 0:
        raise fail(0, f'expected a .npy header of version 1 or 2, got {magic!r}')
    length = read(2 * magic[6], 'the .npy header')
    size = int.from_bytes(length, 'little')
    if size > HEADER_LIMIT:
        raise fail(8, f'expected a .npy header of at most {HEADER_LIMIT} bytes, got {size}')
    text = read(size, 'the .npy header')
    try:
        shape, by_column, dtype = READ_HEADER[magic[6]](io.BytesIO(length + text))
    except Exception as error:  # numpy evaluates the text and believes what comes out, so that anything may be raised
        raise fail(8, f'expected a .npy header, got {text[:80]!r}: {type(error).__name__} {error}') from error
    if any(not 0 <= extent < 2**63 for extent in shape):  # not shown: Python refuses to print very large numbers
        raise fail(8, f'expected a shape of sizes, got {text[:80]!r}')
    return Header(shape, by_column, dtype, 8 + len(length) + size)


def _integers_only(dtype: np.dtype, fail: Callable[[int, str], EventFileError]) -> None:
    if dtype.kind not in 'iub':
        raise fail(0, f'expected integers (t in microseconds, p 0 or 1), got {dtype}: convert and save again')


def _wrong(columns: Sequence[np.ndarray]) -> tuple[int, int, str] | None:
    """Column, index and text of the first value that Events cannot hold."""
    for c, ((name, (low, high)), column) in enumerate(zip(RANGES.items(), columns, strict=True)):
        if int(column.min()) < low or int(column.max()) > high:
            i = int(((column < low) | (column > high)).argmax())
            return c, i, f'expected {name} in {low} ... {high}, got {column[i]}'
    return None


def _events(columns: Sequence[np.ndarray]) -> Events:
    t, x, y, p = columns
    return Events(t.astype(np.int64), x.astype(np.int16), y.astype(np.int16), p.astype(np.uint8))
