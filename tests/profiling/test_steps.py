"""T of networks that are not ours is measured, checked or asked for, and their state is put at rest and back."""

import pytest
import timm
import torch
from torch import nn

from tests.conftest import lively
from tests.support.profiling import profile, same_counts
from timm_snn import LIF, lif, lif_stream

X = torch.rand(8, 1, 6, 5, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two layers of T = 4 whose neurons are `kind`; T has no name, or a wrong one."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.kind, self.time_step, self.calls = kind, 4, 0
        self.first, self.second, self.fc = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 2, 1), nn.Linear(2, 4)
        self.first.weight.data.abs_(), self.second.weight.data.abs_()
        self.lif = LIF(v_threshold=0.4)

    def fire(self, x):
        return self.lif(x) if self.kind == 'module' else lif(x, v_threshold=0.4)

    def forward(self, x):
        self.calls += 1
        if self.kind in ('stream', 'loop'):
            return self.loop(x)
        x = x.expand(4, *x.shape)
        for conv in (self.first, self.second):
            x = self.fire(conv(x.flatten(0, 1)).unflatten(0, [4, -1]))
        return self.fc(x.mean((0, 3, 4)))

    def loop(self, x):
        v, w, total = None, None, 0.0
        for _ in range(4):
            if self.kind == 'stream':
                y, v = lif_stream(self.first(x)[None], v, v_threshold=0.4)
                y, w = lif_stream(self.second(y[0])[None], w, v_threshold=0.4)
            else:
                y = self.lif(self.second(self.lif(self.first(x)[None])[0])[None])
            total = total + y[0].mean((2, 3)) / 4
        return self.fc(total)


def numbers(report):
    return [report.num_steps, *(round(1e6 * e.mj, 6) for e in report.energy.values()), report.total.neurons]


@pytest.mark.parametrize('kind', ['module', 'function', 'stream'])
def test_steps_without_a_name_are_measured(kind):
    expected = numbers(profile(Net('module'), X, num_steps=4))
    for batch_size in (8, 4, 3, 1):
        report = profile(Net(kind), list(X.split(batch_size)))
        assert numbers(report) == expected and report.total.firing_rate > 0.01


def test_steps_that_cannot_be_told_are_asked_for():
    with pytest.raises(ValueError, match=r'called 8 times for one step each.*pass num_steps'):
        profile(Net('loop'), X)
    assert profile(Net('loop'), X, num_steps=4).num_steps == 4


@pytest.mark.parametrize('num_steps', [0, 2.5, '4', True])
def test_num_steps_is_a_whole_number(num_steps):
    with pytest.raises(ValueError, match='num_steps must be a whole number'):
        profile(Net('module'), X, num_steps=num_steps)


def test_another_num_steps_than_measured_is_refused():
    for model in (Net('module'), Net('function'), Net('stream')):
        with pytest.raises(ValueError, match=r'expected T=3, and the neurons of this network run for 4 steps'):
            profile(model, X, num_steps=3)
    with pytest.raises(ValueError, match=r'expected T=2.* run for 4 steps'):
        profile(timm.create_model('msvit_4_96'), torch.rand(1, 1, 28, 28), num_steps=2)


def test_different_steps_in_different_parts_are_refused():
    class Parts(Net):
        def forward(self, x):
            return super().forward(x) + lif(x.expand(2, *x.shape)).mean()

    with pytest.raises(ValueError, match=r'different numbers of steps, \[2, 4\]'):
        profile(Parts('module'), X)


def test_spikes_of_unknown_neurons_are_refused():
    class Threshold(nn.Module):
        def forward(self, x):
            return (x > 0.1).float()

    net = nn.Sequential(nn.Conv2d(1, 3, 3), Threshold(), nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(24, 2))
    net[0].weight.data.abs_()
    with pytest.raises(ValueError, match='2 is fed spikes, but no neurons are known'):
        profile(net, X)
    assert profile(net, X, num_steps=1).num_steps == 1


class Membrane(nn.Module):
    """A neuron for one step that keeps its membrane, under a name that nobody knows or as SpikingJelly calls it."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place, self.v_threshold, self.state, self.held = place, 0.4, {}, [None]
        self.mem = None
        if place == 'buffer':
            del self.mem
            self.register_buffer('mem', torch.zeros(1), persistent=False)

    def forward(self, x):
        old = {'dict': self.state.get('v'), 'list': self.held[0]}.get(self.place, getattr(self, 'mem', None))
        v = (0.0 if old is None else 0.5 * old) + 0.5 * x
        spikes = (v >= self.v_threshold).float()
        v = v * (1 - spikes)
        if self.place == 'dict':
            self.state['v'] = v
        elif self.place == 'list':
            self.held[0] = v
        elif self.place == 'data' and self.mem is not None and self.mem.shape == v.shape:
            self.mem.data = v
        else:
            self.mem = v
        return spikes


class Stateful(nn.Module):
    def __init__(self, place: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.neuron, self.fc = nn.Conv2d(1, 3, 3), Membrane(place), nn.Linear(36, 2)
        self.conv.weight.data.abs_()

    def forward(self, x):
        return sum(self.fc(self.neuron(self.conv(x)).flatten(1)) for _ in range(3))


@pytest.mark.parametrize('place', ['attribute', 'buffer', 'dict', 'list', 'data'])
def test_every_batch_begins_at_rest_and_the_network_keeps_its_state(place):
    net = Stateful(place)
    reports = [profile(net, list(X.split(size))) for size in (8, 4, 3) for _ in range(2)]
    assert len({tuple(numbers(report)) for report in reports}) == 1 and reports[0].num_steps == 3
    neuron = net.neuron
    assert (
        neuron.state == {} and neuron.held == [None] and (neuron.mem is None or torch.equal(neuron.mem, torch.zeros(1)))
    )


@pytest.mark.parametrize('place', ['attribute', 'buffer', 'dict', 'list'])
def test_membranes_of_an_earlier_batch_are_refused(place):
    net = Stateful(place)
    with torch.no_grad():
        net(X)
    with pytest.raises(ValueError, match=r'neuron\.\w+(\.v)? of the network holds values of an earlier batch'):
        profile(net, X)


def test_a_neuron_that_can_be_reset_gets_its_membrane_back():
    net, expected = Stateful('attribute'), numbers(profile(Stateful('attribute'), X))
    net.neuron.reset = lambda: setattr(net.neuron, 'mem', None)
    with torch.no_grad():
        net(X)
    membrane, values = net.neuron.mem, net.neuron.mem.clone()
    assert numbers(profile(net, X)) == expected
    assert net.neuron.mem is membrane and torch.equal(membrane, values)


def test_what_a_network_only_writes_down_is_no_state():
    class Curious(Net):
        def forward(self, x):
            self.seen = x
            return super().forward(x)

    net = Curious('module')
    net(X)
    assert numbers(profile(net, X)) == numbers(profile(Net('module'), X))
    assert net.seen is X and net.calls == 1


def test_spikingjellys_networks():
    """Of many steps or one, with T under any name, are the same network."""
    pytest.importorskip('spikingjelly')
    from spikingjelly.activation_based import functional, layer, neuron

    class Jelly(nn.Module):
        def __init__(self, mode):
            super().__init__()
            torch.manual_seed(0)
            self.mode, self.time = mode, 4
            self.conv = layer.Conv2d(1, 3, 3, step_mode=mode)
            self.conv.weight.data.abs_()
            self.lif = neuron.LIFNode(step_mode=mode, v_threshold=0.3)
            self.last = layer.Conv2d(3, 2, 1, step_mode=mode)

        def forward(self, x):
            if self.mode == 's':
                return sum(self.last(self.lif(self.conv(x))) for _ in range(4))
            return self.last(self.lif(self.conv(x.expand(4, *x.shape)))).sum(0)

    reports = []
    for mode in 'ms':
        net = Jelly(mode)
        net(X)
        membrane = net.lif.v.clone()
        reports += [profile(net, list(X.split(size))) for size in (8, 4, 3) for _ in range(2)]
        assert torch.equal(net.lif.v, membrane)
        functional.reset_net(net)
    for report in reports[1:]:
        same_counts(reports[0], report)
    assert reports[0].num_steps == 4 and reports[0].total.firing_rate > 0.01


def test_snntorchs_hidden_states():
    snntorch = pytest.importorskip('snntorch')

    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.fc = nn.Conv2d(1, 3, 3), nn.Linear(36, 2)
            self.conv.weight.data.abs_()
            self.lif = snntorch.Leaky(0.9, threshold=0.4, init_hidden=True)

        def forward(self, x):
            return sum(self.fc(self.lif(self.conv(x)).flatten(1)) for _ in range(5))

    net = Loop()
    net(X)
    membrane = net.lif.mem.clone()
    reports = [profile(net, list(X.split(size))) for size in (8, 4, 3) for _ in range(2)]
    for report in reports[1:]:
        same_counts(reports[0], report)
    assert reports[0].num_steps == 5 and torch.equal(net.lif.mem, membrane)


def test_a_neuron_at_two_places_counts_for_both():
    class Shared(nn.Module):
        num_steps = 2

        def __init__(self, one):
            super().__init__()
            self.a = LIF(v_threshold=0.1)
            self.b = self.a if one else LIF(v_threshold=0.1)

        def forward(self, x):
            x = self.a(x.expand(2, *x.shape))
            return self.b(nn.functional.avg_pool2d(x.flatten(0, 1), 2).unflatten(0, [2, -1]))

    one, two = profile(Shared(True), X), profile(Shared(False), X)
    for name in ('neurons', 'neuron_updates', 'state_bytes', 'firing_rate'):
        assert getattr(one.total, name) == pytest.approx(getattr(two.total, name))


WRAPPERS = {
    'data parallel': nn.DataParallel,
    'averaged': torch.optim.swa_utils.AveragedModel,
    'compiled': lambda m: torch.compile(m, backend='eager'),
    'both': lambda m: nn.DataParallel(torch.compile(m, backend='eager')),
    'sequence': lambda m: nn.Sequential(nn.Identity(), m),
    'two sequences': lambda m: nn.Sequential(nn.Sequential(nn.Identity(), m)),
}


@pytest.mark.parametrize('wrap', WRAPPERS)
def test_the_stages_in_a_wrapper_are_those_of_the_model(wrap):
    model, images = lively(timm.create_model('msvit_4_96').eval()), torch.rand(2, 1, 28, 28)
    plain, wrapped = profile(model, images), profile(WRAPPERS[wrap](model), images)
    for one, other in zip(plain.stages, wrapped.stages, strict=True):
        assert (one.name, one.parameters, one.dense_macs) == (other.name, other.parameters, other.dense_macs)
    assert wrapped.energy == plain.energy and wrapped.num_steps == 4


def test_transformers_wrapper():
    transformers = pytest.importorskip('transformers')
    config = transformers.TimmWrapperConfig.from_dict(
        {'architecture': 'resnet18', 'num_classes': 3, 'do_pooling': True}
    )
    model = transformers.TimmWrapperForImageClassification(config)
    images = torch.rand(2, 3, 32, 32), torch.arange(2)
    plain, wrapped = profile(model.timm_model, images), profile(model, images)
    assert [row.name for row in plain.stages] == [row.name for row in wrapped.stages]
    assert wrapped.top1 == plain.top1 is not None


def test_dropout_is_off_and_the_mode_comes_back():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Dropout(0.5), nn.Conv2d(2, 2, 1)).train()
    assert profile(net, X) == profile(net, X) and net[1].training
