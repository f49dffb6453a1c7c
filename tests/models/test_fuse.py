"""Models fused for inference."""

import pytest
import timm
import torch
from torch import nn

import timm_snn
from tests.conftest import lively
from tests.support.families import SMALLEST, shallow
from timm_snn import fuse
from timm_snn.layers import ConvBnLif
from timm_snn.ops.backends import inductor

needs_compiler = pytest.mark.skipif(inductor.why_not() is not None, reason=str(inductor.why_not()))


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


def test_the_old_place_of_fuse_warns():
    with pytest.warns(DeprecationWarning, match='timm_snn.layers.fuse is deprecated: use timm_snn.fuse'):
        from timm_snn.layers import fuse as old
    assert old is timm_snn.fuse
