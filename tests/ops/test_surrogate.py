import math

import pytest
import torch

from timm_snn.ops.surrogate import SURROGATES, Sigmoid, get_surrogate, spike


@pytest.mark.parametrize('name', SURROGATES)
@pytest.mark.parametrize('alpha', [0.7, 3.0])
def test_derivative_is_that_of_the_primitive(name, alpha):
    surrogate = SURROGATES[name](alpha)
    x = torch.linspace(-3, 3, 61, dtype=torch.float64).add_(0.013).requires_grad_()  # off the kinks
    assert torch.autograd.gradcheck(surrogate.primitive, x)
    (expected,) = torch.autograd.grad(surrogate.primitive(x).sum(), x)
    torch.testing.assert_close(surrogate.derivative(x), expected)


@pytest.mark.parametrize('name', SURROGATES)
def test_primitive_rises_from_zero_to_one(name):
    values = get_surrogate(name).primitive(torch.tensor([-100.0, 0.0, 100.0]))
    torch.testing.assert_close(values, torch.tensor([0.0, 0.5, 1.0]), atol=5e-3, rtol=0)


def test_spike_is_a_step_with_the_surrogates_gradient_and_ties_fire():
    x = torch.tensor([-1.0, -0.0, 0.0, 2.0], requires_grad=True)
    s = spike(x, Sigmoid())
    assert s.tolist() == [0, 1, 1, 1]
    (gradient,) = torch.autograd.grad(s.sum(), x)
    torch.testing.assert_close(gradient, Sigmoid().derivative(x.detach()))


def test_unknown_name_and_bad_alpha_are_refused():
    with pytest.raises(ValueError, match=r"unknown surrogate 'tanh'.*'atan'"):
        get_surrogate('tanh')
    with pytest.raises(ValueError, match='alpha > 0, got -1'):
        Sigmoid(-1)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_spike_is_a_step_for_every_number(dtype):
    info = torch.finfo(dtype)
    sizes = [0.0, info.smallest_normal * info.eps, info.smallest_normal, info.eps, 1.0, info.max, math.inf]
    x = torch.tensor([sign * size for size in sizes for sign in (1, -1)] + [math.nan], dtype=dtype)
    expected = torch.where(x.isnan(), x, (x >= 0).to(dtype))
    assert x[2] > 0 > x[3] and torch.equal(spike(x, Sigmoid()).nan_to_num(-1), expected.nan_to_num(-1))
