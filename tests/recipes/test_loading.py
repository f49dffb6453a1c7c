"""What becomes of a run whose loading processes fail, are killed, or meet a sample that nobody can read."""

import os
import signal
import subprocess
import sys

import pytest
from PIL import Image

from tests.support.scripts import ROOT
from tests.support.training import QUICK

# Runs train.py with another way to read samples; a process of its own, since it is its end that is looked at.
RUN = """
import os, runpy, sys, signal, torch
sys.path.insert(0, {recipes!r})
from timm_snn.training import data
read = data.TrainingSamples.__getitem__
def broken(self, number):
    if torch.utils.data.get_worker_info() is not None and number == 70:
        {what}
    return read(self, number)
data.TrainingSamples.__getitem__ = broken
sys.argv = ['train.py', *{arguments!r}]
runpy.run_path({script!r}, run_name='__main__')
"""


def train(what, tmp_path, *arguments):
    common = ['--workers', '1', '--max-train-samples', '128', '--max-val-samples', '16', '--log-with', 'none']
    code = RUN.format(
        recipes=str(ROOT / 'recipes'),
        script=str(ROOT / 'recipes' / 'train.py'),
        what=what,
        arguments=[*QUICK, *common, '--output', str(tmp_path / 'out'), *map(str, arguments)],
    )
    environment = os.environ | {'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    # The limit is what a run that hangs meets; one that ends is not timed.
    return subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, timeout=240, env=environment, check=False
    )


def test_an_exception_in_a_loading_process_ends_the_run_with_its_traceback(tmp_path):
    result = train("raise KeyError('of my own')", tmp_path)
    assert result.returncode == 1 and "KeyError: 'of my own'" in result.stderr


def test_a_killed_loading_process_is_one_line_and_the_run_goes_on_from_its_checkpoint(tmp_path):
    result = train('os.kill(os.getpid(), signal.SIGKILL)', tmp_path)
    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 1 and 'Traceback' not in result.stderr
    assert last.startswith('error: a process that loads data has ended: DataLoader worker (pid')
    assert last.endswith('--resume auto goes on from the last checkpoint')


@pytest.mark.parametrize('broken', [3, 12], ids=['some', 'all'])
def test_pictures_that_cannot_be_read_are_replaced_unless_all_are(broken, tmp_path):
    for split, number in (('train', 12), ('validation', 2)):
        for i in range(number):
            path = tmp_path / split / f'{i % 2}' / f'{i}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new('L', (16, 16), 20 * i).save(path)
            if split == 'train' and i < broken:
                path.write_bytes(path.read_bytes()[:40])
    arguments = ['--dataset', '', '--data-dir', tmp_path, '--num-classes', 2, '--in-chans', 1, '-b', 4, '--epochs', 1]
    result = train('pass', tmp_path, *arguments, '--warmup-epochs', 0)
    assert 'is unreadable, ' in result.stderr
    if broken == 3:
        assert result.returncode == 0 and '; the next one is taken' in result.stderr
    else:
        last = result.stderr.strip().splitlines()[-1]
        assert result.returncode == 1 and last.startswith("error: cannot use split 'train'") and 'is unreadable' in last


def test_those_that_load_data_outlive_sigterm_but_not_their_run():
    """They ignore the signal, which schedulers send to all, and multiprocessing joins them after sending it."""
    code = (
        'from timm_snn.training.data import Digits, Samples; from timm_snn.training.loading import make_loader\n'
        'loader = iter(make_loader(Samples(Digits(True), range(1000), lambda x: 0), 10, workers=1, pin_memory=False))\n'
        'next(loader); print([w.pid for w in loader._workers][0], flush=True); import sys; sys.last = loader\n'
        'import atexit; raise SystemExit(7)'
    )
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    run = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, timeout=240, env=environment, check=False
    )
    assert run.returncode == 7, run.stderr
    with pytest.raises(ProcessLookupError):
        os.kill(int(run.stdout), signal.SIGTERM)
