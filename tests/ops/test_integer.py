"""Integer spikes against their definition, element by element."""

import math

import pytest
import torch

from timm_snn.layers import IntegerNeuron, neurons
from timm_snn.ops import integer_spikes, lif

BORDERS = [-1.0, -1e-3, 0.0, 0.4, 0.5, 0.6, 1.5, 2.5, 3.5, 3.9, 4.0, 4.001, 7.0]


def by_definition(x: float, levels: int, v_threshold: float, normalize: bool) -> tuple[float, float]:
    """Value and straight-through gradient; Python rounds halves to even."""
    scale = levels if normalize else 1
    inside = 0 <= x / v_threshold <= levels
    return round(min(max(x / v_threshold, 0), levels)) / scale, inside / (v_threshold * scale)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize('normalize', [True, False])
@pytest.mark.parametrize(('levels', 'v_threshold'), [(4, 1.0), (1, 1.0), (8, 1.0), (4, 0.5)])
def test_values_and_gradients_are_those_of_the_definition(levels, v_threshold, normalize, dtype):
    x = torch.tensor(BORDERS + torch.linspace(-1, 9, 997).tolist(), dtype=dtype, requires_grad=True)
    spikes = integer_spikes(x, levels=levels, v_threshold=v_threshold, normalize=normalize)
    spikes.sum().backward()
    expected = [by_definition(value, levels, v_threshold, normalize) for value in x.tolist()]
    assert spikes.dtype == dtype
    assert spikes.tolist() == torch.tensor([value for value, _ in expected], dtype=dtype).tolist()
    assert x.grad.tolist() == torch.tensor([gradient for _, gradient in expected], dtype=dtype).tolist()


class Followed(torch.Tensor):
    """What a library may follow operations with."""


def followed(x: torch.Tensor, **settings) -> torch.Tensor:
    """The form that compilers and exports see too, whose gradient is autograd's."""
    return integer_spikes(x.as_subclass(Followed), **settings)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('settings', [{}, {'normalize': False}, {'levels': 3, 'v_threshold': 0.3}])
def test_eager_passes_are_those_that_a_compiler_sees_to_the_bit(settings, dtype):
    torch.manual_seed(0)
    x = (4 * torch.randn(5, 3, 7, 4)).to(dtype).transpose(1, 3)
    x[0, 0, 0] = torch.tensor([math.nan, math.inf, -math.inf]).to(dtype)
    upstream = torch.randn(x.shape).to(dtype)
    results = []
    for function in (integer_spikes, followed):
        current = x.clone().requires_grad_()
        spikes = function(current, **settings)
        (gradient,) = torch.autograd.grad(spikes, current, upstream)
        results.append((spikes.detach().as_subclass(torch.Tensor), gradient.as_subclass(torch.Tensor)))
    for eager, seen in zip(*results, strict=True):
        torch.testing.assert_close(eager, seen, rtol=0, atol=0, equal_nan=True, check_stride=True)
        assert eager.dtype == dtype
    assert torch.equal(integer_spikes(x[1:], **settings), results[0][0][1:])  # without a gradient to come


def test_second_derivatives_tangents_and_transforms():
    x = torch.tensor(BORDERS, dtype=torch.float64)
    slope = torch.tensor([by_definition(value, 4, 1.0, True)[1] for value in BORDERS], dtype=torch.float64)
    current, upstream = x.clone().requires_grad_(), torch.ones_like(x, requires_grad=True)
    (gradient,) = torch.autograd.grad(integer_spikes(current), current, upstream, create_graph=True)
    assert torch.equal(torch.autograd.grad(gradient.sum(), upstream)[0], slope)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(current, torch.full_like(x, 2.0))
        assert torch.equal(torch.autograd.forward_ad.unpack_dual(integer_spikes(dual)).tangent, 2 * slope)
    assert torch.equal(torch.func.grad(lambda x: integer_spikes(x).sum())(x), slope)
    assert torch.equal(torch.func.vmap(torch.func.grad(integer_spikes))(x), slope)


def test_one_byte_is_kept_for_the_backward_pass():
    kept: list[torch.Tensor] = []
    x = torch.randn(2, 3, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        integer_spikes(x, v_threshold=0.5)
    assert [tensor.element_size() for tensor in kept] == [1]


def test_as_many_spikes_as_a_neuron_without_leak_and_with_soft_reset():
    """What an integer means on spiking hardware: so many spikes in `levels` steps, given the current in equal parts."""
    x = torch.rand(1000) * 5 - 0.5
    x = x[(x - x.floor() - 0.5).abs() > 1e-3]  # which of two counts a tie gives is a matter of convention
    # half a threshold ahead, so that what is left at the end is rounded and not cut off
    charged = (x.clamp(0, 4) / 4).repeat(4, 1, 1)
    charged[0] += 0.5
    spikes = lif(charged * 1e9, tau=1e9, v_reset=None, v_threshold=1.0)
    assert torch.equal(spikes.sum(0)[0], integer_spikes(x, normalize=False))


def test_torch_compile_and_script_give_the_same():
    neuron = IntegerNeuron()
    x = 3 * torch.randn(2, 3, 5)
    torch.compiler.reset()
    assert torch.equal(torch.compile(neuron, fullgraph=True, backend='eager')(x), neuron(x))
    assert torch.equal(torch.jit.script(neuron)(x), neuron(x))


def test_bad_settings_are_refused():
    assert neurons.get('integer') is IntegerNeuron
    IntegerNeuron(backend='torch')
    with pytest.raises(ValueError, match=r"runs in plain torch, backend 'torch', and was asked for 'triton'"):
        IntegerNeuron(backend='triton')
    with pytest.raises(ValueError, match='a whole number of levels, at least 1, got 0'):
        integer_spikes(torch.ones(1), levels=0)
    with pytest.raises(ValueError, match='v_threshold < inf, got 0'):
        IntegerNeuron(v_threshold=0)
    with pytest.raises(ValueError, match=r'floating-point current, got torch\.int64'):
        integer_spikes(torch.ones(1, dtype=torch.int64))
