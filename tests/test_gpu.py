"""The same on a CUDA device as on the CPU."""

import pytest
import timm
import torch

from tests.conftest import lively
from timm_snn import lif

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
