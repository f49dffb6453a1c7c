"""Short training runs on real digits. A conftest imports the fixtures that its tests use."""

import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.support.scripts import ROOT, run

TRAIN = ROOT / 'recipes' / 'train.py'
DIGITS = ROOT / 'recipes' / 'configs' / 'msvit' / 'digits.yaml'
QUICK = ['--config', str(DIGITS), '--img-size', '16', '--batch-size', '64', '--epochs', '2', '--num-threads', '1']


def weights(output: Path) -> dict[str, torch.Tensor]:
    """The weights of the model that a run saved."""
    return safetensors.torch.load_file(output / 'model' / 'model.safetensors')


@pytest.fixture
def train(capsys) -> Callable[..., str]:
    """Run recipes/train.py with these arguments; returns what it printed."""

    def run_it(*arguments: object) -> str:
        run('recipes/train.py', *arguments)
        return capsys.readouterr().out

    return run_it


@functools.cache
def _finished(output: Path) -> Path:
    run('recipes/train.py', *QUICK, '--epochs', '1', '--output', output)
    return output


@pytest.fixture(scope='session')
def finished(tmp_path_factory) -> Path:
    """The output of a run of one epoch, trained once for all tests; those that write to it take `output`."""
    return _finished(tmp_path_factory.getbasetemp() / 'finished')


@pytest.fixture
def output(finished, tmp_path) -> Path:
    """A copy of `finished`."""
    return Path(shutil.copytree(finished, tmp_path / 'output'))
