"""Units of convolution, batch norm and neuron, and the ops that stand for them."""

import pytest
import timm
import torch
from timm.layers import freeze_batch_norm_2d
from torch import nn
from transformers.models.detr.modeling_detr import replace_batch_norm

import timm_snn
from tests.conftest import lively
from tests.support.families import SMALLEST, shallow
from timm_snn.layers import ConvBnLif, conv


@pytest.mark.parametrize('library', ['timm', 'transformers'])
@pytest.mark.parametrize('name', SMALLEST)
def test_libraries_that_freeze_batch_norms_see_all_of_ours(name, library):
    """They replace BatchNorm2d: a BatchNorm1d of tokens would go on training without a word."""
    model = lively(shallow(timm.create_model(name, num_steps=2)).eval()).double()
    chans, height, width = model.pretrained_cfg['input_size']
    x = torch.rand(2, chans, min(height, 64), min(width, 64), dtype=torch.float64)
    expected = model(x)
    if library == 'timm':
        model = freeze_batch_norm_2d(model)
    else:
        replace_batch_norm(model)
    assert not [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    # transformers keeps statistics in float32, a flipped spike would be larger by far
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-6)
    buffers = {key: value.clone() for key, value in model.state_dict().items() if 'bn' in key}
    model.train()(x)
    assert all(torch.equal(value, buffers[key]) for key, value in model.state_dict().items() if key in buffers)


def test_even_kernels_are_refused():
    with pytest.raises(ValueError, match='even ones as large as their stride, got kernel_size=2 and stride=1'):
        ConvBnLif(3, 4, kernel_size=2)


@pytest.fixture
def calls(monkeypatch):
    """The fused ops that a ConvBnLif called."""
    names = []
    for name in ('fire_normalised', 'fire_pooled'):
        op = getattr(conv, name)
        monkeypatch.setattr(
            conv, name, lambda *args, op=op, name=name, **kwargs: names.append(name) or op(*args, **kwargs)
        )
    return names


def test_hooks_and_other_modules_are_not_passed_by(calls):
    """One op stands for norm, pooling and neuron only where nobody would notice."""
    x = torch.rand(2, 3, 4, 9, 7)
    unit = ConvBnLif(4, 5, 3, pool=True)
    unit(x)
    assert calls == ['fire_normalised']
    seen = []
    for child in ('bn', 'pool', 'lif'):
        handle = getattr(unit, child).register_forward_hook(lambda *args, child=child: seen.append(child))
        unit(x)
        handle.remove()
    assert seen == ['bn', 'pool', 'lif'] and calls == ['fire_normalised']

    class Quiet(timm_snn.LIF):
        def forward(self, x):
            return torch.zeros_like(x)

    assert not ConvBnLif(4, 5, lif_layer=Quiet)(x).any()
    unit.bn = nn.SyncBatchNorm(5)
    unit.eval()(x)
    unit.bn = nn.BatchNorm2d(5, momentum=None)  # a cumulative average
    unit.train()(x)
    assert calls == ['fire_normalised'] and unit.bn.num_batches_tracked == 1


@pytest.mark.parametrize('training', [True, False])
def test_the_op_equals_the_layers(calls, training):
    torch.manual_seed(1)
    unit = lively(ConvBnLif(4, 5, 3, pool=True).double()).train(training)
    x = torch.rand(2, 3, 4, 9, 7, dtype=torch.float64)
    state = {key: value.clone() for key, value in unit.state_dict().items()}
    results = []
    for watched in (False, True):
        unit.load_state_dict(state)
        if watched:
            unit.lif.register_forward_hook(lambda *args: None)
        spikes = unit(x)
        results.append([spikes, *unit.state_dict().values(), *torch.autograd.grad(spikes.sum(), unit.parameters())])
    torch.testing.assert_close(*results, rtol=0, atol=1e-12)
    assert calls == ['fire_normalised'] and unit.bn.num_batches_tracked == state['bn.num_batches_tracked'] + training


def test_token_convolutions_keep_channels_last():
    unit = ConvBnLif(4, 5, 3, dims=1)
    x = torch.rand(2, 3, 7, 4).transpose(2, 3)  # tokens [T, B, C, N] with channels innermost
    y = unit.conv(x.flatten(0, 1))
    assert y.stride(1) == 1
    torch.testing.assert_close(y, nn.functional.conv1d(x.flatten(0, 1), unit.conv.weight, padding=1))


def test_convolutions_of_few_channels_do_not_skip_zeros_by_themselves():
    chosen = {}
    for fewest in (32, 128):
        layers = nn.ModuleList([conv.MapConv(i, o, 3) for i, o in ((31, 256), (256, 31), (32, 32), (127, 256))])
        layers += [conv.TokenConv(128, 128, 1), nn.Conv2d(128, 128, 1)]
        conv.skip_zeros(layers, fewest)
        chosen[fewest] = [getattr(layer, 'skips_zeros', None) for layer in layers]
    assert chosen == {32: [False, False, True, True, True, None], 128: [False] * 4 + [True, None]}
