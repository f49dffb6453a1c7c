"""Data sets find what is laid out officially, split it as published, and say what is missing."""

import os
import pickle
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import timm_snn.data.datasets
from tests.support import writers
from timm_snn.data import CIFAR10DVS, NMNIST, DVS128Gesture, EventFileError, Events, to_frames

pytestmark = pytest.mark.filterwarnings('ignore:.*results on it are not comparable')

USERS = {'train': ('user01_lab', 'user02_led'), 'test': ('user24_lab',)}
GESTURES = [(3, 1_000, 2_000), (11, 2_000, 4_000), (3, 3_500, 5_000)]  # class, start, end: the last two overlap


def nmnist_events(split: str, label: int, number: int) -> Events:
    return writers.random_events(200 + number, size=34, seed=1000 * (split == 'Test') + 10 * label + number)


@pytest.fixture
def nmnist(tmp_path):
    for split, count in (('Train', 3), ('Test', 2)):
        for label in range(10):
            (tmp_path / split / str(label)).mkdir(parents=True)
            for number in range(count):
                file = tmp_path / split / str(label) / f'{number:05d}.bin'
                writers.nmnist(file, nmnist_events(split, label, number))
    return tmp_path


@pytest.fixture
def real_nmnist(tmp_path):
    """Three real recordings, among those of `nmnist` in a layout that is otherwise complete."""
    root = tmp_path / 'real'
    shutil.copytree(Path(__file__).parent / 'nmnist', root)
    for split in ('Train', 'Test'):
        for label in map(str, range(10)):
            (root / split / label).mkdir(exist_ok=True)
            if not any((root / split / label).iterdir()):
                writers.nmnist(root / split / label / '00001.bin', writers.random_events(20, size=34))
    return root


@pytest.fixture
def cifar(tmp_path):
    for label, name in enumerate(CIFAR10DVS.classes):
        (tmp_path / name).mkdir()
        for number in range(21):
            events = writers.random_events(50, seed=100 * label + number)
            writers.aedat2(tmp_path / name / f'cifar10_{name}_{number}.aedat', events)
    return tmp_path


def gesture_events(user: str) -> Events:
    return writers.random_events(3_000, seed=sum(map(ord, user)), last=6_000)


@pytest.fixture
def gesture(tmp_path):
    folder = tmp_path / 'DvsGesture'
    folder.mkdir()
    for split, users in USERS.items():
        (folder / f'trials_to_{split}.txt').write_text('\n'.join(f'{user}.aedat' for user in users) + '\n\n')
        for user in users:
            writers.aedat3(folder / f'{user}.aedat', gesture_events(user))
            lines = ['class,startTime_usec,endTime_usec', *(','.join(map(str, row)) for row in GESTURES)]
            (folder / f'{user}_labels.csv').write_text('\n'.join(lines) + '\n')
    return tmp_path


def between(events: Events, start: int, end: int) -> Events:
    inside = (events.t >= start) & (events.t < end)
    return Events(*(column[inside] for column in events))


def test_nmnist_gives_frames_and_labels_in_the_order_of_classes_and_files(nmnist):
    for train, split, count in ((True, 'Train', 3), (False, 'Test', 2)):
        dataset = NMNIST(nmnist, train, num_steps=5)
        assert len(dataset) == 10 * count and dataset.targets == [label for label in range(10) for _ in range(count)]
        for index in (0, 7, len(dataset) - 1, -1):
            frames, label = dataset[index]
            number = index % len(dataset)
            events = nmnist_events(split, number // count, number % count)
            assert label == number // count and frames.dtype == torch.float32
            np.testing.assert_array_equal(frames, to_frames(events, 5, sensor_size=(34, 34)))
        with pytest.raises(IndexError):
            dataset[len(dataset)]
    assert not (nmnist / 'frames').exists()  # there is no cache by default


@pytest.mark.parametrize('train', [True, False])
def test_real_recordings_of_nmnist_give_the_frames_of_spikingjelly(real_nmnist, train):
    datasets = pytest.importorskip('spikingjelly.datasets')
    dataset = NMNIST(real_nmnist, train, num_steps=10)
    real = [name for name, _ in dataset.samples if not name.endswith('/00001.bin')]
    assert real == (['Train/5/00779.bin', 'Train/8/00419.bin'] if train else ['Test/1/00041.bin'])
    for name in real:
        frames, label = dataset[[sample for sample, _ in dataset.samples].index(name)]
        events = datasets.load_ATIS_bin(str(real_nmnist / name))
        theirs = datasets.integrate_events_by_fixed_frames_number(events, 'number', 10, 34, 34)
        np.testing.assert_array_equal(frames, theirs)
        assert label == int(name.split('/')[1])


def test_cifar10_dvs_is_split_as_spikingjelly_splits_it(cifar):
    datasets = pytest.importorskip('spikingjelly.datasets')
    folder = pytest.importorskip('torchvision.datasets').DatasetFolder(cifar, loader=str, extensions=('.aedat',))
    for train, theirs in zip((True, False), datasets.split_to_train_test_set(0.9, folder, 10), strict=True):
        names = [os.path.relpath(folder.samples[index][0], cifar) for index in theirs.indices]
        assert [name for name, _ in CIFAR10DVS(cifar, train, cache=None).samples] == names


def test_cifar10_dvs_takes_the_first_ninety_percent_by_name_for_training(cifar):
    train, test = CIFAR10DVS(cifar), CIFAR10DVS(cifar, train=False)
    assert (len(train), len(test)) == (190, 20)
    assert test.samples[:2] == [('airplane/cifar10_airplane_8.aedat', 0), ('airplane/cifar10_airplane_9.aedat', 0)]
    frames, label = test[3]
    assert label == 1
    np.testing.assert_array_equal(frames, to_frames(writers.random_events(50, seed=109), 16, sensor_size=(128, 128)))


@pytest.mark.parametrize('cache', [True, None])
@pytest.mark.parametrize('below', ['', 'DvsGesture'])
def test_gestures_are_cut_from_their_recording(gesture, cache, below):
    for train, users in zip((True, False), USERS.values(), strict=True):
        dataset = DVS128Gesture(gesture / below, train, num_steps=4, cache=cache)
        assert dataset.targets == [2, 10, 2] * len(users)
        for _ in range(2):
            for index, (frames, label) in enumerate(dataset[index] for index in reversed(range(len(dataset)))):
                index = len(dataset) - 1 - index
                number, start, end = GESTURES[index % 3]
                events = between(gesture_events(users[index // 3]), start, end)
                assert label == number - 1
                np.testing.assert_array_equal(frames, to_frames(events, 4, sensor_size=(128, 128)))


def test_gestures_are_those_of_spikingjelly(gesture, tmp_path):
    datasets = pytest.importorskip('spikingjelly.datasets')
    (tmp_path / 'theirs').mkdir()
    datasets.DVS128Gesture.create_raw_from_extracted(gesture, tmp_path / 'theirs')
    dataset = DVS128Gesture(gesture, train=False, num_steps=4, cache=None)
    for index, number in enumerate((0, 0, 1)):  # among those of its class
        frames, label = dataset[index]
        events = dict(np.load(tmp_path / 'theirs' / 'test' / str(label) / f'user24_lab_{number}.npz'))
        theirs = datasets.integrate_events_by_fixed_frames_number(events, 'number', 4, 128, 128)
        np.testing.assert_array_equal(frames, theirs)


def test_a_recording_is_read_once_for_all_its_gestures(gesture, monkeypatch):
    reads = []
    read = timm_snn.data.datasets.iter_events
    monkeypatch.setattr(timm_snn.data.datasets, 'iter_events', lambda *a, **k: reads.append(a) or read(*a, **k))
    dataset = DVS128Gesture(gesture)
    for _ in range(2):
        for index in range(len(dataset)):
            dataset[index]
    assert [Path(path).stem for (path,) in reads] == list(USERS['train'])


def test_gestures_across_parts_of_a_recording_are_whole(gesture, monkeypatch):
    whole = [frames for frames, _ in (DVS128Gesture(gesture, cache=None)[index] for index in range(6))]
    read = timm_snn.data.datasets.iter_events
    monkeypatch.setattr(timm_snn.data.datasets, 'iter_events', lambda *a, **k: read(*a, chunk_events=101, **k))
    dataset = DVS128Gesture(gesture, cache=None)
    for index, frames in enumerate(whole):
        assert torch.equal(dataset[index][0], frames)


@pytest.mark.parametrize(
    'options',
    [
        {'num_steps': 3},
        {'split_by': 'time'},
        {'channels': 3},
        {'size': 16},
        {'size': (17, 40), 'channels': 3, 'split_by': 'time', 'num_steps': 7},
    ],
)
def test_options_are_those_of_to_frames_cached_or_not(nmnist, options):
    """All in one folder, where each finds its own frames."""
    events = nmnist_events('Train', 1, 1)
    expected = to_frames(events, **{'num_steps': 16, 'sensor_size': (34, 34), **options})
    for cache in (None, False, True, True, nmnist / 'elsewhere', str(nmnist / 'elsewhere')):
        NMNIST(nmnist, cache=cache)[4]
        dataset = NMNIST(nmnist, cache=cache, **options)
        assert (dataset.num_steps, dataset.sensor_size) == (expected.shape[0], (34, 34))
        np.testing.assert_array_equal(dataset[4][0], expected)
    np.testing.assert_array_equal(NMNIST(nmnist, transform=lambda frames: frames * 2, **options)[4][0], expected * 2)


def test_a_cached_recording_is_not_read_and_a_changed_one_is(cifar, monkeypatch):
    dataset = CIFAR10DVS(cifar)
    first = dataset[0][0]
    file = cifar / dataset.samples[0][0]
    with monkeypatch.context() as patch:
        patch.setattr(timm_snn.data.datasets, 'read_events', None)
        assert torch.equal(CIFAR10DVS(cifar)[0][0], first)
    changed = writers.random_events(50, seed=7)
    writers.aedat2(file, changed)
    np.testing.assert_array_equal(dataset[0][0], to_frames(changed, 16, sensor_size=(128, 128)))
    assert not torch.equal(dataset[0][0], first)


def test_what_is_not_in_the_cache_is_counted(cifar):
    dataset = CIFAR10DVS(cifar)
    assert dataset.uncached() == len(dataset) > 1
    dataset[0]
    assert dataset.uncached() == len(dataset) - 1
    assert CIFAR10DVS(cifar, cache=None).uncached() == 0


def test_changed_labels_make_the_gestures_of_a_recording_stale(gesture):
    DVS128Gesture(gesture, train=False)[0]
    labels = gesture / 'DvsGesture' / 'user24_lab_labels.csv'
    labels.write_text(labels.read_text().replace('3,1000,2000', '5,1500,2000'))
    frames, label = DVS128Gesture(gesture, train=False)[0]
    events = between(gesture_events('user24_lab'), 1_500, 2_000)
    assert label == 4
    np.testing.assert_array_equal(frames, to_frames(events, 16, sensor_size=(128, 128)))


def test_a_damaged_cached_file_is_made_anew_with_a_warning(cifar):
    dataset = CIFAR10DVS(cifar)
    frames = dataset[0][0]
    (file,) = dataset.cache.folder.rglob('*.safetensors')
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.warns(UserWarning, match='made anew'):
        assert torch.equal(dataset[0][0], frames)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert torch.equal(dataset[0][0], frames)


@pytest.mark.parametrize(('method', 'workers'), [('fork', 2), ('spawn', 1)])
def test_workers_load_what_the_main_process_does(gesture, method, workers):
    """Two workers fill one cache at once: a recording has gestures for both."""
    dataset = DVS128Gesture(gesture, num_steps=4, size=16)
    loader = DataLoader(dataset, batch_size=1, num_workers=workers, multiprocessing_context=method)
    loaded = [(frames[0], int(label)) for frames, label in loader]
    plain = DVS128Gesture(gesture, num_steps=4, size=16, cache=None)
    assert len(loaded) == len(plain) == 6
    for index, (frames, label) in enumerate(loaded):
        assert torch.equal(frames, plain[index][0]) and label == plain[index][1]
    assert len(list(dataset.cache.folder.rglob('*'))) == 6 + 2  # files and the folders of two recordings


def test_data_sets_are_pickled_without_a_word(nmnist):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        dataset = NMNIST(nmnist, num_steps=4, cache=True)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[5][0], dataset[5][0])


@pytest.mark.filterwarnings('default')
def test_a_part_of_a_data_set_is_warned_of(nmnist):
    with pytest.warns(UserWarning, match='has 30 of the 60000 training samples of NMNIST'):
        NMNIST(nmnist)
    with pytest.warns(UserWarning, match='has 20 of the 10000 test samples of NMNIST'):
        NMNIST(nmnist, train=False)


@pytest.mark.parametrize('dataset', [NMNIST, CIFAR10DVS, DVS128Gesture])
def test_a_wrong_folder_says_what_was_expected_and_found_and_where_to_download(dataset, tmp_path):
    with pytest.raises(FileNotFoundError) as missing:
        dataset(tmp_path / 'nowhere')
    assert 'there is no such folder' in str(missing.value)
    with pytest.raises(FileNotFoundError) as empty:
        dataset(tmp_path)
    assert 'it holds nothing' in str(empty.value)
    for number in range(7):
        (tmp_path / f'other{number}').mkdir()
    with pytest.raises(FileNotFoundError) as other:
        dataset(tmp_path)
    assert 'it holds other0, other1, other2, other3, other4 and 2 more' in str(other.value)
    for part in (str(tmp_path), dataset.layout, dataset.download, *dataset.archives):
        assert part in str(other.value)
    assert not (tmp_path / 'frames').exists()


def test_a_missing_part_is_named(nmnist, tmp_path):
    for file in (nmnist / 'Test' / '7').iterdir():
        file.unlink()
    NMNIST(nmnist)
    with pytest.raises(FileNotFoundError, match=r'no recordings Test/7/\*\.bin'):
        NMNIST(nmnist, train=False)


def test_a_class_of_fewer_than_ten_recordings_is_named(cifar):
    for number in range(9, 21):
        (cifar / 'frog' / f'cifar10_frog_{number}.aedat').unlink()
    with pytest.raises(FileNotFoundError, match=r'9 recordings frog/cifar10_frog_\*\.aedat'):
        CIFAR10DVS(cifar)


def test_a_missing_gesture_recording_is_named(gesture):
    (gesture / 'DvsGesture' / 'user02_led_labels.csv').unlink()
    DVS128Gesture(gesture, train=False)
    with pytest.raises(FileNotFoundError, match=r'no user02_led_labels\.csv, which trials_to_train\.txt names'):
        DVS128Gesture(gesture)
    (gesture / 'DvsGesture' / 'trials_to_train.txt').write_text('\n')
    with pytest.raises(FileNotFoundError, match=r'trials_to_train\.txt is empty'):
        DVS128Gesture(gesture)


def test_a_gesture_without_events_is_an_error(gesture):
    labels = gesture / 'DvsGesture' / 'user24_lab_labels.csv'
    labels.write_text(labels.read_text().replace('3,1000,2000', '3,9001000,9002000'))
    with pytest.raises(ValueError, match=r'user24_lab\.aedat has no events from 9001000 to 9002000 us.*gesture 3'):
        DVS128Gesture(gesture, train=False)[1]


def test_a_damaged_recording_is_an_error_and_not_cached(cifar):
    dataset = CIFAR10DVS(cifar)
    file = cifar / dataset.samples[0][0]
    file.write_bytes(file.read_bytes()[:-3])
    for _ in range(2):
        with pytest.raises(EventFileError, match=re.escape(str(file))):
            dataset[0]


def test_a_root_that_cannot_be_written_says_what_to_do(cifar, tmp_path):
    (cifar / 'frames').write_text('in the way')  # root may write into any folder, so that a mode would not do
    with pytest.raises(OSError, match=r'cannot write .* pass cache=FOLDER .* or cache=None'):
        CIFAR10DVS(cifar)
    assert CIFAR10DVS(cifar, cache=None)[0][0].shape == (16, 2, 128, 128)
    assert CIFAR10DVS(cifar, cache=tmp_path / 'elsewhere')[0][0].shape == (16, 2, 128, 128)


def test_unknown_options_are_refused_before_anything_is_written(nmnist):
    for options in ({'num_steps': 0}, {'split_by': 'count'}, {'channels': 1}, {'size': 0}):
        with pytest.raises(ValueError, match=re.escape(next(iter(options)))):
            NMNIST(nmnist, cache=True, **options)
    with pytest.raises(TypeError, match='steps'):
        NMNIST(nmnist, steps=3)
    assert not (nmnist / 'frames').exists()


def test_the_documentation_has_every_checksum():
    page = (Path(__file__).parents[2] / 'docs' / 'events.md').read_text()
    for dataset in (NMNIST, CIFAR10DVS, DVS128Gesture):
        for archive, md5 in dataset.archives.items():
            assert f'`{archive}` | `{md5}`' in page
        assert dataset.download in page
