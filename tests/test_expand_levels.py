"""Integer spikes as binary ones: the same answers from every family, in true binary spikes, or a reason why not."""

import pytest
import timm
import torch
from torch import Tensor, nn

import timm_snn
from tests.conftest import lively
from tests.support.families import SMALLEST, shallow
from timm_snn.dense import create_segmenter
from timm_snn.layers import attentions
from timm_snn.models import SpikingTransformer


def make(name: str, levels: int = 4, **kwargs: object) -> SpikingTransformer:
    torch.manual_seed(0)
    layer = dict(lif_layer='integer', lif_kwargs=dict(levels=levels))
    return lively(shallow(timm.create_model(name, num_classes=10, **layer, **kwargs)).double().eval())


def images_for(model: SpikingTransformer, batch: int = 2) -> Tensor:
    return torch.rand(batch, model.in_chans, 32, 32, dtype=torch.float64)


@torch.no_grad()
def assert_expanded(model: SpikingTransformer, x: Tensor) -> nn.Module:
    """That it answers as the model does, of binary spikes which add up to those of the model."""
    expanded = timm_snn.expand_levels(model)
    with timm_snn.record(model) as integer, timm_snn.record(expanded) as binary:
        logits = model(x)
        torch.testing.assert_close(expanded(x), logits, rtol=0, atol=1e-11)
    assert integer.spikes.keys() == binary.spikes.keys() and len(integer.spikes) > 4
    for name, spikes in integer.spikes.items():
        neuron = model.get_submodule(name)
        steps = binary.spikes[name].unflatten(0, (-1, neuron.levels))
        assert ((steps == 0) | (steps == 1)).all() and len(steps) == len(spikes)
        assert torch.equal(steps.sum(1), (spikes * neuron.levels).round() if neuron.normalize else spikes), name
    assert any((s > 0).any() and (s < 1).any() for s in binary.spikes.values())
    return expanded


@pytest.mark.parametrize('name', SMALLEST)
def test_every_family(name):
    model = make(name)
    assert_expanded(model, images_for(model))


@pytest.mark.parametrize('attn', attentions.names())
def test_every_attention(attn):
    model = make('sdt_2_256', attn=attn, embed_dim=64, num_heads=4, in_chans=3, erode=False)
    model.num_steps = 2
    assert_expanded(model, images_for(model))


@pytest.mark.parametrize('decoder', ['spiking_unet', 'spiking_fpn'])
@pytest.mark.parametrize('name', ['msvit_4_96', 'sdt_2_512'])  # levels of spikes, and of currents
def test_segmenters(name, decoder):
    torch.manual_seed(0)
    kwargs = dict(lif_layer='integer', num_steps=2, decoder=decoder, in_chans=3)
    model = lively(create_segmenter(name, 5, **kwargs).double().eval())
    shallow(model.backbone.model)
    expanded = assert_expanded(model, torch.rand(2, 3, 40, 48, dtype=torch.float64))
    assert expanded.num_steps == 2 and model.arguments == expanded.arguments
    energy = timm_snn.profile(expanded, torch.rand(1, 3, 32, 32, dtype=torch.float64)).energy
    assert energy['C'].mj < energy['ANN twin'].mj


def test_segmenters_that_average_over_time_are_refused():
    model = create_segmenter('msvit_4_96', 5, lif_layer='integer', decoder='unet')
    with pytest.raises(ValueError, match='expand network, a Unet'):
        timm_snn.expand_levels(model)


def test_frames_and_levels_that_are_no_power_of_two():
    # heads of 6 channels, so that no current of attention can lie halfway between two integers
    model = make('metaspikformer_8_256', levels=3, embed_dims=(8, 16, 48, 48), attn='e_sdsa')
    model.num_steps = 2
    expanded = assert_expanded(model, torch.rand(2, 2, 3, 32, 32, dtype=torch.float64))
    assert expanded.chunk_steps == 3 and expanded.num_steps == 2


def test_reports_count_binary_steps():
    model = make('espikeformer_5m')
    images = images_for(model)
    whole = timm_snn.profile(model, images, progress=False)
    report = timm_snn.profile(timm_snn.expand_levels(model), images, progress=False)
    assert (whole.num_steps, report.num_steps) == (1, 4)
    fed = {layer.name: layer.input for layer in report.layers if layer.input}
    assert fed.pop('stem.unit') == 'real' and set(fed.values()) == {'binary'}
    first = next(layer for layer in report.layers if layer.name == 'stem.unit')
    assert report.total.effective_macs == first.effective_macs and report.total.effective_acs > 0
    assert report.total.energy_mj['A'] < whole.total.energy_mj['A']
    for one, other in zip(whole.layers, report.layers, strict=True):
        if one.spike_count is not None and one.name != 'head_lif':  # which counts spikes
            assert other.spike_count == pytest.approx(one.spike_count) and other.largest == 1


def test_frames_are_profiled():
    model = make('espikeformer_5m')
    model.num_steps = 3
    expanded = timm_snn.expand_levels(model)
    report = timm_snn.profile(expanded, torch.rand(1, 3, 3, 32, 32).double(), progress=False)
    assert report.num_steps == 12


@torch.no_grad()
def test_every_way_to_call_a_network():
    model = make('espikeformer_5m')
    expanded, images = timm_snn.expand_levels(model), images_for(make('espikeformer_5m'))
    torch.testing.assert_close(expanded.forward_steps(images).mean(1, keepdim=True), model.forward_steps(images))
    torch.testing.assert_close(expanded.forward_features(images), model.forward_features(images))
    features = model.forward_features(images)
    torch.testing.assert_close(expanded.forward_head(features), model.forward_head(features))
    torch.testing.assert_close(timm_snn.fuse(expanded)(images), model(images))
    torch.testing.assert_close(timm_snn.expand_levels(timm_snn.fuse(model))(images), model(images))
    expanded.num_steps = 2
    torch.testing.assert_close(expanded(images), model(images))


def test_the_model_stays_as_it_was():
    model = make('espikeformer_5m').train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    expanded = timm_snn.expand_levels(model)
    assert model.training and not expanded.training and model.levels == 1
    assert expanded.state_dict().keys() == before.keys()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


class Mine(timm_snn.layers.SpikingMlp):
    """A layer of a user's own, which may compute anything."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) ** 2


def refused(model: nn.Module, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        timm_snn.expand_levels(model)


def test_what_cannot_be_expanded_is_refused_by_name():
    refused(nn.Linear(1, 1), 'takes the networks of timm_snn, got a Linear')
    refused(timm.create_model('msvit_4_96'), "no integer neurons.*lif_layer='integer'")
    refused(make('msvit_4_96', levels=1), 'binary already')
    refused(make('msvit_4_96', attn=timm_snn.layers.SoftmaxAttention), r'stages.0.blocks.0.attn, a SoftmaxAttention')
    refused(make('msvit_4_96', global_pool='max'), r'head.global_pool.pool, a AdaptiveMaxPool2d')

    model = make('msvit_4_96')
    model.stages[0].blocks[0].mlp.__class__ = Mine
    refused(model, r'stages.0.blocks.0.mlp, a Mine: only layers of timm_snn')

    model = make('msvit_4_96')
    model.stages[1].blocks[0].mlp.fc1.lif = timm_snn.LIF()
    refused(model, r'stages.1.blocks.0.mlp.fc1.lif, a LIF: it is no integer neuron')
    model.stages[1].blocks[0].mlp.fc1.lif = timm_snn.layers.IntegerNeuron(levels=8)
    refused(model, 'same levels everywhere, got 4 in .* and 8 in stages.1.blocks.0.mlp.fc1.lif')
    model.stages[1].blocks[0].mlp.fc1.lif = timm_snn.layers.IntegerNeuron(normalize=False)
    refused(model, r'mlp.fc1.lif, a IntegerNeuron: with normalize=False it counts spikes')
    model = make('espikeformer_5m')
    model.reset_classifier(0)
    refused(model, 'head_lif, a IntegerNeuron')

    model = make('sew_resnet18', pools=(False, True, True, False, False), strides=(1, 1, 1, 2, 2))
    refused(model, r'stages.2.embed, a SpikePool: it pools sums')


def test_a_stream_takes_the_model_itself():
    with pytest.raises(ValueError, match='sees 4 steps at once'):
        timm_snn.stream(timm_snn.expand_levels(make('espikeformer_5m')))
