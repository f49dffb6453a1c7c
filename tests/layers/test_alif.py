import math

import pytest
import torch

from timm_snn.layers import ALIF
from timm_snn.ops import ATan


def loop(x, tau, v_threshold, v_reset, decay_input, detach_reset, beta, tau_adaptation):
    """The equations of arXiv 1803.09574 for one neuron after the other, with the spike as (hard - soft) + soft."""
    surrogate, rho = ATan(), math.exp(-1 / tau_adaptation)
    spikes = torch.empty_like(x)
    for i in range(x.shape[1]):
        v, a = x.new_zeros(()), x.new_zeros(())
        for t in range(len(x)):
            h = v + (x[t, i] - v) / tau if decay_input else v * (1 - 1 / tau) + x[t, i]
            theta = v_threshold + beta * a
            soft = surrogate.primitive(h - theta)
            s = soft + ((h >= theta).to(x) - soft).detach()
            if v_reset is None:
                v = h - ((s * theta).detach() if detach_reset else s * theta)
            else:
                r = s.detach() if detach_reset else s
                v = r * v_reset + (1 - r) * h
            a = rho * a + (1 - rho) * s
            spikes[t, i] = s
    return spikes


@pytest.mark.parametrize('v_reset', [None, 0.0])
@pytest.mark.parametrize('decay_input', [True, False])
@pytest.mark.parametrize('detach_reset', [True, False])
def test_it_equals_a_loop_over_the_equations(v_reset, decay_input, detach_reset):
    settings = dict(tau=1.7, v_threshold=0.6, v_reset=v_reset, decay_input=decay_input, detach_reset=detach_reset)
    settings |= dict(beta=1.3, tau_adaptation=3.0)
    torch.manual_seed(0)
    x = (2 * torch.randn(6, 9, dtype=torch.float64) + 1).requires_grad_()
    upstream = torch.randn_like(x)
    ours, expected = ALIF(surrogate='atan', **settings)(x), loop(x, **settings)
    assert torch.equal(ours, expected.round()) and 0.1 < ours.mean() < 0.9
    found, wanted = (torch.autograd.grad(y, x, upstream)[0] for y in (ours, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_spikes_raise_the_threshold_and_silence_lowers_it():
    x = torch.tensor([1.5, 1.5, 0.0, 0.0, 0.0, 1.5]).view(6, 1)
    plain = dict(tau=math.inf, decay_input=False, v_reset=0.0)
    assert ALIF(beta=0.0, **plain)(x).flatten().tolist() == [1, 1, 0, 0, 0, 1]
    # thresholds of 1, 2.90, 1.70, 1.26, 2.99, 1.73
    assert ALIF(beta=3.0, tau_adaptation=1.0, **plain)(x).flatten().tolist() == [1, 0, 0, 1, 0, 0]


@pytest.mark.parametrize('settings', [dict(beta=-1.0), dict(tau_adaptation=0.0)])
def test_settings_are_checked(settings):
    with pytest.raises(ValueError, match=r'beta >= 0 and tau_adaptation > 0'):
        ALIF(**settings)
