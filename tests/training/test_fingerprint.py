"""What tells the data of a run from other data."""

import shutil

import datasets
import numpy as np
import pytest
from PIL import Image
from timm.data import ImageDataset

from tests.support import writers
from timm_snn.data import EventFolder
from timm_snn.training.data import DataSource, Digits, open_split
from timm_snn.training.fingerprint import difference, fingerprint
from timm_snn.training.pictures import FolderReader


@pytest.fixture
def folder(tmp_path):
    for name in ('cat', 'dog'):
        (tmp_path / 'data' / name).mkdir(parents=True)
        for i in range(3):
            Image.new('L', (8, 8), i).save(tmp_path / 'data' / name / f'{i}.png')
    return tmp_path / 'data'


def of_folder(folder):
    return fingerprint(ImageDataset(str(folder), reader=FolderReader(folder)))


def test_a_folder_that_has_moved_is_the_same(folder, tmp_path):
    assert difference(of_folder(folder), of_folder(shutil.move(folder, tmp_path / 'elsewhere'))) is None


def test_what_is_not_the_same_is_said(folder):
    before = of_folder(folder)
    with (folder / 'cat' / '0.png').open('ab') as file:
        file.write(b'0')
    other = difference(before, of_folder(folder))
    assert 'other file sizes' in other.text and not other.is_of_samples
    (folder / 'cat' / '0.png').rename(folder / 'cat' / '00.png')
    other = difference(before, of_folder(folder))
    assert 'other file names and file sizes' in other.text and other.is_of_samples
    (folder / 'cat' / '00.png').unlink()
    assert difference(before, of_folder(folder)).text == 'has 5 samples and had 6'
    (folder / 'dog').rename(folder / 'zebra')
    other = difference(before, of_folder(folder))
    assert other.text == 'has the classes cat, zebra and had cat, dog' and other.is_of_classes


def test_tables_of_other_labels_or_pictures_are_told_apart(tmp_path):
    def of_table(name, labels, side):
        features = datasets.Features({'image': datasets.Image(), 'label': datasets.ClassLabel(names=['a', 'b'])})
        noise = np.random.default_rng(0).integers(0, 256, (len(labels), side, side), dtype=np.uint8)
        rows = {'image': [Image.fromarray(picture) for picture in noise], 'label': labels}
        (tmp_path / name).mkdir()
        datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / name / 'train-0.parquet')
        source = DataSource(f'hfds/{tmp_path / name}', tmp_path / 'cache', input_key='image', target_key='label')
        return fingerprint(open_split(source, 'train', in_chans=1, num_steps=1, size=(8, 8)))

    first = of_table('first', [0, 1, 1], 8)
    assert difference(first, of_table('moved', [0, 1, 1], 8)) is None
    assert 'other labels' in difference(first, of_table('labels', [1, 0, 1], 8)).text
    assert 'other picture sizes' in difference(first, of_table('pictures', [0, 1, 1], 9)).text


def test_the_halves_of_the_digits_are_told_apart():
    assert difference(fingerprint(Digits(True)), fingerprint(Digits(True))) is None
    assert 'samples' in difference(fingerprint(Digits(True)), fingerprint(Digits(False))).text


def test_own_recordings_are_told_by_their_files_wherever_the_folder_is(tmp_path):
    for name in ('clap', 'wave'):
        (tmp_path / 'a' / 'train' / name).mkdir(parents=True)
        writers.npy(tmp_path / 'a' / 'train' / name / '1.npy', writers.random_events(20, size=8))
    before = fingerprint(EventFolder(tmp_path / 'a', sensor_size=(8, 8)))
    shutil.copytree(tmp_path / 'a', tmp_path / 'b')
    assert fingerprint(EventFolder(tmp_path / 'b', sensor_size=(8, 8))) == before
    writers.npy(tmp_path / 'b' / 'train' / 'wave' / '1.npy', writers.random_events(21, size=8))
    changed = difference(before, fingerprint(EventFolder(tmp_path / 'b', sensor_size=(8, 8))))
    assert changed and changed.text == 'has other file sizes than it had' and not changed.is_of_samples
