"""Operations are counted one by one, at every border."""

from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from timm_snn.profiling.counts import (
    Activity,
    Geometry,
    Measured,
    count_convolution,
    count_linear,
    count_matmul,
    steps_and_samples,
)

X = torch.randint(-1, 3, (2, 4, 5, 7), generator=torch.Generator().manual_seed(0)).double()


def count(conv: nn.Module, x: torch.Tensor, has_zeros: bool = False):
    return count_convolution(x, conv.weight, conv(x).shape[2:], Geometry.of(conv), has_zeros, False)


def test_a_convolution_equals_a_loop_over_its_elements():
    conv = nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2).double()
    conv.weight.data[0, 1] = 0
    conv.weight.data[4, 0, 2, 1] = 0
    out = conv(X)
    dense = reached = 0
    effective = [0, 0]
    for n, o, i, j in product(*map(range, out.shape)):
        for c, a, b in product(range(2), range(3), range(2)):
            dense += 1
            row, column = 2 * i - 1 + a, j - 2 + 2 * b
            if 0 <= row < 5 and 0 <= column < 7:
                reached += 1
                effective[n] += bool(X[n, 2 * (o // 3) + c, row, column] != 0) and bool(conv.weight[o, c, a, b] != 0)
    counts = count(conv, X, has_zeros=True)
    assert (counts.dense * 2, counts.reached * 2, counts.effective.tolist()) == (dense, reached, effective)


@pytest.mark.parametrize(
    'conv',
    [
        nn.Conv1d(4, 6, 5, stride=3, padding=2),
        nn.Conv2d(4, 4, 3, groups=4, padding='same', dilation=2),
        nn.Conv2d(4, 3, (2, 4), padding='valid'),
        nn.Conv2d(4, 3, 3, padding=2, padding_mode='circular'),
        nn.Conv2d(4, 3, 3, padding=1, padding_mode='reflect', stride=2),
        nn.Conv3d(4, 2, (1, 3, 3), padding=(0, 1, 1), stride=2),
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        nn.ConvTranspose1d(4, 2, 4, stride=3),
    ],
    ids=str,
)
@pytest.mark.parametrize('pruned', [False, True])
def test_any_convolution_equals_itself_on_ones(conv, pruned):
    """The same layer, without bias, on indicators of what is not zero, adds up every operation that takes place."""
    conv = conv.double()
    if pruned:
        conv.weight.data[:, 0] = 0
    x = X[..., 0] if conv.weight.ndim == 3 else X if conv.weight.ndim == 4 else X.unsqueeze(2)
    counts = count(conv, x, has_zeros=pruned)
    weight, bias = conv.weight.data.clone(), conv.bias.data.clone()
    conv.bias.data.zero_()
    conv.weight.data = (weight != 0).double()
    assert counts.effective.tolist() == conv((x != 0).double()).flatten(1).sum(1).tolist()
    conv.weight.data.fill_(1)
    assert counts.reached == conv(torch.ones_like(x[:1])).sum().item()
    conv.weight.data, conv.bias.data = weight, bias


def test_a_layer_that_pads_by_itself_is_known_by_its_output():
    from timm.layers import Conv2dSame

    for size in (5, 6, 7, 8):
        conv = Conv2dSame(4, 3, 3, stride=2).double()
        x = torch.randint(0, 2, (2, 4, size, 7)).double()
        counts = count(conv, x)
        conv.weight.data.fill_(1)
        conv.bias.data.zero_()
        assert counts.effective.tolist() == conv(x).flatten(1).sum(1).tolist()


def test_linear_layers_and_products_count_pairs_of_non_zeros():
    fc = nn.Linear(7, 3)
    fc.weight.data[1, :4] = 0
    x = X[0, 0].float()  # [5, 7]
    pairs = [sum(bool(x[i, c] != 0 and fc.weight[o, c] != 0) for o in range(3) for c in range(7)) for i in range(5)]
    assert count_linear(x, fc.weight, True, True).effective.tolist() == pairs
    assert count_linear(x, fc.weight, False, True).effective.tolist() == (3 * (x != 0).sum(1)).tolist()
    a, b = X[:, 0], X[:, 1].transpose(1, 2)  # [2, 5, 7], [2, 7, 5]
    loop = [
        sum(bool(a[n, i, k] * b[n, k, j] != 0) for i in range(5) for j in range(5) for k in range(7)) for n in (0, 1)
    ]
    counts = count_matmul(a, b)
    assert counts.effective.tolist() == loop and counts.dense == 5 * 5 * 7


def test_activity_is_exact_over_batches_of_different_sizes():
    values = torch.randint(0, 4, (3, 7, 1000), generator=torch.Generator().manual_seed(1)).float()  # [T, B, ...]
    activity = Activity()
    for part in values.split([4, 2, 1], dim=1):
        activity.add(Measured(part))
        activity.end_batch(part.shape[1])
    assert activity.magnitude.all().tolist() == values.sum((0, 2)).tolist()
    assert activity.rate().tolist() == ((values != 0).sum((0, 2)).double() / 3000).tolist()
    assert activity.by_step.tolist() == (values != 0).sum((1, 2)).tolist()
    assert (activity.kind, activity.largest) == ('integer', 3)


@pytest.mark.parametrize(
    ('values', 'kind'),
    [([0, 1, 1], 'binary'), ([0, 2], 'integer'), ([0, -1], 'integer'), ([0, 0.5], 'real'), ([0, 0], 'binary')],
)
def test_kinds_of_values(values, kind):
    activity = Activity()
    activity.add(Measured(torch.tensor(values).float().reshape(1, 1, -1)))
    assert activity.kind == kind


def test_half_precision_sums_do_not_saturate():
    activity = Activity()
    activity.add(Measured(torch.ones(1, 1, 100_000, dtype=torch.float16)))
    activity.end_batch(1)
    assert activity.magnitude.all().tolist() == [100_000]


def test_time_and_samples_are_found_in_any_layout():
    T, B = 4, 3
    assert steps_and_samples(torch.zeros(T, B, 5, 7), T, B, 2).shape == (T, B, 5, 7)
    assert steps_and_samples(torch.zeros(T * B, 5, 7), T, B, 2).shape == (T, B, 1, 5, 7)
    assert steps_and_samples(torch.zeros(B, 5), T, B, 1).shape == (1, B, 1, 5)
    assert steps_and_samples(torch.zeros(B * 6, 5), 1, B, 1).shape == (1, B, 6, 5)  # windows of a sample
    assert steps_and_samples(torch.zeros(1, 5, 5, 2), 1, B, 1).shape == (1, B, 25, 2)  # shared by the samples
    x = torch.arange(T * B).reshape(T, B, 1)
    assert torch.equal(steps_and_samples(F.pad(x.reshape(-1, 1), (0, 1)), T, B, 1)[:, :, 0, :1], x)
