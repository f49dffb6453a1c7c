"""Attention against the equations of the papers."""

import pytest
import torch

from tests.conftest import lively
from timm_snn.layers import LIF, MultiScaleSpikingAttention, SpikingSelfAttention

X = torch.randint(0, 3, (4, 3, 12, 7, 5), generator=torch.Generator().manual_seed(0)).double()  # [T, B, C, H, W]


def test_ssa_is_the_equation_of_the_paper():
    layer = lively(SpikingSelfAttention(12, 3).double().eval())
    tokens = X.flatten(3)
    q, k, v = (unit(tokens) for unit in (layer.q[0], layer.k, layer.v))
    attended = torch.stack([dense_attention(q[t], k[t], v[t], 3) for t in range(4)])
    expected = layer.proj(LIF()(attended)).unflatten(3, X.shape[3:])
    assert torch.equal(layer(X), expected)


def test_mssa_is_the_equation_of_the_paper():
    layer = lively(MultiScaleSpikingAttention(12, 3).double().eval())
    tokens = X.flatten(3)
    q, p, k = (unit(tokens) for unit in (*layer.q, layer.k))
    heads = [slice(4 * i, 4 * i + 4) for i in range(3)]
    gates = [LIF()(q[:, :, h].sum(2) + p[:, :, h].sum(2)) for h in heads]
    masked = torch.cat([gate.unsqueeze(2) * k[:, :, h] for gate, h in zip(gates, heads, strict=True)], 2)
    assert 0 < torch.stack(gates).mean() < 1
    assert torch.equal(layer(X), layer.proj(masked).unflatten(3, X.shape[3:]))


def dense_attention(q, k, v, heads):
    """softmax-free attention token by token, as Eq. 12 is written, on [B, C, N]."""
    B, C, N = q.shape
    q, k, v = (z.view(B, heads, C // heads, N).transpose(-2, -1) for z in (q, k, v))  # [B, heads, N, D]
    return ((q @ k.transpose(-2, -1)) @ v * 0.125).transpose(-2, -1).reshape(B, C, N)


def test_ssa_stays_in_the_range_of_float16():
    """3,136 tokens of 64 channels that all fire sum up to 200,704 before the scale, above float16's 65,504."""
    layer = SpikingSelfAttention(64, 1).eval()
    currents = []
    layer.attn_lif.register_forward_hook(lambda module, args, spikes: currents.append(args[0]))
    for unit in (layer.q[0], layer.k, layer.v):
        torch.nn.init.constant_(unit.bn.bias, 9.0)
    layer.half()(torch.zeros(1, 1, 64, 56, 56, dtype=torch.float16))
    assert currents[0].isfinite().all() and currents[0].max() == 64 * 56 * 56 / 8


@pytest.mark.parametrize('layer', [MultiScaleSpikingAttention, SpikingSelfAttention])
class TestAttentionArguments:
    def test_heads_must_divide_the_width(self, layer):
        with pytest.raises(ValueError, match='num_heads=5 does not divide dim=12'):
            layer(12, 5)

    @pytest.mark.parametrize('heads', [3.0, '3', 0])
    def test_heads_must_be_a_whole_number(self, layer, heads):
        with pytest.raises(ValueError, match='choose a whole number'):
            layer(12, heads)

    @pytest.mark.parametrize('kernels', [(), (2,), (1, -3), 3])
    def test_kernels_must_be_odd(self, layer, kernels):
        with pytest.raises(ValueError, match='odd kernel sizes'):
            layer(12, 3, query_kernels=kernels)
