"""The checks that we hand to others find what they name, and pass what is right."""

import pytest
import torch

import timm_snn
from timm_snn import testing
from timm_snn.layers import neurons


class Remembers(timm_snn.LIF):
    """Its membranes go on in the next call."""

    def forward(self, x):
        spikes, self.v = timm_snn.lif_stream(x, getattr(self, 'v', None))
        return spikes


class SeesTheFuture(timm_snn.LIF):
    def forward(self, x):
        return super().forward(x.flip(0))


class SeesNeighbours(timm_snn.LIF):
    def forward(self, x):
        return super().forward(x + x.mean(1, keepdim=True))


class HasNoGradient(timm_snn.LIF):
    def forward(self, x):
        return super().forward(x.detach())


class IsSilent(timm_snn.LIF):
    def forward(self, x):
        return torch.zeros_like(x)


class Widens(timm_snn.LIF):
    def forward(self, x):
        return super().forward(x.float())


@pytest.mark.parametrize('name', sorted(set(neurons.names()) - {'relu'}))
@pytest.mark.parametrize('check', testing.NEURON_CHECKS)
def test_the_neurons_here_pass(check, name):
    if (name, check) == ('psn', testing.check_neuron_causality):
        with pytest.raises(AssertionError, match='a step saw a later one'):  # its nature
            check(neurons.get(name))
    else:
        check(neurons.get(name))


@pytest.mark.parametrize(
    ('check', 'neuron'),
    [
        (testing.check_neuron_memory, Remembers),
        (testing.check_neuron_memory, IsSilent),
        (testing.check_neuron_causality, SeesTheFuture),
        (testing.check_neuron_neighbours, SeesNeighbours),
        (testing.check_neuron_gradient, HasNoGradient),
        (testing.check_neuron_precision, Widens),
    ],
)
def test_a_wrong_neuron_fails(check, neuron):
    with pytest.raises((AssertionError, RuntimeError)):
        check(neuron)


@pytest.fixture(scope='module')
def model():
    return testing.make('msvit_4_96', num_classes=10)


def broken(model, **methods):
    """A twin whose neurons in the last stage are other ones."""
    twin = testing.make('msvit_4_96', num_classes=10)
    twin.load_state_dict(model.state_dict())
    for module in twin.stages[-1].modules():
        for name, child in module.named_children():
            if isinstance(child, timm_snn.LIF):
                setattr(module, name, methods['neuron']())
    return twin


@pytest.mark.parametrize('check', testing.FAMILY_CHECKS)
def test_a_family_here_passes(check, model):
    check(model)


@pytest.mark.parametrize(
    ('check', 'neuron'),
    [
        (testing.check_memory, Remembers),
        (testing.check_causality, SeesTheFuture),
        (testing.check_neighbours, SeesNeighbours),
        (testing.check_neighbours, IsSilent),
        (testing.check_features, IsSilent),
        (testing.check_steps, SeesTheFuture),
        (testing.check_streaming, SeesTheFuture),
    ],
)
def test_a_wrong_family_fails(check, neuron, model):
    with pytest.raises((AssertionError, ValueError)):
        check(broken(model, neuron=neuron))


def test_a_part_that_does_not_learn_fails(model):
    twin = testing.make('msvit_4_96', num_classes=10)
    twin.stem.register_forward_hook(lambda module, args, output: output.detach())
    with pytest.raises(AssertionError, match='stem'):
        testing.check_learning(twin)


def test_features_of_another_size_than_announced_fail(model):
    twin = testing.make('msvit_4_96', num_classes=10)
    twin.feature_info[1]['num_chs'] += 1
    with pytest.raises(AssertionError):
        testing.check_features(twin)


def test_a_golden_file_notices_one_changed_weight(model, tmp_path):
    testing.record_golden(model, tmp_path / 'golden.safetensors')
    testing.check_golden(model, tmp_path / 'golden.safetensors')
    twin = testing.make('msvit_4_96', num_classes=10)
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():
        twin.head.fc.bias[0] += 1e-6
    with pytest.raises(AssertionError):
        testing.check_golden(twin, tmp_path / 'golden.safetensors')
