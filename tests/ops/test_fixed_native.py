"""Whole numbers in C++ against the plain reference, to the bit: every level of instructions, and what runs where."""

import threading

import pytest
import torch

import timm_snn
from timm_snn import BackendUnavailable
from timm_snn.ops import fixed, fixed_native
from timm_snn.ops.fixed import LIMIT, FixedConvolution, FixedNeuron
from timm_snn.ops.native import build

pytestmark = pytest.mark.skipif(build.why_not_here() is not None, reason=str(build.why_not_here()))

LEVELS = ['plain', 'avx2', 'avx512_vnni']
RANGES = {torch.uint8: (0, 256), torch.int8: (-128, 128), torch.int16: (-(2**15) + 1, 2**15)}

# T, B, C, H, W, O, kernel, stride, padding, groups, pooled
UNITS = [
    (4, 2, 8, 7, 9, 24, (3, 3), (1, 1), (1, 1), 1, False),
    (3, 1, 5, 6, 5, 17, (3, 3), (2, 2), (1, 1), 1, False),  # odd channels, a stride
    (2, 2, 12, 9, 10, 70, (3, 3), (1, 1), (1, 1), 1, True),  # several registers, odd and even sizes pooled
    (1, 1, 4, 19, 21, 5, (1, 1), (1, 1), (0, 0), 1, True),  # several tiles pooled
    (8, 3, 36, 1, 11, 100, (1, 3), (1, 1), (0, 1), 1, False),  # tokens
    (2, 1, 260, 3, 3, 130, (3, 3), (1, 1), (1, 1), 1, False),  # several chunks and blocks
    (5, 1, 8, 5, 6, 20, (2, 2), (2, 2), (0, 0), 2, False),  # groups, patches
    (2, 1, 6, 5, 6, 9, (3, 3), (1, 1), (1, 1), 3, True),  # groups of channels that are no multiple of four
    (3, 2, 19, 6, 5, 19, (5, 5), (1, 1), (2, 2), 19, False),  # depthwise
    (2, 1, 16, 9, 9, 16, (3, 3), (2, 1), (1, 1), 16, True),
    (2, 1, 3, 4, 4, 6, (1, 1), (1, 1), (0, 0), 3, False),  # depthwise with two outputs for each input
    (2, 1, 4, 2, 2, 3, (5, 5), (1, 1), (2, 2), 1, False),  # a kernel larger than the map
]
NEURONS = [
    FixedNeuron(),
    FixedNeuron(leak_shift=2, v_reset=-300),
    FixedNeuron(leak_shift=1, v_reset=None),
    FixedNeuron(leak_shift=3, v_reset=200, decay_input=False),
    FixedNeuron(leak_shift=None, v_reset=None),
    FixedNeuron(leak_shift=0),
]


@pytest.fixture(params=LEVELS)
def level(request, monkeypatch):
    best = fixed_native._best_level()
    if LEVELS.index(request.param) > best:
        pytest.skip(f'this CPU has {LEVELS[best]} at most')
    monkeypatch.setenv('TIMM_SNN_INT8_LEVEL', request.param)


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def no_reference(monkeypatch):
    """The reference refuses: what answers is C++."""
    for name in ('conv_sums', 'conv_current', 'conv_lif', 'fixed_lif'):
        monkeypatch.setattr(fixed, name, None)


def unit(shape, dtype=torch.uint8, density=0.3, shift=12, largest=2**13):
    """x, a convolution and thresholds of its channels."""
    num_steps, batch, c, h, w, o, kernel, stride, padding, groups, _ = shape
    low, high = RANGES[dtype]
    x = torch.randint(low, high, (num_steps, batch, c, h, w)) * (torch.rand(num_steps, batch, c, h, w) < density)
    x.flatten()[:2] = torch.tensor([low, high - 1])
    weight = torch.randint(-128, 128, (o, c // groups, *kernel), dtype=torch.int8)
    multiplier, bias = torch.randint(0, largest, (o,)).int(), torch.randint(-largest, largest, (o,)).int()
    conv = FixedConvolution(weight, multiplier, bias, shift, stride, padding, groups)
    return x.to(dtype), conv, torch.randint(1, 2**14, (o,)).int()


def assert_same_unit(x, conv, threshold, neuron, pool):
    with timm_snn.use_backend('cpp'):
        spikes, v = fixed_native.conv_lif(x, None, conv, threshold, neuron, pool)
        current = fixed_native.conv_current(x.flatten(0, 1), conv, pool)
        sums = fixed_native.conv_sums(x.flatten(0, 1), conv.weight, conv.stride, conv.padding, conv.groups)
        next_spikes, next_v = fixed_native.conv_lif(x, v, conv, threshold, neuron, pool)
    expected, expected_v = fixed.conv_lif(x, None, conv, threshold, neuron, pool)
    assert torch.equal(sums, fixed.conv_sums(x.flatten(0, 1), conv.weight, conv.stride, conv.padding, conv.groups))
    assert torch.equal(current, fixed.conv_current(x.flatten(0, 1), conv, pool))
    assert torch.equal(spikes, expected) and torch.equal(v, expected_v)
    expected, expected_v = fixed.conv_lif(x, expected_v, conv, threshold, neuron, pool)
    assert torch.equal(next_spikes, expected) and torch.equal(next_v, expected_v)


@pytest.mark.parametrize('dtype', list(RANGES), ids=str)
@pytest.mark.parametrize('shape', UNITS, ids=str)
def test_units_equal_the_reference(shape, dtype, level, threads):
    torch.manual_seed(0)
    assert_same_unit(*unit(shape, dtype), NEURONS[0], shape[-1])


@pytest.mark.parametrize('neuron', NEURONS, ids=str)
def test_neurons_equal_the_reference(neuron, level):
    torch.manual_seed(0)
    x, conv, threshold = unit(UNITS[0])
    assert_same_unit(x, conv, threshold, neuron, False)
    assert_same_unit(x, conv, threshold[0], neuron, True)
    current = fixed.conv_current(x.flatten(0, 1), conv).unflatten(0, x.shape[:2])
    for layout in (current, current.movedim(2, -1).contiguous().movedim(-1, 2), current[:1].expand(5, *[-1] * 4)):
        for each in (threshold, threshold[0]):
            spikes, v = fixed_native.fixed_lif(layout, None, each, neuron)
            again, last = fixed_native.fixed_lif(layout.long() * 2**20, v, each, neuron)
            expected, expected_v = fixed.fixed_lif(layout, None, each, neuron)
            assert torch.equal(spikes, expected) and torch.equal(v, expected_v)
            expected, expected_v = fixed.fixed_lif(layout.long() * 2**20, v, each, neuron)
            assert torch.equal(again, expected) and torch.equal(last, expected_v)


@pytest.mark.parametrize('density', [0.0, 0.02, 1.0])
@pytest.mark.parametrize(('shift', 'largest'), [(1, 2**22), (12, 2**22), (46, 2**22), (8, 2**8)])
def test_every_number_is_exact(density, shift, largest, level):
    """Sums of the largest bytes, and currents that are far beyond what they are clamped to."""
    torch.manual_seed(0)
    x, conv, threshold = unit(UNITS[5], torch.uint8, density, shift, largest)
    conv = conv._replace(bias=conv.bias.sign() * LIMIT)
    assert_same_unit(x, conv, threshold, NEURONS[0], False)
    for most in (127, -128):
        conv = conv._replace(weight=torch.full_like(conv.weight, most))
        assert_same_unit(torch.full_like(x, 255), conv, threshold, NEURONS[0], True)


def layouts(x):
    yield 'contiguous', x
    yield 'channels_last', x.movedim(2, -1).contiguous().movedim(-1, 2)
    yield 'batch first', x.transpose(0, 1).contiguous().transpose(0, 1)
    yield 'reversed', x.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0)
    yield 'one step for all', x[:1].expand(6, *[-1] * 4)


@pytest.mark.parametrize('layout', range(5))
def test_layouts_make_no_difference(layout, level, no_reference, monkeypatch):
    torch.manual_seed(0)
    x, conv, threshold = unit(UNITS[0])
    name, x = list(layouts(x))[layout]
    weight = conv.weight.contiguous(memory_format=torch.channels_last)
    got = fixed_native.conv_lif(x, None, conv._replace(weight=weight), threshold, NEURONS[0], True)
    monkeypatch.undo()
    expected = fixed.conv_lif(x, None, conv, threshold, NEURONS[0], True)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True)), name
    assert got[0][0].is_contiguous(memory_format=torch.channels_last)


def test_a_sequence_in_pieces_is_the_sequence(level):
    torch.manual_seed(0)
    x, conv, threshold = unit(UNITS[4])
    whole, last = fixed_native.conv_lif(x, None, conv, threshold, NEURONS[1])
    v, pieces = None, []
    for piece in x.split([1, 3, 2, 2]):
        spikes, v = fixed_native.conv_lif(piece, v, conv, threshold, NEURONS[1])
        pieces.append(spikes)
    assert torch.equal(torch.cat(pieces), whole) and torch.equal(v, last)


def test_a_membrane_that_nobody_needs_is_empty():
    x, conv, threshold = unit(UNITS[0])
    spikes, v = fixed_native.conv_lif(x, None, conv, threshold, NEURONS[0], needs_v=False)
    assert v.numel() == 0 and torch.equal(spikes, fixed.conv_lif(x, None, conv, threshold, NEURONS[0])[0])
    assert fixed_native.fixed_lif(x.int(), None, threshold[0], NEURONS[0], needs_v=False)[1].numel() == 0


def test_changed_weights_are_seen():
    """Also those that are changed behind the version counter, and those of two levels in turn."""
    x, conv, threshold = unit(UNITS[0])
    for _ in range(2):
        assert_same_unit(x, conv, threshold, NEURONS[0], False)
        conv.weight.data.neg_()


def test_threads_share_a_convolution():
    torch.manual_seed(0)
    x, conv, threshold = unit(UNITS[5])
    expected = fixed.conv_lif(x, None, conv, threshold, NEURONS[0])[0]
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(fixed_native.conv_lif(x, None, conv, threshold, NEURONS[0])[0]))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and all(torch.equal(result, expected) for result in results)


def test_a_level_that_is_not_there_is_refused(monkeypatch):
    x, conv, threshold = unit(UNITS[0])
    monkeypatch.setenv('TIMM_SNN_INT8_LEVEL', 'neon')
    with pytest.raises(ValueError, match="TIMM_SNN_INT8_LEVEL is 'neon': this CPU has plain"):
        fixed_native.conv_lif(x, None, conv, threshold, NEURONS[0])


@pytest.fixture
def no_compiler(monkeypatch):
    monkeypatch.setattr(fixed_native, 'why_not_built', lambda *_: 'no compiler')
    fixed_native._why_not_built.cache_clear()
    yield
    fixed_native._why_not_built.cache_clear()


def test_without_a_compiler_the_reference_runs(no_compiler):
    x, conv, threshold = unit(UNITS[0])
    spikes, v = fixed_native.conv_lif(x, None, conv, threshold, NEURONS[0])
    expected = fixed.conv_lif(x, None, conv, threshold, NEURONS[0])
    assert torch.equal(spikes, expected[0]) and torch.equal(v, expected[1])
    with timm_snn.use_backend('cpp'), pytest.raises(BackendUnavailable, match=r'asked for by use_backend.*no compiler'):
        fixed_native.fixed_lif(v[None], None, threshold, NEURONS[0])


def test_a_named_backend_runs_or_is_refused(monkeypatch):
    x, conv, _ = unit(UNITS[0])
    with timm_snn.use_backend('triton'), pytest.raises(BackendUnavailable, match="'cpp' and 'torch' alone"):
        fixed_native.conv_current(x[0], conv)
    with timm_snn.use_backend('cpp'), pytest.raises(BackendUnavailable, match='got a tensor on meta'):
        fixed_native.conv_current(x[0].to('meta'), conv)
    monkeypatch.setattr(fixed_native, '_library', None)
    with timm_snn.use_backend('torch'):
        assert torch.equal(fixed_native.conv_current(x[0], conv), fixed.conv_current(x[0], conv))


@pytest.mark.parametrize('wrong', [dict(weight=torch.zeros(24, 7, 3, 3, dtype=torch.int8)), dict(groups=3)])
def test_errors_are_those_of_the_reference(wrong):
    x, conv, threshold = unit(UNITS[0])
    with pytest.raises(RuntimeError) as expected:
        fixed.conv_lif(x, None, conv._replace(**wrong), threshold, NEURONS[0])
    with pytest.raises(RuntimeError) as error:
        fixed_native.conv_lif(x, None, conv._replace(**wrong), threshold, NEURONS[0])
    assert str(error.value) == str(expected.value)


def test_empty_batches():
    x, conv, threshold = unit(UNITS[0])
    spikes, v = fixed_native.conv_lif(x[:, :0], None, conv, threshold, NEURONS[0])
    assert spikes.shape == (4, 0, 24, 7, 9) and v.shape == (0, 24, 7, 9)
