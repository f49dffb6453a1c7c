"""The same on a CUDA device as on the CPU."""

import importlib

import pytest
import timm
import torch

from tests.conftest import lively
from timm_snn import lif
from timm_snn.ops.surrogate import SURROGATES

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
    if reason := importlib.import_module(f'timm_snn.ops.lif_{request.param}').why_not():
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
