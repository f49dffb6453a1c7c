"""Spatial-temporal attention against the equation of its paper, and what it sees of time."""

import pytest
import torch

from tests.conftest import lively
from timm_snn.layers import LIF, SpatialTemporalAttention, SpikingSelfAttention
from timm_snn.layers.statten import sum_over_chunks

X = torch.randint(0, 3, (5, 2, 12, 3, 4), generator=torch.Generator().manual_seed(0)).double()  # [T, B, C, H, W]


def make(cls=SpatialTemporalAttention, **kwargs):
    torch.manual_seed(0)
    return lively(cls(12, 3, **kwargs).double().eval())


@pytest.mark.parametrize('chunk_steps', [2, 3])
def test_it_is_attention_of_all_tokens_of_a_chunk_of_steps(chunk_steps):
    layer = make(chunk_steps=chunk_steps)
    tokens = X.flatten(3)
    q, k, v = (unit(tokens).unflatten(2, [3, 4]) for unit in (layer.q[0], layer.k, layer.v))  # [T, B, heads, D, N]
    attended = []
    for start in range(0, 5, chunk_steps):  # the last chunk is shorter
        chunk = slice(start, start + chunk_steps)
        # [B, heads, steps * N, D]
        qc, kc, vc = (x[chunk].permute(1, 2, 0, 4, 3).flatten(2, 3) for x in (q, k, v))
        y = (qc @ kc.transpose(2, 3)) @ vc * 0.125
        attended.append(y.unflatten(2, [-1, 12]).permute(2, 0, 1, 4, 3).flatten(2, 3))  # [steps, B, C, N]
    spikes = LIF()(torch.cat(attended))
    assert 0 < spikes.mean() < 1
    assert torch.equal(layer(X), layer.proj(spikes).unflatten(3, X.shape[3:]))


def test_with_chunks_of_one_step_it_is_ssa():
    ssa = make(SpikingSelfAttention)
    layer = make(chunk_steps=1)
    layer.load_state_dict(ssa.state_dict())
    assert torch.equal(layer(X), ssa(X))
    assert not torch.equal(make()(X), ssa(X))


def test_a_step_sees_the_steps_of_its_chunk_and_no_later_ones():
    layer = make(chunk_steps=2)
    changed = X.clone()
    changed[3] = 2 - changed[3]
    differs = (layer(X) != layer(changed)).flatten(1).any(1)
    assert differs[2] and differs[3] and not differs[:2].any()


def test_channels_last_scripting_and_compilation_change_nothing():
    layer = make(pre_activation=True)
    y = layer(X)
    x = X.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, X.shape[:2])
    torch.testing.assert_close(layer(x), y)
    torch.testing.assert_close(torch.jit.script(layer)(X), y)
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend='eager')(X), y)


def test_gradients_are_those_of_the_sums():
    x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: sum_over_chunks(x, 2), x)
    assert sum_over_chunks(torch.arange(5.0), 2).tolist() == [1, 1, 5, 5, 4]


@pytest.mark.parametrize('steps', [0, 1.5, True])
def test_chunks_of_no_whole_number_of_steps_are_refused(steps):
    with pytest.raises(ValueError, match='chunk_steps must be a whole number of at least 1'):
        SpatialTemporalAttention(12, 3, chunk_steps=steps)
