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
    path.write_bytes(raw_header('3.0', size) + _evt3_words(events))
    return path


def _evt3_words(events: Events) -> bytes:
    t, x, y, p = (array.astype(np.int64) for array in events)
    columns = [0x8 << 12 | t >> 12 & 0xFFF, 0x6 << 12 | t & 0xFFF, y, 0x2 << 12 | p << 11 | x]
    return np.stack(columns, 1)[_emitted(t >> 12, t, y, None)].astype('<u2').tobytes()


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


def hdf5(path: Path, events: Events, layout: str = 'metavision', size: int = 128, **filters: object) -> Path:
    """Metavision's layout without its codec, or DSEC's, with times from an offset on; `filters` as h5py has them."""
    import h5py

    with h5py.File(path, 'w') as file:
        if layout == 'metavision':
            rows = np.zeros(len(events.t), [('x', '<u2'), ('y', '<u2'), ('p', '<i2'), ('t', '<i8')])
            for name in 'xypt':
                rows[name] = getattr(events, name)
            file.create_dataset('CD/events', data=rows, **filters)
            file.create_dataset('EXT_TRIGGER/events', data=np.zeros(3, [('p', '<i2'), ('t', '<i8'), ('id', '<i2')]))
            file.attrs['geometry'] = f'{size}x{size}'
        else:
            offset = int(events.t.min()) if len(events.t) else 0
            times = (events.t - offset).astype(np.uint32)
            for name, values in (('t', times), ('x', events.x), ('y', events.y), ('p', events.p)):
                file.create_dataset(f'events/{name}', data=values, **filters)
            file['t_offset'] = offset
            file['ms_to_idx'] = np.searchsorted(times, np.arange(0, 1000 * len(times), 1000))
    return path


def flatbuffer(identifier: bytes, inline: dict[int, bytes], vectors: dict[int, tuple[int, bytes]]) -> bytes:
    """One table with its size before it: fields of 4 or 8 bytes, and vectors with their numbers of elements."""
    count = max([*inline, *vectors]) + 1
    table_start = 8 + (4 + 2 * count + 7) // 8 * 8 + 4  # so that what follows its first 4 bytes is aligned with 8
    table, after = bytearray(4), bytearray()
    places = {}
    for field in sorted(vectors, reverse=True):
        places[field] = len(table)
        table += bytes(4)
    table += bytes(-(len(table) + 4) % 8)
    for field, value in inline.items():
        table += bytes((-len(table) - table_start) % len(value))
        places[field] = len(table)
        table += value
    end = table_start + len(table)
    for field, (elements, data) in vectors.items():
        after += bytes((-(end + len(after)) - 4) % 8)
        struct.pack_into('<I', table, places[field], end + len(after) - table_start - places[field])
        after += struct.pack('<I', elements) + data
    vtable = struct.pack('<HH', 4 + 2 * count, len(table)) + b''.join(
        struct.pack('<H', places.get(field, 0)) for field in range(count)
    )
    struct.pack_into('<i', table, 0, table_start - 8)
    head = struct.pack('<I', table_start) + identifier + vtable
    data = head + bytes(table_start - len(head)) + table + after
    return struct.pack('<I', len(data)) + data


def aedat4(
    path: Path, events: Events, compression: str | None = None, packet_events: int = 1000, size: int = 128
) -> Path:
    """With packets of an inertial sensor between those of events, and a table at the end that is not read."""
    pack = {None: bytes, 'lz4': _lz4, 'zstd': _zstd}[compression]
    streams = ''.join(
        f'<node name="{number}" path="/{number}/"><attr key="typeIdentifier" type="string">{kind}</attr>'
        f'<attr key="originalOutputName" type="string">{name}</attr><node name="info" path="/{number}/info/">'
        f'<attr key="sizeX" type="int">{size}</attr><attr key="sizeY" type="int">{size}</attr></node></node>'
        for number, kind, name in ((0, 'EVTS', 'events'), (1, 'IMUS', 'imu'))
    )
    xml = f'<dv version="2.0"><node name="outInfo" path="/">{streams}</node></dv>'.encode()
    packets = b''
    other = pack(flatbuffer(b'IMUS', {}, {0: (0, b'')}))
    for start in range(0, len(events.t), packet_events):
        part = Events(*(array[start : start + packet_events] for array in events))
        rows = np.zeros(len(part.t), [('t', '<i8'), ('x', '<i2'), ('y', '<i2'), ('p', '?'), ('rest', 'V3')])
        for name in 'txyp':
            rows[name] = getattr(part, name)
        data = pack(flatbuffer(b'EVTS', {}, {0: (len(rows), rows.tobytes())}))
        packets += struct.pack('<ii', 1, len(other)) + other + struct.pack('<ii', 0, len(data)) + data
    number = {None: 0, 'lz4': 1, 'zstd': 3}[compression]
    length = len(flatbuffer(b'IOHE', {0: bytes(4), 1: bytes(8)}, {2: (len(xml), xml + b'\0')}))
    end = len(b'#!AER-DAT4.0\r\n') + length + len(packets)
    header = flatbuffer(
        b'IOHE', {0: struct.pack('<i', number), 1: struct.pack('<q', end)}, {2: (len(xml), xml + b'\0')}
    )
    path.write_bytes(b'#!AER-DAT4.0\r\n' + header + packets + b'a table of packets')
    return path


def _lz4(data: bytes) -> bytes:
    import lz4.frame

    return lz4.frame.compress(data)


def _zstd(data: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor().compress(data)


EVENT_MESSAGES = {
    'Event': 'uint16 x\nuint16 y\ntime ts\nbool polarity',
    'EventArray': 'std_msgs/Header header\nuint32 height\nuint32 width\ndvs_msgs/Event[] events',
    'EventPacket': 'std_msgs/Header header\nuint32 height\nuint32 width\nuint64 seq\nuint64 time_base\n'
    'string encoding\nbool is_bigendian\nuint8[] events',
}


def ros_messages(
    events: Events, ros2: bool, kind: str = 'EventArray', per_message: int = 1000, size: int = 128, empty: bool = False
):
    """The type store, the type's name, and messages as rosbags serialises them, of no events at all if `empty`."""
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    store = get_typestore(Stores.ROS2_HUMBLE if ros2 else Stores.ROS1_NOETIC)
    package = 'event_camera_msgs' if kind == 'EventPacket' else 'dvs_msgs'
    for name, text in EVENT_MESSAGES.items():
        text = text.replace('time ts', 'builtin_interfaces/Time ts') if ros2 else text
        store.register(get_types_from_msg(text, f'{package if name == kind else "dvs_msgs"}/msg/{name}'))
    types = store.types
    time, header = types['builtin_interfaces/msg/Time'], types['std_msgs/msg/Header']
    full = f'{package}/msg/{kind}'
    first = {} if ros2 else {'seq': 0}
    messages = []
    for start in range(0, max(len(events), int(empty)), per_message):
        part = events[start : start + per_message]
        head = header(stamp=time(sec=0, nanosec=0), frame_id='camera', **first)
        if kind == 'EventPacket':
            words = np.frombuffer(_evt3_words(part), np.uint8)
            message = types[full](head, size, size, 0, 0, 'evt3', False, words)
        else:
            rows = [
                types['dvs_msgs/msg/Event'](x, y, time(t // 1_000_000, t % 1_000_000 * 1000 + 999), bool(p))
                for t, x, y, p in zip(*(array.tolist() for array in part), strict=True)
            ]
            message = types[full](head, size, size, rows)
        messages.append(store.serialize_cdr(message, full) if ros2 else store.serialize_ros1(message, full))
    return store, full, [bytes(message) for message in messages]


def rosbag(path: Path, events: Events | dict[str, Events], kind: str = 'EventArray') -> Path:
    """With one topic, or those by the names of the keys."""
    from rosbags.rosbag1 import Writer

    path.unlink(missing_ok=True)
    writer = Writer(path)
    writer.set_compression(Writer.CompressionFormat.LZ4)
    with writer as bag:
        for topic, part in _topics(events).items():
            store, full, messages = ros_messages(part, False, kind)
            connection = bag.add_connection(topic, full, typestore=store)
            for number, message in enumerate(messages):
                bag.write(connection, number, message)
    return path


def mcap(path: Path, events: Events | dict[str, Events], kind: str = 'EventArray', ros2: bool = True) -> Path:
    from mcap.writer import CompressionType, Writer

    with open(path, 'wb') as file:
        bag = Writer(file, compression=CompressionType.NONE)
        bag.start()
        for topic, part in _topics(events).items():
            _, full, messages = ros_messages(part, ros2, kind)
            name = full if ros2 else full.replace('/msg/', '/')
            schema = bag.register_schema(name, 'ros2msg' if ros2 else 'ros1msg', b'')
            channel = bag.register_channel(topic, 'cdr' if ros2 else 'ros1', schema)
            for number, message in enumerate(messages):
                bag.add_message(channel, number, message, number)
        bag.finish()
    return path


def _topics(events: Events | dict[str, Events]) -> dict[str, Events]:
    return {'/events': events} if isinstance(events, Events) else events
