"""Integer arithmetic: what it computes, worked out by hand in Python's integers, and where it stops."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from timm_snn.ops import lif
from timm_snn.ops.fixed import (
    LIMIT,
    FixedConvolution,
    FixedNeuron,
    conv_current,
    conv_lif,
    conv_sums,
    count_levels,
    fixed_lif,
    max_pool,
    narrow,
    to_current,
    to_whole,
)
from timm_snn.ops.integer import integer_spikes


def random_conv(in_chs=6, out_chs=8, kernel=3, groups=1, stride=1, seed=0):
    torch.manual_seed(seed)
    weight = torch.randint(-127, 128, (out_chs, in_chs // groups, kernel, kernel), dtype=torch.int8)
    multiplier = torch.randint(2**20, 2**22, (out_chs,), dtype=torch.int32)
    bias = torch.randint(-(2**16), 2**16, (out_chs,), dtype=torch.int32)
    return FixedConvolution(weight, multiplier, bias, 15, (stride, stride), (kernel // 2, kernel // 2), groups)


def spikes_like(*shape, levels=1, seed=1):
    torch.manual_seed(seed)
    return torch.randint(0, levels + 1, shape, dtype=torch.uint8)


@pytest.mark.parametrize(('kernel', 'groups', 'stride'), [(1, 1, 1), (3, 1, 1), (3, 2, 2), (5, 6, 1), (2, 1, 2)])
def test_sums_are_those_of_whole_numbers(kernel, groups, stride):
    weight = random_conv(kernel=kernel, groups=groups, out_chs=6).weight
    x = spikes_like(2, 6, 7, 9, levels=255)
    padding = (kernel // 2, kernel // 2)
    expected = F.conv2d(x.long(), weight.long(), None, stride, padding, 1, groups)
    sums = conv_sums(x, weight, (stride, stride), padding, groups)
    assert sums.dtype == torch.int32
    assert torch.equal(sums, expected.int())


def test_sums_do_not_depend_on_autocast_layout_or_batch():
    conv, x = random_conv(64, 32), spikes_like(4, 64, 9, 9, levels=255)
    expected = conv_sums(x, conv.weight, padding=(1, 1))
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(conv_sums(x, conv.weight, padding=(1, 1)), expected)
    last = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(conv_sums(last, conv.weight, padding=(1, 1)), expected)
    assert torch.equal(conv_sums(x[2:3], conv.weight, padding=(1, 1)), expected[2:3])


def test_current_is_rounded_half_up_and_saturates():
    sums = torch.tensor([3, -3, 1, -1, 2**24 - 1, 1 - 2**24], dtype=torch.int32).view(1, 1, 6, 1)
    one, bias = torch.tensor([1], dtype=torch.int32), torch.tensor([10], dtype=torch.int32)
    assert to_current(sums, one, 1, bias).flatten().tolist()[:4] == [12, 9, 11, 10]  # 1.5, -1.5, 0.5, -0.5
    large = torch.tensor([2**22 - 1], dtype=torch.int32)
    assert to_current(sums, large, 1, bias).flatten().tolist()[4:] == [LIMIT, -LIMIT]
    exact = [((s * 1234567 + 2**9) >> 10) + 10 for s in sums.flatten().tolist()[:4]]
    assert to_current(sums, one * 1234567, 10, bias).flatten().tolist()[:4] == exact


SETTINGS = list(itertools.product([0, 1, 3, None], [0, -700, None], [True, False]))


@pytest.mark.parametrize(
    ('leak_shift', 'v_reset', 'decay_input'), [s for s in SETTINGS if s[0] is not None or not s[2]]
)
def test_neuron_follows_its_equations_in_whole_numbers(leak_shift, v_reset, decay_input):
    torch.manual_seed(0)
    x = torch.randint(-5000, 9000, (6, 2, 3, 4), dtype=torch.int32)
    threshold = torch.tensor([1000, 2000, 1500], dtype=torch.int32)
    neuron = FixedNeuron(leak_shift, v_reset, decay_input)
    spikes, last = fixed_lif(x, None, threshold, neuron)
    rest = v_reset or 0
    for b, c, n in itertools.product(range(2), range(3), range(4)):
        v = rest
        for t in range(6):
            current, leak = int(x[t, b, c, n]), v - rest
            if leak_shift is None:
                h = v + current
            elif decay_input:
                h = v + ((current - leak) >> leak_shift)
            else:
                h = v - (leak >> leak_shift) + current
            fires = h >= int(threshold[c])
            v = (h - int(threshold[c]) if v_reset is None else rest) if fires else h
            assert spikes[t, b, c, n] == fires
        assert last[b, c, n] == v
    assert 0 < spikes.float().mean() < 1


def test_neuron_goes_on_from_its_membrane():
    x = torch.randint(-5000, 9000, (5, 2, 3, 4), dtype=torch.int32)
    threshold, neuron = torch.tensor(1000, dtype=torch.int32), FixedNeuron(2)
    spikes, v = fixed_lif(x, None, threshold, neuron)
    first, between = fixed_lif(x[:2], None, threshold, neuron)
    second, last = fixed_lif(x[2:], between, threshold, neuron)
    assert torch.equal(torch.cat([first, second]), spikes)
    assert torch.equal(last, v)


def test_neuron_saturates_and_does_not_overflow():
    """A membrane that would leave the range stays at its end, whatever comes."""
    x = torch.full((9, 1, 1), -(2**40))
    neuron = FixedNeuron(None, 0, False)
    spikes, v = fixed_lif(x, None, torch.tensor(5, dtype=torch.int32), neuron)
    assert not spikes.any() and v.item() == -LIMIT
    spikes, v = fixed_lif(-x, v, torch.tensor(LIMIT, dtype=torch.int32), neuron)
    assert spikes.flatten().tolist() == [0] + [1] * 8
    assert v.item() == 0


@pytest.mark.parametrize('v_reset', [0.0, None])
def test_neuron_is_that_of_real_numbers_but_for_rounding(v_reset):
    torch.manual_seed(0)
    x = torch.randn(8, 4, 5, 6, dtype=torch.float64)
    neuron = FixedNeuron(1, None if v_reset is None else 0)
    spikes, _ = fixed_lif((x * 2**16).round().int(), None, torch.tensor(2**16, dtype=torch.int32), neuron)
    expected = lif(x, v_reset=v_reset, backend='torch')
    assert (spikes != expected).float().mean() < 1e-3


def test_levels_are_those_of_integer_spikes():
    x = torch.randn(3, 2, 4, 5, dtype=torch.float64) * 3
    thresholds = ((torch.arange(4) + 0.5) * 1.25 * 2**16).ceil().int()
    counts = count_levels((x * 2**16).round().int(), thresholds)
    assert counts.dtype == torch.uint8
    assert torch.equal(counts.double(), integer_spikes(x, levels=4, v_threshold=1.25, normalize=False))


def test_pooling_passes_negative_currents_of_the_border():
    x = torch.full((1, 1, 3, 3), -LIMIT, dtype=torch.int32)
    assert torch.equal(max_pool(x), x[:, :, :2, :2])
    counts = spikes_like(2, 3, 7, 8, levels=9)
    assert torch.equal(max_pool(counts).float(), F.max_pool2d(counts.float(), 3, 2, 1))


def test_narrowing_rounds_half_up_and_clamps():
    x = torch.tensor([5, 6, -5, -6, -7, 10**6, -(10**6)], dtype=torch.int32)
    assert narrow(x, 2, 100).tolist() == [1, 2, -1, -1, -2, 100, -100]
    assert narrow(x[:2], 0, 100).tolist() == [5, 6]


def test_input_is_rounded_half_to_even_and_clamped():
    x = torch.tensor([0.25, 0.75, -0.75, 9.0, -9.0, float('nan'), float('inf')])
    assert to_whole(x, 1, 10).tolist() == [0, 2, -2, 10, -10, 0, 10]
    assert torch.equal(to_whole(x.double(), 1, 10), to_whole(x, 1, 10))


@pytest.mark.parametrize('pool', [False, True])
def test_unit_is_the_composition_of_its_parts_and_streams(pool):
    conv, neuron = random_conv(), FixedNeuron(1)
    threshold = torch.randint(2**12, 2**15, (8,), dtype=torch.int32)
    x = spikes_like(4, 2, 6, 7, 9)
    current = torch.stack([conv_current(x_t, conv, pool) for x_t in x])
    expected, last = fixed_lif(current, None, threshold, neuron)
    spikes, v = conv_lif(x, None, conv, threshold, neuron, pool)
    assert torch.equal(spikes, expected) and torch.equal(v, last)
    assert 0.02 < spikes.float().mean() < 0.98
    first, between = conv_lif(x[:1], None, conv, threshold, neuron, pool)
    second, _ = conv_lif(x[1:], between, conv, threshold, neuron, pool)
    assert torch.equal(torch.cat([first, second]), spikes)
