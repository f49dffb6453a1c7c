"""Key rules and mismatches on state dicts of two layers."""

import pytest
import torch
from torch import nn

from timm_snn.models.keys import find_mismatches, match_pointwise_shapes, rename_keys


@pytest.fixture
def model() -> nn.Module:
    model = nn.Sequential()
    model.conv, model.head = nn.Conv2d(3, 4, 1), nn.Linear(4, 5)
    model.pretrained_cfg = {'first_conv': 'conv', 'classifier': 'head'}
    return model


def test_rules_apply_one_after_the_other_and_unused_keys_go():
    rules = ((r'^block(\d)\.', lambda match: f'stages.{int(match[1]) - 1}.'), (r'^stages\.0\.', 'stem.'))
    state_dict = {'block1.w': 1, 'block2.w': 2, 'block2.norm.w': 3}
    assert rename_keys(state_dict, rules, unused=r'\.norm\.') == {'stem.w': 1, 'stages.1.w': 2}


def test_point_wise_weights_take_the_shape_of_the_model(model):
    state_dict = {'conv.weight': torch.rand(4, 3), 'head.weight': torch.rand(5, 4, 1), 'other': torch.rand(2)}
    fitted = match_pointwise_shapes(state_dict, model)
    assert [tuple(value.shape) for value in fitted.values()] == [(4, 3, 1, 1), (5, 4), (2,)]
    three_by_three = {'conv.weight': torch.rand(4, 3, 3, 3)}
    assert match_pointwise_shapes(three_by_three, model)['conv.weight'].shape == (4, 3, 3, 3)


def test_mismatches_are_told_apart_and_classes_and_channels_may_differ(model):
    state_dict = model.state_dict()
    assert find_mismatches(state_dict, model, strict=True) == {}
    state_dict['conv.weight'], state_dict['head.weight'] = torch.rand(4, 1, 1, 1), torch.rand(9, 4)
    assert find_mismatches(state_dict, model, strict=False) == {}
    found = find_mismatches(state_dict, model, strict=True)
    assert found == {'of another shape': ['conv.weight, 4x1x1x1 instead of 4x3x1x1', 'head.weight, 9x4 instead of 5x4']}
    del state_dict['conv.bias']
    state_dict['new'] = torch.rand(1)
    found = find_mismatches(state_dict, model, strict=False)
    assert found == {'missing': ['conv.bias'], 'unexpected': ['new']}
