"""The neurons that SpikingJelly 2.0.0 has too: equal spikes, and all gradients to 1e-10, in float64."""

import itertools

import pytest
import torch

from timm_snn.layers import CLIF, GLIF, KLIF, PSN, SlidingPSN, TernaryLIF

theirs = pytest.importorskip('spikingjelly.activation_based.neuron')
surrogate = pytest.importorskip('spikingjelly.activation_based.surrogate')
SETTINGS = [
    dict(tau=1.7, v_threshold=0.8, v_reset=v_reset, decay_input=decay_input, detach_reset=detach_reset)
    for v_reset, decay_input, detach_reset in itertools.product((0.0, -0.2, None), (True, False), (True, False))
]
HOW = dict(step_mode='m')


def sigmoid():
    return surrogate.Sigmoid(alpha=4.0)


def assert_equal(ours, other, names, num_steps=6):
    """`names` are those of our parameters and theirs, and the sign of theirs."""
    ours.double()
    other.double()
    generator = torch.Generator().manual_seed(0)
    for mine, name, sign in names:
        value = getattr(ours, mine).detach() + torch.randn(getattr(ours, mine).shape, generator=generator).double() / 2
        getattr(ours, mine).data.copy_(value)
        getattr(other, name).data.copy_(sign * value.reshape(getattr(other, name).shape))
    x = 1.5 * torch.randn(num_steps, 2, 3, 4, 5, generator=generator, dtype=torch.float64) + 0.3
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    spikes, expected = ours(inputs[0]), other(inputs[1])
    assert torch.equal(spikes, expected) and 0.05 < spikes.abs().mean() < 0.9
    upstream = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    spikes.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-10, atol=1e-10)
    for mine, name, sign in names:
        grad = sign * getattr(other, name).grad.reshape(getattr(ours, mine).shape)
        torch.testing.assert_close(getattr(ours, mine).grad, grad, rtol=1e-10, atol=1e-10)


def test_psn():
    assert_equal(PSN(6), theirs.PSN(6, sigmoid()), [('weight', 'weight', 1), ('theta', 'bias', -1)])


@pytest.mark.parametrize('order', [1, 3, 8])
def test_sliding_psn(order):
    other = theirs.SlidingPSN(order, surrogate_function=sigmoid(), **HOW)
    ours = SlidingPSN(order)
    torch.testing.assert_close(ours.weight.data, other.weight.data)  # as they begin
    assert_equal(ours, other, [('weight', 'weight', 1), ('theta', 'bias', -1)])


@pytest.mark.parametrize('settings', [{}, dict(tau=3.0, v_threshold=0.4)])
def test_clif(settings):
    assert_equal(CLIF(**settings), theirs.ComplementaryLIFNode(surrogate_function=sigmoid(), **settings, **HOW), [])


@pytest.mark.parametrize('settings', SETTINGS)
def test_klif(settings):
    other = theirs.KLIFNode(surrogate_function=sigmoid(), **settings, **HOW)
    assert_equal(KLIF(**settings), other, [('k', 'k', 1)])


@pytest.mark.parametrize('settings', SETTINGS)
def test_ternary(settings):
    assert_equal(TernaryLIF(**settings), theirs.TernaryLIFNode(surrogate_function=sigmoid(), **settings, **HOW), [])


def test_glif():
    ours, other = GLIF(6), theirs.GatedLIFNode(6, surrogate_function=sigmoid())
    names = dict(theta='v_threshold', v_fall='v_subreset', v_leak='linear_decay', r='tau', g='conduct')
    for mine, name in names.items():  # as they begin
        torch.testing.assert_close(getattr(ours, mine).data, getattr(other, name).data)
    names |= {gate: gate for gate in ('alpha', 'beta', 'gamma')}
    assert_equal(ours, other, [(mine, name, 1) for mine, name in names.items()])
