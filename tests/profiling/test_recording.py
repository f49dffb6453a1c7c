"""`record` shows what neurons do and changes nothing, whatever runs them."""

import copy
import importlib
import re
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import timm_snn
from tests.conftest import lively
from tests.support.families import SMALLEST, shallow
from timm_snn.layers import LIF, ConvBnLif, ParametricLIF, neurons
from timm_snn.ops.native.build import why_not_here
from timm_snn.profiling.steps import is_neuron

BACKENDS = ['torch', pytest.param('cpp', marks=pytest.mark.skipif(why_not_here() is not None, reason='not built'))]


def images(model, batch=2, size=(32, 48)):
    weight = next(model.parameters())
    return torch.rand(batch, model.in_chans, *size, dtype=weight.dtype)


def neurons_of(model) -> list[str]:
    return [name for name, module in model.named_modules() if is_neuron(module)]


@pytest.fixture(params=BACKENDS)
def backend(request):
    with timm_snn.use_backend(request.param):
        yield request.param


@pytest.fixture(scope='module', params=SMALLEST)
def member(request):
    torch.manual_seed(0)
    return lively(shallow(timm.create_model(request.param, num_steps=2, num_classes=10)).double().eval())


def test_every_neuron_of_every_family_is_there_with_gradients(member):
    x = images(member)
    logits = member(x)
    with timm_snn.record(member, membranes=True, currents=True) as r:
        recorded = member(x)
    torch.testing.assert_close(recorded, logits)
    assert set(r.spikes) == set(r.currents) == set(neurons_of(member))
    assert all(spikes.shape[:2] == (2, 2) for spikes in r.spikes.values())
    for name in r.membranes:
        neuron = member.get_submodule(name)
        assert torch.equal(r.membranes[name] >= neuron.neuron.v_threshold, r.spikes[name] > 0)
    assert all(type(member.get_submodule(name)) is not LIF for name in set(r.spikes) - set(r.membranes))
    loss = sum(spikes.mean() for spikes in r.spikes.values())
    assert torch.autograd.grad(loss, next(member.stem.parameters()))[0].abs().sum() > 0


@pytest.mark.parametrize('training', [True, False])
def test_spikes_come_from_fused_kernels_and_all_numbers_stay(backend, training):
    model = lively(timm.create_model('msvit_4_96', num_steps=2)).train(training)
    twin, x = copy.deepcopy(model), torch.rand(2, 1, 32, 32)
    expected = model(x)
    expected.square().sum().backward()
    with timm_snn.record(twin) as r:
        logits = twin(x)
    logits.square().sum().backward()
    assert torch.equal(logits, expected)
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    for one, other in zip(model.buffers(), twin.buffers(), strict=True):
        assert torch.equal(one, other)
    assert not r.unfused and set(r.spikes) == set(neurons_of(model))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in twin.modules())


def test_the_neuron_in_mssa_leaves_its_kernel_and_no_other_does(backend, monkeypatch, small):
    def mssa(queries, k, tau, neuron):
        return timm_snn.ops.lif(sum(q.sum(3, keepdim=True) for q in queries), backend='torch') * k

    implementation = importlib.import_module(f'timm_snn.ops.backends.{"reference" if backend == "torch" else backend}')
    monkeypatch.setattr(implementation, 'mssa', mssa, raising=False)
    x = torch.rand(2, 1, 28, 28).double()
    with torch.no_grad(), timm_snn.record(small) as r:
        logits = small(x)
    assert torch.equal(logits, small(x))
    assert r.unfused == ['stages.0.blocks.0.attn.attn_lif', 'stages.1.blocks.0.attn.attn_lif']
    assert set(r.spikes) == set(neurons_of(small))


def test_a_neuron_that_leaves_its_kernel_is_named(backend):
    unit, x = ConvBnLif(2, 3), torch.rand(2, 2, 2, 4, 4)
    for wanted, leaves in ((dict(), False), (dict(currents=True), True), (dict(membranes=True), True)):
        with timm_snn.record(unit, **wanted) as r:
            unit(x)
        assert r.unfused == (['lif'] if leaves and backend == 'cpp' else [])
        assert list(r.spikes) == ['lif']


def test_gradients_through_the_record_are_those_of_the_equations(backend):
    neuron = LIF(tau=3.0, v_reset=None, surrogate='atan', detach_reset=False)
    x = torch.randn(4, 2, 5, dtype=torch.float64, requires_grad=True)
    with timm_snn.record(neuron, membranes=True, currents=True) as r:
        spikes = neuron(x)
    v, potentials = torch.zeros(2, 5, dtype=torch.float64), []
    for x_t in x:
        potentials.append(v + (x_t - v) / 3)
        v = potentials[-1] - timm_snn.ops.lif(potentials[-1][None], tau=1.0, surrogate='atan', backend='torch')[0]
    weight = torch.randn_like(x)
    torch.testing.assert_close(r.membranes[''], torch.stack(potentials))
    found, expected = ((m * weight).sum() for m in (r.membranes[''], torch.stack(potentials)))
    torch.testing.assert_close(*(torch.autograd.grad(loss, x, retain_graph=True)[0] for loss in (found, expected)))
    assert r.spikes[''] is spikes and r.currents[''] is x
    assert torch.autograd.grad(spikes.sum(), r.currents[''])[0].abs().sum() > 0


@pytest.mark.parametrize(
    'neuron',
    [
        *(LIF(), LIF(v_reset=None, tau=3.0), LIF(v_reset=-0.5, decay_input=False, v_threshold=0.7)),
        *(ParametricLIF(tau=1.5), ParametricLIF(torch.linspace(1.5, 3, 50)), LIF(learn_threshold=True, per_channel=50)),
    ],
    ids=['default', 'soft reset', 'resting below zero', 'parametric', 'by channel', 'learned threshold'],
)
def test_membranes_are_at_the_threshold_where_the_neuron_fires(neuron):
    if neuron.log_threshold is not None:
        torch.nn.init.uniform_(neuron.log_threshold, -0.5, 0.5)
    current = 3 * torch.randn(9, 2, 50, dtype=torch.float64)
    with timm_snn.record(neuron, membranes=True) as r:
        spikes = neuron(current)
    assert torch.equal(spikes, neuron(current)) and 0.1 < spikes.mean() < 0.9
    assert torch.equal(r.membranes[''] >= neuron.v_threshold, spikes > 0)


@pytest.mark.parametrize('wanted', [dict(), dict(membranes=True, currents=True)])
def test_checkpointing_gives_the_same_once(backend, wanted):
    model = lively(shallow(timm.create_model('msvit_4_96', num_steps=2)).double().train())
    twin, x = copy.deepcopy(model), torch.rand(2, 1, 32, 32, dtype=torch.float64)
    twin.set_grad_checkpointing()
    records = []
    for each in (model, twin):
        with timm_snn.record(each, **wanted) as r:
            loss = each(x).square().sum()
        loss = loss + sum(spikes.mean() ** 2 for spikes in r.spikes.values())
        before = list(r.spikes)
        loss.backward()  # after the block
        assert list(r.spikes) == before == list(dict.fromkeys(before)) and not any('#' in name for name in before)
        records.append(r)
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    assert all(torch.equal(records[1].spikes[name], spikes) for name, spikes in records[0].spikes.items())


def test_each_pass_replaces_the_last_one(small):
    x = torch.rand(2, 1, 28, 28).double()
    with timm_snn.record(small) as r:
        small(x)
        first = dict(r.spikes)
        for run in (small.forward_steps, small.forward_features, small):
            run(x[:1])
            assert all(spikes.shape[1] == 1 for spikes in r.spikes.values()) and set(r.spikes) <= set(first)
        small(x)
    assert all(torch.equal(r.spikes[name], spikes) for name, spikes in first.items())


def test_blocks_are_nested_and_other_models_are_left_alone(backend):
    model, other = (lively(timm.create_model('msvit_4_96', num_steps=2)).eval() for _ in range(2))
    x = torch.rand(1, 1, 28, 28)
    with torch.no_grad():
        alone = other(x)
        with timm_snn.record(model) as outer:
            with timm_snn.record(model.stages, membranes=True) as inner:
                model(x)
            assert torch.equal(other(x), alone)
            assert 'stem.units.0.lif' in outer.spikes and not outer.membranes
        assert {f'stages.{name}' for name in inner.spikes} < set(outer.spikes)
        assert set(inner.membranes) == set(inner.spikes)
        assert torch.equal(other(x), alone)


def test_an_exception_leaves_no_hook_and_no_wrong_pass(small):
    x = torch.rand(1, 1, 28, 28).double()

    def fail():
        with timm_snn.record(small) as r:
            small(x)
            names = list(r.spikes)
            with pytest.raises(ValueError, match='expected images'):
                small(x[0])
            small(x)
            assert list(r.spikes) == names
            raise RuntimeError('of the user')

    with pytest.raises(RuntimeError, match='of the user'):
        fail()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in small.modules())
    assert timm_snn.ops.switches.switches().watch is None


class Own(nn.Module):
    """A neuron that nobody knows, but for its threshold."""

    v_threshold = 0.5

    def __init__(self, **settings):
        super().__init__()

    def forward(self, x):
        return (x > self.v_threshold).to(x)


class Functional(nn.Module):
    def forward(self, x):
        s, v = timm_snn.lif_stream(timm_snn.lif(x))
        return torch.cat([s, timm_snn.lif_stream(s, v)[0]])


def test_own_neurons_have_spikes_and_currents():
    model = timm.create_model('msvit_4_96', lif_layer=Own, num_steps=2)
    with timm_snn.record(model, membranes=True, currents=True) as r:
        model(torch.rand(1, 1, 28, 28))
    assert set(r.spikes) == set(neurons_of(model)) == set(r.currents)
    with pytest.raises(KeyError, match=r"no membrane of 'stem\.units\.0\.lif': there are those of LIF"):
        r.membranes['stem.units.0.lif']
    with timm_snn.record(model) as r, pytest.raises(KeyError, match=r'record\(model, currents=True\)'):
        r.currents['stem.units.0.lif']


def test_subclasses_of_lif_show_what_enters_and_leaves_them():
    class Doubled(LIF):
        def forward(self, x):
            return super().forward(2 * x)

    neuron, x = Doubled(), torch.rand(3, 2, 4)
    with timm_snn.record(neuron, membranes=True, currents=True) as r:
        spikes = neuron(x)
    assert r.currents[''] is x and r.spikes[''] is spikes
    assert torch.equal(r.membranes[''] >= 1, spikes > 0)


def test_calls_of_the_function_are_named_after_their_module():
    model = nn.Sequential(Functional(), LIF())
    with timm_snn.record(model) as r:
        model(torch.rand(3, 2, 4))
    assert {name: len(spikes) for name, spikes in r.spikes.items()} == {'0.lif': 3, '0.lif#2': 6, '1': 6}


def test_a_neuron_at_several_places_is_there_several_times():
    shared = LIF()
    model = nn.Sequential(shared, nn.Identity(), shared)
    with timm_snn.record(model) as r:
        for _ in range(2):
            model(torch.rand(3, 2, 4))
    assert list(r.spikes) == ['0', '0#2']


@pytest.mark.parametrize('step_mode', ['s', 'm'])
def test_neurons_of_spikingjelly(step_mode):
    neuron = pytest.importorskip('spikingjelly.activation_based.neuron')

    class Steps(nn.Sequential):
        def forward(self, x):
            return super().forward(x) if step_mode == 'm' else torch.stack([super(Steps, self).forward(t) for t in x])

    model = Steps(nn.Linear(4, 3), neuron.LIFNode(step_mode=step_mode))
    with timm_snn.record(model, currents=True) as r:
        y = model(torch.rand(5, 2, 4))
    assert torch.equal(r.spikes['1'], y) and r.currents['1'].shape == (5, 2, 3)


def test_wrapped_and_compiled_models(small):
    x = torch.rand(2, 1, 28, 28).double()
    with torch.no_grad(), timm_snn.record(small) as r:
        small(x)
        expected = dict(r.spikes)
    averaged = torch.optim.swa_utils.AveragedModel(small)
    compiled = torch.compile(small, backend='eager')
    for model in (averaged, compiled):
        with torch.no_grad(), timm_snn.record(model) as r:
            model(x)
        assert list(r.spikes) == list(expected)
        assert all(torch.equal(r.spikes[name], spikes) for name, spikes in expected.items())


def test_what_cannot_be_recorded_is_refused(small):
    with pytest.raises(ValueError, match='expected a model, an nn'), timm_snn.record(torch.jit.script(LIF())):
        pass
    with pytest.raises(ValueError, match='ask for spikes'), timm_snn.record(small, spikes=False):
        pass


def test_the_page_on_records_runs(tmp_path, monkeypatch):
    pytest.importorskip('matplotlib')
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / 'docs' / 'inside.md').read_text()
    names: dict = {}
    for block in re.findall(r'```python\n(.*?)```', page, re.DOTALL):
        exec(block, names)
    assert sorted(file.name for file in tmp_path.iterdir()) == ['attention.png', 'membranes.png', 'raster.png']


@pytest.mark.parametrize('name', [name for name in neurons.names() if name != 'relu'])
def test_every_registered_neuron_is_recorded(name):
    model = shallow(timm.create_model('msvit_4_96', lif_layer=name, num_steps=4)).eval()
    x = torch.rand(1, 1, 28, 28)
    with torch.no_grad(), timm_snn.record(model, currents=True) as r:
        logits = model(x)
    torch.testing.assert_close(logits, model(x))
    assert set(r.spikes) == set(r.currents) == set(neurons_of(model))
