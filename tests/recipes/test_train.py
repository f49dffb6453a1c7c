"""recipes/train.py as users run it: on real digits, from the command line, killed and resumed, and given nonsense."""

import csv
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_input_data_config

ROOT = Path(__file__).parents[2]
TRAIN = ROOT / 'recipes' / 'train.py'
DIGITS = ROOT / 'recipes' / 'configs' / 'msvit' / 'digits.yaml'
CONFIGS = sorted((ROOT / 'recipes' / 'configs').rglob('*.yaml'))
QUICK = ['--config', str(DIGITS), '--img-size', '16', '--batch-size', '64', '--epochs', '2', '--num-threads', '1']


@pytest.fixture
def train(monkeypatch, capsys):
    """Run the script in this process, which saves the imports; returns what it printed."""
    train_path = str(TRAIN)

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, 'argv', [train_path, *map(str, arguments)])
        threads = torch.get_num_threads()
        try:
            runpy.run_path(train_path, run_name='__main__')
        finally:
            torch.set_num_threads(threads)
        return capsys.readouterr().out

    return run


def test_the_main_job(tmp_path):
    """accelerate launch, on the command line: train, evaluate, save, load, predict."""
    accelerate = [sys.executable, '-m', 'accelerate.commands.accelerate_cli', 'launch']
    result = subprocess.run(
        [*accelerate, str(TRAIN), *QUICK, '--output', str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    *_, prediction, last = result.stdout.strip().splitlines()

    rows = list(csv.DictReader((tmp_path / 'summary.csv').open()))
    assert [row['epoch'] for row in rows] == ['0', '1']
    assert float(rows[1]['train_loss']) < float(rows[0]['train_loss'])
    assert last == f'top-1: {float(rows[-1]["eval_top1"]):.2f}'
    assert 'epoch 1/2' in result.stderr and 'images_per_s' in result.stderr and 'loss=' in result.stderr  # the bar
    assert Image.open(tmp_path / 'curve.png').size > (400, 200)
    assert sorted(path.name for path in (tmp_path / 'model').iterdir()) == ['config.json', 'model.safetensors']

    # The saved folder alone gives the accuracy that was printed, on the split that was promised.
    model = timm.create_model(f'local-dir:{tmp_path / "model"}', pretrained=True).eval()
    digits = runpy.run_path(str(TRAIN), run_name='train')['Digits'](train=False)
    digits.transform = create_transform(**resolve_input_data_config(model))
    images, labels = zip(*digits, strict=True)
    assert len(labels) == 360
    with torch.inference_mode():
        guesses = model(torch.stack(images)).argmax(1)
    accuracy = 100 * (guesses == torch.tensor(labels)).double().mean()
    assert accuracy == pytest.approx(float(rows[-1]['eval_top1']), abs=0.6)  # batches of another size, float32
    assert f"validation image 0 is '{guesses[0]}'" in prediction and f"its label is '{labels[0]}'" in prediction


def test_the_held_out_fifth_is_fixed_and_disjoint():
    Digits = runpy.run_path(str(TRAIN), run_name='train')['Digits']
    held_out, kept = Digits(train=False), Digits(train=True)
    assert (len(held_out), len(kept)) == (360, 1437)
    assert np.bincount(held_out.labels).tolist() == [36, 36, 35, 37, 36, 37, 36, 36, 35, 36]
    pixels = {image.tobytes() for image in kept.images}
    assert not any(image.tobytes() in pixels for image in held_out.images)


def weights(output: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(output / 'model' / 'model.safetensors')


def test_a_killed_run_resumes_to_the_same_weights(tmp_path):
    arguments = [sys.executable, str(TRAIN), *QUICK, '--mixup', '0.2', '--output']
    whole = subprocess.run([*arguments, str(tmp_path / 'whole')], capture_output=True, text=True, check=True).stdout

    command = [*arguments, str(tmp_path / 'killed')]
    unbuffered = {**os.environ, 'PYTHONUNBUFFERED': '1'}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=unbuffered)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith('epoch 1/2:'):
            time.sleep(0.5)  # into the second epoch
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    assert not (tmp_path / 'killed' / 'model').exists()

    resumed = subprocess.run([*command, '--resume', 'auto'], capture_output=True, text=True, check=True).stdout
    assert 'epochs 2 to 2' in resumed and 'epoch 1/2:' not in resumed
    assert resumed.splitlines()[-1] == whole.splitlines()[-1]
    one, two = weights(tmp_path / 'whole'), weights(tmp_path / 'killed')
    assert all(torch.equal(one[key], two[key]) for key in one)
    columns = ('epoch', 'train_loss', 'eval_top1')
    summaries = [list(csv.DictReader((tmp_path / run / 'summary.csv').open())) for run in ('whole', 'killed')]
    assert len(summaries[1]) == 2
    assert [[row[c] for c in columns] for row in summaries[0]] == [[row[c] for c in columns] for row in summaries[1]]


def test_a_run_is_not_written_over_unless_asked(train, tmp_path):
    checkpoint = tmp_path / 'checkpoints' / 'checkpoint_0'
    checkpoint.mkdir(parents=True)
    with pytest.raises(SystemExit, match=r'holds another run; pass --resume auto, --overwrite or another --output'):
        train('--output', tmp_path)
    assert checkpoint.is_dir()
    train(*QUICK, '--epochs', '1', '--output', tmp_path, '--overwrite')
    assert (checkpoint / 'model.safetensors').is_file()


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
    assert '96 training and 24 validation images' in printed and "its label is 'class0'" in printed
    model = timm.create_model(f'local-dir:{tmp_path / "out" / "model"}', pretrained=True)
    assert model.pretrained_cfg['label_names'] == ['class0', 'class1', 'class2']
    assert model.in_chans == 3


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
    assert '96 training and 24 validation images' in printed


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
        (['--config', 'nowhere.yaml'], 'error: config nowhere.yaml does not exist; see recipes/configs/'),
        (['--model', 'msvit_11'], "error: cannot create model 'msvit_11': Unknown model (msvit_11)"),
        (['--pretrained'], 'No pretrained weights exist for msvit_4_96'),
        (['--model-kwargs', 'attn=sssa'], "unknown attention 'sssa': use one of"),
        (['--model-kwargs', 'atn=ssa'], "unexpected keyword argument 'atn'"),
        (['--num-classes', '7'], "data set 'digits' has 10 classes and the model 7: pass --num-classes 10"),
        (['--dataset', '', '--data-dir', 'nowhere'], 'error: data folder nowhere does not exist; --data-dir names'),
        (['--dataset', 'torch/fashion_mnist', '--data-dir', 'nowhere'], "cannot open split 'train' of data set"),
        (['--dataset', 'digitz'], "error: unknown data set 'digitz': 'digits', torch/"),
        (['--resume', 'nowhere'], 'error: checkpoint nowhere does not exist; --resume auto'),
    ],
)
def test_wrong_arguments_end_in_one_line(train, tmp_path, arguments, message):
    with pytest.raises(SystemExit) as stop:
        train('--output', tmp_path, *arguments)
    assert message in str(stop.value) and '\n' not in str(stop.value)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('epoch: 3', "unknown key 'epoch' in {path}: did you mean 'epochs'?"),
        ('zzz: 3', "unknown key 'zzz' in {path}: see recipes/train.py --help"),
        ('- a\n- b', 'config {path} is not a YAML mapping'),
    ],
)
def test_wrong_configs_end_in_one_line(train, tmp_path, text, message):
    path = tmp_path / 'config.yaml'
    path.write_text(text)
    with pytest.raises(SystemExit) as stop:
        train('--config', path)
    assert message.format(path=path) in str(stop.value) and '\n' not in str(stop.value)


def test_the_command_line_wins_over_the_config(train, tmp_path):
    path = tmp_path / 'config.yaml'
    path.write_text('model: no_such_model\nnum_classes: 3')
    with pytest.raises(SystemExit, match="cannot create model 'another_model'"):
        train('--config', path, '--model', 'another_model')
