"""Event messages in bags: ROS 1 (.bag) through rosbags, MCAP through mcap.

Messages: EventArray of dvs_msgs and prophesee_event_msgs, and EventPacket of event_camera_msgs with EVT 3.0 in it. They
are decoded here, as the libraries would make a Python object of each event.
Source: the messages' definitions; "ROS 1 serialization"; OMG, "DDS-XTypes" for CDR, whose numbers are aligned.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .prophesee import Evt3
from .recording import Events, Recording, gather, library

__all__ = ['mcap', 'rosbag']

ARRAYS = ('dvs_msgs/msg/EventArray', 'prophesee_event_msgs/msg/EventArray')
PACKET = 'event_camera_msgs/msg/EventPacket'
ROS1_EVENT = np.dtype([('x', '<u2'), ('y', '<u2'), ('sec', '<u4'), ('nsec', '<u4'), ('p', 'u1')])


class Message(NamedTuple):
    kind: str  # package/msg/Type
    data: bytes
    ros2: bool  # CDR


def rosbag(recording: Recording, chunk: int) -> Iterator[Events]:
    """A bag of ROS 1; `stream` is the topic where several have events."""
    return gather(_decoded(recording, _bag_messages(recording)), chunk)


def mcap(recording: Recording, chunk: int) -> Iterator[Events]:
    """Messages of ROS 1 or ROS 2; `stream` is the topic where several have events."""
    return gather(_decoded(recording, _mcap_messages(recording)), chunk)


def _bag_messages(recording: Recording) -> Iterator[Message]:
    reader = library('rosbags.rosbag1', 'a bag of ROS 1').Reader(Path(recording.file.name))
    with recording.sound('bag of ROS 1'):
        reader.open()
    try:
        kinds = {connection.topic: connection.msgtype for connection in reader.connections}
        topic = _choose(recording, kinds)
        connections = [connection for connection in reader.connections if connection.topic == topic]
        for _, _, data in _each(recording, reader.messages(connections)):
            yield Message(kinds[topic], data, False)
    finally:
        reader.close()


def _mcap_messages(recording: Recording) -> Iterator[Message]:
    with recording.sound('MCAP'):
        reader = library('mcap.reader', 'MCAP').make_reader(recording.file)
        summary = reader.get_summary()
    if summary is None or not summary.channels:
        raise recording.error(
            recording.size, 'expected a summary with channels at the end, got none: try `mcap recover`'
        )
    kinds = {
        channel.topic: summary.schemas[channel.schema_id].name.replace('/msg/', '/').replace('/', '/msg/')
        for channel in summary.channels.values()
        if channel.schema_id in summary.schemas
    }
    topic = _choose(recording, kinds)
    for _, channel, message in _each(recording, reader.iter_messages([topic])):
        yield Message(kinds[topic], message.data, channel.message_encoding == 'cdr')


def _each(recording: Recording, messages: Iterable[Any]) -> Iterator[Any]:
    iterator = iter(messages)
    while True:
        with recording.sound('bag'):
            message = next(iterator, None)
        if message is None:
            return
        yield message


def _choose(recording: Recording, kinds: Mapping[str, str]) -> str:
    wanted = recording.options.stream
    topics = [topic for topic, kind in kinds.items() if kind in ARRAYS or kind == PACKET]
    found = [topic for topic in topics if wanted in (None, topic)]
    if len(found) == 1:
        return found[0]
    shown = ', '.join(f'{topic} of {kind}' for topic, kind in list(kinds.items())[:10]) or 'no topics'
    what = 'one topic of events' if wanted is None else f'events in stream={wanted!r}'
    hint = f': say stream={found[0]!r}' if found else f', a message among {", ".join([*ARRAYS, PACKET])}'
    raise recording.error(0, f'expected {what}, got {shown}{hint}')


def _decoded(recording: Recording, messages: Iterable[Message]) -> Iterator[Events]:
    decode = Evt3()
    for number, message in enumerate(messages):
        what = f'message {number}'
        with recording.sound(f'{message.kind} in {what}'):
            cursor = _Cursor(message.data, message.ros2)
            height, width = cursor.header()
            if message.kind == PACKET:
                encoding, words = cursor.packet()
                events = decode(words)[0] if encoding == 'evt3' and len(words) else None
            else:
                encoding, events = '', cursor.array()
        if encoding not in ('', 'evt3'):
            raise recording.error(0, f'{what}: expected the encoding evt3, got {encoding!r}')
        if events is None:
            continue
        if height and width:
            recording.sensor_size = height, width
        height, width = recording.sensor_size or (1 << 15, 1 << 15)
        x, y = events.x.astype(np.uint16), events.y.astype(np.uint16)
        if (wrong := (x >= width) | (y >= height) | (events.p > 1)).any():
            i = int(wrong.argmax())
            raise recording.error(
                0, f'{what}, event {i}: expected x below {width}, y below {height}, p in 0 ... 1, '
                f'got ({x[i]}, {y[i]}, {events.p[i]})'
            )  # fmt: skip
        yield events


class _Cursor:
    """Reads a message from front to back. Raises: struct.error or ValueError at its end."""

    def __init__(self, data: bytes, ros2: bool):
        self.ros2 = ros2
        self.data = data[4:] if ros2 else data  # CDR begins with its byte order, and counts from there
        self.big = ros2 and data[1] & 1 == 0
        self.at = 0

    def number(self, kind: str) -> int:
        size = struct.calcsize(kind)
        if self.ros2:
            self.at += -self.at % size
        (value,) = struct.unpack_from(('>' if self.big else '<') + kind, self.data, self.at)
        self.at += size
        return value

    def block(self) -> bytes:
        count = self.number('I')
        if count > len(self.data) - self.at:
            raise ValueError(f'expected {count} bytes, got {len(self.data) - self.at}')
        self.at += count
        return self.data[self.at - count : self.at]

    def header(self) -> tuple[int, int]:
        """Past std_msgs/Header: height and width."""
        for _ in range(2 if self.ros2 else 3):  # a time, and in ROS 1 a counter before it
            self.number('I')
        self.block()
        return self.number('I'), self.number('I')

    def packet(self) -> tuple[str, np.ndarray]:
        """Encoding and words of event_camera_msgs/EventPacket."""
        self.number('Q'), self.number('Q')  # a counter and a base of time, which EVT 3.0 does not need
        encoding = self.block().rstrip(b'\0').decode('latin-1')
        big = self.number('B')
        data = self.block()
        return encoding, np.frombuffer(data, '>u2' if big else '<u2') if encoding == 'evt3' else np.empty(0, '<u2')

    def array(self) -> Events:
        """The Event[] of an EventArray: x and y of 16 bits, seconds, nanoseconds, polarity; times in microseconds."""
        count = self.number('I')
        if not count:
            return _events(*np.zeros((5, 0), np.int64))
        if not self.ros2:
            rows = np.frombuffer(self.data, ROS1_EVENT, count, self.at)
            return _events(rows['sec'], rows['nsec'], rows['x'], rows['y'], rows['p'])
        # CDR: 13 bytes, then x of the next event in the last 2 of 16, so that its seconds begin at 4
        end = self.at + 16 * (count - 1) + 13
        if end > len(self.data):
            raise ValueError(f'expected {count} events, got {len(self.data) - self.at} bytes')
        data = self.data[self.at : end] + bytes(3)
        order = '>' if self.big else '<'
        words, halves = (
            np.frombuffer(data, order + 'u4').reshape(-1, 4),
            np.frombuffer(data, order + 'u2').reshape(-1, 8),
        )
        x = np.concatenate([halves[:1, 0], halves[:-1, 7]])
        y = np.concatenate([halves[:1, 1], halves[1:, 0]])
        return _events(words[:, 1], words[:, 2], x, y, np.frombuffer(data, np.uint8)[12::16])


def _events(sec: np.ndarray, nsec: np.ndarray, x: np.ndarray, y: np.ndarray, p: np.ndarray) -> Events:
    t = sec.astype(np.int64) * 1_000_000 + nsec // 1000
    return Events(t, x.astype(np.int16), y.astype(np.int16), p.astype(np.uint8))
