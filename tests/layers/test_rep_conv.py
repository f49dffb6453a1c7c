"""RepConv against its equation, and merged into one convolution."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import timm_snn
from tests.conftest import lively
from timm_snn.layers import ConvBn, ConvBnLif, RepConv, SpikingSelfAttention


def spikes(*shape: int) -> Tensor:
    return (torch.rand(shape) < 0.3).double()


@pytest.fixture
def conv() -> RepConv:
    """With batch norms that have seen data."""
    conv = lively(RepConv(6, 8).double())
    for bn in (conv.bn1, conv.bn2):
        torch.nn.init.normal_(bn.running_mean)
    return conv


@pytest.mark.parametrize('size', [(5, 7), (1, 1), (2, 1)])
def test_merged_it_is_one_convolution_up_to_the_border(conv, size):
    x = spikes(3, 6, *size)
    torch.testing.assert_close(conv.eval().merged()(x), conv(x), rtol=0, atol=1e-12)


@torch.no_grad()
def test_the_border_has_the_statistics_of_the_map_in_training(conv):
    x = spikes(3, 6, 5, 7)
    y = F.conv2d(x, conv.pw1.weight)
    mean, var = y.mean((0, 2, 3)), y.var((0, 2, 3), correction=0)
    padded = F.pad(y, (1, 1, 1, 1))  # W1 has no bias: nothing becomes nothing
    padded = F.batch_norm(padded, mean, var, conv.bn1.weight, conv.bn1.bias, eps=conv.bn1.eps)
    y = F.conv2d(F.conv2d(padded, conv.dw.weight, groups=6), conv.pw2.weight)
    expected = F.batch_norm(y, None, None, conv.bn2.weight, conv.bn2.bias, training=True)
    torch.testing.assert_close(conv(x), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(conv(x), expected, rtol=0, atol=1e-12)  # whatever the running statistics are


def test_fuse_folds_its_batch_norms():
    attention = SpikingSelfAttention(12, 3, 0.1, pre_activation=True, conv_layer=RepConv)
    attention = lively(attention.double().eval())
    x = 2 * torch.randn(4, 2, 12, 5, 3, dtype=torch.float64)
    fused = timm_snn.fuse(attention)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fused.modules())
    assert attention.k(spikes(4, 2, 12, 5, 3)).mean() > 0
    torch.testing.assert_close(fused(x), attention(x), rtol=0, atol=1e-9)


@pytest.mark.parametrize('layer', [ConvBn, ConvBnLif])
@pytest.mark.parametrize('kwargs', [{'kernel_size': 3}, {'stride': 3}, {'bias': True}, {'groups': 2}, {'dims': 1}])
def test_settings_that_it_would_not_read_are_refused(layer, kwargs):
    with pytest.raises(ValueError, match='a conv_layer has its own kernel, stride, bias and groups'):
        layer(6, 6, conv_layer=RepConv, **kwargs)
