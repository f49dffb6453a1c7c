"""Convolutions that skip zeros against torch's: forward, every gradient, what runs where, and whole models."""

import contextlib
import copy
import math
import re

import pytest
import timm
import torch
import torch.nn.functional as F

import timm_snn
from tests.conftest import lively
from tests.support.families import SMALLEST, shallow
from timm_snn import BackendUnavailable
from timm_snn.ops import packed_spikes, sparse_conv, sparse_spikes
from timm_snn.ops.native import build
from timm_snn.ops.switches import Switches, switches

pytestmark = pytest.mark.skipif(build.why_not_here() is not None, reason=str(build.why_not_here()))

# N, C, H, W, O, kernel, padding: odd sizes; one and several blocks, chunks and tiles; maps smaller than the kernel
SHAPES = [
    (2, 5, 9, 11, 7, (3, 3), (1, 1)),
    (1, 200, 3, 300, 100, (3, 3), (1, 1)),  # two chunks of channels, two tiles in a row
    (3, 193, 14, 14, 64, (1, 1), (0, 0)),
    (2, 17, 1, 261, 130, (1, 3), (0, 1)),  # tokens
    (1, 8, 1, 1, 8, (3, 3), (1, 1)),
    (1, 33, 130, 2, 32, (5, 5), (2, 2)),  # two tiles of rows
    (2, 4, 6, 6, 40, (3, 3), (0, 0)),
    (1, 6, 5, 7, 33, (3, 1), (2, 0)),
    (2, 3, 5, 4, 9, (2, 4), (1, 3)),
    (0, 4, 6, 6, 8, (3, 3), (1, 1)),
]
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.fixture
def ran(monkeypatch):
    """The functions of the library that were called: proof that zeros were skipped."""
    names = []
    call = sparse_conv._call
    monkeypatch.setattr(sparse_conv, '_call', lambda name, *args: names.append(name) or call(name, *args))
    return names


def spikes(*shape, density=0.3, largest=1, dtype=torch.float32):
    return (torch.randint(1, largest + 1, shape) * (torch.rand(shape) < density)).to(dtype)


def parameters(out_chs, in_chs, kernel, dtype=torch.float32):
    weight = torch.randn(out_chs, in_chs, *kernel, dtype=dtype) / (in_chs * kernel[0] * kernel[1]) ** 0.5
    return weight.requires_grad_(), torch.randn(out_chs, dtype=dtype, requires_grad=True)


def assert_near(ours, expected, dtype):
    largest = max([1.0, *expected.detach().abs().flatten().tolist()])
    torch.testing.assert_close(ours, expected, rtol=0, atol=TOLERANCE[dtype] * largest)


@pytest.mark.parametrize('largest', [1, 3])
@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('shape', SHAPES)
def test_it_is_the_convolution_and_its_gradients(shape, dtype, largest, ran):
    n, c, h, w, o, kernel, padding = shape
    x = spikes(n, c, h, w, largest=largest, dtype=dtype).requires_grad_()
    leaves = [x, *parameters(o, c, kernel, dtype)]
    precise = [t.detach().double().requires_grad_() for t in leaves]
    expected = F.conv2d(*precise, padding=padding)
    with sparse_spikes(max_density=1):
        y = sparse_conv.conv2d(*leaves, (1, 1), padding, 1)
    upstream = torch.randn(expected.shape).to(dtype)
    gradients = torch.autograd.grad(y, leaves, upstream)
    exact = torch.autograd.grad(expected, precise, upstream.double())
    assert ran == (['pack', 'forward', 'weight_gradient'] if n else [])
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
    assert_near(y.double(), expected, dtype)
    for leaf, gradient, e in zip(leaves, gradients, exact, strict=True):
        assert gradient.dtype == leaf.dtype and gradient.shape == leaf.shape
        assert_near(gradient.double(), e, dtype)


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last', 'expanded', 'sliced'])
def test_layouts_of_input_weight_and_gradient(layout, ran):
    x = spikes(3, 10, 9, 8, density=0.1)
    if layout == 'channels_last':
        x = x.to(memory_format=torch.channels_last)
    if layout == 'expanded':
        x = x[:1].expand(3, -1, -1, -1)
    if layout == 'sliced':
        x = spikes(3, 10, 9, 16, density=0.1)[..., ::2]
    weight, bias = parameters(24, 10, (3, 3))
    for w in (weight, weight.to(memory_format=torch.channels_last)):
        for upstream in (torch.ones(()).expand(3, 24, 9, 8), torch.randn(3, 8, 9, 24).transpose(1, 3)):
            with sparse_spikes():
                y = sparse_conv.conv2d(x, w, bias, (1, 1), (1, 1), 1)
            expected = F.conv2d(x, w, bias, padding=1)
            assert_near(y, expected, torch.float32)
            for ours, e in zip(*(torch.autograd.grad(t, (weight, bias), upstream) for t in (y, expected)), strict=True):
                assert_near(ours, e, torch.float32)
    assert ran == ['pack', 'forward', 'weight_gradient'] * 4


def test_real_values_negative_ones_and_nan_are_summed_as_they_are():
    x = spikes(2, 20, 6, 6) * torch.randn(2, 20, 6, 6)
    x[0, 3, 2, 2], x[1, 0, 0, 0] = float('inf'), float('nan')
    weight, bias = parameters(16, 20, (1, 1))
    with sparse_spikes(max_density=1):
        y = sparse_conv.conv2d(x, weight, bias, (1, 1), (0, 0), 1)
    torch.testing.assert_close(y, F.conv2d(x, weight, bias), equal_nan=True)


@pytest.mark.parametrize('value', [math.nan, math.inf])
@pytest.mark.parametrize('trained', [False, True])
def test_a_weight_that_is_not_finite_meets_zeros_too(value, trained):
    x = spikes(2, 20, 6, 6)
    x[:, 3] = 0
    weight, bias = parameters(16, 20, (3, 3))
    weight = weight.detach().clone().requires_grad_(trained)
    weight.data[5, 3, 1, 1] = value
    with sparse_spikes(max_density=1):
        for _ in range(2):
            y = sparse_conv.conv2d(x, weight, bias, (1, 1), (1, 1), 1)
            torch.testing.assert_close(y, F.conv2d(x, weight, bias, padding=1), equal_nan=True)


CHANGES = {
    'averaged': lambda w: w.data.mul_(0.5).add_(0.1),
    'negated': lambda w: w.data.neg_(),
    'two_signs': lambda w: w.data.view(-1)[1:18:16].neg_(),
    'swapped': lambda w: w.data.copy_(w.data.flip(0)),
    'last_bit': lambda w: w.data.view(torch.int32).view(-1)[-1:].bitwise_xor_(1),
    'from_numpy': lambda w: w.detach().numpy().__setitem__((0, 0), 7.0),
    'moved': lambda w: setattr(w, 'data', w.data.clone(memory_format=torch.channels_last) + 1),
    'set': lambda w: setattr(w, 'data', torch.randn_like(w)),
}


@pytest.mark.parametrize('change', CHANGES)
@torch.no_grad()
def test_frozen_weights_that_are_changed_behind_the_version_counter_count_at_once(change):
    x, (weight, _) = spikes(2, 20, 6, 6), parameters(16, 20, (3, 3))
    weight = torch.nn.Parameter(weight.detach().clone(), requires_grad=False)
    with sparse_spikes(max_density=1):
        sparse_conv.conv2d(x, weight, None, (1, 1), (1, 1), 1)
        CHANGES[change](weight)
        after = sparse_conv.conv2d(x, weight, None, (1, 1), (1, 1), 1)
    torch.testing.assert_close(after, F.conv2d(x, weight, padding=1))


@pytest.mark.parametrize('size', [1, 7, 63, 64, 65, 2**14 + 3])
def test_a_changed_bit_anywhere_changes_the_fingerprint(size):
    weight = torch.randn(size, 1, 1, 1)
    seen = {sparse_conv._fingerprint(weight)}
    for at in {0, size // 2, size - 1}:
        for bit in (0, 15, 31):
            weight.view(-1).view(torch.int32)[at] ^= 1 << bit if bit < 31 else -(2**31)
            seen.add(sparse_conv._fingerprint(weight))
    assert len(seen) == 1 + 3 * len({0, size // 2, size - 1})


@pytest.mark.parametrize('threads', [1, 2])
def test_the_same_bits_on_any_number_of_threads(threads):
    x, (weight, bias) = spikes(4, 40, 20, 20), parameters(96, 40, (3, 3))
    upstream = torch.randn(4, 96, 20, 20)
    results = []
    before = torch.get_num_threads()
    for n in (3, threads):
        torch.set_num_threads(n)
        try:
            with sparse_spikes():
                y = sparse_conv.conv2d(x, weight, bias, (1, 1), (1, 1), 1)
            results.append([y, *torch.autograd.grad(y, (weight,), upstream)])
        finally:
            torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_what_is_not_sparse_or_not_supported_stays_dense(ran):
    weight, bias = parameters(16, 16, (3, 3))
    dense, sparse = torch.rand(2, 16, 9, 9), spikes(2, 16, 9, 9, density=0.2)
    with sparse_spikes():
        for x, stride, groups in ((dense, 1, 1), (sparse, 2, 1), (sparse, 1, 4)):
            w = weight[:, : 16 // groups]
            y = sparse_conv.conv2d(x, w, bias, (stride, stride), (1, 1), groups)
            torch.testing.assert_close(y, F.conv2d(x, w, bias, stride, 1, groups=groups))
            y.sum().backward()
    assert ran == []
    with sparse_spikes(max_density=0.1):
        sparse_conv.conv2d(sparse, weight, bias, (1, 1), (1, 1), 1)
    assert ran == []
    point_wise, _ = parameters(16, 16, (1, 1))
    sparse = spikes(2, 16, 9, 9, density=0.03)
    with sparse_spikes():  # strides of a point-wise convolution leave out pixels
        y = sparse_conv.conv2d(sparse, point_wise, bias, (2, 2), (0, 0), 1)
    torch.testing.assert_close(y, F.conv2d(sparse, point_wise, bias, 2))
    assert ran == ['pack', 'forward']
    sparse_conv.conv2d(sparse, weight, bias, (1, 1), (1, 1), 1)
    assert ran == ['pack', 'forward']  # outside, nothing changes


def test_the_density_from_which_a_convolution_is_dense_is_that_of_the_cpu(ran, monkeypatch):
    """With AVX-512 float32 is dense from fewer spikes on than with AVX2, and bfloat16 is not."""
    tables = {'AVX2': sparse_conv._AVX2, 'AVX-512': sparse_conv._AVX512}
    assert sparse_conv._BREAK_EVEN[torch.float32] in (tables['AVX2'], tables['AVX-512'][torch.float32])

    def skips(break_even, dtype) -> bool:
        monkeypatch.setattr(sparse_conv, '_BREAK_EVEN', {dtype: break_even})
        ran.clear()
        weight, bias = parameters(16, 16, (3, 3), dtype)
        x = spikes(2, 16, 9, 9, density=0.4, dtype=dtype)
        with sparse_spikes():
            sparse_conv.conv2d(x, weight, bias, (1, 1), (1, 1), 1).sum().backward()
        assert ran in ([], ['pack', 'forward', 'weight_gradient'])
        return bool(ran)

    assert skips(tables['AVX2'], torch.float32) and not skips(tables['AVX-512'][torch.float32], torch.float32)
    assert skips(tables['AVX-512'][torch.bfloat16], torch.bfloat16)


def test_a_convolution_that_skips_zeros_by_itself_leaves_the_choice_to_a_block(ran):
    x, (weight, bias) = spikes(2, 32, 9, 9, density=0.2), parameters(32, 32, (3, 3))

    def has_skipped(by_itself=True) -> bool:
        ran.clear()
        y = sparse_conv.conv2d(x, weight, bias, (1, 1), (1, 1), 1, by_itself)
        assert_near(y, F.conv2d(x, weight, bias, padding=1), torch.float32)
        return bool(ran)

    assert has_skipped() and not has_skipped(by_itself=False)
    with sparse_spikes(enabled=False):
        assert not has_skipped()
        with sparse_spikes():
            assert has_skipped() and has_skipped(by_itself=False)
        assert not has_skipped()
    with sparse_spikes(max_density=0.1):
        assert not has_skipped()
    with timm_snn.use_backend('torch'):
        assert not has_skipped()
    x = torch.rand_like(x)  # a sample decides
    assert not has_skipped()


def test_by_itself_it_passes_over_what_a_block_refuses(ran):
    for settings in ({'dtype': torch.float16}, {'device': 'meta'}):
        x, weight = torch.zeros(1, 32, 4, 4, **settings), torch.zeros(32, 32, 1, 1, **settings)
        y = sparse_conv.conv2d(x, weight, None, (1, 1), (0, 0), 1, True)
        assert (y.dtype, y.device) == (x.dtype, x.device)
    x, (weight, bias) = spikes(3, 2, 32, 4, 4), parameters(32, 32, (3, 3))
    batched = torch.func.vmap(lambda x: sparse_conv.conv2d(x, weight, bias, (1, 1), (1, 1), 1, True))(x)
    assert_near(batched.flatten(0, 1), F.conv2d(x.flatten(0, 1), weight, bias, padding=1), torch.float32)
    assert ran == []


def test_without_a_compiler_it_stays_dense_by_itself_and_says_so_once(ran, no_compiler, caplog):
    caplog.set_level('INFO', 'timm_snn')
    x, (weight, bias) = spikes(2, 32, 9, 9, density=0.2), parameters(32, 32, (3, 3))
    for _ in range(2):
        y = sparse_conv.conv2d(x, weight, bias, (1, 1), (1, 1), 1, True)
    assert torch.equal(y, F.conv2d(x, weight, bias, padding=1)) and ran == []
    assert caplog.messages == ['convolutions do not skip zeros here: no compiler']
    with sparse_spikes(enabled=False):  # needs none
        pass


@pytest.fixture
def no_compiler(monkeypatch):
    monkeypatch.setattr(sparse_conv, 'why_not_built', lambda *_: 'no compiler')
    sparse_conv._why_not_built.cache_clear()
    yield
    sparse_conv._why_not_built.cache_clear()


def test_frozen_weights_are_laid_out_once_until_they_change(ran):
    x = spikes(2, 16, 9)
    conv = timm_snn.layers.conv.TokenConv(16, 16, 3, padding=1).requires_grad_(False)
    for changes in (0, 1, 2):
        with sparse_spikes(max_density=1), torch.inference_mode():
            for _ in range(2):
                torch.testing.assert_close(conv(x), F.conv1d(x, conv.weight, conv.bias, padding=1))
        assert ran.count('pack') == 1 + changes
        conv.weight.mul_(2.0)
    trained = copy.deepcopy(conv).requires_grad_()
    for _ in range(2):
        trained.weight.data.mul_(0.5)  # which no version counts
        with sparse_spikes(max_density=1):
            torch.testing.assert_close(trained(x), F.conv1d(x, trained.weight, trained.bias, padding=1))


def test_bad_arguments_and_input_are_refused():
    for density in (-0.1, 1.1, float('nan')):
        with pytest.raises(ValueError, match='0 <= max_density <= 1'):
            sparse_spikes(density).__enter__()
    for switch in (False, True):
        with pytest.raises(ValueError, match=f'enabled={switch} turns it on or off'):
            sparse_spikes(switch).__enter__()
    weight, _ = parameters(8, 8, (1, 1), torch.float16)
    with sparse_spikes(), pytest.raises(BackendUnavailable, match=r'got torch\.float16 on cpu'):
        sparse_conv.conv2d(spikes(1, 8, 4, 4, dtype=torch.float16), weight, None, (1, 1), (0, 0), 1)
    meta = torch.empty(1, 8, 4, 4, device='meta')
    with sparse_spikes(), pytest.raises(BackendUnavailable, match='on meta'):
        sparse_conv.conv2d(meta, torch.empty(8, 8, 1, 1, device='meta'), None, (1, 1), (0, 0), 1)


@pytest.mark.parametrize(
    ('size', 'dtype'),
    [((2, 7, 9, 9), 'float32'), ((2, 8, 9, 9), 'float64'), ((2, 8, 2, 9), 'float32'), ((9, 9), 'float32')],
)
def test_what_torch_refuses_is_refused(size, dtype, ran):
    x, (weight, bias) = spikes(*size, dtype=getattr(torch, dtype)), parameters(8, 8, (3, 3))
    with pytest.raises(RuntimeError) as expected:
        F.conv2d(x, weight, bias)
    with sparse_spikes(), pytest.raises(RuntimeError, match=re.escape(str(expected.value))):
        sparse_conv.conv2d(x, weight, bias, (1, 1), (0, 0), 1)
    assert ran == []


def test_without_a_compiler_it_is_refused(no_compiler):
    with pytest.raises(BackendUnavailable, match='sparse_spikes cannot run here: no compiler'):
        sparse_spikes().__enter__()


def test_blocks_may_be_nested_and_end_with_an_error():
    with sparse_spikes(0.5):
        with pytest.raises(ZeroDivisionError), sparse_spikes():
            raise ZeroDivisionError
        assert switches() == Switches(skips_zeros=True, max_density=0.5)
    assert switches() == Switches()


def test_torch_checks_the_operator():
    x = spikes(2, 6, 5, 7).to(memory_format=torch.channels_last).requires_grad_()
    weight, bias = (t.detach().requires_grad_() for t in parameters(9, 6, (3, 3)))
    torch.library.opcheck(sparse_conv._conv.op, (x, weight, bias, 1, 1, 1.0))


@torch.no_grad()
def test_the_first_order_gradient_is_all_there_is():
    x, (weight, _) = spikes(1, 4, 4, 4).requires_grad_(), parameters(8, 4, (1, 1))
    with torch.enable_grad(), sparse_spikes():
        (gradient,) = torch.autograd.grad(
            sparse_conv.conv2d(x, weight, None, (1, 1), (0, 0), 1).square().sum(), weight, create_graph=True
        )
        with pytest.raises(RuntimeError):
            gradient.sum().backward()


@pytest.mark.parametrize('name', ['msvit_2_256', *SMALLEST])
@torch.no_grad()
def test_models_have_the_same_logits(name, ran, monkeypatch):
    """In float64, of every family, however many spikes there are."""
    always = dict.fromkeys(('forward', 'weight_gradient'), (1.0, 1.0))
    monkeypatch.setattr(sparse_conv, '_BREAK_EVEN', dict.fromkeys(sparse_conv._BREAK_EVEN, always))
    model = lively(shallow(timm.create_model(name, num_steps=2)).double().eval())
    chans, height, width = model.pretrained_cfg['input_size']
    x = torch.rand(2, chans, min(height, 64), min(width, 64), dtype=torch.float64)
    expected = model(x)
    assert ran == []
    for m, switch in ((model, sparse_spikes), (timm_snn.fuse(model), contextlib.nullcontext)):
        ran.clear()
        with switch():
            logits = m(x)
        assert ran
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize('how', ['plain', 'packed', 'checkpointing'])
def test_a_model_trains_the_same(how, ran):
    model = lively(timm.create_model('msvit_4_96').double()).train()
    other = copy.deepcopy(model)
    x, labels = torch.rand(4, 1, 28, 28, dtype=torch.float64), torch.tensor([0, 1, 2, 3])
    F.cross_entropy(model(x), labels).backward()
    if how == 'checkpointing':
        other.set_grad_checkpointing()
    with sparse_spikes():
        if how == 'packed':
            with packed_spikes():
                loss = F.cross_entropy(other(x), labels)
        else:
            loss = F.cross_entropy(other(x), labels)
        loss.backward()
    assert {'forward', 'weight_gradient'} <= set(ran)
    for (key, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-8, atol=1e-8, msg=lambda m, key=key: f'{key}: {m}')


@torch.no_grad()
def test_flips_in_float32_and_bfloat16_are_few(ran):
    """Another order of summation, and under autocast sums that are not rounded in between."""
    model = timm_snn.fuse(lively(timm.create_model('msvit_4_96').eval()))
    x = torch.rand(8, 1, 28, 28)
    fired = []
    for unit in model.stages[0].embed.modules():
        if isinstance(unit, timm_snn.layers.ConvBnLif):
            unit.register_forward_hook(lambda _, __, out: fired.append(out.flatten().float()))
    for dtype, most in ((torch.float32, 4e-5), (torch.bfloat16, 4e-3)):
        fired.clear()
        with torch.autocast('cpu', dtype, dtype != torch.float32):
            with sparse_spikes(enabled=False):
                model(x)
            with sparse_spikes():
                model(x)
        dense, sparse = torch.cat(fired[: len(fired) // 2]), torch.cat(fired[len(fired) // 2 :])
        assert 0.01 < dense.mean() < 0.9
        assert float((dense != sparse).float().mean()) < most
    assert ran


def test_under_torch_compile_it_is_one_operator(ran):
    """And a change of the block compiles anew."""
    layer = lively(timm_snn.layers.SpikingMlp(16, 32).double()).eval()
    x = spikes(2, 3, 16, 5, 5, dtype=torch.float64)
    compiled = torch.compile(layer, backend='aot_eager', fullgraph=True)
    with torch.no_grad():
        expected = compiled(x)
        assert ran == []
        with sparse_spikes():
            torch.testing.assert_close(compiled(x), expected, rtol=0, atol=1e-10)
        assert ran == ['pack', 'forward'] * 2
        compiled(x)
        assert ran == ['pack', 'forward'] * 2
    layer.train()
    with sparse_spikes(max_density=1):
        compiled(x).sum().backward()
    assert ran[4:] == [*['pack', 'forward'] * 2, 'weight_gradient', 'weight_gradient']


@torch.no_grad()
def test_a_fused_model_skips_zeros_under_torch_compile_too(ran):
    fused = timm_snn.fuse(torch.nn.Sequential(lively(timm_snn.layers.ConvBnLif(32, 32, 3).double())))
    x = spikes(2, 3, 32, 5, 5, density=0.2, dtype=torch.float64)
    spikes_of_compiled = torch.compile(fused, backend='aot_eager', fullgraph=True)(x)
    assert ran == ['pack', 'forward'] and torch.equal(spikes_of_compiled, fused(x))
