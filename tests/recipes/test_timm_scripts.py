"""timm's own train.py, validate.py and inference.py with our models, run from a checkout of timm.

TIMM_REPO names it (its version should be that of the installed timm); without it only the mechanism is tested.
"""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from timm.models import save_for_hf


def python(*arguments: object) -> str:
    environment = {**os.environ, 'CUDA_VISIBLE_DEVICES': ''}
    command = [sys.executable, *map(str, arguments)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def script(name: str) -> Path:
    if 'TIMM_REPO' not in os.environ:
        pytest.skip('TIMM_REPO names no checkout of timm')
    path = Path(os.environ['TIMM_REPO']) / name
    if not path.is_file():
        pytest.skip(f'TIMM_REPO has no {name}')
    return path


@pytest.fixture
def data(tmp_path) -> Path:
    """Real digits as DATA/train/N/I.png, 160 of them, and DATA/validation/N/I.png, 40."""
    load_digits = pytest.importorskip('sklearn.datasets').load_digits
    images, labels = load_digits(return_X_y=True)
    for i, (image, label) in enumerate(zip(images[:200], labels, strict=False)):
        path = tmp_path / 'data' / ('train' if i < 160 else 'validation') / str(label) / f'{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image.reshape(8, 8) * 15).astype('uint8')).save(path)
    return tmp_path / 'data'


@pytest.fixture
def saved(tmp_path) -> str:
    """For RGB, which is what inference.py opens whatever the model wants."""
    torch.manual_seed(0)
    names = [f'digit {i}' for i in range(10)]
    model = timm.create_model('msvit_4_96', in_chans=3)
    save_for_hf(model, tmp_path / 'model', model_config=dict(label_names=names), safe_serialization=True)
    return f'local-dir:{tmp_path / "model"}'


def test_importing_the_package_by_name_registers_the_models():
    """All that train.py does with --device-modules timm_snn before it makes the model."""
    lines = [
        'import importlib, timm',
        "known = timm.is_model('msvit_4_96')",
        "importlib.import_module('timm_snn')",
        "print(known, type(timm.create_model('msvit_4_96', num_classes=7)).__name__)",
    ]
    assert python('-c', '\n'.join(lines)).split() == ['False', 'MSViT']


def test_train_py(data, tmp_path):
    python(
        script('train.py'), '--data-dir', data, '--device', 'cpu', '--device-modules', 'timm_snn', '--workers', 0,
        '--model', 'msvit_4_96', '--model-kwargs', 'num_steps=2', '--num-classes', 10, '--input-size', 3, 28, 28,
        '--no-aug', '--batch-size', 16, '--epochs', 2, '--warmup-epochs', 0, '--opt', 'adamw', '--lr', '1e-3',
        '--output', tmp_path / 'output', '--experiment', 'run',
    )  # fmt: skip
    epochs = list(csv.DictReader((tmp_path / 'output' / 'run' / 'summary.csv').open()))
    assert len(epochs) == 2 and float(epochs[1]['train_loss']) < float(epochs[0]['train_loss'])
    assert (tmp_path / 'output' / 'run' / 'last.pth.tar').is_file()


def test_validate_py(data, saved, tmp_path):
    result = tmp_path / 'result.csv'
    arguments = ['--data-dir', data, '--device', 'cpu', '--workers', 0, '--batch-size', 16, '--results-file', result]
    python('-m', 'timm_snn.run', script('validate.py'), '--model', saved, *arguments)
    (row,) = csv.DictReader(result.open())
    assert row['model'] == saved and 0 <= float(row['top1']) <= float(row['top5']) <= 100


def test_inference_py(data, saved, tmp_path):
    arguments = ['--data-dir', data / 'validation', '--device', 'cpu', '--workers', 1, '--batch-size', 16]
    results = ['--results-dir', tmp_path, '--results-file', 'predictions.csv', '--topk', 1]
    python('-m', 'timm_snn.run', script('inference.py'), '--model', saved, *arguments, *results)
    rows = list(csv.DictReader((tmp_path / 'predictions.csv').open()))
    assert len(rows) == 40 and all(row['label'].startswith('digit ') for row in rows)
