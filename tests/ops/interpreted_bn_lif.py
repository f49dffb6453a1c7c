"""Batch norm with the neuron in Triton's interpreter, on the CPU; test_triton.py runs this file in its own process."""

import copy
import importlib
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import timm_snn
from timm_snn.layers import ConvBnLif
from timm_snn.ops import ATan, Sigmoid
from timm_snn.ops.backends import reference
from timm_snn.ops.backends.triton import layout as layout_file
from timm_snn.ops.backends.triton.bn_lif import affine_lif, bn_lif
from timm_snn.ops.neuron import membrane_dtype

bn_lif_file = importlib.import_module('timm_snn.ops.backends.triton.bn_lif')  # the package has a function of this name

pytestmark = [
    pytest.mark.usefixtures('poisoned'),
    # lanes beyond the last neuron subtract infinities
    pytest.mark.filterwarnings('ignore:invalid value encountered:RuntimeWarning'),
]

LAYOUTS = ('contiguous', 'channels_last', 'static', 'batch_first', 'tokens')
CASES = [case for case in itertools.product(LAYOUTS, (False, True), (2,)) if case[:2] != ('tokens', True)]
CASES += itertools.product(('contiguous', 'channels_last'), (False, True), (9,))


def convolved(layout: str, num_steps: int, num_channels: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    """Something like the output of a convolution: channels differ in mean and spread."""
    x = torch.randn(num_steps, 2, num_channels, 5, 6) * 3 + 5 * torch.randn(num_channels, 1, 1)
    if layout == 'channels_last':
        x = x.movedim(2, -1).contiguous().movedim(-1, 2)
    if layout == 'batch_first':
        x = x.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == 'tokens':
        x = x.flatten(3).transpose(2, 3).contiguous().transpose(2, 3)
    x = x.to(dtype)
    return (x[:1].expand_as(x) if layout == 'static' else x).requires_grad_()


def per_channel(p: Tensor, x: Tensor) -> Tensor:
    return p.view(-1, *[1] * (x.ndim - 3)).to(membrane_dtype(x.dtype))


def fire(y: Tensor, pool: bool, **settings) -> Tensor:
    if pool:
        y = F.max_pool2d(y.flatten(0, 1), 3, 2, 1).unflatten(0, y.shape[:2])
    return reference.lif(y, None, **settings)[0]


def plain(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float, **settings) -> Tensor:
    """The composition of plain ops, with the values of the op's statistics, so that equal spikes can be asked for."""
    current = x.to(membrane_dtype(x.dtype))
    axes = [i for i in range(x.ndim) if i != 2]
    own_mean, own_var = current.mean(axes), current.var(axes, unbiased=False)
    mean = per_channel(own_mean + (mean - own_mean).detach(), x)
    var = per_channel(own_var + (var - own_var).detach(), x)
    y = (current - mean) * (1 / torch.sqrt(var + eps)) * per_channel(weight, x) + per_channel(bias, x)
    return fire(y, **settings).to(x.dtype)


def agree(x: Tensor, case: int, pool: bool) -> None:
    C, (rtol, atol) = (
        x.shape[2],
        {torch.float32: (1e-5, 1e-5), torch.float64: (1e-10, 1e-10)}.get(x.dtype, (1.6e-2, 1e-3)),
    )
    weight = (torch.randn(C) + 1.5).requires_grad_()
    bias = (torch.randn(C) * 0.3 + (-0.5 if pool else 1.0)).requires_grad_()
    tau = torch.tensor([1.7], requires_grad=True) if case % 2 else 2.0
    settings = dict(
        tau=tau,
        v_threshold=1.0,
        v_reset=(0.0, -0.2, None)[case % 3],
        decay_input=case % 4 < 2,
        surrogate=(Sigmoid(), ATan())[case // 2 % 2],
        detach_reset=case % 5 < 3,
    )
    spikes, mean, var = bn_lif(x, weight, bias, eps=1e-5, pool=pool, **settings)
    axes = [i for i in range(x.ndim) if i != 2]
    torch.testing.assert_close(mean.double(), x.detach().double().mean(axes), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(var.double(), x.detach().double().var(axes, unbiased=False), rtol=1e-5, atol=1e-5)
    assert not mean.requires_grad and not var.requires_grad and spikes.dtype == x.dtype

    expected = plain(x, weight, bias, mean, var, 1e-5, pool=pool, **settings)
    assert torch.equal(spikes, expected) and 0 < spikes.mean() < 1
    upstream = torch.randn(spikes.shape[::-1]).permute(*reversed(range(x.ndim))).to(x.dtype)  # not contiguous
    inputs = [tensor for tensor in (x, weight, bias, tau) if isinstance(tensor, Tensor)]
    for ours, theirs in zip(*(torch.autograd.grad(s, inputs, upstream) for s in (spikes, expected)), strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol * max(1.0, theirs.abs().max().item()))


@pytest.mark.parametrize('case', range(len(CASES)), ids=lambda i: '-'.join(map(str, CASES[i])))
def test_spikes_and_gradients_are_those_of_plain_ops(case):
    layout, pool, num_steps = CASES[case]
    agree(convolved(layout, num_steps), case, pool)


@pytest.mark.parametrize('pool', [False, True])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(dtype, pool):
    agree(convolved('contiguous', 3, dtype=dtype), 1, pool)


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
def test_sums_in_many_tiles_and_shares(monkeypatch, layout):
    monkeypatch.setattr(bn_lif_file, 'STATISTICS_TILE', 32)
    monkeypatch.setattr(bn_lif_file, 'GRADIENT_TILE', 32)
    monkeypatch.setattr(layout_file, 'TARGET_PROGRAMS', 2)
    agree(convolved(layout, 2, num_channels=1), 1, False)
    agree(convolved(layout, 2, num_channels=3), 0, True)
    agree(convolved(layout, 9, num_channels=2), 1, False)


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
def test_the_variance_survives_a_large_mean(layout):
    x = convolved(layout, 4).detach() + 1000
    var = bn_lif(
        x, None, None, eps=1e-5, pool=False, tau=2.0, v_threshold=1.0, v_reset=0.0, decay_input=True,
        surrogate=Sigmoid(), detach_reset=True,
    )[2]  # fmt: skip
    torch.testing.assert_close(var, x.double().var([0, 1, 3, 4], unbiased=False).float(), rtol=1e-5, atol=0)


@pytest.mark.parametrize('pool', [False, True])
@pytest.mark.parametrize('layout', LAYOUTS[:4])
def test_inference(layout, pool):
    x = convolved(layout, 3).detach()
    scale, shift = torch.randn(3), torch.randn(3)
    settings = dict(tau=1.7, v_threshold=1.0, v_reset=None, decay_input=True)
    training = dict(surrogate=Sigmoid(), detach_reset=True)
    y = x * per_channel(scale, x) + per_channel(shift, x)
    assert torch.equal(affine_lif(x, scale, shift, pool=pool, **settings), fire(y, pool, **settings, **training))
    assert torch.equal(affine_lif(x, None, None, pool=pool, **settings), fire(x, pool, **settings, **training))


@pytest.mark.parametrize('dims', [1, 2])
@pytest.mark.parametrize('what', ['training', 'evaluation', 'fused'])
def test_a_unit_leaves_the_bias_of_its_convolution_to_the_kernel(monkeypatch, dims, what):
    unit = ConvBnLif(3, 5, 3, bias=True, pool=dims == 2, dims=dims).double()
    nn.init.uniform_(unit.conv.bias, 1, 2)
    nn.init.ones_(unit.bn.bias)
    unit = (timm_snn.fuse(unit) if what == 'fused' else unit).train(what == 'training')
    x = torch.randn(4, 2, 3, *[6] * dims, dtype=torch.float64)
    biases = []
    convolve = F.conv2d
    monkeypatch.setattr(F, 'conv2d', lambda *args, **how: biases.append(args[2]) or convolve(*args, **how))
    results = []
    for backend in ('torch', 'triton'):
        twin = copy.deepcopy(unit)
        with timm_snn.use_backend(backend), torch.set_grad_enabled(what == 'training'):
            spikes = twin(x)
        if what == 'training':
            (spikes * x.new_tensor(range(spikes.numel())).view_as(spikes)).sum().backward()
        results.append((spikes, twin.state_dict(), {name: p.grad for name, p in twin.named_parameters()}))
    assert [bias is None for bias in biases] == [False, True]
    ours, theirs = results
    assert torch.equal(ours[0], theirs[0]) and 0 < ours[0].mean() < 1
    torch.testing.assert_close(ours[1:], theirs[1:], rtol=1e-9, atol=1e-9)


def test_an_empty_batch():
    x = torch.randn(3, 0, 2, 4, 4, requires_grad=True)
    settings = dict(tau=2.0, v_threshold=1.0, v_reset=0.0, decay_input=True)
    for pool in (False, True):
        spikes, _, _ = bn_lif(
            x, torch.ones(2), None, eps=1e-5, pool=pool, **settings, surrogate=Sigmoid(), detach_reset=True
        )
        assert torch.autograd.grad(spikes.sum(), x)[0].shape == x.shape
        assert affine_lif(x, None, None, pool=pool, **settings).shape == spikes.shape


@pytest.mark.parametrize('pool', [False, True])
def test_torch_finds_no_fault_with_the_operators(pool):
    x = convolved('channels_last', 2)
    weight, tau = torch.ones(3, requires_grad=True), torch.tensor(2.5, requires_grad=True)
    arguments = (x, weight, weight.detach(), tau, 1e-5, pool, 0.0, 1.0, 0.0, True, 'sigmoid', 4.0, True)
    tests = ('test_schema', 'test_autograd_registration', 'test_faketensor', 'test_aot_dispatch_dynamic')
    torch.library.opcheck(bn_lif_file._bn_lif.op, arguments, test_utils=tests)
    detached = (x.detach(), weight.detach(), weight.detach(), None, pool, 2.0, 1.0, 0.0, True)
    torch.library.opcheck(bn_lif_file._affine_lif.op, detached, test_utils=tests)


def test_compiles_whole():
    settings = dict(tau=2.0, v_threshold=1.0, v_reset=0.0, decay_input=True, surrogate=Sigmoid(), detach_reset=True)
    x, weight = convolved('contiguous', 2), torch.ones(3, requires_grad=True)

    def run(x):
        return bn_lif(x * 2, weight, weight, eps=1e-5, pool=True, **settings)[0]

    compiled = torch.compile(run, fullgraph=True, backend='aot_eager')
    grads = [torch.autograd.grad(f(x).sum(), (x, weight)) for f in (compiled, run)]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
