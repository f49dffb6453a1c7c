"""Integer spikes as binary ones: the same answers from every family, in true binary spikes, or a reason why not."""

import pytest
import timm
import torch
from torch import Tensor, nn

import timm_snn
from tests.conftest import lively
from tests.support.families import SMALLEST, shallow
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


def test_frames_and_levels_that_are_no_power_of_two():
    # heads of 6 channels, so that no current of attention can lie halfway between two integers
    model = make('metaspikformer_8_256', levels=3, embed_dims=(8, 16, 48, 48), attn='e_sdsa')
    model.num_steps = 2
    expanded = assert_expanded(model, torch.rand(2, 2, 3, 32, 32, dtype=torch.float64))
    assert expanded.chunk_steps == 3 and expanded.num_steps == 2
