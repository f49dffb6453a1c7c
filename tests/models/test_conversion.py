"""`convert`: what it finds in a network, and how near the converted network comes."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.nn.functional import relu

from timm_snn.layers import ClipFloorShift, ConvertedNeuron, OnRunningMean
from timm_snn.models import ConvertedModel, convert, quantize_activations, set_num_steps

X = torch.rand(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Gate(nn.Module):
    """A product of activations."""

    def __init__(self) -> None:
        super().__init__()
        self.act = ClipFloorShift()

    def forward(self, x):
        return x * self.act(x.mean((2, 3), keepdim=True))


def network(*middle, levels=8):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), ClipFloorShift(levels), *middle]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).double()
    net.train()(X)  # statistics of the batch norm
    return net.eval()


@pytest.mark.parametrize('T', [1, 3, 8])
@torch.no_grad()
def test_one_layer_of_neurons_is_converted_without_error(T):
    """Its current is the same at every step, and all that follows commutes with the mean."""
    ann = network(levels=T)
    snn = convert(ann, num_steps=T, images=X)
    torch.testing.assert_close(snn(X), ann(X), rtol=0, atol=1e-12)
    assert not snn.report.real_valued and snn.report.neurons == ('2',)


@torch.no_grad()
def test_the_error_of_a_deep_network_falls_with_the_steps():
    """It goes to the network without rounding, roughly as 1 / T."""
    deep = [m for _ in range(3) for m in (nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), ClipFloorShift(10**6))]
    ann = network(*deep, levels=10**6)
    exact = ann(X)
    errors = {}
    for T in (4, 16, 64, 256):
        errors[T] = (convert(ann, num_steps=T, images=X)(X) - exact).abs().max().item()
    assert errors[256] < errors[16] / 4 < errors[4]
    assert errors[256] < 0.01 * exact.abs().max()


@torch.no_grad()
def test_layers_that_do_not_commute_see_running_means():
    ann = network(nn.MaxPool2d(2), nn.Conv2d(8, 8, 1), nn.GroupNorm(2, 8), Gate())
    snn = convert(ann, num_steps=8, images=X)
    assert snn.report.real_valued == {'3': 'calls max_pool2d', '5': 'calls group_norm', '6': 'calls mul'}
    assert snn.report.kept == ('6.act',) and isinstance(snn.model[6].layer.act, ClipFloorShift)
    # the one layer of neurons has a constant current, so that all of it is exact
    torch.testing.assert_close(snn(X), ann(X), rtol=0, atol=1e-12)
    assert 'group_norm' in str(snn.report) and '6.act' in str(snn.report)


class HalfRectified(nn.Module):
    """A mask, which has no gradient, times what it was made of."""

    def forward(self, x):
        return x / 2 + x * (x > 0.1)


@torch.no_grad()
def test_masks_are_seen_and_a_layer_at_two_places_is_replaced_at_both():
    layer = HalfRectified()
    ann = network(layer, nn.Conv2d(8, 8, 1), layer)
    snn = convert(ann, num_steps=8, images=X)
    assert [type(snn.model[i]) for i in (3, 5)] == [OnRunningMean] * 2 and snn.report.real_valued['3'] == 'calls mul'
    torch.testing.assert_close(snn(X), ann(X), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ('name', 'reasons'),
    [
        ('test_resnet', {'calls max_pool2d'}),
        ('test_vit', {'calls layer_norm', 'calls scaled_dot_product_attention'}),
        ('test_efficientnet', {'calls mul'}),
        ('test_convnext', {'calls layer_norm'}),
    ],
)
@torch.no_grad()
def test_models_of_timm_are_converted(name, reasons):
    torch.manual_seed(0)
    ann = timm.create_model(name, num_classes=5).eval()
    x = torch.rand(1, *ann.pretrained_cfg['input_size'])
    quantized = quantize_activations(ann, levels=16, images=x).eval()
    snn = convert(quantized, num_steps=2)
    assert set(snn.report.real_valued.values()) >= reasons
    assert sum(isinstance(m, ConvertedNeuron) for m in snn.modules()) == len(snn.report.neurons) > 0
    assert snn(x).shape == (1, 5) and snn(x).isfinite().all()
    assert snn.forward_features(x).shape == ann.forward_features(x).shape
    assert snn.num_classes == 5 and not any(isinstance(m, ClipFloorShift) for m in ann.modules())


@torch.no_grad()
def test_the_first_steps_answer_as_fewer_steps():
    ann = network(nn.MaxPool2d(2), nn.Conv2d(8, 8, 1), ClipFloorShift())
    snn = convert(ann, num_steps=6, images=X)
    steps = snn.forward_steps(X)
    torch.testing.assert_close(steps.mean(1), snn(X))
    torch.testing.assert_close(snn(X.unsqueeze(1).repeat(1, 6, 1, 1, 1)), snn(X))
    set_num_steps(snn, 4)
    torch.testing.assert_close(steps[:, :4].mean(1), snn(X))
    with pytest.raises(ValueError, match='num_steps must be a whole number of at least 1, got 0'):
        snn.num_steps = 0
    assert {m.num_steps for m in snn.modules() if isinstance(m, (ConvertedNeuron, OnRunningMean))} == {4}


def test_the_network_itself_is_left_as_it_is():
    ann = network(nn.MaxPool2d(2)).train()
    ann[0].weight.requires_grad_(False)
    before = copy.deepcopy(ann)
    snn = convert(ann, num_steps=2, images=X)
    assert str(ann) == str(before) and ann.training and not ann[0].weight.requires_grad
    assert all(map(torch.equal, ann.state_dict().values(), before.state_dict().values()))
    assert not any(m._forward_hooks or m._forward_pre_hooks for net in (ann, snn) for m in net.modules())
    assert snn.model[6].weight.requires_grad


@torch.no_grad()
def test_thetas_start_from_what_the_activations_give():
    ann = nn.Sequential(nn.Flatten(), nn.Linear(768, 10), nn.ReLU()).double()
    quantized = quantize_activations(ann, levels=64, images=X)
    assert quantized[2].theta.item() == pytest.approx(ann(X).max().item())
    assert quantize_activations(ann)[2].theta.item() == 1


def test_masks_of_all_neurons():
    snn = convert(network(), num_steps=4, mask_ratio=0.5, images=X)
    assert not torch.equal(snn(X), snn(X))
    with pytest.raises(ValueError, match=r'0 <= mask_ratio < 1, got 1\.5'):
        convert(network(), num_steps=4, mask_ratio=1.5, images=X)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x):
        return relu(self.net(x))


def negative():
    net = network()
    nn.init.constant_(net[2].theta, -1.0)
    return net


@pytest.mark.parametrize(
    ('make', 'kwargs', 'message'),
    [
        (lambda: nn.Conv2d(3, 3, 1).double(), {}, 'no ClipFloorShift to convert in Conv2d, there are none'),
        (lambda: network(nn.ReLU()), {}, '1 others, such as ReLU: call quantize_activations'),
        (network, dict(levels=4), r'activations of \[8\] levels, not 4'),
        (Functional, {}, 'part of Functional is real-valued: its own forward method calls relu'),
        (negative, {}, 'the neuron 2 needs a theta above 0, got -1.0'),
        (network, dict(images=None), 'what images this network takes: pass images'),
    ],
)
def test_what_cannot_be_converted_is_refused(make, kwargs, message):
    with pytest.raises(ValueError, match=message):
        convert(make(), num_steps=2, **{'images': X, **kwargs})


def test_activations_in_functions_are_not_found():
    with pytest.raises(ValueError, match='found no ReLU, GELU or SiLU in Sequential'):
        quantize_activations(network())


def test_a_converted_network_is_told_apart():
    assert isinstance(convert(network(), num_steps=1, images=X), ConvertedModel)
