"""Neuron layers: their settings, their learned time constant, TorchScript."""

import math

import pytest
import torch
from torch import nn

from timm_snn.layers import LIF, ParametricLIF


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
    @pytest.mark.parametrize('kwargs', [{}, dict(v_reset=None), dict(tau=3.0, decay_input=False, v_reset=-0.1)])
    def test_torchscript_has_the_same_forward_pass(self, cls, kwargs):
        layer = cls(**kwargs).eval()
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
