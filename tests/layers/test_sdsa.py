"""Spike-driven self-attention against its equation, token by token."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.conftest import lively
from timm_snn import lif
from timm_snn.layers import SpikeDrivenSelfAttention

T, B, C, H, W = 4, 2, 12, 5, 3


@pytest.fixture
def u() -> Tensor:
    return 2 * torch.randn(T, B, C, H, W, dtype=torch.float64)


def sdsa(**kwargs) -> SpikeDrivenSelfAttention:
    return lively(SpikeDrivenSelfAttention(C, 3, **kwargs).double().eval())


def windows(x: Tensor) -> Tensor:
    """Maximum of every 3x3 window of the last two axes; spikes are not negative."""
    x = F.pad(x, (1, 1, 1, 1))
    return x.unfold(-2, 3, 1).unfold(-2, 3, 1).amax((-2, -1))


@pytest.mark.parametrize('erode', [False, True])
def test_sdsa_is_the_equation_of_the_paper(u, erode):
    layer = sdsa(erode=erode)
    q, k, v = (unit(lif(u)) for unit in (layer.q, layer.k, layer.v))

    def tokens(x: Tensor) -> Tensor:
        return x.reshape(T, B, 3, 4, H * W).transpose(-2, -1)  # [T, B, heads, N, D]

    def dilated(x: Tensor) -> Tensor:
        return windows(x) if erode else x

    agreement = dilated(tokens(dilated(k)) * tokens(dilated(v)))
    gate = lif(agreement.sum(-2, keepdim=True), v_threshold=0.5)
    masked = dilated(tokens(q) * gate)
    assert 0 < gate.mean() < 1 and 0 < masked.mean() < 1
    expected = layer.proj(masked.transpose(-2, -1).reshape(T, B, C, H, W))
    torch.testing.assert_close(layer(u), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize('erode', [False, True])
def test_heads_matter_with_erode_alone(u, erode):
    one = sdsa(erode=erode)
    other = SpikeDrivenSelfAttention(C, 6, erode=erode).double().eval()
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(u), other(u)) == (not erode)


def test_samples_do_not_see_their_neighbours_and_steps_do_not_see_the_future(u):
    layer = sdsa(erode=True)
    y = layer(u)
    assert torch.equal(layer(u[:, 1:]), y[:, 1:])
    assert torch.equal(layer(u[:2]), y[:2])
