"""The residual networks against SpikingJelly's, with weights of its files, and what each of them has alone."""

from functools import partial

import pytest
import timm
import torch

from tests.conftest import lively
from timm_snn.models import SpikingTransformer, ms_resnet, sew_resnet, spiking_resnet


@pytest.mark.parametrize(
    ('name', 'parameters'),
    [
        ('sew_resnet18', 11_689_512),
        ('sew_resnet34', 21_797_672),
        ('sew_resnet50', 25_557_032),
        ('ms_resnet18', 11_693_736),
        ('ms_resnet34', 21_801_896),
        ('max_resnet18_cifar.cifar10', 12_502_090),
    ],
)
def test_models_have_as_many_parameters_as_spikingjellys(name, parameters):
    model = timm.create_model(name, device='meta')
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize('name', ['sew_resnet18', 'sew_resnet34', 'sew_resnet50', 'ms_resnet18', 'ms_resnet34'])
def test_features_have_the_five_strides_that_dense_libraries_expect(name):
    net = timm.create_model(name, features_only=True, num_steps=1, device='meta')
    assert net.feature_info.reduction() == [2, 4, 8, 16, 32]
    assert [tap.shape[2] for tap in net(torch.empty(1, 3, 64, 64, device='meta'))] == [32, 16, 8, 4, 2]


def spikingjellys(name: str) -> torch.nn.Module:
    """Its network of this name, for [T, B, C, H, W]."""
    pytest.importorskip('spikingjelly')
    from spikingjelly.activation_based import functional, neuron
    from spikingjelly.activation_based.model import ms_resnet, sew_resnet

    if name.startswith('sew'):
        net = getattr(sew_resnet, name)(cnf='ADD', spiking_neuron=neuron.IFNode, num_classes=10)
        functional.set_step_mode(net, 'm')
        return net
    return getattr(ms_resnet, name.removesuffix('_cifar'))(num_classes=10)


@pytest.mark.parametrize(
    'name', ['sew_resnet18', 'sew_resnet34', 'sew_resnet50', 'ms_resnet18', 'ms_resnet34', 'max_resnet18_cifar']
)
def test_logits_equal_those_of_spikingjelly(name):
    theirs = lively_with(spikingjellys(name).double().eval())
    ours: SpikingTransformer = timm.create_model(name, num_classes=10, num_steps=2).double().eval()
    filter_fn = sew_resnet.checkpoint_filter_fn if name.startswith('sew') else ms_resnet.checkpoint_filter_fn
    ours.load_state_dict(filter_fn(theirs.state_dict(), ours))
    frames = torch.rand(2, 2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        expected = theirs(frames.transpose(0, 1))
        logits = ours(frames)
    expected = expected.mean(0) if expected.ndim == 3 else expected
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-9)
    assert (logits[0] - logits[1]).abs().max() > 1e-3


def lively_with(net: torch.nn.Module) -> torch.nn.Module:
    """Batch norms of a current that fires some neurons and not all, in every layer."""
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.8, 1.6)
            torch.nn.init.uniform_(module.bias, 0.0, 0.6)
            module.running_var.fill_(0.3)
    return net


def test_the_block_of_a_plain_spiking_resnet_fires_after_its_sum():
    block = lively(
        spiking_resnet.SpikingResNetBlock(4, 6, 2, 0.0, lif_layer=partial(torch.nn.Hardtanh, 0, 1)).double().eval()
    )
    s = (torch.rand(2, 3, 4, 5, 7, dtype=torch.float64) > 0.5).double()
    conv = partial(torch.nn.functional.conv2d, padding=1)

    def normed(unit, y):
        return unit.bn(y)

    x = s.flatten(0, 1)
    y = normed(block.conv1, conv(x, block.conv1.conv.weight, stride=2)).clamp(0, 1)
    y = normed(block.conv2, conv(y, block.conv2.conv.weight))
    shortcut = normed(block.shortcut, torch.nn.functional.conv2d(x, block.shortcut.conv.weight, stride=2))
    torch.testing.assert_close(block(s).flatten(0, 1), (y + shortcut).clamp(0, 1))


def test_arguments_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match='stage 0 needs blocks to make 128 channels of 64'):
        timm.create_model('sew_resnet18', embed_dims=(128, 64, 128, 256, 512), device='meta')
    with pytest.raises(ValueError, match='expected one stride for each of 5 stages, got 2'):
        timm.create_model('ms_resnet18', strides=(1, 2), device='meta')
    with pytest.raises(ValueError, match='expected stride 1 or 2, got 3'):
        timm.create_model('max_resnet18', strides=(1, 3, 2, 2, 2), device='meta')
