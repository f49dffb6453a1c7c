"""Frozen batch norms stay as they are, in fused units too."""

import copy
import pickle

import pytest
import timm
import torch
from torch import nn

import timm_snn
from timm_snn import dense
from timm_snn.layers import ConvBnLif


def test_statistics_and_parameters_stay_after_train():
    model = timm.create_model('msvit_4_96', num_steps=1, in_chans=3)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    before = copy.deepcopy(model.state_dict())
    assert dense.freeze_norms(model) == len(norms) == dense.freeze_norms(model)
    model.train()
    model(torch.rand(2, 3, 32, 32)).sum().backward()
    assert not any(norm.training or norm.weight.requires_grad for norm in norms)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize('name', ['mst_tiny', 'efficientnet_b0', 'metaspikformer_8_256'])
def test_batch_norms_of_all_kinds_are_frozen(name):
    model = timm.create_model(name, device='meta') if name != 'efficientnet_b0' else timm.create_model(name)
    expected = [n for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert dense.freeze_norms(model) == len(expected) > 0
    assert not any(model.train().get_submodule(n).training for n in expected)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_a_fused_unit_answers_by_the_running_statistics(dtype):
    unit = ConvBnLif(3, 8, 3).to(dtype)
    unit.bn.running_mean.normal_()
    unit.bn.running_var.uniform_(0.5, 2)
    expected = copy.deepcopy(unit).eval()
    dense.freeze_norms(unit)
    unit.train()
    x, y = (torch.rand(2, 2, 3, 9, 7, dtype=dtype, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    x.requires_grad_()
    y.requires_grad_()
    assert unit._can_fuse(x)
    spikes = unit(x)
    assert torch.equal(spikes, expected.lif(expected.current(y)))
    weights = torch.rand(spikes.shape, dtype=dtype)
    (spikes * weights).sum().backward()
    (expected.lif(expected.current(y)) * weights).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(unit.conv.weight.grad, expected.conv.weight.grad)


def test_copies_and_pickles_are_frozen_too():
    norm = nn.BatchNorm2d(3)
    dense.freeze_norms(norm)
    for other in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
        assert isinstance(other, nn.BatchNorm2d) and not other.train().training
        assert torch.equal(other.running_var, norm.running_var)


def test_a_model_with_frozen_norms_is_fused_all_the_same():
    model = timm.create_model('msvit_4_96', num_steps=2, in_chans=3).double().eval()
    expected = timm_snn.fuse(model)
    dense.freeze_norms(model)
    images = torch.rand(1, 3, 32, 32, dtype=torch.float64)
    assert torch.equal(timm_snn.fuse(model)(images), expected(images))


def test_a_norm_without_statistics_cannot_be_frozen():
    with pytest.raises(ValueError, match='no running statistics'):
        dense.freeze_norms(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)))
