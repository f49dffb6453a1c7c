"""Facts that hold for every layer."""

import pytest
import torch
from torch import nn

from tests.conftest import lively
from timm_snn.layers import (
    ConvBn,
    ConvBnLif,
    MultiScaleSpikingAttention,
    ParametricLIF,
    QKTokenAttention,
    SepConv,
    SpikingMlp,
    SpikingPatchEmbed,
    SpikingPatchSplitting,
    SpikingResidual,
    SpikingSelfAttention,
)

X = torch.randint(0, 3, (4, 3, 12, 7, 5), generator=torch.Generator().manual_seed(0)).double()  # [T, B, C, H, W]


LAYERS = {
    'conv': lambda: ConvBnLif(12, 8, kernel_size=3, stride=2),
    'conv_pool': lambda: ConvBnLif(12, 8, kernel_size=3, pool=True, bias=True),
    'embed': lambda: SpikingPatchEmbed(12, (8, 16), (True, False)),
    'mlp': lambda: SpikingMlp(12, 20),
    'mssa': lambda: MultiScaleSpikingAttention(12, 3),
    'ssa': lambda: SpikingSelfAttention(12, 3),
    'qkta': lambda: QKTokenAttention(12, 3),
    'sps': lambda: SpikingPatchSplitting(12, (8, 16), (False, True), pool_input=True, position=True),
    'sps_cml': lambda: SpikingPatchSplitting(12, (8, 16), (True, True), cml=True, position=True),
    'mssa_plif': lambda: MultiScaleSpikingAttention(12, 3, lif_layer=ParametricLIF),
}


# Their output is a current, for membrane shortcuts.
CURRENT_LAYERS = {
    'conv_bn': lambda: ConvBn(12, 8, kernel_size=3, pool=True),
    'patches': lambda: ConvBn(12, 8, kernel_size=2, stride=2),
    'mlp_pre': lambda: SpikingMlp(12, 20, pre_activation=True),
    'ssa_pre': lambda: SpikingSelfAttention(12, 3, attn_v_threshold=0.1, pre_activation=True),
    'sep_conv': lambda: SepConv(12),
    'sep_conv_lif': lambda: SepConv(12, 3, depthwise_lif=True),
    'residual': lambda: SpikingResidual(SpikingMlp(12, 20, 3, bias=False, pre_activation=True)),
}


NEURONS_INSIDE = [name for name in CURRENT_LAYERS if name not in ('conv_bn', 'patches')]


def make(name: str) -> nn.Module:
    return lively({**LAYERS, **CURRENT_LAYERS}[name]().double().eval())


@pytest.fixture(params=[*LAYERS, *NEURONS_INSIDE])
def layer(request) -> nn.Module:
    return make(request.param)


@pytest.mark.parametrize('name', [*LAYERS, *CURRENT_LAYERS])
def test_output_is_small_integers_or_currents_and_every_parameter_learns(name):
    layer = make(name)
    y = layer(X)
    assert y.shape[:2] == X.shape[:2] and y.mean() > 0
    assert (set(y.unique().tolist()) <= {0, 1, 2}) == (name in LAYERS)
    layer.train()
    (layer(X) * torch.randn(y.shape, dtype=y.dtype)).sum().backward()
    for key, parameter in layer.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        # batch norm takes away what a bias in front of it adds
        assert key.endswith('conv.bias') or parameter.grad.any(), key


def test_samples_do_not_see_their_neighbours(layer):
    order = torch.tensor([2, 0, 1])
    assert torch.equal(layer(X[:, order]), layer(X)[:, order])
    assert torch.equal(layer(X[:, :1]), layer(X)[:, :1])


def test_steps_do_not_see_the_future_and_do_see_the_past(layer):
    changed = X.clone()
    changed[2] = 2 - X[2]
    assert torch.equal(layer(changed)[:2], layer(X)[:2])
    assert not torch.equal(layer(changed)[2], layer(X)[2])


def test_calls_start_at_rest(layer):
    assert torch.equal(layer(X), layer(X))
