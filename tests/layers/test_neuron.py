"""Neuron layers: their settings, their learned time constant, TorchScript."""

import math

import pytest
import torch
from torch import nn

from timm_snn.layers import IF, LIF, ConvBnLif, ParametricLIF, neurons
from timm_snn.ops import lif


class TestNeurons:
    def test_parametric_lif_starts_at_tau_and_learns(self):
        x = torch.randn(5, 4, 3, dtype=torch.float64) + 0.5
        layer = ParametricLIF(tau=3.0).double()
        torch.testing.assert_close(1 / torch.sigmoid(layer.w), torch.tensor(3.0, dtype=torch.float64))
        assert torch.equal(ParametricLIF()(x), LIF()(x))  # tau 2 is exact
        layer(x).sum().backward()
        assert layer.w.grad.abs() > 0

    def test_parametric_lif_equals_spikingjelly(self):
        neuron = pytest.importorskip('spikingjelly.activation_based.neuron')
        surrogate = pytest.importorskip('spikingjelly.activation_based.surrogate')
        node = neuron.ParametricLIFNode(
            init_tau=2.0, surrogate_function=surrogate.Sigmoid(4.0), detach_reset=True, step_mode='m'
        )
        x = torch.randn(6, 9, 9) + 0.5
        ours = ParametricLIF(tau=2.0)
        theirs_spikes, our_spikes = node(x), ours(x)
        assert torch.equal(theirs_spikes, our_spikes)
        theirs_spikes.sum().backward()
        our_spikes.sum().backward()
        torch.testing.assert_close(ours.w.grad, node.w.grad, rtol=1e-5, atol=1e-5)

    def test_tau_of_one_cannot_be_learned(self):
        with pytest.raises(ValueError, match='initial tau > 1, got 1'):
            ParametricLIF(tau=1.0)

    @pytest.mark.parametrize('cls', [LIF, ParametricLIF])
    @pytest.mark.parametrize(
        'kwargs',
        [
            *({}, dict(v_reset=None), dict(tau=3.0, decay_input=False, v_reset=-0.1)),
            *(dict(learn_threshold=True, v_reset=None), dict(learn_threshold=True, v_reset=-0.1, per_channel=5)),
        ],
    )
    def test_torchscript_has_the_same_forward_pass(self, cls, kwargs):
        layer = cls(**kwargs).eval()
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        x = torch.randn(4, 3, 5)
        assert torch.equal(torch.jit.script(layer)(x), layer(x))

    @pytest.mark.parametrize('cls', [LIF, ParametricLIF])
    def test_torchscript_does_not_train_without_a_gradient(self, cls):
        with pytest.raises(torch.jit.Error, match='train the eager model'):
            torch.jit.script(cls())(torch.randn(4, 3, 5))

    @pytest.mark.parametrize('cls', [LIF, ParametricLIF])
    @pytest.mark.parametrize('kwargs', [dict(tau=0.5), dict(v_threshold=0.0), dict(v_threshold=0.5, v_reset=0.5)])
    def test_settings_are_checked_when_the_layer_is_made(self, cls, kwargs):
        with pytest.raises(ValueError, match=r'tau|v_threshold'):
            cls(**kwargs)

    def test_a_tensor_as_the_tau_of_a_fixed_neuron_is_refused(self):
        with pytest.raises(ValueError, match='ParametricLIF learns it'):
            LIF(tau=nn.Parameter(torch.tensor(2.0)))  # type: ignore[arg-type]

    @pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
    def test_parametric_lif_has_its_time_constant_in_float32(self, dtype):
        layer = ParametricLIF(tau=2.3).to(dtype)
        x = (torch.randn(16, 64, 64) + 0.5).to(dtype)
        assert torch.equal(layer(x).float(), LIF(tau=1 + math.exp(-layer.w.item()))(x.float()))

    def test_settings_are_shown(self):
        assert 'tau=2.0, v_threshold=0.5, v_reset=0.0' in repr(LIF(v_threshold=0.5))


@pytest.mark.parametrize('layer', [LIF, ParametricLIF])
def test_a_setting_that_is_assigned_takes_effect_and_is_checked(layer):
    x, neuron = torch.full((1, 2, 3), 1.5), layer()
    assert not neuron(x).any()  # half of the current reaches the membrane
    neuron.v_threshold = 0.5
    assert neuron(x).all() and neuron.neuron.v_threshold == 0.5
    with pytest.raises(ValueError, match='v_threshold above the resting potential'):
        neuron.v_threshold = -1.0


class TestLearnedThresholds:
    @pytest.mark.parametrize('cls', [LIF, ParametricLIF, IF])
    @pytest.mark.parametrize('settings', [{}, dict(v_threshold=0.5), dict(v_reset=-0.2), dict(v_reset=None)])
    def test_at_first_spikes_and_gradients_are_those_of_the_fixed_neuron(self, cls, settings):
        x = (torch.randn(5, 4, 3) + 0.5).requires_grad_()
        results = []
        for learned in ({}, dict(learn_threshold=True), dict(learn_threshold=True, per_channel=3)):
            spikes = cls(**settings, **learned)(x)
            results.append([spikes, *torch.autograd.grad(spikes.square().sum(), x)])
        assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))

    @pytest.mark.parametrize('v_reset', [0.0, -0.2, None])
    def test_the_threshold_is_that_of_the_parameter(self, v_reset):
        layer = LIF(v_threshold=0.5, v_reset=v_reset, learn_threshold=True, per_channel=3).double()
        layer.log_threshold.data = torch.tensor([-0.4, 0.0, 0.3], dtype=torch.float64)
        x = torch.randn(5, 4, 3, 7, dtype=torch.float64) + 0.5
        threshold = layer.learned_threshold()
        for c in range(3):
            alone = LIF(v_threshold=threshold[c].item(), v_reset=v_reset)
            assert torch.equal(layer(x)[:, :, c], alone(x[:, :, c]))
        layer(x).sum().backward()
        assert layer.log_threshold.grad.all()

    @pytest.mark.parametrize('pool', [False, True])
    def test_a_unit_learns_it_as_its_parts_do(self, pool):
        unit = ConvBnLif(3, 4, 3, pool=pool, lif_layer=lambda: LIF(learn_threshold=True, per_channel=4)).double()
        unit.lif.log_threshold.data.uniform_(-0.5, 0.5)
        x = torch.randn(3, 2, 3, 6, 6, dtype=torch.float64)
        assert unit._can_fuse(x)
        results = []
        for spikes in (unit(x), unit.lif(unit.current(x))):
            results.append([spikes, *torch.autograd.grad(spikes.square().sum(), list(unit.parameters()))])
        torch.testing.assert_close(*results)

    def test_a_tensor_as_the_threshold_is_refused(self):
        with pytest.raises(ValueError, match='learn_threshold=True learns it'):
            LIF(v_threshold=torch.tensor(1.0))  # type: ignore[arg-type]


class TestChannels:
    def test_each_channel_has_its_time_constant(self):
        taus = torch.tensor([1.5, 2.0, 7.0])
        layer, x = ParametricLIF(taus).double(), torch.randn(6, 2, 3, 4, dtype=torch.float64) + 0.5
        assert layer.w.shape == (3,) and torch.allclose(layer.learned_tau(), taus.double())
        for c in range(3):
            assert torch.equal(layer(x)[:, :, c], lif(x[:, :, c], tau=layer.learned_tau()[c]))
        layer(x).sum().backward()
        assert layer.w.grad.all()

    @pytest.mark.parametrize('taus', [torch.tensor([2.0, 0.5]), torch.ones(2, 2) * 2])
    def test_time_constants_that_cannot_be_are_refused(self, taus):
        with pytest.raises(ValueError, match='initial tau > 1'):
            ParametricLIF(taus)

    def test_a_layer_needs_their_number(self):
        with pytest.raises(ValueError, match='per_channel=C; layers of a model fill it in'):
            LIF(learn_threshold=True, per_channel=True)
        with pytest.raises(ValueError, match=r'one v_threshold .* or one for each of the C channels'):
            LIF(learn_threshold=True, per_channel=4)(torch.ones(2, 3, 5))


def test_the_neuron_without_leak_adds_up_its_currents():
    assert neurons.get('if') is IF
    spikes = IF(v_reset=None)(torch.full((8, 1), 0.25))
    assert spikes.flatten().tolist() == [0, 0, 0, 1, 0, 0, 0, 1]
