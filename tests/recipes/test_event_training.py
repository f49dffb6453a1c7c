"""Event recordings through the recipes: by name, as rows, with augmentation and mixing, and validated afterwards."""

import json
from pathlib import Path

import pytest
import timm
import torch

from tests.support import writers
from tests.support.scripts import run
from tests.support.training import weights
from timm_snn.data import NMNIST, EventAugment, EventMixup, write_rows

pytestmark = pytest.mark.filterwarnings('ignore:.*results on it are not comparable')
MODEL = ['--in-chans', '2', '--model-kwargs', 'num_steps=3', '--img-size', '34', '--mean', '0', '0', '--std', '1', '1']
QUICK = [*MODEL, '--batch-size', '4', '--epochs', '1', '--workers', '0', '--num-threads', '1', '--log-with', 'none']


@pytest.fixture(scope='module')
def recordings(tmp_path_factory) -> Path:
    """Two recordings of each digit, whose events lie in a column that tells it."""
    root = tmp_path_factory.mktemp('recordings')
    for split in ('Train', 'Test'):
        for digit in range(10):
            (root / split / str(digit)).mkdir(parents=True)
            for i in range(2):
                events = writers.random_events(400, 34, seed=10 * digit + i)
                events.x[:] = 3 * digit + events.x % 3
                writers.nmnist(root / split / str(digit) / f'{i}.bin', events)
    return root


def test_recordings_are_augmented_mixed_and_learnt(train, recordings, tmp_path, monkeypatch):
    seen = []
    augment, mix = EventAugment.__call__, EventMixup.__call__
    monkeypatch.setattr(EventAugment, '__call__', lambda self, x: seen.append((self, x.shape)) or augment(self, x))
    monkeypatch.setattr(EventMixup, '__call__', lambda self, x, y: seen.append((self, x.shape)) or mix(self, x, y))
    aug = ['--event-aug', 'flip=0', 'one_of=False', '--mixup', '0.1']
    data = ['--dataset', 'nmnist', '--data-dir', recordings]
    printed = train(*QUICK, *data, *aug, '--lr', '0.01', '--warmup-epochs', '0', '--output', tmp_path)
    assert '20 training and 20 validation samples' in printed
    assert [shape for _, shape in seen] == [(4, 3, 2, 34, 34)] * 10
    assert isinstance(seen[0][0], EventAugment) and seen[0][0].flip == 0 and not seen[0][0].one_of
    assert isinstance(seen[1][0], EventMixup)
    (prediction,) = (line for line in printed.splitlines() if line.startswith('prediction by'))
    assert "its label is '0'" in prediction


def test_rows_train_to_the_weights_of_their_recordings(train, recordings, tmp_path):
    for split, is_train in (('train', True), ('test', False)):
        write_rows(NMNIST(recordings, is_train, num_steps=3), tmp_path / 'rows', split)
    train(*QUICK, '--dataset', 'nmnist', '--data-dir', recordings, '--output', tmp_path / 'one')
    rows = ['--dataset', 'event_rows', '--data-dir', tmp_path / 'rows', '--val-split', 'test']
    train(*QUICK, *rows, '--output', tmp_path / 'two')
    one, two = weights(tmp_path / 'one'), weights(tmp_path / 'two')
    assert all(torch.equal(one[key], two[key]) for key in one)
    with pytest.raises(SystemExit, match='it has 3 steps: pass --model-kwargs num_steps=3'):
        train(*QUICK, *rows, '--model-kwargs', 'num_steps=4', '--output', tmp_path / 'three')


def test_a_model_of_events_is_validated(train, recordings, tmp_path):
    data = ['--dataset', 'nmnist', '--data-dir', str(recordings)]
    train(*QUICK, *data, '--output', tmp_path / 'run')
    arguments = ['--model', f'local-dir:{tmp_path}/run/model', *data, '--output', str(tmp_path / 'validate')]
    run('recipes/validate.py', *arguments)
    result = json.loads((tmp_path / 'validate' / 'results.json').read_text())
    assert result['samples'] == 20 and [row['num_steps'] for row in result['early_exit']] == [1, 2, 3]

    model = timm.create_model(f'local-dir:{tmp_path}/run/model', pretrained=True).eval()
    frames, labels = zip(*NMNIST(recordings, False, num_steps=3), strict=True)
    with torch.inference_mode():
        hits = model(torch.stack(frames)).argmax(1) == torch.tensor(labels)
    assert result['top1_correct'] == hits.sum()


def test_event_data_that_does_not_fit_is_refused(train, recordings, tmp_path):
    data = ['--dataset', 'nmnist', '--data-dir', recordings, '--output', tmp_path]
    with pytest.raises(SystemExit, match=r'event frames have 2 channels, or 3 .* and the model 1: pass --in-chans 2'):
        train(*QUICK, *data, '--in-chans', '1', '--mean', '0', '--std', '1')
    with pytest.raises(SystemExit, match=r'cannot set up the augmentation: .*flap'):
        train(*QUICK, *data, '--event-aug', 'flap=1')
    with pytest.raises(SystemExit, match=r'NMNIST in .*Expected Train/<digit>'):
        train(*QUICK, '--dataset', 'nmnist', '--data-dir', tmp_path, '--output', tmp_path)
