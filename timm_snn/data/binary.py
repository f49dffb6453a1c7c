"""The binary formats of neuromorphic data sets: N-MNIST, AEDAT 2.0 and AEDAT 3.1.

Each reader yields Events of at most `chunk` events, in memory that does not grow with the file.
"""

import struct
from collections.abc import Iterator

import numpy as np

from .recording import Events, Recording

__all__ = ['aedat2', 'aedat3', 'nmnist', 'version']

HEADER_LIMIT = 1 << 20  # jAER may write all its preferences into a header
PACKET = struct.Struct('<hhiiiiii')  # type, source, event size, timestamp offset, overflow, capacity, number, valid
POLARITY = 1  # the type of packets that hold what pixels saw


def nmnist(recording: Recording, chunk: int) -> Iterator[Events]:
    """5 bytes an event: x, y, then a bit of polarity and 23 bits of microseconds; 34 x 34 pixels. No header.

    Source: Orchard et al. 2015, "Converting Static Image Datasets to Spiking Neuromorphic Datasets Using Saccades".
    """
    for start, data in recording.whole(5, chunk):
        x = np.frombuffer(data, np.uint8)[::5].astype(np.int16)
        word = np.ndarray(len(x), '>u4', data, offset=1, strides=(5,)).astype(np.uint32)
        y = (word >> 24).astype(np.int16)
        if x.max() > 33 or y.max() > 33:
            i = int(((x > 33) | (y > 33)).argmax())
            raise recording.error(start + 5 * i, f'expected x and y in 0 ... 33, got ({x[i]}, {y[i]})')
        yield Events((word & 0x7FFFFF).astype(np.int64), x, y, (word >> 23 & 1).astype(np.uint8))


def aedat2(recording: Recording, chunk: int) -> Iterator[Events]:
    """CIFAR10-DVS: lines that begin with #, then big-endian pairs of address and microseconds; 128 x 128 pixels.

    The address holds a row in bits 8 to 14, a column in bits 1 to 7 and a polarity in bit 0. As in SpikingJelly, from
    which published results come, x is 127 - row, y is 127 - column and p is 1 - polarity. Bit 15 marks pulses on the
    camera's input, which no pixel saw: they are skipped. Timestamps count as unsigned.
    Source: iniVation, "AEDAT 2.0" and "AEDAT 1.0" (for the address of the DVS128).
    """
    if version(recording) is not None:
        _version_line(recording, b'2.0')
    while recording.left and recording.peek(1) == b'#':
        _header_line(recording)
    for start, data in recording.whole(8, chunk):
        words = np.frombuffer(data, '>u4').reshape(-1, 2)
        address, t = words[:, 0].astype(np.uint32), words[:, 1].astype(np.int64)
        if address.max() > 0x7FFF:
            if address.max() > 0xFFFF:
                i = int((address > 0xFFFF).argmax())
                raise recording.error(
                    start + 8 * i, f'expected an address of 16 bits, as a DVS128 has, got {address[i]:#x}'
                )
            seen = address <= 0x7FFF
            address, t = address[seen], t[seen]
        x = (127 - (address >> 8)).astype(np.int16)
        y = (127 - (address >> 1 & 127)).astype(np.int16)
        yield Events(t, x, y, (1 - (address & 1)).astype(np.uint8))


def aedat3(recording: Recording, chunk: int) -> Iterator[Events]:
    """DVS128 Gesture: AEDAT 3.1, a text header and then packets of little-endian integers; 128 x 128 pixels.

    t = timestamp | overflow of the packet << 31. Packets other than polarity are skipped by their size. Events that the
    camera's software has marked as invalid (bit 0 clear) are dropped, as the format asks; SpikingJelly keeps them.
    Source: iniVation, "AEDAT 3.1".
    """
    _version_line(recording, b'3.1')
    line = b''
    while line.rstrip() != b'#!END-HEADER':
        start, line = recording.position, _header_line(recording)
        if not line.startswith(b'#'):
            raise recording.error(start, f'expected a header line or #!END-HEADER, got {line[:30]!r}')
        if line.startswith(b'#Format:') and line[8:].strip() != b'RAW':
            raise recording.error(start, f'expected #Format: RAW, got {line.strip()[:60].decode("latin-1")!r}')
    pieces: list[bytes] = []
    spans: list[tuple[int, int, int]] = []  # of each piece: offset in the file, events, overflow
    waiting = 0
    while recording.left:
        number, overflow = _packet_header(recording)
        while number:
            count = min(number, chunk - waiting)
            spans.append((recording.position, count, overflow))
            pieces.append(recording.read(8 * count, 'events'))
            number -= count
            waiting += count
            if waiting == chunk:
                yield _polarity(recording, b''.join(pieces), spans)
                pieces, spans, waiting = [], [], 0
    if waiting:
        yield _polarity(recording, b''.join(pieces), spans)


def version(recording: Recording) -> str | None:
    """Of AEDAT, as in a first line `#!AER-DAT3.1`, or None. Does not move."""
    line = recording.peek(32).split(b'\n')[0].rstrip(b'\r')
    return line[9:].decode('latin-1') if line.startswith(b'#!AER-DAT') else None


def _version_line(recording: Recording, expected: bytes) -> None:
    line = _header_line(recording)
    if line.rstrip() != b'#!AER-DAT' + expected:
        raise recording.error(0, f'expected #!AER-DAT{expected.decode()}, got {line.rstrip()[:40].decode("latin-1")!r}')


def _header_line(recording: Recording) -> bytes:
    start = recording.position
    line = recording.line(max(0, HEADER_LIMIT - start))
    if not line.endswith(b'\n'):
        what = 'the end of the file' if recording.left == 0 else f'a header of more than {HEADER_LIMIT} bytes'
        raise recording.error(start, f'expected a header line, got {what}')
    return line


def _packet_header(recording: Recording) -> tuple[int, int]:
    """Events and overflow of the packet that begins here; behind its events, and no events, where it is skipped."""
    start = recording.position
    kind, _, size, place, overflow, capacity, number, _ = PACKET.unpack(recording.read(28, 'a packet header'))
    # Readers differ in which of both counts they go by; in files they are the same, or one of them is wrong.
    if size < 0 or number < 0 or capacity != number or overflow < 0:
        raise recording.error(
            start,
            'expected a packet with eventSize, eventTSOverflow >= 0 and eventCapacity = eventNumber >= 0, '
            f'got {size}, {overflow}, {capacity}, {number}',
        )
    if kind == POLARITY and (size, place) != (8, 4):
        raise recording.error(
            start, f'expected polarity events of 8 bytes with the timestamp at 4, got {size} and {place}'
        )
    if size * number > recording.left:
        raise recording.error(
            start, f'expected {number} events of {size} bytes after the packet header, got {recording.left} bytes'
        )
    if kind == POLARITY:
        return number, overflow
    recording.seek(recording.position + size * number)
    return 0, overflow


def _polarity(recording: Recording, data: bytes, spans: list[tuple[int, int, int]]) -> Events:
    words = np.frombuffer(data, '<u4').reshape(-1, 2)
    word, t = words[:, 0].astype(np.uint32), words[:, 1].astype(np.int64)
    valid = word & 1 == 1
    # x has bits 17 to 31 and y bits 2 to 16, of which 128 pixels need 7 each
    if ((wrong := (word & 0xFF01FE00 != 0) | (t >> 31 != 0)) & valid).any():
        i = int((wrong & valid).argmax())
        before = np.cumsum([0] + [count for _, count, _ in spans])
        span = int(np.searchsorted(before, i, 'right')) - 1
        raise recording.error(
            spans[span][0] + 8 * (i - int(before[span])),
            'expected x and y in 0 ... 127 and a timestamp below 2**31, '
            f'got ({word[i] >> 17}, {word[i] >> 2 & 0x7FFF}) and {t[i]}',
        )
    if any(overflow for _, _, overflow in spans):
        counts = [count for _, count, _ in spans]
        t |= np.repeat(np.array([overflow << 31 for _, _, overflow in spans], np.int64), counts)
    if not valid.all():
        word, t = word[valid], t[valid]
    x, y = (word >> 17).astype(np.int16), (word >> 2 & 0x7FFF).astype(np.int16)
    return Events(t, x, y, (word >> 1 & 1).astype(np.uint8))
