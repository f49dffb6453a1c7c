from pathlib import Path

import pytest
import timm
import torch
from timm.models import save_for_hf

from tests.conftest import lively
from tests.support.scripts import run
from tests.support.training import QUICK


@pytest.fixture
def command(capsys):
    """Run a script of hub/ in this process; returns what it printed."""

    def run_it(name: str, *arguments: object) -> str:
        run(f'hub/{name}', *arguments)
        captured = capsys.readouterr()
        assert 'hf_loopback' not in captured.out + captured.err  # the token
        return captured.out

    return run_it


@pytest.fixture
def refused(command):
    """Run a script that must end in one line; returns the line."""

    def run_it(name: str, *arguments: object) -> str:
        with pytest.raises(SystemExit) as error:
            command(name, *arguments)
        line = str(error.value)
        assert line.startswith('error: ') and '\n' not in line and 'hf_loopback' not in line, line
        return line

    return run_it


@pytest.fixture(scope='session')
def run_folder(tmp_path_factory) -> Path:
    """The output of a short training run on real digits."""
    output = tmp_path_factory.mktemp('training') / 'run'
    short = ['--epochs', '2', '--max-train-samples', '64', '--max-val-samples', '20', '--log-with', 'none']
    run('recipes/train.py', *QUICK, *short, '--output', output)
    return output


@pytest.fixture
def model_folder(tmp_path) -> Path:
    """A model whose neurons fire, with other steps and thresholds than usual, as timm saves it."""
    torch.manual_seed(0)
    model = lively(timm.create_model('msvit_4_96', num_steps=3, attn_v_threshold=0.75, num_classes=3))
    save_for_hf(model, str(tmp_path / 'model'), safe_serialization=True)
    return tmp_path / 'model'
