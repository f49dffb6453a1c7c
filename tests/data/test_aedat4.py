"""AEDAT 4.0 of DV, from a writer that builds its FlatBuffers by hand."""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.support import writers
from tests.support.readings import gives, refused
from timm_snn.data import read_events, recording_info

EVENTS = writers.random_events(2500)
same = partial(gives, EVENTS)
LIBRARIES = {'lz4': 'lz4.frame', 'zstd': 'zstandard'}


def replaced(path: Path, old: bytes, new: bytes) -> Path:
    data = path.read_bytes()
    assert len(old) == len(new) and old in data
    path.write_bytes(data.replace(old, new))
    return path


@pytest.mark.parametrize('compression', [None, 'lz4', 'zstd'])
def test_packets_are_unpacked(tmp_path, compression):
    if compression:
        pytest.importorskip(LIBRARIES[compression])
    path = writers.aedat4(tmp_path / 'a.aedat4', EVENTS, compression)
    assert same(path)
    assert recording_info(path) == ('aedat4', (128, 128), None, None)


@pytest.mark.parametrize('compression', ['lz4', 'zstd'])
def test_a_missing_library_is_named(tmp_path, monkeypatch, compression):
    pytest.importorskip(LIBRARIES[compression])
    path = writers.aedat4(tmp_path / 'a.aedat4', EVENTS, compression)
    monkeypatch.setitem(sys.modules, LIBRARIES[compression], None)
    with pytest.raises(ModuleNotFoundError, match=rf"needs {LIBRARIES[compression]}: pip install 'timm-snn\[events\]'"):
        read_events(path)


def test_a_file_without_its_last_table_is_read_to_the_end(tmp_path):
    path = writers.aedat4(tmp_path / 'a.aedat4', EVENTS)
    data = path.read_bytes()
    end = data.index(b'a table of packets')
    path.write_bytes(data[:end].replace(end.to_bytes(8, 'little'), b'\xff' * 8))
    assert same(path)
    path.write_bytes(path.read_bytes()[:-10])
    refused(path, 'expected a packet within')


def test_streams_are_chosen_by_number_or_name(tmp_path):
    path = replaced(writers.aedat4(tmp_path / 'a.aedat4', EVENTS), b'>IMUS<', b'>EVTS<')
    refused(path, r'expected one stream of events \(EVTS\), got EVTS 0 events, EVTS 1 imu: say stream=')
    refused(path, "expected events in stream='left', got EVTS 0 events, EVTS 1 imu", stream='left')
    assert same(path, stream='0') and same(path, stream='events')


def test_a_file_without_events_says_what_it_has(tmp_path):
    path = replaced(writers.aedat4(tmp_path / 'a.aedat4', EVENTS), b'>EVTS<', b'>FRME<')
    refused(path, r'expected one stream of events \(EVTS\), got FRME 0 events, IMUS 1 imu$')


def test_an_event_outside_of_the_sensor_is_refused(tmp_path):
    path = writers.aedat4(tmp_path / 'a.aedat4', EVENTS, size=int(EVENTS.x.max()))
    refused(path, r'event \d+ of the packet: expected x in 0 ... 126 and y in 0 ... 126, got')


def test_hostile_xml_is_not_expanded(tmp_path):
    path = replaced(writers.aedat4(tmp_path / 'a.aedat4', EVENTS), b'<dv version="2.0">', b'<!DOCTYPE dvvvvvv>')
    refused(path, 'expected XML without declarations')


@pytest.mark.parametrize('compression', ['lz4', 'zstd'])
def test_packets_that_unpack_to_much_are_refused(tmp_path, monkeypatch, compression):
    pytest.importorskip(LIBRARIES[compression])
    path = writers.aedat4(tmp_path / 'a.aedat4', EVENTS, compression)
    monkeypatch.setattr('timm_snn.data.aedat4.PACKET_LIMIT', 10_000)
    refused(path, 'expected at most 10000 bytes after unpacking')


def test_the_library_aedat_reads_the_same(tmp_path):
    aedat = pytest.importorskip('aedat')
    for compression in (None, 'lz4', 'zstd'):
        path = writers.aedat4(tmp_path / 'a.aedat4', EVENTS, compression)
        packets = np.concatenate([packet['events'] for packet in aedat.Decoder(str(path)) if 'events' in packet])
        assert all(np.array_equal(packets[name], getattr(EVENTS, name)) for name in 'txy')
