"""`num_steps` of models in wrappers, timm's and others'."""

import pickle

import pytest
import timm
import torch
from timm.utils import ModelEmaV3
from torch import nn

import timm_snn
from tests.conftest import lively
from timm_snn.models import set_num_steps

X = torch.rand(2, 1, 28, 28)


def model(**kwargs):
    torch.manual_seed(0)
    return lively(timm.create_model('msvit_4_96', **kwargs)).eval()


@pytest.mark.parametrize('kwargs', [{}, {'feature_cls': 'getter'}, {'feature_cls': 'hook'}, {'out_indices': (0, 1)}])
@torch.no_grad()
def test_steps_of_a_feature_extractor_may_be_assigned(kwargs):
    features, expected = model(features_only=True, **kwargs), model(features_only=True, num_steps=2, **kwargs)
    before = features(X)
    assert features.num_steps == 4
    features.num_steps = 2
    assert features.num_steps == 2 and len(before) == len(kwargs.get('out_indices', '012'))
    after = features(X)
    assert all(map(torch.equal, after, expected(X))) and not all(map(torch.equal, after, before))
    assert all(map(torch.equal, pickle.loads(pickle.dumps(features))(X), after)) or 'hook' in kwargs.values()
    assert len(features.feature_info.channels()) == len(before)
    with pytest.raises(ValueError, match='num_steps must be a whole number of at least 1, got 0'):
        features.num_steps = 0


def test_a_traced_feature_extractor_refuses():
    with pytest.raises(AttributeError, match='make the model with num_steps'):
        model(features_only=True, feature_cls='fx').num_steps = 1


@pytest.mark.parametrize('num_steps', [0, 2.5, '4', True])
def test_what_is_assigned_is_checked(num_steps):
    with pytest.raises(ValueError, match='num_steps must be a whole number of at least 1'):
        model().num_steps = num_steps


class Wrapped(nn.Module):
    def __init__(self, timm_model):
        super().__init__()
        self.timm_model = timm_model

    def forward(self, pixel_values):
        return self.timm_model(pixel_values)


@pytest.mark.parametrize(
    'wrap',
    [
        lambda m: m,
        nn.DataParallel,
        lambda m: torch.compile(m, backend='eager'),
        lambda m: nn.Sequential(nn.Identity(), m),
        ModelEmaV3,
        torch.optim.swa_utils.AveragedModel,
        Wrapped,
        lambda m: nn.DataParallel(torch.compile(Wrapped(m), backend='eager')),
    ],
)
@torch.no_grad()
def test_set_num_steps_reaches_the_model_inside(wrap):
    wrapped, expected = wrap(model()), model(num_steps=2)(X)
    set_num_steps(wrapped, 2)
    assert torch.equal(wrapped(X), expected)


def test_set_num_steps_refuses_where_it_finds_nothing():
    for wrapped in (nn.Linear(2, 2), torch.jit.trace(model(), X), model):
        with pytest.raises(ValueError, match='found no model of timm_snn in '):
            set_num_steps(wrapped, 2)


@torch.no_grad()
def test_the_model_inside_a_wrapper_is_fused():
    inner = model()
    torch.testing.assert_close(timm_snn.fuse(nn.DataParallel(inner))(X), timm_snn.fuse(inner)(X))
