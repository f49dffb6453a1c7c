"""Event recordings through the recipes: by name, as rows, with augmentation and mixing, and validated afterwards."""

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch

from tests.support import writers
from tests.support.scripts import run
from tests.support.training import weights
from timm_snn.data import NMNIST, EventAugment, EventMixup, FrameSettings, frame_settings, read_events, write_rows
from timm_snn.training.checkpoints import check_unchanged
from timm_snn.training.errors import UserError

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


FOLDER = [
    '--model-kwargs',
    'num_steps=3',
    'depths=(0,0,1)',
    '--in-chans',
    '2',
    '--num-classes',
    '3',
    '--img-size',
    '32',
]
FOLDER += ['--batch-size', '4', '--workers', '0', '--num-threads', '1', '--log-with', 'none', '--warmup-epochs', '0']


@pytest.fixture(scope='module')
def own(tmp_path_factory) -> Path:
    """Recordings of three gestures in two formats, of a sensor of 20 x 30 pixels; one is missing in validation."""
    root = tmp_path_factory.mktemp('own')
    for label, name in enumerate(('clap', 'wave', 'zoom')):
        for split, count in (('train', 4), ('val', 2)):
            if (name, split) == ('clap', 'val'):
                continue
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                events = writers.random_events(200, 30, seed=10 * label + i)
                events = events._replace(x=10 * label + events.x % 10, y=events.y % 20)
                (writers.npz if i % 2 else writers.npy)(root / split / name / f'{i}.np{"yz"[i % 2]}', events)
    return root


@pytest.fixture(scope='module')
def own_run(own, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp('own_run') / 'run'
    data = ['--dataset', 'event_folder', '--data-dir', str(own), '--sensor-size', '20', '30', '--bin-ms', '50']
    mixed = ['--event-aug', 'flip=0', '--mixup', '0.1']
    run('recipes/train.py', *FOLDER, *data, *mixed, '--epochs', '1', '--output', str(output))
    return output


def test_own_recordings_are_trained_on_and_the_model_says_how(own, own_run):
    """Its default mean is of Fashion-MNIST, by which counts of events must not be normalised."""
    model = timm.create_model(f'local-dir:{own_run}/model', pretrained=True).eval()
    settings = frame_settings(model)
    assert settings == FrameSettings(3, (20, 30), bin_us=50_000, size=(32, 32))
    assert model.pretrained_cfg['label_names'] == ['clap', 'wave', 'zoom']
    frames = settings.frames(read_events(own / 'val' / 'wave' / '1.npz'))
    assert frames.sum() > 0 and model(frames.unsqueeze(0)).shape == (1, 3)


def validate(capsys, *arguments: object) -> tuple[str, str]:
    run('recipes/validate.py', *map(str, arguments))
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_validation_makes_the_frames_of_training_or_says_so(capsys, own, own_run, tmp_path):
    data = ['--dataset', 'event_folder', '--data-dir', own, '--output', tmp_path, '--predictions']
    for model in (
        ['--model', f'local-dir:{own_run}/model'],
        ['--model', 'msvit_4_96', '--checkpoint', own_run / 'checkpoints' / 'epoch_0001'],
    ):
        printed, notes = validate(capsys, *model, *data)
        assert f'{own}, validation split, all 4' in printed and 'note:' not in notes
        assert 'val/wave/0.npy' in (tmp_path / 'predictions.csv').read_text()
    other = ['--split-by', 'time', '--num-steps', '2', '--sensor-size', '41', '60', '--mean', '1']
    _, notes = validate(capsys, *model, *data, *other)
    assert notes.splitlines()[0] == (
        'note: frames are made otherwise than those that the model was trained on: num_steps 2 instead of 3, '
        'sensor_size (41, 60) instead of (20, 30), bin_us None instead of 50000, mean (1.0, 1.0) instead of (0.0, 0.0)'
    )
    with pytest.raises(SystemExit, match=r'a sensor of 60 x 30 pixels has another shape than the 20 x 30 of the model'):
        validate(capsys, *model, *data, '--sensor-size', 60, 30)


def test_a_run_on_own_recordings_goes_on_with_the_same_ones(train, own, tmp_path):
    data = ['--dataset', 'event_folder', '--data-dir', own, '--output', tmp_path]
    sensor = ['--sensor-size', '20', '30']
    train(*FOLDER, *data, *sensor, '--epochs', '1')
    assert 'epochs 2 to 2' in train(*FOLDER, *data, *sensor, '--epochs', '2', '--resume', 'auto')
    with pytest.raises(SystemExit, match=r'these changed: sensor_size \[20, 30\] to \[40, 60\]'):
        train(*FOLDER, *data, '--sensor-size', '40', '60', '--epochs', '3', '--resume', 'auto')


def test_a_run_of_before_goes_on_and_is_warned_of_its_mean(tmp_path):
    frames = FrameSettings(3, (20, 30)).to_dict()
    said: list[str] = []
    for mean, count in (([0.0, 0.0], 0), (None, 1)):
        (tmp_path / 'config.yaml').write_text(f'mean: {json.dumps(mean)}\n')
        (tmp_path / 'setup.json').write_text('{}')
        check_unchanged({'mean': mean}, {'frames': frames}, tmp_path, said.append)
        assert len(said) == count
    (tmp_path / 'setup.json').write_text(json.dumps({'frames': frames | {'sensor_size': [40, 60]}}))
    with pytest.raises(UserError, match='these changed: frames'):
        check_unchanged({'mean': None}, {'frames': frames}, tmp_path, said.append)


def test_what_is_wrong_with_own_recordings_is_said(train, own, tmp_path):
    data = ['--dataset', 'event_folder', '--data-dir', own, '--epochs', '1', '--output', tmp_path / 'out']

    def message(*arguments: object) -> str:
        with pytest.raises(SystemExit) as stop:
            train(*FOLDER, *data, *arguments)
        assert '\n' not in str(stop.value)
        return str(stop.value)

    sensor = ['--sensor-size', '20', '30']
    assert 'train/clap/0.npy does not say of which sensor it is' in (line := message()) and '--sensor-size H W' in line
    assert 'no folder test/, but frames, train, val: put recordings in test/CLASS/' in message(
        *sensor, '--val-split', 'test'
    )
    too_small = message('--sensor-size', '20', '20')
    assert 'train/zoom/' in too_small and 'must be at least 20 30, in --sensor-size H W' in too_small
    assert 'has 3 classes and the model 5: pass --num-classes 3' in message(*sensor, '--num-classes', '5')
    assert 'event frames have 2 channels' in message(*sensor, '--in-chans', '1')
    assert 'argument --sensor-size: it needs --dataset event_folder' in message(*sensor, '--dataset', 'nmnist')
    (tmp_path / 'train' / 'clap').mkdir(parents=True)
    assert 'clap has no recordings' in message(*sensor, '--data-dir', tmp_path)
    assert '--dataset event_folder takes recordings' in message('--dataset', '', '--data-dir', own)


def test_a_damaged_recording_is_named_and_the_next_one_taken(train, own, tmp_path, caplog):
    root = tmp_path / 'own'
    shutil.copytree(own, root, ignore=shutil.ignore_patterns('frames'))
    (root / 'train' / 'wave' / '1.npz').write_bytes(b'PK and no more')
    data = ['--dataset', 'event_folder', '--data-dir', root, '--sensor-size', '20', '30', '--output', tmp_path / 'out']
    train(*FOLDER, *data, '--epochs', '1')
    assert 'sample train/wave/1.npz is unreadable, EventFileError' in caplog.text


def test_models_of_before_keep_the_mean_they_were_trained_with(capsys, own, own_run, tmp_path):
    folder = Path(shutil.copytree(own_run / 'model', tmp_path / 'model'))
    config = json.loads((folder / 'config.json').read_text())
    del config['pretrained_cfg']['frames']
    config['pretrained_cfg'] |= {'mean': [0.25, 0.25], 'std': [0.5, 0.5]}
    (folder / 'config.json').write_text(json.dumps(config))
    data = ['--dataset', 'event_folder', '--data-dir', own, '--output', tmp_path / 'out']
    _, notes = validate(capsys, '--model', f'local-dir:{folder}', *data, '--sensor-size', 20, 30)
    assert notes.splitlines()[0].startswith('note: the model does not say how frames of events are made')
    assert 'normalised by its mean 0.25, 0.25 and std 0.5, 0.5' in notes
    with pytest.raises(SystemExit, match='does not say of which sensor it is'):
        validate(capsys, '--model', f'local-dir:{folder}', *data)
    capsys.readouterr()
    fresh = ['--model', 'msvit_4_96', '--model-kwargs', 'in_chans=2', 'num_classes=3', '--split', 'train']
    _, notes = validate(capsys, *fresh, *data, '--sensor-size', 20, 30)
    assert 'normalised' not in notes


def test_pictures_of_events_are_those_of_a_fixed_number_of_steps(capsys, own, own_run, tmp_path):
    data = ['--dataset', 'event_folder', '--data-dir', str(own), '--output', str(tmp_path)]
    run('recipes/pictures.py', '--model', f'local-dir:{own_run}/model', *data)
    names = ['membrane_traces.png', 'spike_raster.png']
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_a_model_of_events_goes_on_with_frames_of_other_channels(train, own, own_run, tmp_path):
    data = ['--dataset', 'event_folder', '--data-dir', own, '--sensor-size', '20', '30', '--output', tmp_path / 'out']
    start = ['--model', f'local-dir:{own_run}/model', '--pretrained', '--epochs', '1']
    train(*FOLDER, *start, *data, '--in-chans', '3')
    model = timm.create_model(f'local-dir:{tmp_path}/out/model', pretrained=True)
    assert frame_settings(model) == FrameSettings(3, (20, 30), channels=3, size=(32, 32))
