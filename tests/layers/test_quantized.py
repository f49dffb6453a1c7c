"""Layers of a conversion, by the equations of arXiv 2303.04347."""

import pytest
import torch
from torch import nn

from timm_snn.layers import ClipFloorShift, ConvertedNeuron, OnRunningMean

LEVELS = (1, 2, 3, 4, 7, 16)


def test_the_activation_is_the_equation():
    activation = ClipFloorShift(levels=4, theta=2.0)
    x = torch.tensor([-3.0, -0.25, -0.2, 0.2, 0.25, 0.7, 0.75, 1.9, 5.0])
    assert activation(x).tolist() == [0, 0, 0, 0, 0.5, 0.5, 1.0, 2.0, 2.0]


def test_the_floor_has_the_gradient_of_the_identity():
    activation = ClipFloorShift(levels=4, theta=2.0)
    x = torch.tensor([-1.0, 0.6, 1.1, 5.0], requires_grad=True)
    activation(x).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 0]
    # of theta: what rounding adds, over theta, and 1 where the activation is cut off
    torch.testing.assert_close(activation.theta.grad, torch.tensor((0.5 - 0.6 + 1.0 - 1.1) / 2 + 1))


@pytest.mark.parametrize('theta', [0.5, 1.0, 2.0])
@pytest.mark.parametrize('T', LEVELS)
def test_a_constant_current_is_converted_without_error(T, theta):
    """Currents and theta are powers of two apart, so that sums are exact and the ties of rounding are met."""
    x = torch.arange(-64, 200, dtype=torch.float64) / 64 * theta
    activation = ClipFloorShift(T, theta, dtype=torch.float64)
    neuron = ConvertedNeuron(activation, num_steps=T, mask_ratio=0.0)
    rate = neuron(x.repeat(T, 1)).mean(0)
    torch.testing.assert_close(rate, activation(x), rtol=0, atol=1e-12)


def test_masks_drop_spikes_and_keep_the_mean():
    activation = ClipFloorShift(4, theta=2.0, mask_ratio=0.75)
    neuron = ConvertedNeuron(activation, num_steps=4, mask_ratio=0.75).eval()
    spikes = neuron(torch.full((4, 5000), 3.0))
    assert spikes.unique().tolist() == [0, 8]  # theta / (1 - 0.75)
    assert spikes.mean().item() == pytest.approx(2, abs=0.15)
    assert not torch.equal(spikes, neuron(torch.full((4, 5000), 3.0)))
    x = torch.full((20_000,), 3.0)
    assert activation(x).unique().tolist() == [0, 8] and activation.eval()(x).unique().tolist() == [2]


def test_the_mean_of_a_real_valued_layer_is_that_of_the_mean():
    softmax = nn.Softmax(-1)
    layer = OnRunningMean(softmax, frozenset({0}), num_steps=5)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    y = layer(x.flatten(0, 1)).unflatten(0, (5, 2))
    for t in range(1, 6):
        torch.testing.assert_close(y[:t].mean(0), softmax(x[:t].mean(0)))


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: ClipFloorShift(0), 'whole number of levels of at least 1, got 0'),
        (lambda: ClipFloorShift(2.5), 'got 2.5'),
        (lambda: ClipFloorShift(theta=0.0), 'theta above 0, got 0.0'),
        (lambda: ClipFloorShift(mask_ratio=1.0), '0 <= mask_ratio < 1, got 1.0'),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
