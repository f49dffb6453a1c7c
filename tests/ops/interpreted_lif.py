"""The Triton neuron in Triton's interpreter, on the CPU; test_triton.py runs this file in a process of its own."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import timm_snn
from timm_snn.ops import Sigmoid, backend, lif, lif_op, lif_stream, lif_triton
from timm_snn.ops.neuron import membrane_dtype
from timm_snn.ops.surrogate import SURROGATES

pytestmark = pytest.mark.usefixtures('poisoned')

SETTINGS = list(itertools.product(SURROGATES, (0.0, -0.2, None), (True, False), (True, False)))
STEPS = (1, 2, 4, 8, 9, 17)
LAYOUTS = ('contiguous', 'channels_last', 'static', 'batch_first', 'sparse')


def currents(*shape: int) -> Tensor:
    return 1.5 * torch.randn(shape) + 0.5


def laid_out(x: Tensor, layout: str) -> Tensor:
    """x [T, B, C, H, W] in another memory layout."""
    if layout == 'channels_last':
        return x.movedim(2, -1).contiguous().movedim(-1, 2)
    if layout == 'static':
        return x[:1].expand_as(x)
    if layout == 'batch_first':
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    return x.repeat_interleave(2, -1)[..., ::2] if layout == 'sparse' else x


def agree(inputs: list[Tensor], run, dtype: torch.dtype, upstream=torch.randn_like) -> None:
    """Spikes are equal, gradients nearly; half precision compares them rounded, and the interpreter rounds down."""
    rtol, atol = {torch.float32: (1e-5, 1e-5), torch.float64: (1e-10, 1e-10)}.get(dtype, (1.6e-2, 1e-3))
    spikes, v = run('triton')
    expected, v_expected = run('torch')
    assert spikes.dtype == expected.dtype == dtype and v.dtype == v_expected.dtype
    assert torch.equal(spikes, expected) and torch.equal(v, v_expected)
    grads = (upstream(spikes), torch.randn_like(v))
    for ours, theirs in zip(
        *(torch.autograd.grad(run(name), inputs, grads) for name in ('triton', 'torch')), strict=True
    ):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol * max(1.0, theirs.abs().max().item()))


@pytest.mark.parametrize('case', range(len(SETTINGS)), ids=lambda i: '-'.join(map(str, SETTINGS[i])))
def test_spikes_and_gradients_are_those_of_torch(case):
    surrogate, v_reset, decay_input, detach_reset = SETTINGS[case]
    num_steps = STEPS[case % len(STEPS)]
    tau = (2.0, 1.7, torch.tensor([1.7], requires_grad=True))[case // 2 % 3]
    x = currents(num_steps, 3, 11).requires_grad_()
    v = torch.randn(3, 11, requires_grad=True) if case % 5 < 3 else None
    inputs = [tensor for tensor in (x, v, tau) if isinstance(tensor, Tensor)]
    settings = dict(
        tau=tau,
        v_threshold=0.8,
        v_reset=v_reset,
        decay_input=decay_input,
        surrogate=surrogate,
        detach_reset=detach_reset,
    )
    agree(inputs, lambda name: lif_stream(x, v, backend=name, **settings), torch.float32)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize('num_steps', [4, 17])
def test_dtypes(dtype, num_steps):
    x = currents(num_steps, 3, 5).to(dtype).requires_grad_()
    v = torch.randn(3, 5, dtype=membrane_dtype(dtype), requires_grad=True)
    tau = torch.tensor(2.3, dtype=torch.float64, requires_grad=True)
    settings = dict(surrogate='erf', detach_reset=False)
    agree([x, v], lambda name: lif_stream(x, v, tau=1.7, backend=name, **settings), dtype)
    agree([x, v, tau], lambda name: lif_stream(x, v, tau=tau, backend=name, **settings), dtype)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_layouts(layout):
    leaf = currents(9, 2, 5, 3, 3).requires_grad_()
    x = laid_out(leaf, layout)
    for upstream in (
        torch.randn_like,
        lambda s: torch.randn(s.shape[::-1]).permute(4, 3, 2, 1, 0),
        lambda s: torch.ones(()).expand_as(s),
    ):
        agree([leaf], lambda name: lif_stream(x, backend=name), torch.float32, upstream)
    spikes = lif(x, backend='triton')
    assert spikes.stride(2) == (1 if layout == 'channels_last' else 9)


@pytest.mark.parametrize('shape', [(1, 1), (3, 0, 4), (9, 2, 0), (4, 3, 1367)])
def test_odd_and_empty_sizes(shape):
    x = currents(*shape).requires_grad_()
    tau = torch.tensor(2.5, requires_grad=True)
    run = lambda name: lif_stream(x, tau=tau, backend=name)  # noqa: E731
    assert all(torch.equal(a, b) for a, b in zip(run('triton'), run('torch'), strict=True))
    for ours, theirs in zip(
        *(torch.autograd.grad(run(n)[0].sum(), [x, tau]) for n in ('triton', 'torch')), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_gradients_of_the_spikes_or_the_membrane_alone():
    x = currents(4, 3, 5).requires_grad_()
    for output in (0, 1):
        grads = [torch.autograd.grad(lif_stream(x, backend=name)[output].sum(), x) for name in ('triton', 'torch')]
        torch.testing.assert_close(*grads)


def test_only_x_is_saved_and_the_last_membrane_is_left_out():
    saved: list[Tensor] = []
    x = currents(4, 3, 5).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        lif(x, backend='triton')
    assert [t.data_ptr() for t in saved] == [x.data_ptr()]
    assert lif_triton.forward(x.detach(), None, 2.0, 1.0, 0.0, True, False)[1].numel() == 0


@pytest.mark.parametrize('autocast', [False, True])
def test_the_kernels_really_run(monkeypatch, autocast):
    launched: list[str] = []
    launch = lif_triton.launch
    monkeypatch.setattr(
        lif_triton, 'launch', lambda kernel, *a, **k: (launched.append(kernel.__name__), launch(kernel, *a, **k))
    )
    monkeypatch.setattr(backend, '_logged', set())
    x = currents(4, 3, 5).requires_grad_()
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        spikes = timm_snn.LIF()(x)  # 'auto'
    spikes.sum().backward()
    assert launched == ['_forward_kernel', '_backward_kernel'] and spikes.dtype == x.grad.dtype == torch.float32


@pytest.mark.parametrize('dynamic', [None, True])
def test_compiles_whole_with_an_alpha_and_a_shape_that_change(dynamic):
    compiled = torch.compile(
        lambda x, surrogate: lif(x * 1.5, surrogate=surrogate, backend='triton'),
        fullgraph=True,
        backend='aot_eager',
        dynamic=dynamic,
    )
    for alpha, size in ((4.0, 3), (2.0, 3), (3.0, 5)):
        x = currents(4, 2, size).requires_grad_()
        (ours,) = torch.autograd.grad(compiled(x, Sigmoid(alpha)).sum(), x)
        (theirs,) = torch.autograd.grad(lif(x * 1.5, surrogate=Sigmoid(alpha), backend='torch').sum(), x)
        torch.testing.assert_close(ours, theirs)


def test_activation_checkpointing_changes_nothing():
    x = currents(4, 3, 5).requires_grad_()

    def block(x):
        return lif(1.5 * lif(x, backend='triton'), backend='triton')

    direct = torch.autograd.grad(block(x).sum(), x)
    assert torch.equal(torch.autograd.grad(checkpoint(block, x, use_reentrant=False).sum(), x)[0], direct[0])


@pytest.mark.parametrize('learned', [False, True])
def test_torch_finds_no_fault_with_the_operators(learned):
    x = currents(4, 2, 3)
    v = torch.randn(2, 3) if learned else None
    tau = torch.tensor([2.5]) if learned else None
    settings = (2.5, 1.0, None, True, 'atan', 2.0, False)
    leaves = [None if t is None else t.clone().requires_grad_() for t in (x, v, tau)]
    torch.library.opcheck(lif_op._lif.op, (*leaves, *settings, learned, 'triton'))
    grad_v = torch.randn(2, 3) if learned else None
    torch.library.opcheck(lif_op._lif_backward.op, (torch.randn(4, 2, 3), grad_v, x, v, tau, *settings, 'triton'))


def test_a_second_derivative_is_refused():
    x = currents(2, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(lif(x, backend='triton').sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match='no autograd formula'):
        gradient.sum().backward()
