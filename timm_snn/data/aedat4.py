"""AEDAT 4.0, which DV and dv-processing write for the cameras of iniVation.

Packets of FlatBuffers, which LZ4 or Zstandard may have compressed. The two tables that are needed are decoded here and
not by a library of FlatBuffers, which would believe their offsets.
Source: iniVation, "AEDAT 4.0"; Google, "FlatBuffers Internals".
"""

import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np

from ..files import printable
from .recording import Events, Recording, gather, library

__all__ = ['aedat4']

LINE = b'#!AER-DAT4.0\r\n'
HEADER_LIMIT = 1 << 20
PACKET_LIMIT = 1 << 28  # bytes unpacked: 16 million events
PIECE = 1 << 20  # bytes that are unpacked at a time
EVENT = np.dtype({
    'names': ['t', 'x', 'y', 'p'], 'formats': ['<i8', '<i2', '<i2', 'u1'], 'offsets': [0, 8, 10, 12], 'itemsize': 16
})  # fmt: skip


class Stream(NamedTuple):
    number: int
    kind: str  # EVTS for events
    names: tuple[str, ...]
    sensor_size: tuple[int, int] | None


def aedat4(recording: Recording, chunk: int) -> Iterator[Events]:
    """The one stream of events, or the one whose number or name is `stream`; others, such as frames, are skipped."""
    return gather(_packets(recording), chunk)


def _packets(recording: Recording) -> Iterator[Events]:
    line = recording.read(len(LINE), 'the first line')
    if line != LINE:
        raise recording.error(0, f'expected {LINE!r}, got {line!r}')
    length = int.from_bytes(recording.read(4, 'the header'), 'little')
    if length > HEADER_LIMIT:
        raise recording.error(len(LINE), f'expected a header of at most {HEADER_LIMIT} bytes, got {length}')
    with recording.sound('AEDAT 4.0 header'):
        header = _FlatBuffer(recording.read(length, 'the header'), b'IOHE')
        (compression,) = struct.unpack('<i', header.field(0, 4) or bytes(4))
        (end,) = struct.unpack('<q', header.field(1, 8) or b'\xff' * 8)
        streams = list(_streams(header.vector(2, 1)))
    unpack = _unpacker(recording, compression)
    stream = _choose(recording, streams)
    recording.sensor_size = stream.sensor_size
    height, width = stream.sensor_size or (1 << 15, 1 << 15)
    if end < 0:
        end = recording.size  # the camera was pulled out before the table of packets was written
    while recording.position < end:
        start = recording.position
        number, size = struct.unpack('<ii', recording.read(8, 'a packet header'))
        if size < 0 or size > recording.left:
            raise recording.error(start, f'expected a packet within {recording.left} bytes, got {size}')
        if number != stream.number:
            recording.seek(recording.position + size)
            continue
        data = recording.read(size, 'a packet')
        with recording.sound(f'packet at byte {start}'):
            rows = np.frombuffer(_FlatBuffer(unpack(data)[4:], b'EVTS').vector(0, 16), EVENT)
        x, y = rows['x'], rows['y']
        if (wrong := (x < 0) | (y < 0) | (x >= width) | (y >= height)).any():
            i = int(wrong.argmax())
            raise recording.error(
                start, f'event {i} of the packet: expected x in 0 ... {width - 1} and y in 0 ... {height - 1}, '
                f'got ({x[i]}, {y[i]})'
            )  # fmt: skip
        yield Events(
            rows['t'].astype(np.int64), x.astype(np.int16), y.astype(np.int16), (rows['p'] > 0).astype(np.uint8)
        )


class _FlatBuffer:
    """The root table of a buffer. Raises: ValueError or struct.error for what lies outside of it."""

    def __init__(self, data: bytes, identifier: bytes):
        if data[4:8] != identifier:
            raise ValueError(f'expected {identifier!r}, got {data[4:8]!r}')
        self.data = data
        self.table = self._number('<I', 0)
        self.fields = self.table - self._number('<i', self.table)
        self.fields_end = self.fields + self._number('<H', self.fields)

    def _number(self, kind: str, at: int) -> int:
        if at < 0:
            raise ValueError(f'expected an offset in the buffer, got {at}')
        return struct.unpack_from(kind, self.data, at)[0]

    def _place(self, field: int) -> int | None:
        at = self.fields + 4 + 2 * field
        place = self._number('<H', at) if at < self.fields_end else 0
        return self.table + place if place else None

    def field(self, field: int, width: int) -> bytes | None:
        place = self._place(field)
        return None if place is None else self.data[place : place + width]

    def vector(self, field: int, width: int) -> memoryview:
        """The bytes of a vector, of elements of `width` bytes."""
        place = self._place(field)
        if place is None:
            return memoryview(b'')
        place += self._number('<I', place)
        count = self._number('<I', place)
        if place + 4 + count * width > len(self.data):
            raise ValueError(f'expected {count} elements of {width} bytes in {len(self.data)} bytes')
        return memoryview(self.data)[place + 4 : place + 4 + count * width]


def _streams(description: memoryview) -> Iterator[Stream]:
    """What the header's XML says of each stream."""
    text = bytes(description)
    if b'<!' in text:
        raise ValueError('expected XML without declarations')
    for node in ElementTree.fromstring(text).iter('node'):
        attributes = {attr.get('key'): attr.text or '' for attr in node.findall('attr')}
        kind, number = attributes.get('typeIdentifier'), node.get('name', '')
        if kind is None or not number.isdigit():
            continue
        info = {attr.get('key'): attr.text or '' for attr in node.findall("node[@name='info']/attr")}
        size = (info.get('sizeY', ''), info.get('sizeX', ''))
        names = (number, attributes.get('originalOutputName', ''), info.get('source', ''))
        yield Stream(int(number), kind, names, (int(size[0]), int(size[1])) if all(map(str.isdigit, size)) else None)


def _choose(recording: Recording, streams: list[Stream]) -> Stream:
    wanted = recording.options.stream
    events = [stream for stream in streams if stream.kind == 'EVTS']
    found = events if wanted is None else [stream for stream in events if wanted in stream.names]
    if len(found) == 1:
        return found[0]
    shown = printable(', '.join(f'{stream.kind} {" ".join(filter(None, stream.names))}' for stream in streams), 200)
    what = 'one stream of events (EVTS)' if wanted is None else f'events in stream={wanted!r}'
    hint = ': say stream=... with one of the names' if len(found) > 1 else ''
    raise recording.error(len(LINE), f'expected {what}, got {shown or "none"}{hint}')


def _unpacker(recording: Recording, compression: int) -> Callable[[bytes], bytes]:
    if compression == 0:
        return lambda data: data
    if compression in (1, 2):
        frame = library('lz4.frame', 'this AEDAT 4.0, which LZ4 compressed,')
        return lambda data: _unpacked_lz4(frame.LZ4FrameDecompressor(), data)
    if compression in (3, 4):
        zstandard = library('zstandard', 'this AEDAT 4.0, which Zstandard compressed,')
        return lambda data: _read_pieces(zstandard.ZstdDecompressor().stream_reader(data).read)
    raise recording.error(len(LINE), f'expected a compression from 0 to 4, got {compression}')


def _unpacked_lz4(decompressor: Any, data: bytes) -> bytes:
    """Of a whole frame, in pieces: a claimed size is not allocated."""

    def pieces(size: int) -> bytes:
        nonlocal data
        if decompressor.eof or (decompressor.needs_input and not data):
            return b''
        piece, data = decompressor.decompress(data, size), b''
        return piece

    unpacked = _read_pieces(pieces)
    if not decompressor.eof:
        raise ValueError('expected a whole frame of LZ4')
    return unpacked


def _read_pieces(read: Callable[[int], bytes]) -> bytes:
    """All that `read` gives; a size that a packet claims is not allocated."""
    unpacked = bytearray()
    while piece := read(PIECE):
        unpacked += piece
        if len(unpacked) > PACKET_LIMIT:
            raise ValueError(f'expected at most {PACKET_LIMIT} bytes after unpacking')
    return bytes(unpacked)
