import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from running import QUICK, TRAIN


@pytest.fixture(autouse=True)
def _beside_the_script(monkeypatch):
    """Python puts a script's own folder on its path, runpy does not."""
    monkeypatch.syspath_prepend(TRAIN.parent)


@pytest.fixture
def train(monkeypatch, capsys):
    """Run the script in this process, which saves the imports; returns what it printed."""

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, 'argv', [str(TRAIN), *map(str, arguments)])
        threads, on_sigterm = torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
        deterministic = torch.are_deterministic_algorithms_enabled()
        try:
            runpy.run_path(str(TRAIN), run_name='__main__')
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(deterministic)
            signal.signal(signal.SIGTERM, on_sigterm)
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
        return capsys.readouterr().out

    return run


@pytest.fixture(scope='session')
def finished(tmp_path_factory) -> Path:
    """The output of a run of one epoch; tests copy it."""
    output = tmp_path_factory.mktemp('finished')
    subprocess.run([sys.executable, str(TRAIN), *QUICK, '--epochs', '1', '--output', str(output)], check=True)
    return output


@pytest.fixture
def output(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / 'output'))
