"""Folders of one's own recordings: what is found in them, and what is said of those that are not right."""

import os
import pickle
import warnings

import numpy as np
import pytest
import torch

from tests.support import writers
from timm_snn.data import EventFileError, EventFolder, Events, SensorSizeError, to_frames

SENSOR = (20, 30)


def events(seed: int, count: int = 60) -> Events:
    found = writers.random_events(count, size=30, seed=seed)
    return found._replace(y=found.y % 20)


@pytest.fixture
def root(tmp_path):
    """Three classes in two formats, two recordings of each to train on and one to validate on."""
    for number, name in enumerate(('clap', 'wave 2', 'wave 10')):
        for split, count in (('train', 2), ('val', 1)):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            writers.npy(folder / 'rec10.npy', events(number))
            if count == 2:
                writers.npz(folder / 'rec9.npz', events(10 + number))
    return tmp_path


def test_recordings_become_frames_and_their_folders_labels(root):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        dataset = EventFolder(root, sensor_size=SENSOR, num_steps=3, split_by='time')
    assert dataset.classes == ('clap', 'wave 2', 'wave 10') and dataset.targets == [0, 0, 1, 1, 2, 2]
    assert [name for name, _ in dataset.samples[:2]] == ['train/clap/rec9.npz', 'train/clap/rec10.npy']
    for again in range(2):  # from the cache
        for index, seed in enumerate((10, 0, 11, 1, 12, 2)):
            expected = to_frames(events(seed), 3, sensor_size=SENSOR, split_by='time')
            frames, label = dataset[index]
            assert torch.equal(frames, torch.from_numpy(expected)) and label == index // 2, again
    assert pickle.loads(pickle.dumps(dataset))[0][1] == 0


@pytest.mark.parametrize('split', ['validation', 'val'])
def test_splits_have_the_names_that_those_of_pictures_have(root, split):
    assert len(EventFolder(root, split, sensor_size=SENSOR)) == 3


def test_frames_of_another_sensor_are_not_taken_from_the_cache(root):
    assert EventFolder(root, sensor_size=SENSOR, num_steps=2)[0][0].shape == (2, 2, 20, 30)
    assert EventFolder(root, sensor_size=(24, 40), num_steps=2)[0][0].shape == (2, 2, 24, 40)


def test_what_is_no_recording_is_left_out_and_said(root):
    (root / 'train' / '.cache').mkdir()
    (root / 'train' / 'clap' / '._rec1.npy').write_bytes(b'of macOS')
    (root / 'train' / 'clap' / 'notes.md').write_text('notes')
    (root / 'train' / 'clap' / 'session').mkdir()
    writers.npy(root / 'train' / 'clap' / 'session' / 'rec.npy', events(3))
    (root / 'train' / 'clap' / 'rec10.npy').rename(root / 'train' / 'clap' / 'REC10.NPY')
    dataset = EventFolder(root, sensor_size=SENSOR)
    assert len(dataset) == 7 and dataset.left_out == '1 .md, 1 hidden'
    assert EventFolder(root, 'val', sensor_size=SENSOR).left_out == ''


def test_fewer_classes_are_numbered_as_those_trained_on(root):
    os.rename(root / 'val' / 'clap', root / 'other')
    dataset = EventFolder(root, 'val', sensor_size=SENSOR, classes=('clap', 'wave 2', 'wave 10'))
    assert dataset.targets == [1, 2]
    with pytest.raises(ValueError, match='has the classes wave 10, which are not among clap, wave 2'):
        EventFolder(root, 'val', sensor_size=SENSOR, classes=('clap', 'wave 2'))


def test_a_missing_folder_is_named(root):
    with pytest.raises(FileNotFoundError, match=r'there is no folder .*/nowhere: expected .*/train/CLASS/recording'):
        EventFolder(root / 'nowhere', sensor_size=SENSOR)
    with pytest.raises(FileNotFoundError, match=r'no folder test/, but train, val: put recordings in test/CLASS/'):
        EventFolder(root, 'test', sensor_size=SENSOR)
    (root / 'test').mkdir()
    with pytest.raises(FileNotFoundError, match='has no folders of classes, but nothing at all: put recordings in'):
        EventFolder(root, 'test', sensor_size=SENSOR)
    writers.npy(root / 'test' / 'a.npy', events(1))
    with pytest.raises(FileNotFoundError, match=r'no folders of classes, but files, as a\.npy: put recordings in'):
        EventFolder(root, 'test', sensor_size=SENSOR)


def test_an_empty_class_is_named(root):
    (root / 'train' / 'jump').mkdir()
    (root / 'train' / 'jump' / 'a.mp4').write_bytes(b'video')
    with pytest.raises(FileNotFoundError, match=r'class folder .*/train/jump has no recordings.*it holds 1 \.mp4'):
        EventFolder(root, sensor_size=SENSOR)


def test_an_unreadable_file_is_named(root):
    np.save(root / 'train' / 'clap' / 'rec10.npy', np.zeros((3, 7), np.int64))
    dataset = EventFolder(root, sensor_size=SENSOR)
    with pytest.raises(EventFileError, match=r'train/clap/rec10\.npy: byte'):
        dataset[1]


def test_a_sensor_too_small_is_named_with_the_file(root):
    dataset = EventFolder(root, sensor_size=(20, 20), cache=None)
    with pytest.raises(SensorSizeError, match=r'rec9\.npz has events .* 20 x 20 pixels .* must be at least 20 30'):
        dataset[0]
    with pytest.raises(ValueError, match=r'sensor_size must be \(height, width\) in pixels, not \(0, 5\)'):
        EventFolder(root, sensor_size=(0, 5))


def test_a_kind_reads_files_of_any_name(root):
    for path in sorted(root.glob('*/*/*.npy')):
        writers.nmnist(path, events(5)).rename(path.with_suffix('.evt'))
    dataset = EventFolder(root, 'val', sensor_size=SENSOR, reading={'kind': 'nmnist'})
    assert dataset.samples[0][0] == 'val/clap/rec10.evt' and dataset[0][0].sum() == 60


def test_bins_of_fixed_duration_are_counted_and_cached_on_their_own(root):
    for bins in ({'bin_us': 20_000}, {'bin_us': 50_000}, {'events_per_bin': 7}, {}):
        dataset = EventFolder(root, sensor_size=SENSOR, num_steps=3, **bins)
        expected = to_frames(events(10), 3, sensor_size=SENSOR, **bins)
        assert torch.equal(dataset[0][0], torch.from_numpy(expected))
        assert torch.equal(dataset[0][0], torch.from_numpy(expected))  # from the cache
        assert dataset.split_by == ('time' if 'bin_us' in bins else 'number')
    assert len(dataset.recording(1).t) == 60


def test_the_sensor_is_that_of_the_first_recording_where_it_says_so(root):
    with pytest.raises(SensorSizeError, match=r'rec9\.npz does not say of which sensor it is: pass sensor_size='):
        EventFolder(root)
    (root / 'test' / 'clap').mkdir(parents=True)
    (root / 'test' / 'clap' / 'a.dat').write_bytes(
        b'% Data file containing CD events.\n% Version 2\n% Height 20\n% Width 30\n% end\n\x0c\x08'
        + np.array([[5, 3 | 2 << 14 | 1 << 28]], '<u4').tobytes()
    )
    dataset = EventFolder(root, 'test', num_steps=1)
    assert dataset.sensor_size == (20, 30) and dataset[0][0][0, 1, 2, 3] == 1
