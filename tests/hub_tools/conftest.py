import runpy
import signal
import sys
from pathlib import Path

import pytest
import timm
import torch
from accelerate.state import AcceleratorState, GradientState
from timm.models import save_for_hf

from tests.conftest import lively

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _beside_the_scripts(monkeypatch):
    """Python puts a script's own folder on its path, runpy does not."""
    for folder in ('recipes', 'hub'):
        monkeypatch.syspath_prepend(ROOT / folder)


@pytest.fixture
def command(monkeypatch, capsys):
    """Run a script of hub/ in this process, which saves the imports; returns what it printed."""

    def run(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, 'argv', [name, *map(str, arguments)])
        runpy.run_path(str(ROOT / 'hub' / name), run_name='__main__')
        captured = capsys.readouterr()
        assert 'hf_loopback' not in captured.out + captured.err  # the token
        return captured.out

    return run


@pytest.fixture
def refused(command):
    """Run a script that must end in one line; returns the line."""

    def run(name: str, *arguments: object) -> str:
        with pytest.raises(SystemExit) as error:
            command(name, *arguments)
        line = str(error.value)
        assert line.startswith('error: ') and '\n' not in line and 'hf_loopback' not in line, line
        return line

    return run


@pytest.fixture(scope='session')
def run_folder(tmp_path_factory) -> Path:
    """The output of a short training run on real digits, in this process too."""
    output = tmp_path_factory.mktemp('training') / 'run'
    config = ['--config', ROOT / 'recipes' / 'configs' / 'msvit' / 'digits.yaml', '--img-size', '16', '--epochs', '2']
    limits = ['--max-train-samples', '64', '--max-val-samples', '20', '--num-threads', '1', '--log-with', 'none']
    threads, on_sigterm = torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / 'recipes')
        patch.setattr(sys, 'argv', ['train.py', *map(str, config), '--output', str(output), *limits])
        runpy.run_path(str(ROOT / 'recipes' / 'train.py'), run_name='__main__')
    torch.set_num_threads(threads)
    signal.signal(signal.SIGTERM, on_sigterm)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return output


@pytest.fixture
def model_folder(tmp_path) -> Path:
    """A model whose neurons fire, with other steps and thresholds than usual, as timm saves it."""
    torch.manual_seed(0)
    model = lively(timm.create_model('msvit_4_96', num_steps=3, attn_v_threshold=0.75, num_classes=3))
    save_for_hf(model, str(tmp_path / 'model'), safe_serialization=True)
    return tmp_path / 'model'
