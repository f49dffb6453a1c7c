"""Models whose neurons and fused ops run on the compiled backend."""

import pytest
import timm
import torch

import timm_snn
from tests.conftest import lively
from timm_snn.ops.backends import inductor

needs_compiler = pytest.mark.skipif(inductor.why_not() is not None, reason=str(inductor.why_not()))


def test_checkpointing_recomputes_with_the_backend_of_the_forward_pass(monkeypatch):
    model = lively(timm.create_model('msvit_4_96')).train()
    model.set_grad_checkpointing()
    used = []
    monkeypatch.setattr(inductor, '_CPP_COMPILERS', ['not needed'])
    monkeypatch.setattr(inductor, 'lif', lambda x, v, *args: used.append(1) or (torch.ones_like(x) * x, v))
    monkeypatch.delattr(inductor, 'bn_lif')
    with timm_snn.use_backend('compile'):
        loss = model(torch.rand(2, 1, 28, 28)).sum()
    forward = len(used)
    loss.backward()
    assert len(used) > forward  # not with plain torch, which would differ


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize('channels_last', [False, True])
def test_a_training_step_of_a_model_with_the_compiled_backend(channels_last):
    """In float64 the same loss and gradients as plain torch, and no body is compiled twice."""
    model = lively(timm.create_model('msvit_4_96').double()).train()
    if channels_last:
        model.to(memory_format=torch.channels_last)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    results = []
    for backend in ('torch', 'compile'):
        model.load_state_dict(state)
        model.zero_grad()
        with timm_snn.use_backend(backend), torch._dynamo.config.patch(error_on_recompile=True):
            for size in (28, 21):
                x = torch.linspace(0, 1, 3 * size**2, dtype=torch.float64)
                loss = model(x.view(3, 1, size, size)).square().sum()
                loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters()), *model.state_dict().values()])
    torch.testing.assert_close(*results, rtol=1e-7, atol=1e-9)
