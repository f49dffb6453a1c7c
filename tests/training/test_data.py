"""Data sets by name and the samples of them that a run uses."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision

from tests.support import writers
from timm_snn.data import NMNIST, FrameSettings, set_frame_settings, write_rows
from timm_snn.progress import quietly
from timm_snn.training import data
from timm_snn.training.data import DataSource, Digits, choose_samples, open_samples, open_split
from timm_snn.training.errors import UserError


def test_the_held_out_fifth_is_fixed_and_disjoint():
    held_out, kept = Digits(train=False), Digits(train=True)
    assert (len(held_out), len(kept)) == (360, 1437)
    assert np.bincount(held_out.labels).tolist() == [36, 36, 35, 37, 36, 37, 36, 36, 35, 36]
    pixels = {image.tobytes() for image in kept.images}
    assert not any(image.tobytes() in pixels for image in held_out.images)


def test_held_out_samples_and_folds_share_none():
    def choose(**options: Any) -> list[set[int]]:
        chosen = choose_samples(Digits(True), Digits(False), seed=0, **options)
        return [{int(i) for i in samples.indices} for samples in chosen if samples]

    train, held_out, test = choose(val_fraction=0.1)
    assert [len(train), len(held_out), len(test)] == [1293, 144, 360]
    assert not train & held_out and not (train | held_out) & test
    folds = [choose(fold=f'{i}/5') for i in range(1, 6)]
    assert all(not train & val and len(train | val) == 1797 for train, val in folds)
    assert len(set.union(*(val for _, val in folds))) == 1797


@pytest.mark.filterwarnings('ignore:.*results on it are not comparable')
def test_rows_of_recordings_have_the_splits_of_training(tmp_path, monkeypatch):
    """`write_rows` calls the part to validate on 'test', as recordings do, and a run asks for 'validation'."""
    datasets = pytest.importorskip('datasets')
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path / 'hf')
    for part, label in product(('Train', 'Test'), range(10)):
        (tmp_path / part / str(label)).mkdir(parents=True)
        writers.nmnist(tmp_path / part / str(label) / '0.bin', writers.random_events(50, size=34, seed=label))
    for train in (True, False):
        write_rows(NMNIST(tmp_path, train, num_steps=2), tmp_path / 'rows')
    source = DataSource('event_rows', tmp_path / 'rows')
    for split in ('validation', 'test', 'val'):
        assert len(open_split(source, split, in_chans=2)) == 10
    write_rows(NMNIST(tmp_path, True, num_steps=2), tmp_path / 'rows', 'validation')
    assert torch.equal(
        open_split(source, 'validation', in_chans=2)[0][0], open_split(source, 'train', in_chans=2)[0][0]
    )
    with pytest.raises(UserError, match='its splits are test, train, validation'):
        open_split(source, 'other', in_chans=2)


def test_a_model_of_events_takes_as_many_images_as_it_has_steps(caplog):
    model = timm.create_model('msvit_4_96', num_steps=3, depths=(0, 0, 1)).eval()
    set_frame_settings(model, FrameSettings(3, (20, 30), channels=2))
    samples = open_samples(DataSource('digits'), 'validation', model, 3)
    assert 'was trained on frames of events, and is shown images' in caplog.text
    assert model(torch.stack([image for image, _ in samples])).shape == (3, 10)


def test_recordings_that_are_read_for_the_first_time_are_noted(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(data, 'MANY_RECORDINGS', 2)
    folder = tmp_path / 'train' / 'wave'
    folder.mkdir(parents=True)
    for number in range(3):
        writers.npy(folder / f'{number}.npy', writers.random_events(50, size=20))
    source = DataSource('event_folder', tmp_path, sensor_size=(20, 20), split_by='number')
    dataset = open_split(source, 'train', in_chans=2, num_steps=2)
    assert "3 of the 3 samples of split 'train' are read for the first time" in caplog.text
    assert str(tmp_path / 'frames') in caplog.text
    caplog.clear()
    dataset[0], dataset[1]
    open_split(source, 'train', in_chans=2, num_steps=2)
    assert caplog.text == ''


def test_a_download_of_torchvision_has_our_bar(monkeypatch, tmp_path):
    """Whose library shows it as its own, in a log too."""
    shown = []

    def download(*args, **kwargs):
        shown.append(torchvision.datasets.utils.tqdm(total=100, unit='B', unit_scale=True).disable)
        raise OSError('no network')

    monkeypatch.setattr(data, 'create_dataset', download)
    own = torchvision.datasets.utils.tqdm
    with pytest.raises(UserError, match='no network'), quietly():
        open_split(DataSource('torch/cifar10', tmp_path, download=True), 'train', in_chans=3)
    assert shown == [True] and torchvision.datasets.utils.tqdm is own
