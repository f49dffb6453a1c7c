"""Events in NumPy's own files: .npy and .npz. Nothing is unpickled, and no claimed size is allocated.

Each reader yields Events of at most `chunk` events, in memory that does not grow with the file.
"""

import io
import math
import zipfile
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import numpy as np

from ..files import printable
from .columns import NAMES, Converter, fitting_orders, named_columns
from .recording import EventFileError, Events, Recording

__all__ = ['npy', 'npz']

HEADER_LIMIT = 10_000  # numpy's own
READ_HEADER = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
SAMPLE = 4096  # events that show whether columns without names are in another order


class Header(NamedTuple):
    shape: tuple[int, ...]
    by_column: bool
    dtype: np.dtype
    size: int  # bytes of the header itself


class Source(Protocol):
    """The bytes of an .npy, in a file of its own or in an archive."""

    def read(self, count: int, what: str) -> bytes: ...

    def seek(self, position: int) -> None: ...

    def error(self, offset: int, text: str) -> EventFileError: ...


class Column(NamedTuple):
    source: Source
    dtype: np.dtype
    offset: int  # of its first value
    stride: int  # bytes from one value to the next


class Table(NamedTuple):
    """t, x, y, p: side by side in the rows of one source, or one after the other, or each in its own."""

    columns: list[Column]
    length: int
    rows: tuple[int, int] | None  # offset of the first row and bytes of each
    named: bool
    unit: str | None = None  # of time, if a name says it

    def take(self, first: int, count: int) -> list[np.ndarray]:
        if self.rows is None:
            return [np.frombuffer(_read(c.source, c.offset, c.stride, first, count), c.dtype) for c in self.columns]
        start, width = self.rows
        data = _read(self.columns[0].source, start, width, first, count)
        return [np.ndarray(count, c.dtype, data, c.offset - start, (width,)) for c in self.columns]

    def error(self, column: int, i: int, text: str) -> EventFileError:
        source, _, offset, stride = self.columns[column]
        return source.error(offset + i * stride, text)


def npy(recording: Recording, chunk: int) -> Iterator[Events]:
    """A structured array, or an [N, 4] array with its columns in `order`, (t, x, y, p) by default."""

    def table() -> Table:
        recording.seek(0)
        return _table(lambda: recording, recording.size, recording.options.order)

    return _events(recording, table, chunk)


def npz(recording: Recording, chunk: int) -> Iterator[Events]:
    """Four arrays of one length, t, x, y and p, or an array `events` as in an .npy; compressed or not."""

    def table() -> Table:
        with recording.sound('.npz archive'):
            archive = zipfile.ZipFile(recording.file)
        names = [name[:-4] for name in archive.namelist() if name.endswith('.npy')]
        if found := named_columns(names):
            infos = [archive.getinfo(f'{found[0][column]}.npy') for column in NAMES]
            _allow(recording, sum(info.file_size for info in infos))
            return _four([_Member(recording, archive, info) for info in infos], found[1])
        if 'events' in names:
            info = archive.getinfo('events.npy')
            _allow(recording, info.file_size)
            return _table(lambda: _Member(recording, archive, info), info.file_size, recording.options.order)
        shown = printable(', '.join(archive.namelist()[:10]), 100) or 'no files'
        missing = next((f'{name}.npy' for name in NAMES if name not in names), 'more than one of a kind')
        raise recording.error(0, f'expected arrays t, x, y, p or one array events, got no {missing} among {shown}')

    return _events(recording, table, chunk)


def _events(recording: Recording, make_table: Callable[[], Table], chunk: int) -> Iterator[Events]:
    table = make_table()
    if table.named and recording.options.order is not None:
        raise table.error(
            0, 0, f'expected columns without names for order={recording.options.order!r}, got names: leave it out'
        )
    convert = Converter(recording.options.time_unit or table.unit)
    if wrong := convert.check([column.dtype for column in table.columns]):
        raise table.error(0, 0, wrong)
    recording.count = table.length
    if not table.named and recording.options.order is None and table.length:
        orders = fitting_orders(table.take(0, min(SAMPLE, table.length)))
        table = make_table()  # an archive is read from front to back
        if orders and 'txyp' not in orders:
            text = f'expected columns t, x, y, p, got what fits another order: say order={orders[0]!r}'
            raise table.error(0, 0, text)
    for start in range(0, table.length, chunk):
        columns = table.take(start, min(chunk, table.length - start))
        if wrong_value := convert.wrong(columns):
            column, i, text = wrong_value
            raise table.error(column, start + i, text)
        yield convert.events(columns)


def _table(open_source: Callable[[], Source], size: int, order: str | None) -> Table:
    """Of an .npy of `size` bytes; each source is read from its front to its back."""
    source = open_source()
    shape, by_column, dtype, base = _header(source.read, source.error)
    width = dtype.itemsize
    if math.prod(shape) * width != size - base:
        raise source.error(base, f'expected {shape} times {width} bytes, got {size - base} bytes')
    if dtype.fields is not None and len(shape) == 1 and (found := named_columns(dtype.fields)):
        fields = [dtype.fields[found[0][name]] for name in NAMES]
        columns = [Column(source, field[0], base + field[1], width) for field in fields]
        return Table(columns, shape[0], (base, width), True, found[1])
    if dtype.fields is not None or len(shape) != 2 or shape[1] != 4:
        raise source.error(base, f'expected fields t, x, y, p or an [N, 4] array, got shape {shape} of {dtype}')
    places = [(order or 'txyp').index(name) for name in NAMES]
    if by_column:
        extent = shape[0] * width
        columns = [Column(open_source(), dtype, base + place * extent, width) for place in places]
        return Table(columns, shape[0], None, False)
    columns = [Column(source, dtype, base + place * width, 4 * width) for place in places]
    return Table(columns, shape[0], (base, 4 * width), False)


def _four(members: list['_Member'], unit: str | None) -> Table:
    columns = []
    lengths = []
    for member in members:
        shape, _, dtype, base = _header(member.read, member.error)
        if len(shape) != 1 or base + shape[0] * dtype.itemsize != member.info.file_size:
            got = f'shape {shape} of {dtype} in {member.info.file_size - base} bytes'
            raise member.error(base, f'expected one dimension and the bytes for it, got {got}')
        columns.append(Column(member, dtype, base, dtype.itemsize))
        lengths.append(shape[0])
    if len(set(lengths)) > 1:
        raise members[0].recording.error(0, f'expected t, x, y, p of one length, got {lengths}')
    return Table(columns, lengths[0], None, True, unit)


def _allow(recording: Recording, unpacked: int) -> None:
    if unpacked > recording.options.max_unpacked:
        raise recording.too_large(unpacked)


def _read(source: Source, offset: int, stride: int, first: int, count: int) -> bytes:
    source.seek(offset + first * stride)
    return source.read(count * stride, 'events')


class _Member:
    """One array of an archive, read from front to back; its offsets are those of the unpacked file."""

    def __init__(self, recording: Recording, archive: zipfile.ZipFile, info: zipfile.ZipInfo):
        self.recording, self.info = recording, info
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise self.error(0, f'expected it stored or deflated, as numpy does, got method {info.compress_type}')
        with recording.sound('.npz archive'):
            self.file = archive.open(info)
        self.position = 0

    def error(self, offset: int, text: str) -> EventFileError:
        return self.recording.error(self.info.header_offset, f'{self.info.filename}, byte {offset} in it: {text}')

    def read(self, count: int, what: str) -> bytes:
        with self.recording.sound('.npz archive'):
            data = self.file.read(count)
            if self.position + count == self.info.file_size:
                self.file.read(1)  # at the end, zipfile compares checksums
        if len(data) != count:
            raise self.error(0, f'expected {count} bytes of {what}, got {len(data)}')
        self.position += count
        return data

    def seek(self, position: int) -> None:
        while self.position < position:
            self.read(min(position - self.position, 1 << 16), 'events')


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
