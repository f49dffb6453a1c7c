"""Bags of ROS 1 and MCAP files, with messages that rosbags serialises."""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.support import writers
from tests.support.readings import gives, refused
from timm_snn.data import Events, read_events, recording_info

pytest.importorskip('rosbags')
EVENTS = writers.random_events(2100, last=20_000_000)
same = partial(gives, EVENTS)
BAGS = ['bag', 'mcap of ROS 1', 'mcap of ROS 2']


def write(folder: Path, bag: str, topics: dict[str, Events], kind: str = 'EventArray') -> Path:
    if bag == 'bag':
        return writers.rosbag(folder / 'a.bag', topics, kind)
    pytest.importorskip('mcap')
    return writers.mcap(folder / 'a.mcap', topics, kind, ros2=bag.endswith('2'))


@pytest.mark.parametrize('bag', BAGS)
@pytest.mark.parametrize('kind', ['EventArray', 'EventPacket'])
def test_messages_are_decoded(tmp_path, bag, kind):
    path = write(tmp_path, bag, {'/dvs/events': EVENTS}, kind)
    assert same(path)
    assert recording_info(path) == ('rosbag' if bag == 'bag' else 'mcap', (128, 128), None, None)


@pytest.mark.parametrize('bag', BAGS)
def test_one_of_several_topics_is_chosen(tmp_path, bag):
    path = write(tmp_path, bag, {'/left': EVENTS, '/right': EVENTS[:5]})
    refused(path, "expected one topic of events, got /left of dvs_msgs/msg/EventArray, .*: say stream='/left'")
    refused(path, "expected events in stream='/up', got /left of dvs_msgs/msg/EventArray", stream='/up')
    assert same(path, stream='/left') and len(read_events(path, stream='/right')) == 5


@pytest.mark.parametrize('bag', BAGS)
def test_messages_of_one_event_or_none_are_decoded(tmp_path, monkeypatch, bag):
    messages = writers.ros_messages
    monkeypatch.setattr(writers, 'ros_messages', lambda *args: messages(*args, per_message=1))
    assert np.array_equal(read_events(write(tmp_path, bag, {'/dvs/events': EVENTS[:3]})).x, EVENTS.x[:3])
    nothing = messages(EVENTS[:0], bag.endswith('2'), empty=True)
    monkeypatch.setattr(writers, 'ros_messages', lambda *args: nothing)
    refused(write(tmp_path, bag, {'/dvs/events': EVENTS[:0]}), 'expected events, got none')


@pytest.mark.parametrize('bag', BAGS)
def test_an_event_outside_of_the_sensor_is_refused(tmp_path, monkeypatch, bag):
    messages = writers.ros_messages
    monkeypatch.setattr(writers, 'ros_messages', lambda *args: messages(*args, size=100))
    refused(write(tmp_path, bag, {'/dvs/events': EVENTS}), r'message 0, event \d+: expected x below 100')


def test_another_encoding_is_refused(tmp_path):
    path = write(tmp_path, 'mcap of ROS 2', {'/events': EVENTS[:5]}, 'EventPacket')
    path.write_bytes(path.read_bytes().replace(b'evt3\0', b'mono\0'))
    refused(path, "expected the encoding evt3, got 'mono'")


def test_damaged_bags_are_refused(tmp_path):
    for bag in BAGS:
        path = write(tmp_path, bag, {'/dvs/events': EVENTS})
        path.write_bytes(path.read_bytes()[:-2000])
        refused(path, 'expected a')


@pytest.mark.parametrize(('bag', 'name'), [('bag', 'rosbags.rosbag1'), ('mcap of ROS 2', 'mcap.reader')])
def test_a_missing_library_is_named(tmp_path, monkeypatch, bag, name):
    path = write(tmp_path, bag, {'/dvs/events': EVENTS[:5]})
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=rf"needs {name}: pip install 'timm-snn\[events\]'"):
        read_events(path)
