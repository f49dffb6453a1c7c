"""recipes/train.py as users run it: on real digits, from the command line, killed and resumed, and given nonsense."""

import csv
import multiprocessing
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_input_data_config

from tests.support.scripts import ROOT
from tests.support.training import QUICK, TRAIN, weights
from timm_snn.training.data import Digits

CONFIGS = [file for file in sorted((ROOT / 'recipes' / 'configs').rglob('*.yaml')) if file.parent.name != 'dense']


def test_the_main_job(tmp_path):
    """accelerate launch, on the command line: train, evaluate, save, load, predict."""
    accelerate = [sys.executable, '-m', 'accelerate.commands.accelerate_cli', 'launch']
    command = [*accelerate, str(TRAIN), *QUICK, '--max-train-samples', '640', '--output', str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    *_, prediction, last = result.stdout.strip().splitlines()

    rows = list(csv.DictReader((tmp_path / 'summary.csv').open()))
    assert [row['epoch'] for row in rows] == ['0', '1']
    assert float(rows[1]['train_loss']) < float(rows[0]['train_loss'])
    assert last == f'top-1: {float(rows[-1]["eval_top1"]):.2f}'
    assert '\r' not in result.stderr  # a log has no bar, and these epochs are too short for lines
    assert Image.open(tmp_path / 'curve.png').size > (400, 200)
    (row,) = csv.DictReader((tmp_path / 'results_row.csv').open())
    assert f'top-1: {row["top1"]}' == last and '--max-train-samples 640' in row['command'] and row['epochs'] == '2'
    assert float(row['flop']) > 1e9 and (row['split'], row['seed'], row['dataset']) == (
        'validation; trained on at most 640 samples',
        '42',
        'digits',
    )
    assert sorted(path.name for path in (tmp_path / 'model').iterdir()) == ['config.json', 'model.safetensors']

    # The saved folder alone gives the accuracy that was printed, on the split that was promised.
    model = timm.create_model(f'local-dir:{tmp_path / "model"}', pretrained=True).eval()
    digits = Digits(train=False)
    digits.transform = create_transform(**resolve_input_data_config(model))
    images, labels = zip(*digits, strict=True)
    assert len(labels) == 360
    with torch.inference_mode():
        guesses = model(torch.stack(images)).argmax(1)
    accuracy = 100 * (guesses == torch.tensor(labels)).double().mean()
    assert accuracy == pytest.approx(float(rows[-1]['eval_top1']), abs=0.6)  # batches of another size, float32
    assert f"validation sample 0 is '{guesses[0]}'" in prediction and f"its label is '{labels[0]}'" in prediction


def test_a_run_is_not_written_over_unless_asked(train, output):
    arguments = [*QUICK[2:], '--output', output]  # digits.yaml says overwrite
    with pytest.raises(SystemExit, match=r'holds another run; pass --resume auto, --overwrite or another --output'):
        train(*arguments)
    with pytest.raises(SystemExit, match='cannot set up the optimizer'):
        train(*arguments, '--overwrite', '--opt', 'nonsense')
    assert sorted(path.name for path in output.iterdir()) == RUN and (output / 'checkpoints' / 'epoch_0001').is_dir()
    shutil.rmtree(output / 'checkpoints')
    with pytest.raises(SystemExit, match='holds another run'):  # its model is worth as much
        train(*arguments)
    before = weights(output)['head.fc.weight']
    short = ['--epochs', '1', '--max-train-samples', '128', '--max-val-samples', '37']
    train(*QUICK, *short, '--seed', '1', '--output', output, '--overwrite')
    assert not torch.equal(weights(output)['head.fc.weight'], before)
    assert [path.name for path in (output / 'checkpoints').iterdir()] == ['epoch_0001']


RUN = ['.lock', 'checkpoints', 'config.yaml', 'curve.png', 'logs', 'model', 'results_row.csv', 'summary.csv']


@pytest.fixture
def folder(tmp_path) -> Path:
    """An image folder of 96 real digits for training and 24 for validation, RGB, three classes."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(n_class=3, return_X_y=True)
    for i, (image, label) in enumerate(zip(images[:120], labels, strict=False)):
        path = tmp_path / 'data' / ('train' if i < 96 else 'validation') / f'class{label}' / f'{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image.reshape(8, 8) * 15).astype('uint8')).convert('RGB').save(path)
    return tmp_path / 'data'


ONE_EPOCH = [*QUICK, '--epochs', '1', '--num-classes', '3', '--batch-size', '16']


def test_image_folders_and_label_names(train, folder, tmp_path):
    data = ['--dataset', '', '--data-dir', folder, '--in-chans', '3', '--workers', '1']
    printed = train(*ONE_EPOCH, *data, '--output', tmp_path / 'out')
    assert '96 training and 24 validation samples' in printed and "its label is 'class0'" in printed
    model = timm.create_model(f'local-dir:{tmp_path / "out" / "model"}', pretrained=True)
    assert model.pretrained_cfg['label_names'] == ['class0', 'class1', 'class2']
    assert model.in_chans == 3


def test_a_class_that_validation_lacks_leaves_the_labels_as_they_are(train, folder, tmp_path):
    shutil.rmtree(folder / 'validation' / 'class0')
    data = ['--dataset', '', '--data-dir', folder, '--in-chans', '3', '--workers', '0']
    assert "its label is 'class1'" in train(*ONE_EPOCH, *data, '--output', tmp_path / 'out')


@pytest.mark.parametrize('workers', [0, 1])
def test_an_unreadable_validation_image_ends_the_run_and_loses_nothing(train, folder, tmp_path, workers):
    broken = folder / 'validation' / 'class1' / '99.png'
    whole = broken.read_bytes()
    broken.write_bytes(whole[:60])
    data = ['--dataset', '', '--data-dir', folder, '--in-chans', '3', '--workers', workers]
    arguments = [*ONE_EPOCH, *data, '--output', tmp_path / 'out']
    processes = set(multiprocessing.active_children())
    with pytest.raises(SystemExit, match=r'^error: cannot evaluate: sample .*class1/99\.png is unreadable') as stop:
        train(*arguments)
    assert '\n' not in str(stop.value) and str(stop.value).endswith('epoch_0000_step_000006')
    assert set(multiprocessing.active_children()) <= processes  # they ignore SIGTERM, and would be waited for at exit
    broken.write_bytes(whole)
    printed = train(*arguments, '--resume', 'auto')
    assert 'epoch 1/1' in printed and (tmp_path / 'out' / 'checkpoints' / 'epoch_0001').is_dir()


@pytest.mark.parametrize(
    ('change', 'arguments', 'message'),
    [
        (lambda data: shutil.rmtree(data / 'validation'), [], "cannot open split 'validation'"),
        (lambda data: None, ['--val-split', 'tset'], "cannot open split 'tset'"),
        (lambda data: (data / 'validation' / 'class0').rename(data / 'validation' / 'new'), [], 'different classes'),
        (lambda data: None, ['--in-chans', '2'], 'images have 3 channels and the model 2: pass --in-chans 3'),
    ],
)
def test_folders_that_do_not_fit_are_refused_in_one_line(train, folder, tmp_path, change, arguments, message):
    change(folder)
    data = ['--dataset', '', '--data-dir', folder, '--output', tmp_path / 'out']
    with pytest.raises(SystemExit) as stop:
        train(*ONE_EPOCH, *data, *arguments)
    assert message in str(stop.value) and '\n' not in str(stop.value)
    assert not (tmp_path / 'out').exists()


def test_hugging_face_labels_out_of_range_are_refused(train, tmp_path):
    datasets = pytest.importorskip('datasets')
    image = Image.fromarray(np.zeros((8, 8), np.uint8))
    for split in ('train', 'validation'):
        data = datasets.Dataset.from_dict({'image': [image] * 4, 'label': [0, 1, 2, 3]})
        data.to_parquet(str(tmp_path / 'hub' / f'{split}-00000-of-00001.parquet'))
    arguments = [
        '--dataset',
        f'hfds/{tmp_path / "hub"}',
        '--data-dir',
        tmp_path / 'cache',
        '--output',
        tmp_path / 'out',
    ]
    with pytest.raises(SystemExit, match='labels must be 0 to 2, as --num-classes says, not 3'):
        train(*ONE_EPOCH, *arguments, '--input-key', 'image', '--target-key', 'label')
    with pytest.raises(SystemExit, match=r"no column 'picture' but image, label: --input-key and --target-key name"):
        train(*ONE_EPOCH, *arguments, '--input-key', 'picture', '--target-key', 'label')


def test_hugging_face_data_sets(train, folder, tmp_path):
    datasets = pytest.importorskip('datasets')
    for split in ('train', 'validation'):
        source = dict(data_dir=str(folder / split), split='train', cache_dir=str(tmp_path))
        data = datasets.load_dataset('imagefolder', **source)
        data.to_parquet(str(tmp_path / 'hub' / f'{split}-00000-of-00001.parquet'))
    printed = train(
        *ONE_EPOCH, '--dataset', f'hfds/{tmp_path / "hub"}', '--data-dir', tmp_path / 'cache', '--input-key', 'image',
        '--target-key', 'label', '--in-chans', '3', '--output', tmp_path / 'out',
    )  # fmt: skip
    assert '96 training and 24 validation samples' in printed


def test_every_config_has_known_keys_and_says_what_was_measured(train):
    assert CONFIGS
    for config in CONFIGS:
        header = config.read_text().split('model:')[0]
        assert header.startswith('#') and 'accelerate launch' in header, f'{config} has no header with its command'
        with pytest.raises(SystemExit) as stop:  # stops after the arguments were read, at the model
            train('--config', config, '--model', 'no_such_model')
        assert 'Unknown model' in str(stop.value), config


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--config', 'nowhere.yaml'], 'error: there is no such config (in nowhere.yaml)'),
        (['--model', 'msvit_11'], "error: cannot create model 'msvit_11': Unknown model (msvit_11)"),
        (['--model', 'msvit_10_384', '--pretrained'], 'No pretrained weights exist for msvit_10_384'),
        (['--model-kwargs', 'attn=sssa'], "unknown attention 'sssa': use one of"),
        (['--model-kwargs', 'atn=ssa'], "unexpected keyword argument 'atn'"),
        (['--num-classes', '7'], "data set 'digits' has 10 classes and the model 7: pass --num-classes 10"),
        (['--dataset', '', '--data-dir', 'nowhere'], 'error: data folder nowhere does not exist; --data-dir names'),
        (['--dataset', 'torch/fashion_mnist', '--data-dir', 'nowhere'], "cannot open split 'train' of data set"),
        (
            ['--dataset', 'digitz'],
            "error: unknown data set 'digitz': 'digits', 'nmnist', 'cifar10_dvs', 'dvs128_gesture', ",
        ),
        (['--resume', 'nowhere'], 'error: checkpoint nowhere does not exist; --resume auto'),
        (['--dataset', 'other/digits'], "error: unknown data set 'other/digits'"),
        (['--batch-size', '2000'], '1437 training samples do not fill a batch of 2000'),
        (['--batch-size', '63', '--mixup', '0.2'], 'need an even number, not 63'),
        (['--batch-size', 'many'], 'batch-size/-b: invalid positive_int value'),
        (['--epochs', '0'], 'argument --epochs: 0 is less than 1'),
        (['--epoch', '3'], 'unrecognized arguments: --epoch'),
        (['--model-kwargs', 'num_steps'], '--model-kwargs takes name=value'),
        (['--model', 'local-dir:nowhere'], "cannot create model 'local-dir:nowhere'"),
        (['--mean', '0.1', '0.2'], 'mean must have one value'),
        (['--opt', 'nonsense'], 'cannot set up the optimizer'),
        (['--sched', 'nonsense'], 'cannot set up the schedule'),
        (['--aa', 'nonsense'], 'cannot set up the augmentation'),
        (['--output', __file__], 'cannot write to --output'),
        (['--seed', '-1'], 'argument --seed: -1 is not between 0 and 2147483647'),
        (['--remode', 'pixels'], "argument --remode: invalid choice: 'pixels'"),
        (['--smoothing', '1.5'], 'argument --smoothing: 1.5 is not between 0 and 1'),
        (['--lr', 'nan'], 'argument --lr: nan is not a finite number of at least 0'),
        (['--clip-grad', '0'], 'argument --clip-grad: 0 is not a finite number above 0'),
        (['--workers', '-1'], 'argument --workers/-j: -1 is less than 0'),
        (['--val-split', 'tset'], "data set 'digits' has no split 'tset': use train, or validation, also called test"),
        (['--dataset', 'nmnist', '--hflip', '0.1'], '--hflip: it needs a data set of images; --event-aug augments'),
        (['--dataset', 'event_rows', '--scale', '0.5', '1'], 'argument --scale: it needs a data set of images'),
        (['--decay-epochs', '2'], 'argument --decay-epochs: it needs --sched wsd, rsqrt or step'),
        (['--opt-kwargs', 'nesterov=1'], 'cannot set up the optimizer'),
        (['--pad-crop', '4', '--scale', '0.5', '1'], 'it needs random resized crops, which --pad-crop replaces'),
        (['--event-aug'], 'argument --event-aug: it needs event recordings, --dataset nmnist, cifar10_dvs, '),
        (['--split-by', 'time'], 'argument --split-by: it needs event recordings'),
        (['--input-key', 'img'], 'argument --input-key: it needs a data set of Hugging Face, --dataset hfds/...'),
        (['--kd-checkpoint', 'teacher.pth'], 'argument --kd-checkpoint: it needs --kd-model-name'),
        (['--model-ema-decay', '0.99'], 'argument --model-ema-decay: it needs --model-ema'),
    ],
)
def test_wrong_arguments_end_in_one_line(train, tmp_path, arguments, message):
    with pytest.raises(SystemExit) as stop:
        train('--output', tmp_path, *arguments)
    assert message in str(stop.value) and '\n' not in str(stop.value)
