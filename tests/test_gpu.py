"""The same on a CUDA device as on the CPU."""

import itertools

import pytest
import timm
import torch
import torch.nn.functional as F

from tests.conftest import lively
from timm_snn import lif
from timm_snn.ops import backend, lif_stream
from timm_snn.ops.backends import reference
from timm_snn.ops.neuron import membrane_dtype
from timm_snn.ops.surrogate import SURROGATES, get_surrogate

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')]


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_spikes_and_gradients_are_those_of_the_cpu(dtype):
    x = (1.5 * torch.randn(4, 3, 33) + 0.5).to(dtype).requires_grad_()
    on_gpu = x.detach().cuda().requires_grad_()
    spikes, gpu_spikes = lif(x), lif(on_gpu)
    assert torch.equal(spikes, gpu_spikes.cpu())
    spikes.sum().backward()
    gpu_spikes.sum().backward()
    torch.testing.assert_close(on_gpu.grad.cpu(), x.grad)


def test_logits_in_float64_are_those_of_the_cpu(small):
    x = torch.rand(3, 1, 28, 28, dtype=torch.float64)
    expected = small(x)
    torch.testing.assert_close(small.cuda()(x.cuda()).cpu(), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_a_training_step_under_autocast(dtype):
    model = lively(timm.create_model('msvit_4_96')).cuda().train()
    with torch.autocast('cuda', dtype):
        logits = model(torch.rand(4, 1, 28, 28, device='cuda'))
    logits.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.fixture(params=['triton', 'cupy'])
def kernels(request) -> str:
    """The name of a backend made of kernels."""
    pytest.importorskip(request.param)
    if reason := backend._BACKENDS[request.param].why_not():
        pytest.skip(f'{request.param}: {reason}')
    return request.param


@pytest.mark.parametrize('surrogate', SURROGATES)
@pytest.mark.parametrize('v_reset', [0.0, None])
@pytest.mark.parametrize('num_steps', [1, 4, 17])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_kernels_equal_the_reference(kernels, dtype, num_steps, v_reset, surrogate):
    settings = dict(tau=1.7, v_reset=v_reset, surrogate=surrogate, detach_reset=False)
    for shape in ((3, 33), (2, 16, 8, 8)):
        x = (1.5 * torch.randn(num_steps, *shape) + 0.5).to(dtype).requires_grad_()
        on_gpu = x.detach().cuda()
        if len(shape) == 4:
            on_gpu = on_gpu.movedim(2, -1).contiguous().movedim(-1, 2)  # channels_last
        on_gpu.requires_grad_()
        spikes, expected = lif(on_gpu, backend=kernels, **settings), lif(x, backend='torch', **settings)
        assert torch.equal(spikes.cpu(), expected)
        upstream = torch.randn(x.shape).to(dtype)
        (gradient,) = torch.autograd.grad(spikes, on_gpu, upstream.cuda())
        (on_cpu,) = torch.autograd.grad(expected, x, upstream)
        tolerance = dict(rtol=1e-5, atol=1e-5) if dtype == torch.float32 else {}  # exp differs in the last bits
        torch.testing.assert_close(gradient.cpu(), on_cpu, **tolerance)


def test_kernels_run_on_the_current_stream_and_in_a_cuda_graph(kernels):
    x = torch.randn(4, 8, 64, device='cuda')
    lif(x, backend=kernels)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        spikes = lif(x, backend=kernels)
    x.copy_(torch.randn_like(x))
    graph.replay()
    assert torch.equal(spikes, lif(x, backend='torch'))


@pytest.fixture
def triton_ops():
    """The modules of the Triton backend."""
    pytest.importorskip('triton')
    from timm_snn.ops.backends import triton

    return triton


CASES = list(itertools.product((1, 4, 8, 9, 17), (0.0, -0.2, None), (True, False), (True, False)))
NEURON = dict(tau=2.0, v_threshold=1.0, v_reset=0.0, decay_input=True)
TRAINING = dict(surrogate=get_surrogate('sigmoid'), detach_reset=True)


def agree(ours, theirs, rtol=1e-5):
    """Tensor by tensor, relative to the largest value."""
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a.cpu(), b.cpu(), rtol=rtol, atol=rtol * max(1.0, b.abs().max().item()))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize('case', range(len(CASES)), ids=lambda i: '-'.join(map(str, CASES[i])))
def test_triton_neuron_is_that_of_torch(poisoned, triton_ops, case, dtype):
    num_steps, v_reset, decay_input, detach_reset = CASES[case]
    x = (1.5 * torch.randn(num_steps, 3, 1367) + 0.5).to(dtype).requires_grad_()
    v = torch.randn(3, 1367, dtype=membrane_dtype(dtype), requires_grad=True)
    tau = torch.tensor(1.7, requires_grad=True)
    settings = dict(
        v_reset=v_reset,
        decay_input=decay_input,
        surrogate=list(SURROGATES)[case % 4],
        detach_reset=detach_reset,
    )
    upstream = torch.randn(1367, 3, num_steps).permute(2, 1, 0).to(dtype)
    results = []
    for name, device in (('triton', 'cuda'), ('torch', 'cpu')):
        inputs = [tensor.detach().to(device).requires_grad_() for tensor in (x, v, tau)]
        spikes, v_last = lif_stream(*inputs[:2], tau=inputs[2], backend=name, **settings)
        grads = torch.autograd.grad((spikes, v_last), inputs, (upstream.to(device), torch.ones_like(v_last)))
        results.append((spikes, v_last, *grads))
    agree(results[0][:2], results[1][:2], rtol=0)
    agree(results[0][2:], results[1][2:], rtol=1e-2 if dtype.itemsize == 2 else 1e-4)


@pytest.mark.parametrize('layout', ['channels_last', 'static'])
def test_triton_neuron_takes_layouts_as_they_are(poisoned, layout):
    x = torch.randn(4, 2, 16, 7, 7, device='cuda')
    x = x[:1].expand_as(x) if layout == 'static' else x.movedim(2, -1).contiguous().movedim(-1, 2)
    spikes = lif(x, backend='triton')
    assert spikes.stride()[1:] == x.stride()[1:]
    assert torch.equal(spikes.cpu(), lif(x.cpu()))


def test_auto_chooses_triton_and_autocast_changes_nothing(triton_ops, monkeypatch):
    launched = []
    launch = triton_ops.launch
    monkeypatch.setattr(
        triton_ops[0], 'launch', lambda kernel, *a, **k: (launched.append(kernel.__name__), launch(kernel, *a, **k))
    )
    monkeypatch.setattr(backend, '_logged', set())
    x = torch.randn(4, 3, 33, device='cuda', requires_grad=True)
    with torch.autocast('cuda', torch.bfloat16):
        spikes = lif(x)
    spikes.sum().backward()
    assert launched == ['_forward_kernel', '_backward_kernel'] and spikes.dtype == torch.float32
    assert torch.equal(spikes.cpu(), lif(x.cpu()))


def test_triton_in_a_cuda_graph():
    x = torch.randn(4, 3, 1024, device='cuda', requires_grad=True)
    tau = torch.tensor(2.5, device='cuda', requires_grad=True)

    def step():
        spikes = lif(x, tau=tau, backend='triton')
        return spikes, *torch.autograd.grad(spikes.sum(), (x, tau))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for _ in range(3):
        with torch.no_grad():
            x.copy_(torch.randn_like(x))
        graph.replay()
        agree(captured, step(), rtol=0)


def test_a_training_step_in_a_cuda_graph(kernels):
    """Captured in bfloat16, as users train; autocast may not cache its casts then."""
    model = lively(timm.create_model('msvit_4_96', backend=kernels)).cuda().train()
    x, other = torch.rand(2, 4, 1, 28, 28, device='cuda')

    def step(forward, x):
        with torch.autocast('cuda', torch.bfloat16, cache_enabled=False):
            logits = forward(x)
        return logits.detach(), *torch.autograd.grad(logits.float().square().sum(), tuple(model.parameters()))

    expected = [tensor.clone() for tensor in step(model, x)]
    with torch.autocast('cuda', torch.bfloat16, cache_enabled=False):
        captured = torch.cuda.make_graphed_callables(torch.nn.Sequential(model), (other,))
    agree(step(captured, x), expected, rtol=1e-2)


def test_triton_compiles_with_inductor():
    compiled = torch.compile(lambda x: lif(2 * x, backend='triton'), fullgraph=True)
    x = torch.randn(4, 3, 33, device='cuda', requires_grad=True)
    agree(
        [compiled(x), *torch.autograd.grad(compiled(x).sum(), x)],
        [lif(2 * x), *torch.autograd.grad(lif(2 * x).sum(), x)],
    )


@pytest.mark.parametrize('num_steps', [4, 20])
@pytest.mark.parametrize('pool', [False, True])
@pytest.mark.parametrize('channels_last', [False, True])
def test_triton_batch_norm_is_that_of_torch(poisoned, triton_ops, channels_last, pool, num_steps):
    """In float64, where the last digits of the statistics flip no spike."""
    x = 3 * torch.randn(num_steps, 4, 67, 13, 14, device='cuda', dtype=torch.float64) + 50
    x = (x.movedim(2, -1).contiguous().movedim(-1, 2) if channels_last else x).requires_grad_()
    weight = (torch.rand(67, device='cuda', dtype=torch.float64) + 1).requires_grad_()
    bias = torch.randn(67, device='cuda', dtype=torch.float64).requires_grad_()
    spikes, mean, var = triton_ops.bn_lif(x, weight, bias, eps=1e-5, pool=pool, **NEURON, **TRAINING)

    y = F.batch_norm(x.flatten(0, 1), None, None, weight, bias, training=True)
    y = (F.max_pool2d(y, 3, 2, 1) if pool else y).unflatten(0, x.shape[:2])
    expected = reference.lif(y, None, **NEURON, **TRAINING)[0]
    upstream, inputs = torch.randn_like(spikes), (x, weight, bias)
    agree([spikes], [expected], rtol=0)
    agree([mean, var], torch.var_mean(x, (0, 1, 3, 4), unbiased=False)[::-1], rtol=1e-10)
    agree(*(torch.autograd.grad(s, inputs, upstream) for s in (spikes, expected)), rtol=1e-9)


@pytest.mark.parametrize('tokens', [False, True])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_triton_mssa_is_that_of_torch(poisoned, triton_ops, dtype, tokens):
    x = torch.randint(0, 2, (3, 4, 2, 6, 64, 49), device='cuda').to(dtype)
    x = x.transpose(-1, -2).contiguous().transpose(-1, -2) if tokens else x
    q, p, k = (tensor.requires_grad_() for tensor in x.unbind())
    settings = {**NEURON, 'v_threshold': 30.0}
    out = triton_ops.mssa([q, p], k, **settings, **TRAINING)
    current = (q + p).to(torch.float32).sum(3, keepdim=True)
    expected = reference.lif(current, None, **settings, **TRAINING)[0].to(dtype) * k
    agree([out], [expected], rtol=0)
    upstream = torch.randn_like(out)
    agree(
        *(torch.autograd.grad(o, (q, p, k), upstream) for o in (out, expected)), 1e-4 if dtype.itemsize == 4 else 3e-2
    )
