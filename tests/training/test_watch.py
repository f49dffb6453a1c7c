"""Updates that are not looked at one by one: what stops, what is kept, and what the host waits for."""

import copy
import itertools
import json
import math
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from timm.optim import Muon
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from timm_snn.training import watch as file
from timm_snn.training.checkpoints import Checkpoints
from timm_snn.training.errors import UserError
from timm_snn.training.progress import Progress
from timm_snn.training.watch import Watch


class Small:
    """A run of updates, as recipes/train.py makes them, on a tiny network."""

    def __init__(self, folder, opt=torch.optim.AdamW):
        torch.manual_seed(0)
        self.accelerator = Accelerator(cpu=True)
        self.model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 2))
        self.optimizer = opt(self.model.parameters(), lr=0.1)
        self.prepared = self.accelerator.prepare(self.model)
        checkpoints = Checkpoints(self.accelerator, folder, Progress(), {}, {}, None, 2, 'eval_top1')
        self.accelerator.prepare(self.optimizer)
        args = self.accelerator, self.model, self.prepared, self.optimizer, checkpoints
        self.watch, self.progress = Watch(*args, SimpleNamespace(came=False), 8), checkpoints.progress

    def update(self, batches):
        self.watch.begin()
        for images, targets in batches:
            logits = self.prepared(images)
            loss = nn.functional.cross_entropy(logits, targets)
            loss.backward()
            self.watch.add(loss, logits, targets)
        self.watch.clip(1.0, {'images': images, 'labels': targets, 'logits': logits})
        self.optimizer.step()
        self.optimizer.zero_grad()

    def step(self, value=1.0):
        self.watch.tell()
        self.update([(value * torch.rand(8, 3), torch.arange(8) % 2)])
        self.watch.end()

    def state(self):
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}


@pytest.fixture
def deferring(monkeypatch):
    """As on a GPU: torch's fused optimizers leave out an update on a CPU too."""
    monkeypatch.setattr(file, 'can_defer', lambda accelerator, optimizer: True)


@pytest.mark.parametrize('opt', [torch.optim.AdamW, torch.optim.SGD])
def test_a_failure_that_is_seen_later_leaves_the_state_before_it(deferring, tmp_path, opt):
    run = Small(tmp_path, opt)
    for _ in range(3):
        run.step()
    before = run.state()
    for value in (math.nan, 1.0, math.inf, 1.0):
        run.step(value)
    assert all(torch.equal(p, before[name]) for name, p in run.model.named_parameters())
    with pytest.raises(UserError, match='loss nan, gradient norm nan in update 4 of epoch 1'):
        run.watch.look()
    saved = load_file(tmp_path / 'failed' / 'state' / 'model.safetensors')
    assert saved.keys() == before.keys() and all(torch.equal(saved[name], before[name]) for name in before)
    assert load_file(tmp_path / 'failed' / 'batch_0.safetensors')['images'].isnan().all()
    facts = json.loads((tmp_path / 'failed' / 'facts.json').read_text())
    assert '0.weight' in facts['gradients that are not finite'] and run.progress.updates == 3
    steps = [float(state['step']) for state in run.optimizer.state.values() if 'step' in state]
    assert all(step == 3 for step in steps)


def muon(params, lr):
    """Of matrices that timm thinks too small for it."""
    params = list(params)
    matrices, others = ([p for p in params if (p.ndim > 1) == is_one] for is_one in (True, False))
    return Muon([{'params': matrices, 'use_muon': True}, {'params': others}], lr=lr)


@pytest.fixture
def capturable(monkeypatch):
    """As on a GPU."""
    monkeypatch.setattr('timm.optim.adamw._check_capturable_devices', lambda *_: None)


def test_muon_goes_back_to_the_state_before_a_failure(deferring, capturable, tmp_path):
    run = Small(tmp_path, muon)
    for _ in range(3):
        run.step()
    before, moments = run.state(), copy.deepcopy(run.optimizer.state_dict()['state'])
    assert {state['use_muon'] for state in moments.values()} == {True, False}
    for value in (math.nan, 1.0, math.inf):
        run.step(value)
    with pytest.raises(UserError, match='in update 4 of epoch 1'):
        run.watch.look()
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.state().items())
    after = run.optimizer.state_dict()['state']
    assert all(torch.equal(after[i][key], x) for i in after for key, x in moments[i].items() if key != 'use_muon')


def test_a_failure_in_batches_of_another_shape_than_the_first_is_kept(deferring, tmp_path):
    run = Small(tmp_path)
    for batch in (8, 8, 4):
        run.watch.tell()
        run.update([((math.nan if batch == 4 else 1.0) * torch.rand(batch, 3), torch.arange(batch) % 2)])
        run.watch.end()
    with pytest.raises(UserError, match='in update 3 of epoch 1'):
        run.watch.look()
    assert load_file(tmp_path / 'failed' / 'batch_0.safetensors')['images'].shape == (4, 3)


def test_updates_do_not_wait_for_the_device(deferring, tmp_path):
    run = Small(tmp_path)
    run.step()  # makes the optimizer's state
    reads = []

    class Reads(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten._local_scalar_dense.default:
                reads.append(function)
            return function(*args, **(kwargs or {}))

    with Reads():
        for _ in range(5):
            run.step()
    assert not reads and run.watch.updates == 6


def test_a_look_adds_what_looks_at_every_update_add(monkeypatch, tmp_path):
    sums = []
    for looks in (1, 5):
        monkeypatch.setattr(file, 'can_defer', lambda *_: True)
        run = Small(tmp_path / str(looks))
        for number in range(5):
            run.step()
            if (number + 1) % looks == 0:
                run.watch.look()
        sums.append((run.progress.updates, run.progress.loss_sum, run.progress.hits, run.progress.seen))
    assert sums[0] == sums[1] and sums[0][0] == 5


def test_slow_updates_are_looked_at_sooner_and_the_signal_is_seen(deferring, tmp_path, monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(file, 'time', SimpleNamespace(perf_counter=lambda: 0.5 * next(clock)))
    run = Small(tmp_path)
    run.step()
    assert run.watch.is_due and not run.watch.look() and run.watch.interval == 1
    run.step()
    assert run.watch.is_due and not run.watch.look() and run.watch.interval == file.PATIENCE / 0.5
    run.watch.stop.came = True
    run.step()
    assert not run.watch.is_due and run.watch.look()


def test_a_cpu_looks_at_every_update_before_its_optimizer_steps(tmp_path):
    run = Small(tmp_path)
    run.step()
    run.watch.look()
    before = run.state()
    with pytest.raises(UserError, match='in update 2 of epoch 1'):
        run.step(math.nan)
    assert all(torch.equal(p, before[name]) for name, p in run.model.named_parameters())
    assert run.watch.interval == 1 and not run.optimizer.param_groups[0]['fused']
