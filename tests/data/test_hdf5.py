"""HDF5 of Metavision, of DSEC, and of others."""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.support import writers
from tests.support.readings import gives, refused
from timm_snn.data import EventFileError, read_events, recording_info

h5py = pytest.importorskip('h5py')
EVENTS = writers.random_events(3000)
same = partial(gives, EVENTS)


@pytest.mark.parametrize(
    'filters', [{}, {'chunks': (1000,), 'compression': 'gzip', 'shuffle': True}], ids=['', 'packed']
)
def test_metavision_is_read(tmp_path, filters):
    path = writers.hdf5(tmp_path / 'a.hdf5', EVENTS, 'metavision', **filters)
    assert same(path)
    assert recording_info(path) == ('hdf5', (128, 128), 3000, None)


@pytest.mark.parametrize('offset', [0, 49_599_300_523])
def test_dsec_is_read_in_the_time_of_its_images(tmp_path, offset):
    events = EVENTS._replace(t=EVENTS.t + offset)
    path = writers.hdf5(tmp_path / 'events.h5', events, 'dsec')
    read = read_events(path)
    assert all(np.array_equal(a, b) for a, b in zip(read, events, strict=True)) and read.t.dtype == np.int64


def test_blosc_is_read_through_its_plug_in(tmp_path):
    hdf5plugin = pytest.importorskip('hdf5plugin')
    assert same(writers.hdf5(tmp_path / 'events.h5', EVENTS, 'dsec', **hdf5plugin.Blosc()))


def with_filter(path: Path, number: int) -> Path:
    """A file whose events claim to be packed by a filter that is not there."""
    space = h5py.h5s.create_simple((3000,))
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_chunk((1000,))
    settings.set_filter(number, h5py.h5z.FLAG_OPTIONAL)
    with h5py.File(path, 'w') as file:
        kind = h5py.h5t.py_create(np.dtype([('x', '<u2'), ('y', '<u2'), ('p', '<i2'), ('t', '<i8')]), logical=True)
        h5py.h5d.create(file.create_group('CD').id, b'events', kind, space, settings)
    return path


def test_the_codec_of_metavision_is_named_where_it_is_missing(tmp_path):
    path = with_filter(tmp_path / 'a.hdf5', 0x8ECF)
    with pytest.raises(EventFileError, match="got a file that Metavision's codec ECF compressed") as caught:
        read_events(path)
    assert 'HDF5_PLUGIN_PATH' in str(caught.value) and f'metavision_file_to_csv -i {path}' in str(caught.value)


def test_missing_libraries_are_named(tmp_path, monkeypatch):
    path = with_filter(tmp_path / 'a.hdf5', 32001)
    monkeypatch.setitem(sys.modules, 'hdf5plugin', None)
    monkeypatch.setattr(h5py.h5z, 'filter_avail', lambda number: False)
    with pytest.raises(ModuleNotFoundError, match=r"needs hdf5plugin: pip install 'timm-snn\[events\]'"):
        read_events(path)
    monkeypatch.setitem(sys.modules, 'h5py', None)
    with pytest.raises(ModuleNotFoundError, match=r"HDF5 needs h5py: pip install 'timm-snn\[events\]'"):
        read_events(path)


def test_one_of_several_cameras_is_chosen_by_its_name(tmp_path):
    path = tmp_path / 'data.h5'
    with h5py.File(path, 'w') as file:
        for side, events in (('left', EVENTS), ('right', EVENTS[:10])):
            for name, column in events._asdict().items():
                file[f'prophesee/{side}/{name}'] = column
            file[f'prophesee/{side}/ms_map_idx'] = np.arange(7)
    refused(path, "got /prophesee/left, /prophesee/right: say stream='/prophesee/left'")
    refused(path, "expected events in stream='middle', got them in /prophesee/left", stream='middle')
    assert same(path, stream='/prophesee/left') and same(path, stream='prophesee/left')
    assert recording_info(path, stream='/prophesee/right').events == 10


def test_columns_without_names_need_an_order(tmp_path):
    """MVSEC's: x, y, t in seconds, p of -1 and 1."""
    path = tmp_path / 'data.hdf5'
    with h5py.File(path, 'w') as file:
        signs = np.where(EVENTS.p, 1, -1)
        file['davis/left/events'] = np.stack([EVENTS.x, EVENTS.y, EVENTS.t / 1e6, signs], 1)
        file['davis/left/image_raw'] = np.zeros((2, 4))
    refused(path, "got t of float64: say its unit, time_unit='s'")
    refused(path, "/davis/left/events: expected columns with names, got none: say order='xytp'", time_unit='s')
    assert same(path, order='xytp', time_unit='s')


def test_e2vids_names_and_sensor_size_are_known(tmp_path):
    path = tmp_path / 'a.h5'
    with h5py.File(path, 'w') as file:
        file.attrs['sensor_resolution'] = (180, 240)
        for name, column in {'xs': EVENTS.x, 'ys': EVENTS.y, 'ts': EVENTS.t / 1e6, 'ps': EVENTS.p.astype(bool)}.items():
            file[f'events/{name}'] = column
    assert same(path, time_unit='s')
    assert recording_info(path, time_unit='s').sensor_size == (180, 240)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / 'a.h5'
    with h5py.File(path, 'w') as file:
        file['images'] = np.zeros((2, 3, 3))
    refused(path, 'expected one group or dataset with columns t, x, y and p, got nothing like it')
    with h5py.File(path, 'w') as file:
        for name, column in EVENTS._asdict().items():
            file[name] = column[: 3000 - (name == 'p')]
    refused(path, r'expected t, x, y, p of one length, got \[3000, 3000, 3000, 2999\]')
    path = writers.hdf5(tmp_path / 'b.h5', EVENTS)
    path.write_bytes(path.read_bytes()[:-1000])
    refused(path, 'expected a sound HDF5 file, got')
    with h5py.File(path, 'w') as file:
        file['events'] = h5py.ExternalLink(str(tmp_path / 'a.h5'), '/')
    refused(path, 'got nothing like it')


def test_a_claimed_size_is_not_read(tmp_path):
    path = tmp_path / 'a.h5'
    with h5py.File(path, 'w') as file:
        for name in 'txyp':
            file.create_dataset(f'events/{name}', (1 << 40,), np.uint8, chunks=(1 << 16,), compression='gzip')
    refused(path, f'it unpacks to {4 << 40} bytes, and at most')


def test_a_wrong_value_is_refused_at_its_event(tmp_path):
    x = EVENTS.x.astype(np.int32)
    x[2000] = 40_000
    with h5py.File(tmp_path / 'a.h5', 'w') as file:
        for name, column in (EVENTS._asdict() | {'x': x}).items():
            file[f'events/{name}'] = column
    refused(tmp_path / 'a.h5', '/events: event 2000: expected x in 0 ... 32767, got 40000')
