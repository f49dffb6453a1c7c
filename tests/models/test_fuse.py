"""Models fused for inference."""

import copy

import pytest
import timm
import torch
import torch.ao.nn.qat as nnqat
from timm.layers import FrozenBatchNormAct2d
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.fusion import fuse_conv_bn_eval

import timm_snn
from tests.conftest import lively
from tests.support.families import SMALLEST, shallow
from timm_snn import fuse, testing
from timm_snn.layers import LIF, ConvBn, ConvBnLif, RepConv
from timm_snn.layers.conv import skip_zeros
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
    testing.check_fusing(model)
    fused = timm_snn.fuse(model)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in fused.modules())
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in fused.parameters() if p.ndim == 4)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize('per_channel', [False, True])
@pytest.mark.parametrize('name', ['msvit_4_96', 'metaspikformer_8_256', 'sew_resnet18'])
@torch.no_grad()
def test_learned_thresholds_go_into_the_convolutions_before_them(name, per_channel):
    settings = dict(v_threshold=0.5, learn_threshold=True, per_channel=per_channel)
    model = shallow(timm.create_model(name, num_steps=2, lif_kwargs=settings)).double().eval()
    for module in lively(model).modules():
        if isinstance(module, LIF):
            module.log_threshold.uniform_(-0.5, 0.5)
    x, fused = images(model), timm_snn.fuse(model)
    assert fused(x).std() > 0
    torch.testing.assert_close(fused(x), model(x), rtol=0, atol=1e-10)
    units = [module for module in fused.modules() if isinstance(module, ConvBnLif)]
    assert units and all(unit.lif.log_threshold is None for unit in units)
    assert all(module.log_threshold is not None for module in model.modules() if isinstance(module, LIF))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('name', SMALLEST)
@torch.no_grad()
def test_one_call_is_all_its_parts(name, dtype):
    """Norms folded by torch's own function, channels last, zeros skipped: the same bits."""
    model = lively(shallow(timm.create_model(name, num_steps=2)).to(dtype).eval())
    by_hand = copy.deepcopy(model)
    for unit in by_hand.modules():
        if isinstance(unit, ConvBn):
            conv, bn = unit.conv, unit.bn
            if isinstance(conv, RepConv):
                conv.pw1, conv.bn1 = folded(conv.pw1, conv.bn1), nn.Identity()
                conv.pw2, conv.bn2 = folded(folded(conv.pw2, conv.bn2), bn), nn.Identity()
            else:
                unit.conv = folded(conv, bn)
            unit.bn = nn.Identity()
    skip_zeros(by_hand.to(memory_format=torch.channels_last))
    x = images(model).to(dtype)
    expected = by_hand(x)
    assert expected.std() > 0 and torch.equal(timm_snn.fuse(model)(x), expected)


def folded(conv, bn):
    dtype = conv.weight.dtype
    return fuse_conv_bn_eval(copy.deepcopy(conv).double(), copy.deepcopy(bn).double()).to(dtype)


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
    model = lively(timm.create_model('msvit_4_96', depths=(1, 0, 1), num_steps=2).eval())
    x = torch.rand(2, 1, 28, 28)
    fused = timm_snn.fuse(model)
    expected = fused(x)
    torch.testing.assert_close(torch.compile(fused, backend='aot_eager')(x), expected)
    with timm_snn.use_backend('compile'):
        torch.testing.assert_close(fused(x), expected)


@torch.no_grad()
def test_a_fused_unit_under_autocast():
    """bfloat16 rounds at other places, once less: the flips, 1 to 2 in 1,000, are no more than those of the layers.

    In plain torch; `cpp` rounds once less in the layers too.
    """
    unit = lively(ConvBnLif(16, 32, 3)).eval()
    block = nn.Sequential(unit)
    x = (torch.rand(4, 2, 16, 28, 28) > 0.7).float()
    exact = block.double()(x.double())
    block.float()
    fused = fuse(block)
    with torch.autocast('cpu', torch.bfloat16), timm_snn.use_backend('torch'):
        flips, flips_of_layers = ((m(x) != exact).float().mean() for m in (fused, block))
    assert 0.05 < exact.mean() < 0.9 and 0 < flips <= 1.2 * flips_of_layers < 0.01


def test_a_model_without_units_is_refused():
    with pytest.raises(ValueError, match='found no ConvBn in Linear'):
        fuse(nn.Linear(2, 2))


def unit_of(kind: str, **kwargs) -> nn.Sequential:
    """A lively unit, or one with a RepConv, in float64 and eval mode."""
    if kind == 'RepConv':
        kwargs['conv_layer'] = RepConv
    return nn.Sequential(lively(ConvBnLif(4, 6, **kwargs)).double().eval())


SPIKES = (torch.rand(3, 2, 4, 6, 5, generator=torch.Generator().manual_seed(0)) > 0.5).double()


def convolutions(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if isinstance(m, nn.Conv2d)]


class Scaled(nn.Module):
    def forward(self, weight):
        return 0.5 * weight


class Adapter(nn.Module):
    """A low-rank correction beside a layer, as adapters are."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.more = layer, nn.Conv2d(layer.in_channels, layer.out_channels, 1, bias=False).double()

    def forward(self, x):
        return self.layer(x) + self.more(x)


class Standardized(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input, weight / weight.norm(), bias)


class NormAct(nn.BatchNorm2d):
    def forward(self, input):
        return super().forward(input).relu()


class Late(ConvBnLif):
    def current(self, x):
        return 2 * super().current(x)


def replace(unit, name, cls, *args, **kwargs):
    part = cls(*args, **kwargs).double().eval()
    part.load_state_dict(getattr(unit, name).state_dict())
    setattr(unit, name, part)


def changed_class(unit):
    unit.__class__ = Late


CHANGES = {
    'pruned': (lambda unit: prune.l1_unstructured(unit.conv, 'weight', 0.3), 'prune.remove'),
    'pruned norm': (lambda unit: prune.l1_unstructured(unit.bn, 'bias', 0.3), 'prune.remove'),
    'weight_norm': (lambda unit: nn.utils.weight_norm(unit.conv), 'remove_weight_norm'),
    'spectral_norm': (lambda unit: nn.utils.spectral_norm(unit.conv), 'remove_spectral_norm'),
    'parametrized': (
        lambda unit: nn.utils.parametrize.register_parametrization(unit.conv, 'weight', Scaled()),
        'remove_parametrizations',
    ),
    'new weight_norm': (lambda unit: nn.utils.parametrizations.weight_norm(unit.conv), 'remove_parametrizations'),
    'hook': (lambda unit: unit.conv.register_forward_hook(lambda m, a, y: 2 * y), 'remove it first'),
    'hook before': (lambda unit: unit.conv.register_forward_pre_hook(lambda m, a: (2 * a[0],)), 'remove it first'),
    'hook of norm': (lambda unit: unit.bn.register_forward_hook(lambda m, a, y: 2 * y), 'remove it first'),
    'forward': (lambda unit: setattr(unit.conv, 'forward', torch.relu), 'the forward that was assigned to 0.conv'),
    'forward of norm': (lambda unit: setattr(unit.bn, 'forward', torch.relu), 'the forward that was assigned to 0.bn'),
    'current': (lambda unit: setattr(unit, 'current', torch.relu), 'the current that was assigned to 0'),
    'adapter': (lambda unit: setattr(unit, 'conv', Adapter(unit.conv)), 'Adapter'),
    'class of convolution': (lambda unit: replace(unit, 'conv', Standardized, 4, 6, 1, bias=False), 'Standardized'),
    'class of norm': (lambda unit: replace(unit, 'bn', NormAct, 6), 'NormAct'),
    'class of unit': (changed_class, '0, a Late, does'),
    'batch statistics': (
        lambda unit: setattr(unit, 'bn', nn.BatchNorm2d(6, track_running_stats=False).double().eval()),
        'no running statistics',
    ),
    'quantized in training': (
        lambda unit: setattr(
            unit,
            'conv',
            nnqat.Conv2d(4, 6, 1, bias=False, qconfig=torch.ao.quantization.get_default_qat_qconfig('fbgemm')).double(),
        ),
        'torch.ao.nn.qat',
    ),
}


@pytest.mark.filterwarnings('ignore::FutureWarning', 'ignore::DeprecationWarning')
@pytest.mark.parametrize('change', CHANGES)
@pytest.mark.parametrize('grad', [False, True])
def test_what_folding_would_lose_is_refused(change, grad):
    """A pruned weight that a forward pass has computed cannot even be copied."""
    block = unit_of('plain')
    apply, message = CHANGES[change]
    apply(block[0])
    if change not in ('class of unit', 'current', 'forward', 'quantized in training'):
        with torch.set_grad_enabled(grad):
            block(SPIKES)
    before = {key: value.clone() for key, value in block.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        fuse(block)
    assert all(torch.equal(value, before[key]) for key, value in block.state_dict().items())


def test_parts_of_a_reparameterised_convolution_are_looked_at_too():
    for part in ('pw1', 'pw2', 'bn1', 'bn2'):
        block = unit_of('RepConv')
        prune.l1_unstructured(getattr(block[0].conv, part), 'weight', 0.3)
        with pytest.raises(ValueError, match=rf'0\.conv\.{part}: .*prune\.remove'):
            fuse(block)


def test_a_pruned_layer_that_is_not_folded_is_copied_or_refused():
    block = nn.Sequential(*unit_of('plain'), nn.Linear(5, 2).double())
    with torch.no_grad():
        prune.l1_unstructured(block[1], 'weight', 0.3)
        torch.testing.assert_close(fuse(block)(SPIKES), block(SPIKES))
    block(SPIKES)
    with pytest.raises(ValueError, match=r'cannot copy this model: .*prune\.remove'):
        fuse(block)


@torch.no_grad()
def test_a_pruned_model_folds_after_remove():
    block = unit_of('plain', kernel_size=3)
    prune.l1_unstructured(block[0].conv, 'weight', 0.5)
    expected = block(SPIKES)
    prune.remove(block[0].conv, 'weight')
    fused = fuse(block)
    torch.testing.assert_close(fused(SPIKES), expected)
    assert ((fused[0].conv.weight == 0) == (block[0].conv.weight == 0)).all()


@pytest.mark.parametrize(
    'norm',
    [
        lambda: nn.BatchNorm2d(6, affine=False),
        lambda: nn.BatchNorm2d(6, momentum=None),
        lambda: nn.SyncBatchNorm(6),
        lambda: nn.GroupNorm(2, 6),
        lambda: FrozenBatchNormAct2d(6, apply_act=False),
    ],
    ids=['without weights', 'cumulative', 'synchronised', 'of groups', 'frozen'],
)
@torch.no_grad()
def test_other_norms(norm):
    block = unit_of('plain', kernel_size=3)
    block[0].bn = norm().double().eval()
    for name, value in (*block[0].bn.named_parameters(), *block[0].bn.named_buffers()):
        if value.is_floating_point():
            value.copy_(torch.rand(6) + (0.5 if name.endswith('var') else 0))
    fused = fuse(block)
    assert block[0].current(SPIKES).std() > 0
    torch.testing.assert_close(fused[0].current(SPIKES), block[0].current(SPIKES))


@torch.no_grad()
def test_convolutions_and_units_that_are_shared():
    """Each norm gets a convolution of its own; one unit at two places stays one."""
    first, second = unit_of('plain')[0], unit_of('plain')[0]
    nn.init.uniform_(second.bn.weight, 2, 3)
    second.conv = first.conv
    once = unit_of('plain')[0]
    model = nn.ModuleList([first, second, once, once])
    fused = fuse(model)
    for unit, folded in zip(model, fused, strict=True):
        torch.testing.assert_close(folded.current(SPIKES), unit.current(SPIKES))
    assert fused[2] is fused[3] and fused[0].conv is not fused[1].conv
    second.conv = unit_of('plain')[0].conv
    second.conv.weight = first.conv.weight  # the parameter alone
    for unit, folded in zip(model, fuse(model), strict=True):
        torch.testing.assert_close(folded.current(SPIKES), unit.current(SPIKES))


@torch.no_grad()
def test_hooks_of_units_stay():
    block = unit_of('plain')
    block[0].register_forward_hook(lambda module, args, y: 2 * y)
    fused = fuse(block)
    assert torch.equal(fused(SPIKES), block(SPIKES)) and block(SPIKES).max() == 2


@torch.no_grad()
def test_a_fused_convolution_may_be_changed_in_place():
    fused = fuse(unit_of('plain'))
    before = fused[0].current(SPIKES)
    fused[0].conv.weight.mul_(2), fused[0].conv.bias.mul_(2)
    torch.testing.assert_close(fused[0].current(SPIKES), 2 * before)
    fused[0].conv.weight.data.mul_(2), fused[0].conv.bias.data.mul_(2)
    torch.testing.assert_close(fused[0].current(SPIKES), 4 * before)


@torch.no_grad()
def test_a_model_in_training_mode_folds_its_running_statistics():
    block = unit_of('plain')
    expected = block(SPIKES)
    assert torch.equal(fuse(block.train())(SPIKES), expected) and block[0].bn.training


@pytest.mark.parametrize('kind', ['plain', 'RepConv'])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision(kind, dtype):
    """Weights are folded in float64 and rounded once; norms may be float32 beside half convolutions."""
    block = unit_of(kind)
    exact = block[0].current(SPIKES)
    block.to(dtype)
    for norms in (dtype, torch.float32):
        for module in block.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.to(norms)
        current = fuse(block)[0].current(SPIKES.to(dtype))
        assert current.dtype == dtype
        torch.testing.assert_close(current.double(), exact, rtol=0.02, atol=0.02)


def test_weights_that_do_not_fit_half_precision_are_refused():
    block = unit_of('plain')
    block[0].bn.running_var.fill_(1e-12)
    block[0].bn.weight.data.fill_(6e4)
    with pytest.raises(ValueError, match=r'cannot fold 0: .* not finite in torch\.float16'):
        fuse(block.half())


def test_the_old_place_of_fuse_warns():
    with pytest.warns(DeprecationWarning, match='timm_snn.layers.fuse is deprecated: use timm_snn.fuse'):
        from timm_snn.layers import fuse as old
    assert old is timm_snn.fuse
