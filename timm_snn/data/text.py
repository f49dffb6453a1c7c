"""Events in text: .csv and .txt, one a line, below a line of names or without.

numpy.loadtxt parses the lines in blocks, in memory that does not grow with the file. Lines that begin with # or % are
comments.
"""

import io
import re
from collections.abc import Iterator

import numpy as np

from .columns import NAMES, ORDERS, Converter, fitting_orders, named_columns
from .recording import EventFileError, Events, Recording

__all__ = ['text']

BLOCK = 1 << 18  # bytes, some 12,000 lines
LINE_LIMIT = 1 << 16


def text(recording: Recording, chunk: int) -> Iterator[Events]:
    """Columns by the names in a first line such as `timestamp,x,y,polarity`, or else in `order`.

    Without both, a file is read as E2VID writes them: t in seconds with a fraction, x, y, p, maybe below a line of
    width and height. Any other is refused, as its columns cannot be told apart.
    """
    lines = _Lines(recording)
    names = _head(lines)
    places, unit = _places(lines, names)
    convert = Converter(unit)
    while recording.left:
        table = lines.parse()
        for first in range(0, len(table), chunk):
            columns = [table[first : first + chunk, place] for place in places]
            if unit is None and table.dtype.kind == 'f':
                columns = [_whole(column) for column in columns]
            if wrong := convert.check([column.dtype for column in columns]):
                raise lines.error(first, wrong)
            if wrong_value := convert.wrong(columns):
                raise lines.error(first + wrong_value[1], wrong_value[2])
            yield convert.events(columns)


class _Lines:
    """Blocks of whole lines of numbers, and where in the file they are."""

    def __init__(self, recording: Recording):
        self.recording = recording
        self.delimiter: str | None = None  # any blanks
        self.width = 0  # columns
        self.number = 1  # of the line that comes next
        self.block, self.start, self.first = b'', 0, 1  # the last block that was parsed, its offset and first line

    def line(self) -> str:
        """The next one without its end."""
        start = self.recording.position
        line = self.recording.line(LINE_LIMIT)
        if not line.endswith(b'\n') and self.recording.left:
            raise self.recording.error(start, f'line {self.number}: expected at most {LINE_LIMIT} bytes, got more')
        self.number += 1
        return line.decode('utf-8-sig', 'replace').strip()

    def split(self, line: str) -> list[str]:
        return [cell.strip().strip('"') for cell in line.split(self.delimiter)]

    def parse(self) -> np.ndarray:
        """The next block, [lines, width], as integers if all are."""
        self.start, self.first = self.recording.position, self.number
        self.block = self.recording.read(min(self.recording.left, BLOCK), 'lines')
        if not self.block.endswith(b'\n') and self.recording.left:
            self.block += self.recording.line(LINE_LIMIT)
            if not self.block.endswith(b'\n') and self.recording.left:
                raise self.recording.error(
                    self.start, f'expected lines of at most {LINE_LIMIT} bytes, got a longer one'
                )
        self.number += self.block.count(b'\n')
        block = (
            re.sub(rb'(?m)^[ \t]*[#%].*$', b'', self.block) if b'#' in self.block or b'%' in self.block else self.block
        )
        if not block.strip():
            return np.empty((0, self.width), np.int64)
        if b'e' in block:
            block = block.replace(b'True', b'1').replace(b'False', b'0')  # as pandas writes a polarity
        dtype = np.float64 if any(byte in block for byte in b'.eEnN') else np.int64
        try:
            table = np.loadtxt(io.BytesIO(block), dtype, delimiter=self.delimiter, ndmin=2, encoding='latin-1')
        except (ValueError, OverflowError) as error:
            raise self._wrong_line(str(error)) from error
        if table.shape[1] != self.width:
            raise self._wrong_line(f'{table.shape[1]} columns')
        return table

    def error(self, row: int, text: str) -> EventFileError:
        """For a row of the last block."""
        offset, number, _ = self._rows()[row]
        return self.recording.error(offset, f'line {number}: {text}')

    def _wrong_line(self, reason: str) -> EventFileError:
        for offset, number, line in self._rows():
            cells = self.split(line)
            if len(cells) != self.width or not all(_is_number(cell) for cell in cells):
                return self.recording.error(offset, f'line {number}: expected {self.width} numbers, got {line[:80]!r}')
        return self.recording.error(
            self.start, f'line {self.first}: expected {self.width} numbers a line, got {reason}'
        )

    def _rows(self) -> list[tuple[int, int, str]]:
        """Of each line with numbers in the last block: its offset, its number, and it."""
        rows = []
        offset = self.start
        for number, line in enumerate(self.block.split(b'\n'), self.first):
            if line.strip() and not line.strip().startswith((b'#', b'%')):
                rows.append((offset, number, line.decode('latin-1').strip()))
            offset += len(line) + 1
        return rows


def _head(lines: _Lines) -> list[str] | None:
    """Goes to the first line of numbers, and gives the names of their columns if the line before has any."""
    recording = lines.recording
    comment: list[str] = []
    while recording.left:
        start, number = recording.position, lines.number
        line = lines.line()
        if size := re.match(r'[#%]\s*geometry\W+(\d{1,5})\D+(\d{1,5})$', line) or re.match(
            r'(\d{1,5})\s+(\d{1,5})$', line
        ):
            recording.sensor_size = int(size[2]), int(size[1])
        elif line.startswith(('#', '%')):
            comment = re.findall(r'[^\s,;]+', line.lstrip('#% '))
        elif line:
            lines.delimiter = next((delimiter for delimiter in ',;\t' if delimiter in line), None)
            cells = lines.split(line)
            lines.width = len(cells)
            if not all(_is_number(cell) for cell in cells):
                return cells
            recording.seek(start)
            lines.number = number
            return comment if len(comment) == len(cells) and named_columns(comment) else None
    raise recording.error(recording.size, f'line {lines.number}: expected events, got the end of the file')


def _places(lines: _Lines, names: list[str] | None) -> tuple[list[int], str | None]:
    """Of t, x, y and p, and the unit of t."""
    recording = lines.recording
    order, unit = recording.options.order, recording.options.time_unit
    if names and (found := named_columns(names)):
        if order is not None:
            raise recording.error(0, f'expected columns without names for order={order!r}, got names: leave it out')
        return [names.index(found[0][column]) for column in NAMES], unit or found[1]
    if order is not None and lines.width == 4:
        return [order.index(column) for column in NAMES], unit
    if names or lines.width != 4:
        got = f'the names {", ".join(names)}' if names else f'{lines.width} columns without names'
        raise recording.error(
            0, f"expected names such as t,x,y,p in the first line, or 4 columns and order='txyp', got {got}"
        )
    position, number = recording.position, lines.number
    columns = list(lines.parse().T)
    recording.seek(position)
    lines.number = number
    fits = fitting_orders(columns) if len(columns[0]) else []
    if 'txyp' in fits and (columns[0] != np.rint(columns[0])).any():
        return [0, 1, 2, 3], unit or 's'
    likely = ' or '.join(f'order={order!r} ({ORDERS[order]})' for order in fits or ORDERS)
    raise recording.error(position, f'line {number}: expected names above the columns, got none: say {likely}')


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return cell in ('True', 'False')
    return True


def _whole(column: np.ndarray) -> np.ndarray:
    """Integers if the floating-point numbers are, as numpy.savetxt writes them."""
    whole = (np.abs(column) < 2**62) & (column == np.rint(column))
    return column.astype(np.int64) if whole.all() else column
