"""Feature levels: strides that dense libraries can use, levels inside of a patch embedding, appended ones."""

import pytest
import timm
import torch

import timm_snn
from timm_snn.layers import MembranePatchEmbed, SpikingPatchEmbed
from timm_snn.testing import lively

MODELS = [
    name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith(timm_snn.models.__name__)
]


@pytest.mark.parametrize('name', MODELS)
def test_strides_ascend_by_factors_of_two(name):
    features = timm.create_model(name, features_only=True, device='meta')
    strides = features.feature_info.reduction()
    assert strides == [strides[0] << i for i in range(len(strides))] and strides[0] in (1, 2, 4)


@pytest.mark.parametrize('name', ['msvit_2_256', 'maxformer_2_256'])
@torch.no_grad()
def test_a_level_inside_of_a_patch_embedding_is_what_its_unit_returns(name):
    torch.manual_seed(0)
    features = lively(timm.create_model(name, features_only=True, num_steps=2, in_chans=2)).eval()
    x, seen = torch.rand(3, 2, 32, 48), []
    features.model.stages[1].embed.units[0].register_forward_hook(lambda module, args, output: seen.append(output))
    levels = features(x)
    assert [tuple(level.shape[1:]) for level in levels][1] == (features.feature_info.channels()[1], 8, 12)
    assert torch.equal(levels[1], seen[0].mean(0)) and levels[1].any()
    alone = features.model.forward_intermediates(x, [1, 3], intermediates_only=True)
    assert torch.equal(alone[0], levels[1]) and torch.equal(alone[1], levels[3])


@pytest.mark.parametrize(
    ('pools', 'expected'),
    [
        ((True, True), [(0, 2)]),
        ((False, True), []),
        ((True, False), []),
        ((True, False, True), [(1, 2)]),
        ((True, True, True), [(0, 2), (1, 4)]),
    ],
)
def test_inner_levels_are_the_resolutions_between(pools, expected):
    widths = list(range(3, 3 + len(pools)))
    for embed in (SpikingPatchEmbed(2, widths, pools), MembranePatchEmbed(2, widths, pools)):
        assert [(level.unit, level.reduction) for level in embed.inner_levels] == expected
        x = torch.rand(1, 1, 2, 16, 16)
        *inner, y = embed.eval().forward_levels(x)
        assert torch.equal(y, embed(x))
        shapes = [(widths[unit], 16 // reduction, 16 // reduction) for unit, reduction in expected]
        assert [level.shape[2:] for level in inner] == shapes


@torch.no_grad()
def test_steps_of_levels_average_to_the_levels():
    features = lively(
        timm.create_model('msvit_4_96', features_only=True, out_indices=(0, 2), num_steps=3, in_chans=3)
    ).eval()
    x = torch.rand(2, 3, 32, 32)
    steps = features.forward_steps(x)
    assert [len(level) for level in steps] == [3, 3]
    for level, mean in zip(steps, features(x), strict=True):
        assert torch.equal(level.mean(0), mean)


@pytest.mark.parametrize(
    ('name', 'extra', 'strides'),
    [('msvit_4_96', 1, [4, 8, 16, 32]), ('sdt_2_256_gesture', 2, [2, 4, 8, 16, 32]), ('qkformer_2_256', 1, None)],
)
def test_appended_levels(name, extra, strides):
    torch.manual_seed(0)
    model = timm.create_model(name, features_only=True, extra_levels=extra, num_steps=2, in_chans=2, lif_layer='plif')
    model = lively(model)
    x = torch.rand(3, 2, 64, 96)
    levels = model.train()(x)
    assert model.feature_info.reduction() == (strides or [2, 4, 8, 16, 32])
    for level, chs, stride in zip(levels, model.feature_info.channels(), model.feature_info.reduction(), strict=True):
        assert level.shape == (3, chs, 64 // stride, 96 // stride) and level.any()
    sum(level.square().sum() for level in levels).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    neurons = {type(module) for module in model.model.stages[-1].modules()}
    assert timm_snn.ParametricLIF in neurons and timm_snn.LIF not in neurons


@torch.no_grad()
def test_appended_levels_stand_behind_pretrained_weights():
    """The weights of a tag have no keys for them, and the other levels are as without."""
    x = torch.rand(1, 1, 32, 32)
    model = timm.create_model('msvit_4_96.digits', pretrained=True, features_only=True, extra_levels=1, in_chans=1)
    plain = timm.create_model('msvit_4_96.digits', pretrained=True, features_only=True, in_chans=1)
    assert all(map(torch.equal, model.eval()(x)[:3], plain.eval()(x)))


def test_appended_levels_can_be_hooked():
    model = timm.create_model('msvit_4_96', features_only=True, extra_levels=1, feature_cls='hook', in_chans=3)
    assert [level.shape[2] for level in model(torch.rand(1, 3, 32, 32))] == [48, 48, 96, 96]


def test_what_cannot_be_had_is_refused_with_what_can():
    with pytest.raises(ValueError, match=r'strides \[4, 8, 16\].*extra_levels=2.*encoder_depth=4'):
        timm.create_model('msvit_4_96', features_only=True, out_indices=(0, 1, 2, 4))
    with pytest.raises(ValueError, match='pass features_only=True'):
        timm.create_model('msvit_4_96', extra_levels=1)
    with pytest.raises(ValueError, match='mst_tiny has no extra_levels'):
        timm.create_model('mst_tiny', features_only=True, extra_levels=1)
    with pytest.raises(ValueError, match='out of range'):
        timm.create_model('msvit_4_96', features_only=True).model.prune_intermediate_layers([-4])


def test_a_stage_that_is_no_level_is_pruned():
    model = timm.create_model('resnet19', features_only=True)
    assert model.feature_info.channels() == [128, 256, 512] and len(model.model.stages) == 3
