"""Updates that are recorded and replayed, with a stand-in for CUDA's graph; tests/test_gpu.py has the real one."""

import copy
from argparse import Namespace

import pytest
import timm
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.support.families import SMALLEST, shallow
from tests.training.test_watch import Small, capturable, deferring, muon  # noqa: F401  # fixtures
from timm_snn.layers.registry import neurons
from timm_snn.training import graph
from timm_snn.training.errors import UserError
from timm_snn.training.graph import Replayed, check_graph


class FakeGraph:
    """Replays by calling the function again, with the rates in the tensors that it saw when it was recorded."""

    optimizer: torch.optim.Optimizer

    def __init__(self, function):
        self.function = function
        self.rates = [group['lr'] for group in self.optimizer.param_groups]
        assert all(isinstance(rate, torch.Tensor) for rate in self.rates)

    def replay(self):
        groups = self.optimizer.param_groups
        numbers = [group['lr'] for group in groups]
        for group, rate in zip(groups, self.rates, strict=True):
            group['lr'] = rate
        self.function()
        for group, number in zip(groups, numbers, strict=True):
            group['lr'] = number


def trained(folder, monkeypatch, is_recorded, opt=torch.optim.AdamW):
    run = Small(folder, opt)
    monkeypatch.setattr(FakeGraph, 'optimizer', run.optimizer, raising=False)
    monkeypatch.setattr(graph, 'CudaGraph', FakeGraph)
    update = Replayed(run.update, run.optimizer) if is_recorded else run.update
    for number in range(7):
        run.optimizer.param_groups[0]['lr'] = 0.1 / (1 + number)  # a schedule
        run.watch.tell()
        update((torch.rand(8, 3), torch.arange(8) % 2) for _ in range(2))
        run.watch.end()
    run.watch.look()
    return run, update


@pytest.mark.usefixtures('deferring', 'capturable')
@pytest.mark.parametrize(
    ('opt', 'tolerance'),
    [(torch.optim.AdamW, dict(rtol=1e-6, atol=1e-7)), (muon, dict(rtol=5e-3, atol=1e-4))],
)
def test_a_replayed_run_is_the_same_run(tmp_path, monkeypatch, opt, tolerance):
    plain, _ = trained(tmp_path / 'plain', monkeypatch, False, opt)
    recorded, update = trained(tmp_path / 'recorded', monkeypatch, True, opt)
    for ours, theirs in zip(recorded.state().values(), plain.state().values(), strict=True):
        # a rate in a tensor is float32, and Muon's products are bfloat16
        torch.testing.assert_close(ours, theirs, **tolerance)
    assert recorded.progress.updates == 7 and recorded.progress.hits == plain.progress.hits
    assert isinstance(recorded.optimizer.param_groups[0]['lr'], float)
    with pytest.raises(UserError, match=r'recorded with a batch of \[8, 3\].* \[5, 3\]'):
        update([(torch.rand(5, 3), torch.zeros(5, dtype=torch.long))] * 2)


@pytest.mark.usefixtures('deferring')
def test_a_graph_is_recorded_anew_for_other_shapes(tmp_path, monkeypatch):
    recorded = []
    run, update = trained(tmp_path, monkeypatch, True)
    monkeypatch.setattr(graph, 'CudaGraph', lambda function: recorded.append(function) or FakeGraph(function))
    update.forget()
    for number in range(2 * graph.WARM_UP):
        update([(torch.rand(6, 3), torch.arange(6) % 2)] * 2)
        run.watch.end()
        assert len(recorded) == (number >= graph.WARM_UP)
    run.watch.look()
    assert run.progress.updates == 7 + 2 * graph.WARM_UP


class Copies(TorchDispatchMode):
    """Notes what takes a tensor of the host."""

    def __init__(self):
        super().__init__()
        self.notes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        if any(x.device.type == 'cpu' for x in tensors):
            self.notes.append(function)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ('name', 'neuron'), [*((name, None) for name in SMALLEST), *(('msvit_4_96', name) for name in neurons.names())]
)
def test_a_network_reads_no_value_and_copies_none_from_the_host(name, neuron):
    """Forward and back: a GPU refuses to record either. A meta tensor refuses to be read, for it has no values."""
    settings = {} if neuron is None else dict(lif_layer=neuron)
    model = shallow(timm.create_model(name, num_steps=1 if neuron == 'relu' else 2, **settings)).to('meta').train()
    images = torch.rand(2, *model.pretrained_cfg['input_size'], device='meta')
    with Copies() as copies:
        model(images).square().sum().backward()
    assert not copies.notes


FINE = dict(compile=False, grad_checkpointing=False, packed_spikes=False, opt='adamw')


@pytest.mark.parametrize(
    ('options', 'facts', 'reason'),
    [
        ({}, dict(device=torch.device('cpu')), 'needs a CUDA device'),
        ({}, dict(num_processes=2), 'takes one process'),
        ({}, dict(scaler=object()), 'bf16'),
        (dict(compile=True), {}, '--compile'),
        (dict(grad_checkpointing=True), {}, '--grad-checkpointing'),
        (dict(packed_spikes=True), {}, '--packed-spikes'),
        (dict(opt='lamb'), {}, '--opt lamb cannot be recorded'),
    ],
)
def test_what_cannot_be_recorded_is_refused_in_one_line(options, facts, reason):
    machine = Namespace(device=torch.device('cuda'), num_processes=1, scaler=None, distributed_type=None)
    weight = torch.nn.Parameter(torch.zeros(1))
    kind = torch.optim.Adagrad if options.get('opt') == 'lamb' else torch.optim.AdamW
    check_graph(machine, torch.optim.AdamW([weight]), **FINE)
    refusing = copy.copy(machine)
    vars(refusing).update(facts)
    with pytest.raises(UserError, match=reason) as stop:
        check_graph(refusing, kind([weight]), **(FINE | options))
    assert '\n' not in str(stop.value)
