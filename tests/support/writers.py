"""Small writers of the formats that timm_snn.data reads, for tests and benchmarks."""

import itertools
import struct
from pathlib import Path

import numpy as np

from timm_snn.data import Events

AEDAT3_HEADER = b'#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#Start-Time: 2015-01-01\r\n#!END-HEADER\r\n'
AEDAT2_HEADER = b'#!AER-DAT2.0\r\n# This is a raw AE data file - do not edit\r\n# Timestamps tick is 1 us\r\n'


def random_events(count: int, size: int = 128, seed: int = 0, last: int = 300_000) -> Events:
    """In order of time, up to `last` microseconds, on size x size pixels."""
    rng = np.random.default_rng(seed)
    t = np.sort(rng.integers(0, last, count, dtype=np.int64))
    x, y = rng.integers(0, size, (2, count), dtype=np.int16)
    return Events(t, x, y, rng.integers(0, 2, count, dtype=np.uint8))


def nmnist(path: Path, events: Events) -> Path:
    data = np.empty((len(events.t), 5), np.uint8)
    data[:, 0], data[:, 1] = events.x, events.y
    data[:, 2] = events.p << 7 | (events.t >> 16).astype(np.uint8)
    data[:, 3], data[:, 4] = events.t >> 8 & 255, events.t & 255
    path.write_bytes(data.tobytes())
    return path


def aedat2(path: Path, events: Events, header: bytes = AEDAT2_HEADER) -> Path:
    """Of events as SpikingJelly gives them: x = 127 - row, y = 127 - column, p = 1 - polarity of the file."""
    row, column, p = (array.astype(np.uint32) for array in (127 - events.x, 127 - events.y, 1 - events.p))
    words = np.stack([row << 8 | column << 1 | p, events.t.astype(np.uint32)], 1)
    path.write_bytes(header + words.astype('>u4').tobytes())
    return path


def packet(events: Events, *, kind: int = 1, overflow: int = 0, valid: np.ndarray | int = 1) -> bytes:
    """One packet of AEDAT 3.1, of 8 bytes an event; timestamps are those below the overflow."""
    count = len(events.t)
    x, y, p = (array.astype(np.uint32) for array in (events.x, events.y, events.p))
    words = np.stack([x << 17 | y << 2 | p << 1 | valid, (events.t & 0x7FFFFFFF).astype(np.uint32)], 1)
    numbers = (kind, 1, 8, 4, overflow, count, count, int(np.broadcast_to(valid, count).sum()))
    return struct.pack('<hhiiiiii', *numbers) + words.astype('<u4').tobytes()


def aedat3(path: Path, events: Events, packet_events: int = 1000, header: bytes = AEDAT3_HEADER) -> Path:
    """In packets, none with events of two overflows."""
    cuts = set(range(0, len(events.t), packet_events)) | set((np.flatnonzero(np.diff(events.t >> 31)) + 1).tolist())
    edges = [*sorted(cuts), len(events.t)]
    with open(path, 'wb') as file:
        file.write(header)
        for start, end in itertools.pairwise(edges):
            part = Events(*(array[start:end] for array in events))
            file.write(packet(part, overflow=int(part.t[0] >> 31)))
    return path


def npy(path: Path, events: Events) -> Path:
    """An [N, 4] array of (t, x, y, p)."""
    np.save(path, np.stack([array.astype(np.int64) for array in events], 1))
    return path


def npz(path: Path, events: Events) -> Path:
    np.savez_compressed(path, **events._asdict())
    return path


def raw_header(encoding: str, size: int, end: str = '% end\n') -> bytes:
    return f'% camera_integrator_name Prophesee\n% evt {encoding}\n% geometry {size}x{size}\n{end}'.encode()


def evt2(path: Path, events: Events, size: int = 128) -> Path:
    """With a word of TIME_HIGH before each event that needs one."""
    t, x, y, p = (array.astype(np.int64) for array in events)
    high = t >> 6
    words = np.stack([0x8 << 28 | high & 0xFFFFFFF, p << 28 | (t & 63) << 22 | x << 11 | y], 1)
    path.write_bytes(raw_header('2.0', size) + words[_emitted(high, None)].astype('<u4').tobytes())
    return path


def evt21(path: Path, events: Events, size: int = 128, endianness: str = 'legacy') -> Path:
    """One event a word, in one of its 32 places."""
    t, x, y, p = (array.astype(np.int64) for array in events)
    high, place = t >> 6, x % 32
    upper = np.stack([0x8 << 28 | high & 0xFFFFFFF, p << 28 | (t & 63) << 22 | x - place << 11 | y], 1)
    lower = np.stack([high * 0, 1 << place], 1)
    words = np.stack([upper, lower] if endianness == 'legacy' else [lower, upper], 2)
    head = raw_header('2.1', size).replace(b'% end', f'% endianness {endianness}\n% end'.encode())
    path.write_bytes(head + words[_emitted(high, None)].astype('<u4').tobytes())
    return path


def evt3(path: Path, events: Events, size: int = 128) -> Path:
    """Words of time and row where they change, and no vectors."""
    t, x, y, p = (array.astype(np.int64) for array in events)
    columns = [0x8 << 12 | t >> 12 & 0xFFF, 0x6 << 12 | t & 0xFFF, y, 0x2 << 12 | p << 11 | x]
    words = np.stack(columns, 1)[_emitted(t >> 12, t, y, None)]
    path.write_bytes(raw_header('3.0', size) + words.astype('<u2').tobytes())
    return path


def _emitted(*states: np.ndarray | None) -> np.ndarray:
    """Which words of each event are written: those whose state is new, and the last one, which has none."""
    count = len(next(state for state in states if state is not None))
    new = [np.ones(count, bool) if state is None else np.diff(state, prepend=-1) != 0 for state in states]
    return np.stack(new if states[-1] is None else [*new, np.ones(count, bool)], 1)


def dat(path: Path, events: Events, size: int = 128) -> Path:
    t, x, y, p = (array.astype(np.int64) for array in events)
    words = np.stack([t & 0xFFFFFFFF, p << 28 | y << 14 | x], 1).astype('<u4')
    head = f'% Data file containing CD events.\n% Version 2\n% Height {size}\n% Width {size}\n'
    path.write_bytes(head.encode() + bytes([12, 8]) + words.tobytes())
    return path


def text(path: Path, events: Events, header: str = 't,x,y,p') -> Path:
    lines = [header, *(f'{t},{x},{y},{p}' for t, x, y, p in zip(*events, strict=True)), '']
    path.write_text('\n'.join(lines))
    return path
