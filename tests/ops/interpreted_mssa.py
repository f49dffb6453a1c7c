"""The tail of MSSA in Triton's interpreter, on the CPU; test_triton.py runs this file in a process of its own."""

import itertools

import pytest
import torch
from torch import Tensor

from timm_snn.ops import ATan
from timm_snn.ops.backends import reference
from timm_snn.ops.backends.triton.mssa import _mssa, mssa
from timm_snn.ops.neuron import membrane_dtype

pytestmark = pytest.mark.usefixtures('poisoned')

CASES = list(itertools.product(('contiguous', 'tokens', 'static', 'mixed'), (1, 2, 3)))


def spikes(layout: str, num_steps: int, dtype: torch.dtype = torch.float32, D: int = 5, N: int = 7) -> Tensor:
    """[T, B, heads, D, N]; whole numbers, of which every sum is exact."""
    x = torch.randint(-2, 4, (num_steps, 2, 3, D, N)).to(dtype)
    if layout == 'tokens':
        x = x.permute(0, 1, 4, 2, 3).contiguous().permute(0, 1, 3, 4, 2)
    return (x[:1].expand_as(x) if layout == 'static' else x).requires_grad_()


def agree(queries: list[Tensor], k: Tensor, case: int) -> None:
    rtol, atol = {torch.float32: (1e-5, 1e-5), torch.float64: (1e-10, 1e-10)}.get(k.dtype, (5e-2, 1e-2))
    tau = torch.tensor([1.7], requires_grad=True) if case % 2 else 2.0
    settings = dict(
        tau=tau,
        v_threshold=1.0,
        v_reset=(0.0, -0.2, None)[case % 3],
        decay_input=case % 4 < 2,
        surrogate=ATan(),
        detach_reset=case % 5 < 3,
    )
    out = mssa(queries, k, **settings)
    current = sum(q.to(membrane_dtype(k.dtype)) for q in queries).sum(3, keepdim=True)
    expected = reference.lif(current, None, **settings)[0].to(k.dtype) * k
    assert torch.equal(out, expected) and out.dtype == k.dtype and out.stride()[1:] == k.stride()[1:]
    with torch.no_grad():
        assert torch.equal(mssa(queries, k, **settings), expected)

    upstream = torch.randn(out.shape[::-1]).permute(4, 3, 2, 1, 0).to(k.dtype)
    inputs = [tensor for tensor in (*queries, k, tau) if isinstance(tensor, Tensor)]
    for ours, theirs in zip(*(torch.autograd.grad(o, inputs, upstream) for o in (out, expected)), strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol * max(1.0, theirs.abs().max().item()))


@pytest.mark.parametrize('case', range(len(CASES)), ids=lambda i: '-'.join(map(str, CASES[i])))
def test_output_and_gradients_are_those_of_plain_ops(case):
    layout, num_queries = CASES[case]
    num_steps = (2, 9)[case % 2]
    queries = [spikes('contiguous' if layout == 'mixed' else layout, num_steps) for _ in range(num_queries)]
    agree(queries, spikes('tokens' if layout == 'mixed' else layout, num_steps), case)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(dtype):
    agree([spikes('contiguous', 4, dtype) for _ in range(2)], spikes('tokens', 4, dtype), 1)


@pytest.mark.parametrize('layout', ['contiguous', 'tokens'])
def test_heads_and_images_larger_than_a_tile(layout):
    agree([spikes(layout, 2, D=130, N=18)], spikes(layout, 2, D=130, N=18), 0)


def test_an_empty_batch():
    x = spikes('contiguous', 2)[:, :0].detach().requires_grad_()
    out = mssa([x], x, tau=2.0, v_threshold=1.0, v_reset=0.0, decay_input=True, surrogate=ATan(), detach_reset=True)
    assert torch.autograd.grad(out.sum(), x)[0].shape == x.shape


def test_torch_finds_no_fault_with_the_operator_and_compiles_it_whole():
    q, k, tau = spikes('tokens', 2), spikes('contiguous', 2), torch.tensor(2.5, requires_grad=True)
    tests = ('test_schema', 'test_autograd_registration', 'test_faketensor', 'test_aot_dispatch_dynamic')
    arguments = (q, k, k, tau, 0.0, 1.0, 0.0, True, 'atan', 2.0, True, True)
    torch.library.opcheck(_mssa.op, arguments, test_utils=tests)

    settings = dict(tau=2.0, v_threshold=1.0, v_reset=0.0, decay_input=True, surrogate=ATan(), detach_reset=True)
    compiled = torch.compile(lambda q, k: mssa([q, q], 2 * k, **settings), fullgraph=True, backend='aot_eager')
    grads = [torch.autograd.grad(out.sum(), (q, k)) for out in (compiled(q, k), mssa([q, q], 2 * k, **settings))]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
