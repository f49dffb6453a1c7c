"""Neurons of SpikingJelly and snnTorch in a model of ours, against their own use."""

import copy
from functools import partial

import pytest
import timm
import torch
from torch import nn

import timm_snn
from timm_snn.layers import SnnTorchNeuron, SpikingJellyNeuron, adapter_of

TINY = dict(embed_dims=(8, 8, 8), depths=(1, 1, 1), num_heads=2, num_classes=3, in_chans=3, num_steps=3)


@pytest.fixture
def x():
    return (1.5 * torch.randn(5, 2, 3, 4) + 0.5).requires_grad_()


@pytest.fixture(scope='module')
def spikingjelly():
    return pytest.importorskip('spikingjelly.activation_based.neuron')


@pytest.fixture(scope='module')
def snntorch():
    return pytest.importorskip('snntorch')


def gradients(spikes, x):
    return torch.autograd.grad(spikes.square().sum(), x)


class TestSpikingJelly:
    @pytest.mark.parametrize('name', ['IFNode', 'LIFNode', 'ParametricLIFNode', 'KLIFNode'])
    def test_equals_its_own_use(self, spikingjelly, x, name):
        functional = pytest.importorskip('spikingjelly.activation_based.functional')
        node = getattr(spikingjelly, name)(step_mode='m')
        adapter = SpikingJellyNeuron(copy.deepcopy(node).__class__())  # in step mode 's', as it is made
        spikes = node(x)
        expected = [spikes, *gradients(spikes, x)]
        functional.reset_net(node)
        for _ in range(2):  # nothing is left of the first call
            spikes = adapter(x)
            torch.testing.assert_close([spikes, *gradients(spikes, x)], expected, rtol=0, atol=0)
        copy.deepcopy(adapter)

    @pytest.mark.parametrize('how', ['class', 'partial', 'factory'])
    def test_a_model_takes_its_neurons(self, spikingjelly, how):
        layer = {
            'class': spikingjelly.LIFNode,
            'partial': partial(spikingjelly.LIFNode, tau=4.0, detach_reset=True),
            'factory': lambda: spikingjelly.LIFNode(),
        }[how]
        model = timm.create_model('msvit_4_96', lif_layer=layer, **TINY)
        attn_lif = model.stages[0].blocks[0].attn.attn_lif
        assert isinstance(attn_lif, SpikingJellyNeuron) and attn_lif.neuron.step_mode == 'm'
        images = torch.rand(2, 3, 32, 32)
        assert torch.equal(model(images), model(images))
        twin = timm.create_model('msvit_4_96', attn_v_threshold=0.5, lif_layer=layer, **TINY)
        expected = 1.0 if how == 'factory' else 0.5  # one without arguments keeps its threshold
        assert twin.stages[0].blocks[0].attn.attn_lif.neuron.v_threshold == expected

    def test_a_model_of_its_neurons_answers_as_ours(self, spikingjelly):
        ours = timm.create_model('msvit_4_96', **TINY).double()
        theirs = timm.create_model(
            'msvit_4_96', lif_layer=spikingjelly.LIFNode, lif_kwargs=dict(detach_reset=True), **TINY
        ).double()
        theirs.load_state_dict(ours.state_dict())
        images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
        results = []
        for model in (ours.train(), theirs.train()):
            logits = model(images)
            logits.square().sum().backward()
            results.append([logits, *(p.grad for p in model.parameters())])
        torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)

    def test_its_derived_classes_are_known(self, spikingjelly):
        class Mine(spikingjelly.LIFNode):
            pass

        assert adapter_of(Mine) is SpikingJellyNeuron and adapter_of(nn.ReLU) is adapter_of(len) is None

    def test_models_of_its_neurons_can_be_profiled_and_fused(self, spikingjelly):
        model = timm.create_model('msvit_4_96', lif_layer=spikingjelly.LIFNode, **TINY)
        images = torch.rand(1, 3, 32, 32)
        assert timm_snn.profile(model, images).num_steps == 3
        model(images).sum().backward()
        assert timm_snn.fuse(model)(images).shape == (1, 3)

    def test_its_backends_are_not_ours(self, spikingjelly):
        with pytest.raises(ValueError, match="backend='torch' is for neurons that timm_snn runs, and LIFNode"):
            timm.create_model('msvit_4_96', lif_layer=spikingjelly.LIFNode, backend='torch', **TINY)


class TestSnnTorch:
    @pytest.mark.parametrize(
        'settings', [{}, dict(reset_mechanism='zero', learn_threshold=True, learn_beta=True), dict(threshold=0.5)]
    )
    def test_equals_its_own_use(self, snntorch, x, settings):
        neuron = snntorch.Leaky(beta=0.8, **settings)
        adapter = SnnTorchNeuron(snntorch.Leaky(beta=0.8, **settings))
        mem, steps = neuron.reset_mem(), []
        for x_t in x:
            spikes, mem = neuron(x_t, mem)
            steps.append(spikes)
        spikes = torch.stack(steps)
        expected = [spikes, *gradients(spikes, x)]
        for _ in range(2):
            spikes = adapter(x)
            torch.testing.assert_close([spikes, *gradients(spikes, x)], expected, rtol=0, atol=0)
        copy.deepcopy(adapter)

    @pytest.mark.parametrize('name', ['Leaky', 'Synaptic', 'Alpha'])
    @pytest.mark.parametrize('init_hidden', [False, True])
    def test_other_neurons_and_hidden_states(self, snntorch, x, name, init_hidden):
        settings = dict(beta=0.8, init_hidden=init_hidden) | ({} if name == 'Leaky' else dict(alpha=0.9))
        adapter = SnnTorchNeuron(getattr(snntorch, name)(**settings))
        spikes = adapter(x)
        assert spikes.shape == x.shape and 0 < spikes.mean() < 1
        assert torch.equal(adapter(x), spikes)

    def test_a_model_takes_its_neurons(self, snntorch):
        model = timm.create_model(
            'msvit_4_96', lif_layer=snntorch.Leaky, lif_kwargs=dict(beta=0.5), attn_v_threshold=0.5, **TINY
        )
        attn_lif = model.stages[0].blocks[0].attn.attn_lif
        assert isinstance(attn_lif, SnnTorchNeuron) and attn_lif.neuron.threshold == 0.5
        images = torch.rand(2, 3, 32, 32)
        assert torch.equal(model(images), model(images))
        assert timm_snn.profile(model, images[:1]).num_steps == 3

    def test_what_it_needs_is_named(self, snntorch):
        with pytest.raises(ValueError, match=r"Leaky must be made by a call without arguments.*'beta'; lif_kwargs"):
            timm.create_model('msvit_4_96', lif_layer=snntorch.Leaky, **TINY)
