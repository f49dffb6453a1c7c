"""Spiking decoders: spikes alone enter their convolutions, on the backbones of every family, and all of it learns."""

import copy

import pytest
import timm
import torch
from torch import nn

import timm_snn
from tests.conftest import lively
from tests.support.families import SMALLEST, shallow
from timm_snn import dense
from timm_snn.dense.backbones import carries_currents, neuron_of
from timm_snn.layers import LIF, IntegerNeuron, ParametricLIF, ReluNeuron, neurons

DECODERS = ('spiking_unet', 'spiking_fpn')


def make(name, decoder='spiking_unet', classes=3, **arguments):
    channels = {'decoder_channels': 8} if decoder == 'spiking_fpn' else {}
    model = dense.create_segmenter(name, classes, decoder=decoder, **channels, **arguments)
    shallow(model.backbone.model)
    return model


@pytest.mark.parametrize('decoder', DECODERS)
@pytest.mark.parametrize('name', SMALLEST)
def test_spikes_enter_all_convolutions_and_gradients_reach_all_parameters(name, decoder):
    model = make(name, decoder, num_steps=1)
    levels = next((m.levels for m in model.modules() if isinstance(m, IntegerNeuron)), 1)
    entered = []
    for conv in model.decoder.modules():
        if isinstance(conv, nn.Conv2d):
            conv.register_forward_pre_hook(lambda _, args: entered.append(levels * args[0]))
    logits = model(torch.rand(2, 3, 40, 48))
    assert logits.shape == (2, 3, 40, 48)
    logits.square().mean().backward()
    assert len(entered) == sum(isinstance(m, nn.Conv2d) for m in model.decoder.modules())
    assert all(torch.equal(x, x.round()) for x in entered) and any(x.any() for x in entered)
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize('decoder', DECODERS)
def test_the_readout_is_a_membrane_that_never_fires(decoder):
    model = lively(make('msvit_4_96', decoder, num_steps=3).double().eval())
    frames = torch.rand(1, 3, 3, 32, 32, dtype=torch.float64)
    steps = model.forward_steps(frames)
    assert steps.shape == (1, 3, 3, 32, 32) and not torch.equal(steps[:, 0], steps[:, 1])
    torch.testing.assert_close(model(frames), steps.mean(1))


@pytest.mark.parametrize('decoder', DECODERS)
def test_fused_units_answer_as_plain_torch(decoder):
    model = lively(make('spikingformer_2_256', decoder, num_steps=2).double().eval())
    frames = torch.rand(1, 2, 3, 40, 33, dtype=torch.float64)
    with torch.no_grad(), timm_snn.use_backend('torch'):
        for unit in model.modules():
            unit.register_forward_hook(lambda *_: None)  # with which no unit is one op
        expected = copy.deepcopy(model)(frames)
        for unit in model.modules():
            unit._forward_hooks.clear()
    with torch.no_grad():
        torch.testing.assert_close(model(frames), expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(timm_snn.fuse(model)(frames), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize('decoder', DECODERS)
def test_a_stream_ends_where_all_frames_do(decoder):
    model = lively(make('sdt_2_256', decoder, num_steps=4, in_chans=2).double().eval())
    frames = torch.rand(1, 4, 2, 24, 36, dtype=torch.float64)
    stream = timm_snn.stream(model)
    answers = [stream(frame) for frame in frames.unbind(1)]
    with torch.no_grad():
        torch.testing.assert_close(answers[-1], model(frames), rtol=0, atol=1e-12)
    assert not torch.allclose(answers[0], answers[-1])
    other = timm_snn.stream(model)
    other.load_state(stream.state())
    assert torch.equal(other(frames[:, 0]), stream(frames[:, 0]))


def test_a_profile_counts_the_decoder():
    model = lively(make('msvit_4_96', num_steps=2).eval())
    report = timm_snn.profile(model, torch.rand(1, 3, 32, 32), progress=False)
    layers = {layer.name: layer for layer in report.layers}
    unit, readout = layers['decoder.blocks.1.1'], layers['decoder.readout.conv']
    assert unit.dense_macs == 2 * 48 * 48 * 9 * 8 * 8 and unit.input == 'binary' and unit.firing_rate > 0
    assert readout.dense_macs == 2 * 48 * 3 * 8 * 8 and readout.effective_macs == 0 and readout.effective_acs > 0
    assert report.not_counted == [] and report.parameters == sum(p.numel() for p in model.parameters())
    assert [stage.name for stage in report.stages] == ['stem', 'stages.0', 'stages.1', 'stages.2', 'decoder']
    assert sum(layer.energy_mj['B'] for layer in report.layers) == pytest.approx(report.energy['B'].mj)


def test_blocks_after_the_last_level_double_the_map():
    model = make('msvit_4_96', num_steps=1, decoder_channels=(16, 8, 8, 4))
    sizes = []
    for block in model.decoder.blocks:
        block.register_forward_hook(lambda _, __, output: sizes.append(output.shape[-1]))
    model(torch.rand(2, 3, 32, 32))
    assert sizes == [4, 8, 16, 32]


def test_extra_levels_are_decoded_too():
    model = make('msvit_4_96', num_steps=1, extra_levels=1)
    assert model(torch.rand(2, 3, 64, 64)).shape == (2, 3, 64, 64) and len(model.decoder.blocks) == 3
    assert dense.create_segmenter(**model.arguments).state_dict().keys() == model.state_dict().keys()


def test_neurons_are_those_of_the_backbone():
    model = make('msvit_4_96', num_steps=2, lif_layer='plif', lif_kwargs=dict(tau=3.0, per_channel=True))
    found = [m for m in model.decoder.modules() if isinstance(m, LIF)]
    assert all(type(m) is ParametricLIF and m.tau == 3.0 for m in found)
    assert [m.w.shape for m in found] == [(48,)] * 4
    assert model(torch.rand(1, 2, 3, 32, 32)).isfinite().all()


def test_neurons_with_weights_for_every_step():
    model = make('msvit_4_96', num_steps=2, lif_layer='psn')
    weights = [m.weight for m in model.modules() if isinstance(m, neurons.get('psn'))]
    assert all(weight.shape == (2, 2) for weight in weights)
    assert model(torch.rand(1, 2, 3, 32, 32)).isfinite().all()


def test_the_artificial_twin_has_a_decoder_of_its_kind():
    model = make('msvit_4_96', act='relu')
    assert any(isinstance(m, ReluNeuron) for m in model.decoder.modules()) and model.arguments['num_steps'] == 1
    assert dense.create_segmenter(**model.arguments).state_dict().keys() == model.state_dict().keys()


def test_levels_of_currents_are_found_without_a_trace():
    features = timm.create_model('sdt_2_256', features_only=True)
    state, rng = copy.deepcopy(features.state_dict()), torch.random.get_rng_state()
    assert carries_currents(features) == [False, False, True]
    assert all(torch.equal(value, state[key]) for key, value in features.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), rng)


def test_a_neuron_begins_where_that_of_the_backbone_is():
    features = timm.create_model('msvit_4_96', features_only=True, lif_layer='plif')
    for module in features.modules():
        if isinstance(module, ParametricLIF):
            nn.init.constant_(module.w, 0.7)
    made = neuron_of(features)()
    assert made.w.item() == pytest.approx(0.7) and made.w is not features.model.stem.units[0].lif.w
