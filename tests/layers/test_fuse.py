"""Fused ops inside layers and models, and models fused for inference."""

import pytest
import timm
import torch
from torch import nn

import timm_snn
from tests.conftest import lively
from tests.families import SMALLEST, shallow
from timm_snn.layers import ConvBnLif, conv, fuse
from timm_snn.ops.backends import inductor

needs_compiler = pytest.mark.skipif(inductor.why_not() is not None, reason=str(inductor.why_not()))


@pytest.fixture
def calls(monkeypatch):
    """The fused ops that a ConvBnLif called."""
    names = []
    for name in ('bn_lif', 'pool_lif'):
        op = getattr(conv, name)
        monkeypatch.setattr(
            conv, name, lambda *args, op=op, name=name, **kwargs: names.append(name) or op(*args, **kwargs)
        )
    return names


def images(model, batch=2):
    chans, height, width = model.pretrained_cfg['input_size']
    return torch.rand(batch, chans, min(height, 64), min(width, 64), dtype=torch.float64)


@pytest.mark.parametrize('name', ['msvit_2_256', 'msvit_4_384', *SMALLEST])
@torch.no_grad()
def test_fused_models_have_the_same_logits(name):
    """In float64; the big members differ from these in size only."""
    model = lively(shallow(timm.create_model(name, num_steps=2)).double().eval())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x = images(model)
    fused = timm_snn.fuse(model)

    torch.testing.assert_close(fused(x), model(x), rtol=0, atol=1e-10)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in fused.modules())
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in fused.parameters() if p.ndim == 4)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@torch.no_grad()
def test_flips_of_a_fused_model_in_float32_are_few():
    """Folding rounds weights anew. Counted over all neurons of the small member: none or a few in 100,000."""
    model = lively(timm.create_model('msvit_4_96').eval())
    fused = timm_snn.fuse(model)
    x = torch.rand(8, 1, 28, 28)
    spikes = {id(m): [] for m in (model, fused)}
    for m in (model, fused):
        for unit in m.modules():
            if isinstance(unit, ConvBnLif):
                unit.register_forward_hook(lambda _, __, out, m=m: spikes[id(m)].append(out.flatten()))
        m(x)
    ours, expected = (torch.cat(spikes[id(m)]) for m in (fused, model))
    assert 0.1 < expected.mean() < 0.9 and (ours != expected).float().mean() < 1e-4


@needs_compiler
@torch.no_grad()
def test_fused_under_torch_compile_and_with_a_backend():
    model = lively(timm.create_model('msvit_4_96', num_steps=2).eval())
    x = torch.rand(2, 1, 28, 28)
    fused = timm_snn.fuse(model)
    expected = fused(x)
    torch.testing.assert_close(torch.compile(fused, backend='aot_eager')(x), expected)
    with timm_snn.use_backend('compile'):
        torch.testing.assert_close(fused(x), expected)


@torch.no_grad()
def test_a_fused_unit_under_autocast():
    """bfloat16 rounds at other places, once less: the flips, 1 to 2 in 1,000, are no more than those of the layers."""
    unit = lively(ConvBnLif(16, 32, 3)).eval()
    block = nn.Sequential(unit)
    x = (torch.rand(4, 2, 16, 28, 28) > 0.7).float()
    exact = block.double()(x.double())
    block.float()
    fused = fuse(block)
    with torch.autocast('cpu', torch.bfloat16):
        flips, flips_of_layers = ((m(x) != exact).float().mean() for m in (fused, block))
    assert 0.05 < exact.mean() < 0.9 and 0 < flips <= 1.2 * flips_of_layers < 0.01


def test_a_model_without_units_is_refused():
    with pytest.raises(ValueError, match='found no ConvBn in Linear'):
        fuse(nn.Linear(2, 2))


def test_hooks_and_other_modules_are_not_passed_by(calls):
    """One op stands for norm, pooling and neuron only where nobody would notice."""
    x = torch.rand(2, 3, 4, 9, 7)
    unit = ConvBnLif(4, 5, 3, pool=True)
    unit(x)
    assert calls == ['bn_lif']
    seen = []
    for child in ('bn', 'pool', 'lif'):
        handle = getattr(unit, child).register_forward_hook(lambda *args, child=child: seen.append(child))
        unit(x)
        handle.remove()
    assert seen == ['bn', 'pool', 'lif'] and calls == ['bn_lif']

    class Quiet(timm_snn.LIF):
        def forward(self, x):
            return torch.zeros_like(x)

    assert not ConvBnLif(4, 5, lif_layer=Quiet)(x).any()
    unit.bn = nn.SyncBatchNorm(5)
    unit.eval()(x)
    unit.bn = nn.BatchNorm2d(5, momentum=None)  # a cumulative average
    unit.train()(x)
    assert calls == ['bn_lif'] and unit.bn.num_batches_tracked == 1


@pytest.mark.parametrize('training', [True, False])
def test_the_op_equals_the_layers(calls, training):
    torch.manual_seed(1)
    unit = lively(ConvBnLif(4, 5, 3, pool=True).double()).train(training)
    x = torch.rand(2, 3, 4, 9, 7, dtype=torch.float64)
    state = {key: value.clone() for key, value in unit.state_dict().items()}
    results = []
    for watched in (False, True):
        unit.load_state_dict(state)
        if watched:
            unit.lif.register_forward_hook(lambda *args: None)
        spikes = unit(x)
        results.append([spikes, *unit.state_dict().values(), *torch.autograd.grad(spikes.sum(), unit.parameters())])
    torch.testing.assert_close(*results, rtol=0, atol=1e-12)
    assert calls == ['bn_lif'] and unit.bn.num_batches_tracked == state['bn.num_batches_tracked'] + training


def test_token_convolutions_keep_channels_last():
    unit = ConvBnLif(4, 5, 3, dims=1)
    x = torch.rand(2, 3, 7, 4).transpose(2, 3)  # tokens [T, B, C, N] with channels innermost
    y = unit.conv(x.flatten(0, 1))
    assert y.stride(1) == 1
    torch.testing.assert_close(y, nn.functional.conv1d(x.flatten(0, 1), unit.conv.weight, padding=1))


def test_checkpointing_recomputes_with_the_backend_of_the_forward_pass(monkeypatch):
    model = lively(timm.create_model('msvit_4_96')).train()
    model.set_grad_checkpointing()
    used = []
    monkeypatch.setattr(inductor, '_CPP_COMPILERS', ['not needed'])
    monkeypatch.setattr(inductor, 'lif', lambda x, v, **kwargs: used.append(1) or (torch.ones_like(x) * x, v))
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
