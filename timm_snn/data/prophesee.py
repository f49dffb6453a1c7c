"""Recordings of Prophesee's cameras: .raw in EVT 2.0, 2.1 and 3.0, and .dat.

Each reader yields Events of at most `chunk` events, in memory that does not grow with the file. Words for triggers,
statistics and what the formats reserve are skipped. What comes before the first word that a word relies on (of time,
and in EVT 3.0 of the row) is no whole event and is skipped, too: recordings begin in the middle of a stream.
Times go on where a counter begins anew: after 17 s in EVT 3.0, 4.8 hours in EVT 2.0 and 2.1, 71 minutes in .dat.
Source: Prophesee, "Data Encoding Formats" and "File Formats", docs.prophesee.ai.
"""

import re
from collections.abc import Iterator

import numpy as np

from .recording import Events, Recording, gather

__all__ = ['TO_CSV', 'Evt3', 'dat', 'evt2', 'evt3', 'evt21', 'header']

HEADER_LIMIT = 1 << 16
TO_CSV = ('metavision_file_to_csv -i {file}', "read_events('{stem}.csv', order='xypt')")  # for what is not read here
ON, TIME_HIGH = 0x1, 0x8  # types of words of EVT 2.0 and 2.1, in which 0 is an event, too
ADDR_Y, ADDR_X, VECT_BASE_X, VECT_12, VECT_8, TIME_LOW = 0x0, 0x2, 0x3, 0x4, 0x5, 0x6  # and of EVT 3.0


def header(recording: Recording) -> dict[str, str]:
    """The lines `% key value` at the front, up to the first other one or `% end`, keys in lower case.

    `format` as in `EVT3;height=720;width=1280` gives a key for each part. Sets the sensor's size.
    """
    fields: dict[str, str] = {}
    while recording.peek(2) == b'% ':
        start = recording.position
        line = recording.line(max(0, HEADER_LIMIT - start))
        if not line.endswith(b'\n'):
            raise recording.error(start, f'expected header lines within {HEADER_LIMIT} bytes, got {line[:30]!r}')
        key, _, value = line[2:].decode('latin-1').strip().partition(' ')
        if key.lower() == 'end':
            break
        fields[key.lower()] = value.strip()
        if key.lower() == 'format':
            name, *parts = value.strip().split(';')
            fields |= {'format': name.strip()} | dict(part.lower().split('=', 1) for part in parts if '=' in part)
    size = re.fullmatch(r'(\d{1,5})x(\d{1,5})', fields.get('geometry', ''))
    width, height = size.groups() if size else (fields.get('width', ''), fields.get('height', ''))
    if re.fullmatch(r'\d{1,5}', width) and re.fullmatch(r'\d{1,5}', height):
        recording.sensor_size = int(height), int(width)
    return fields


def dat(recording: Recording, chunk: int) -> Iterator[Events]:
    """8 bytes an event: 32 bits of microseconds, 14 of the column, 14 of the row, 4 of the polarity; little-endian."""
    version = header(recording).get('version', '2')
    if version not in ('1', '2'):
        raise recording.error(0, f'expected a .dat of version 2, got version {version}')
    kind, size = recording.read(2, 'the type and size of events')
    if kind not in (0, 12) or size != 8:
        raise recording.error(
            recording.position - 2, f'expected events of type 12 (CD) and 8 bytes, got type {kind} and {size} bytes'
        )
    recording.count = recording.left // 8
    clock = _Clock(32)
    for start, data in recording.whole(8, chunk):
        words = np.frombuffer(data, '<u4').reshape(-1, 2)
        word = words[:, 1]
        x, y, p = word & 0x3FFF, word >> 14 & 0x3FFF, word >> 28
        places = np.arange(start, start + len(data), 8)
        if p.max() > 1:
            i = int((p > 1).argmax())
            raise recording.error(int(places[i]), f'expected a polarity of 0 or 1, got {p[i]}')
        _inside(recording, x, y, places, 1 << 14)
        yield _events(clock(words[:, 0].astype(np.int64)), x, y, p)


def evt2(recording: Recording, chunk: int) -> Iterator[Events]:
    """EVT 2.0: words of 32 bits, one an event, with 6 bits of the time; the other 28 have words of their own."""
    header(recording)
    high = _TimeHigh()
    for start, data in recording.whole(4, chunk):
        words = np.frombuffer(data, '<u4')
        seen, time = high(words)
        word = words[seen]
        x, y = word >> 11 & 0x7FF, word & 0x7FF
        _inside(recording, x, y, start + 4 * seen)
        yield _events(time | word >> 22 & 0x3F, x, y, word >> 28)


def evt21(recording: Recording, chunk: int) -> Iterator[Events]:
    """EVT 2.1: words of 64 bits, each of up to 32 events side by side; else as EVT 2.0.

    The header's endianness tells which half of a word comes first: the lower one if it is `little`, as of the GenX320.
    """
    return gather(_evt21(recording, chunk), chunk)


def _evt21(recording: Recording, chunk: int) -> Iterator[Events]:
    little = header(recording).get('endianness') == 'little'
    high = _TimeHigh()
    for start, data in recording.whole(8, chunk):
        halves = np.frombuffer(data, '<u4').reshape(-1, 2)
        words, valid = halves[:, int(little)], halves[:, 1 - int(little)]
        seen, time = high(words)
        index, bit = _bits(valid[seen])
        word = words[seen][index]
        x, y = (word >> 11 & 0x7FF) + bit, word & 0x7FF
        _inside(recording, x, y, start + 8 * seen[index])
        yield _events(time[index] | word >> 22 & 0x3F, x, y, word >> 28)


def evt3(recording: Recording, chunk: int) -> Iterator[Events]:
    """EVT 3.0: words of 16 bits that set a time, a row, a column and a polarity, and events of 1 to 12 pixels."""
    return gather(_evt3(recording, chunk), chunk)


def _evt3(recording: Recording, chunk: int) -> Iterator[Events]:
    header(recording)
    decode = Evt3()
    for start, data in recording.whole(2, chunk):
        events, index = decode(np.frombuffer(data, '<u2'))
        _inside(recording, events.x, events.y, start + 2 * index)
        yield events


class Evt3:
    """Decodes a stream of words piece by piece; what words have set holds for the next piece."""

    def __init__(self) -> None:
        self.clock = _Clock(12)
        self.high, self.low, self.time, self.row, self.base = _Held(), _Held(), _Held(), _Held(), _Held()
        self.moved = 0  # columns that the vectors since the last base have taken

    def __call__(self, words: np.ndarray) -> tuple[Events, np.ndarray]:
        """Events, and for each one the index of its word."""
        kind, value = words >> 12, (words & 0xFFF).astype(np.int32)
        vector = (kind == VECT_12) | (kind == VECT_8)
        emits = np.flatnonzero((kind == ADDR_X) | vector)
        x, p = value[emits] & 0x7FF, value[emits] >> 11
        pixels = np.ones(len(emits), '<u2')  # a bit for each event
        sets = vector | (kind == VECT_BASE_X)
        if sets.any():
            among = vector[emits]
            x[among], p[among], pixels[among] = self._vectors(kind[sets], value[sets])
        is_row = kind == ADDR_Y
        row = self.row(value[np.flatnonzero(is_row)], _passed(is_row)[emits])
        time = self._times(kind, value, emits)
        pixels[(row < 0) | (time < 0)] = 0  # of a stream that began before
        index, bit = _bits(pixels)
        x = np.minimum(x[index] + bit, 32767)  # a vector without an end is outside of any sensor
        return _events(time[index], x, row[index] & 0x7FF, p[index]), emits[index]

    def _vectors(self, kind: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the vectors among words that set a base or are one: first column, polarity, and the bits of pixels."""
        is_base = kind == VECT_BASE_X
        base = self.base(value[is_base], _passed(is_base))
        width = 12 * (kind == VECT_12) + 8 * (kind == VECT_8)
        end = np.cumsum(width)
        start = np.concatenate([[-self.moved], end[is_base]])  # of the vectors since each base, as end counts
        self.moved = int(end[-1] - start[-1])
        column = (base & 0x7FF) + end - width - start[_passed(is_base)]
        pixels = np.where(base < 0, 0, value & (1 << width) - 1)
        return column[~is_base], base[~is_base] >> 11, pixels[~is_base]

    def _times(self, kind: np.ndarray, value: np.ndarray, emits: np.ndarray) -> np.ndarray:
        """Of the words at `emits`, -1 before the first TIME_HIGH. A new TIME_HIGH begins at its first microsecond."""
        is_time = (kind == TIME_LOW) | (kind == TIME_HIGH)
        at = np.flatnonzero(is_time)  # which NumPy takes from faster than by a mask
        is_high, bits = kind[at] == TIME_HIGH, value[at].astype(np.int64)
        before = self.high.value
        high = self.high(self.clock(bits[np.flatnonzero(is_high)]), _passed(is_high))
        sets = ~is_high | (np.diff(high, prepend=before) != 0)
        low = self.low(np.where(is_high, 0, bits)[np.flatnonzero(sets)], _passed(sets))
        return self.time(np.where(high < 0, -1, high << 12 | low), _passed(is_time)[emits])


class _Clock:
    """A counter of so many bits, made one that goes on; it has begun anew where it falls by more than half."""

    def __init__(self, bits: int):
        self.bits, self.last, self.turns = bits, 0, 0

    def __call__(self, values: np.ndarray) -> np.ndarray:
        if not len(values):
            return values
        falls = np.diff(values, prepend=self.last) < -(1 << self.bits - 1)
        turns = self.turns + np.cumsum(falls)
        self.last, self.turns = int(values[-1]), int(turns[-1])
        return values + (turns << self.bits)


class _Held:
    """What the last word of one kind has set, -1 before the first."""

    def __init__(self) -> None:
        self.value = -1

    def __call__(self, values: np.ndarray, passed: np.ndarray) -> np.ndarray:
        """At words that `passed` so many of the words that set `values`."""
        held = np.concatenate([[self.value], values])
        self.value = int(held[-1])
        return held[passed]


class _TimeHigh:
    """Of EVT 2.0 and 2.1: the events among words, and the upper bits of their times."""

    def __init__(self) -> None:
        self.clock, self.high = _Clock(28), _Held()

    def __call__(self, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        kind = words >> 28
        is_high = kind == TIME_HIGH
        seen = np.flatnonzero(kind <= ON)
        values = self.clock((words[is_high] & 0xFFFFFFF).astype(np.int64))
        high = self.high(values, _passed(is_high)[seen])
        begun = int((high < 0).sum())  # the events before the first
        return seen[begun:], high[begun:] << 6


def _passed(mask: np.ndarray) -> np.ndarray:
    """How many are set up to each place and there."""
    return np.cumsum(mask, dtype=np.int32)


def _bits(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each bit that is set, in order: the index of its word, and its place in it."""
    width = 8 * words.dtype.itemsize
    bits = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), bitorder='little')
    place = np.flatnonzero(bits.view(bool))
    return place // width, place % width


def _events(t: np.ndarray, x: np.ndarray, y: np.ndarray, p: np.ndarray) -> Events:
    return Events(t.astype(np.int64), x.astype(np.int16), y.astype(np.int16), p.astype(np.uint8))


def _inside(recording: Recording, x: np.ndarray, y: np.ndarray, places: np.ndarray, limit: int = 2048) -> None:
    """Refuse the first event outside of the sensor, or of the `limit` of a format; `places` are bytes in the file."""
    height, width = recording.sensor_size or (limit, limit)
    wrong = (x >= width) | (y >= height)
    if wrong.any():
        i = int(wrong.argmax())
        raise recording.error(int(places[i]), f'expected x below {width} and y below {height}, got ({x[i]}, {y[i]})')
