"""Facts about QKFormer alone; `test_families.py` and `test_golden_models.py` have the rest."""

import pytest
import timm
import torch
from torch import nn

from timm_snn.layers import LIF, QKTokenAttention, SpikingSelfAttention
from timm_snn.models import QKFormer


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ('name', 'stem', 'embeds', 'blocks', 'head'),
    [
        ('qkformer_10_384', 130_992, [517_248, 2_066_688], [103_488, 819_456, 12_450_816], 385_000),
        ('qkformer_10_512', 232_000, [919_040, 3_673_088], [183_040, 1_453_056, 22_106_112], 513_000),
        ('qkformer_10_768', 520_032, [2_066_688, 8_262_144], [409_728, 3_260_928, 49_674_240], 769_000),
        ('qkformer_4_384.cifar10', 47_856, [517_248, 2_066_688], [103_488, 409_728, 3_557_376], 3_850),
        ('qkformer_4_384.cifar100', 47_856, [517_248, 2_066_688], [103_488, 409_728, 3_557_376], 38_500),
    ],
)
def test_parameters_of_every_part(name, stem, embeds, blocks, head):
    model = timm.create_model(name, device='meta')
    stages = model.stages
    assert parameters(model.stem) + parameters(stages[0].embed) == stem
    assert [parameters(stage.embed) for stage in stages[1:]] == embeds
    assert [parameters(stage.blocks) for stage in stages] == blocks
    assert parameters(model.head) == head


@pytest.mark.parametrize(
    ('tag', 'kwargs', 'count'),
    [
        ('cifar10_dvs', {}, 1_504_138),
        ('dvs128_gesture', {}, 1_504_395),
        ('dvs128_gesture', {'mlp_ratio': 4.0}, 1_999_371),  # as released
    ],
)
def test_parameters_for_events(tag, kwargs, count):
    model = timm.create_model(f'qkformer_2_256.{tag}', device='meta', **kwargs)
    assert parameters(model) == count
    assert parameters(model.stem) + parameters(model.stages[1].embed) == 101_888


def test_attention_is_by_tokens_at_high_resolution_with_a_threshold_of_one_half():
    model = timm.create_model('qkformer_10_384', device='meta')
    layers = [type(stage.blocks[0].attn) for stage in model.stages]
    assert layers == [QKTokenAttention, QKTokenAttention, SpikingSelfAttention]
    thresholds = {name.endswith('attn_lif'): m.v_threshold for name, m in model.named_modules() if isinstance(m, LIF)}
    assert thresholds == {True: 0.5, False: 1.0}


def test_maps_for_events_have_the_published_sizes():
    model = timm.create_model('qkformer_2_256', features_only=True, num_steps=2).eval()
    with torch.no_grad():
        taps = model(torch.rand(1, 2, 128, 128))
    assert [tap.shape[1:] for tap in taps] == [(32, 64, 64), (64, 32, 32), (128, 16, 16), (256, 8, 8)]


def test_unknown_arguments_are_refused():
    with pytest.raises(TypeError, match='nonsense'):
        QKFormer(nonsense=1)
