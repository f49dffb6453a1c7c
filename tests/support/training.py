"""Short training runs on real digits. A conftest imports the fixtures that its tests use."""

import csv
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
QUICK += ['--no-data-on-device']  # tests/training/test_on_device.py has those


def weights(output: Path) -> dict[str, torch.Tensor]:
    """The weights of the model that a run saved."""
    return safetensors.torch.load_file(output / 'model' / 'model.safetensors')


def assert_same_weights(one: Path, two: Path) -> None:
    """Bit for bit; otherwise the largest differences tell a last bit from another run."""
    first, second = weights(one), weights(two)
    assert first.keys() == second.keys()
    differ = [key for key in first if not torch.equal(first[key], second[key])]
    assert not differ, {key: (first[key].double() - second[key].double()).abs().max().item() for key in differ}


def assert_same_run(one: Path, two: Path) -> None:
    assert_same_weights(one, two)
    summaries = [list(csv.DictReader((output / 'summary.csv').open())) for output in (one, two)]
    for rows in summaries:
        assert len(rows) == 2
        for row in rows:
            del row['images_per_s'], row['train_seconds']
    assert summaries[0] == summaries[1]


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
