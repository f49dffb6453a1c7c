"""What an update of recipes/train.py costs besides its arithmetic."""

from collections import Counter

import pytest
import torch
from accelerate import Accelerator

from tests.support.training import QUICK

READS = ('item', 'tolist', 'cpu', 'numpy', '__bool__', '__float__', '__int__', '__index__')
COLLECTIVES = ('reduce', 'gather', 'gather_for_metrics', 'wait_for_everyone')


@pytest.fixture
def calls(monkeypatch) -> Counter:
    """How often a tensor is read by the host, and how often processes wait for each other."""
    counter: Counter = Counter()

    def count(owner: type, name: str, kind: str) -> None:
        call = getattr(owner, name)

        def counted(self, *args, **kwargs):
            counter[kind] += 1
            return call(self, *args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    for name in READS:
        count(torch.Tensor, name, 'reads')
    for name in COLLECTIVES:
        count(Accelerator, name, 'collectives')
    return counter


@pytest.mark.parametrize('more', [[], ['--clip-grad', '1', '--model-ema', '--grad-accum-steps', '2', '--mixup', '0.2']])
def test_an_update_is_one_read_and_one_collective(train, tmp_path, calls, more):
    """As runs of 3 and of 8 updates tell.

    SGD, for AdamW on a CPU reads the number of its step; dense, for convolutions that may skip zeros count some there.
    """
    sizes = ['--no-sparse-spikes', '--batch-size', '16', '--max-val-samples', '8', '--opt', 'sgd', '--log-with', 'none']
    counts = []
    for steps in (3, 8):
        calls.clear()
        train(*QUICK, *sizes, *more, '--workers', '1', '--max-steps', steps, '--output', tmp_path / str(steps))
        counts.append(Counter(calls))
    difference = counts[1] - counts[0]
    assert difference == {'reads': 5, 'collectives': 5}


def test_where_updates_are_not_waited_for_a_look_is_one_read(train, tmp_path, calls, monkeypatch):
    """As on a GPU: looks after updates 1, 2, 11 and 21, and one collective for every update."""
    monkeypatch.setattr('timm_snn.training.watch.can_defer', lambda *_: True)
    monkeypatch.setattr('timm_snn.training.watch.PATIENCE', 1e9)
    sizes = ['--no-sparse-spikes', '--batch-size', '16', '--max-val-samples', '8', '--opt', 'sgd', '--log-with', 'none']
    counts = []
    for steps in (11, 21):
        calls.clear()
        train(*QUICK, *sizes, '--workers', '1', '--max-steps', steps, '--output', tmp_path / str(steps))
        counts.append(Counter(calls))
    assert counts[1] - counts[0] == {'reads': 1, 'collectives': 10}
