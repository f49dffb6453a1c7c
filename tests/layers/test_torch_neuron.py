"""What every neuron by name does, whatever its equation: dtypes, layouts, NaN, rest, time, compilation."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from tests.ops.conformance import HALF, LAYOUTS
from timm_snn.layers import PSN, FixedSteps, LeakyNeuron, SlidingPSN, StepwiseNeuron, TorchNeuron, neurons

T = 5
OURS = ['alif', 'clif', 'glif', 'klif', 'psn', 'sliding_psn', 'ternary']
STEPWISE = [name for name in OURS if issubclass(neurons.get(name), StepwiseNeuron)]


def make(name: str, num_steps: int = T, **settings) -> nn.Module:
    torch.manual_seed(0)
    layer = neurons.get(name)(**settings)
    if isinstance(layer, FixedSteps):
        layer.set_num_steps(num_steps)
    if name == 'psn':  # else few fire at the start
        with torch.no_grad():
            layer.weight.mul_(2)
    return layer


def currents(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (1.5 * torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.5).to(dtype)


def gradients(layer: nn.Module, x: Tensor, upstream: Tensor) -> list[Tensor]:
    """Spikes, and the gradients of the input and of every parameter."""
    x = x.detach().requires_grad_()
    spikes = layer(x)
    return [spikes, *torch.autograd.grad(spikes, [x, *layer.parameters()], upstream)]


def test_all_that_are_registered_are_tested():
    classes = {name: neurons.get(name) for name in neurons.names() if isinstance(neurons.get(name), type)}
    assert [name for name, layer in classes.items() if issubclass(layer, TorchNeuron)] == OURS


@pytest.mark.parametrize('name', OURS)
class TestEveryNeuron:
    def test_spikes_are_whole_and_some(self, name):
        spikes = make(name)(currents(T, 3, 4, 5, 7))
        values = {-1.0, 0.0, 1.0} if name == 'ternary' else {0.0, 1.0}
        assert set(spikes.unique().tolist()) == values and 0.02 < spikes.abs().mean() < 0.8

    @pytest.mark.parametrize('shape', [(1, 1), (9, 2, 3), (3, 0, 4), (2, 3, 1, 5, 7)])
    def test_shapes_are_kept(self, name, shape):
        layer, x = make(name, shape[0]), currents(*shape)
        spikes, grad, *_ = gradients(layer, x, torch.ones(shape))
        assert spikes.shape == grad.shape == x.shape and grad.isfinite().all()

    @pytest.mark.parametrize('dtype', HALF)
    def test_half_precision_is_computed_in_float32(self, name, dtype):
        x = currents(T, 3, 4, 8, 8, dtype=dtype)
        for layer in (make(name), make(name).to(dtype)):
            spikes = layer(x)
            assert spikes.dtype == dtype
            assert torch.equal(spikes.float(), copy.deepcopy(layer).float()(x.float()))

    def test_autocast_does_not_touch_the_membrane(self, name):
        layer, x = make(name), currents(T, 3, 4, 8, 8)
        with torch.autocast('cpu', torch.bfloat16):
            spikes = layer(x)
        assert spikes.dtype == x.dtype and torch.equal(spikes, layer(x))

    @pytest.mark.parametrize('layout', LAYOUTS)
    def test_layouts_give_the_same(self, name, layout):
        layer, x = make(name).double(), LAYOUTS[layout](currents(T, 3, 4, 5, 6, dtype=torch.float64))
        upstream = torch.randn(x.shape, dtype=torch.float64)
        for found, expected in zip(
            gradients(layer, x, upstream), gradients(layer, x.contiguous(), upstream), strict=True
        ):
            torch.testing.assert_close(found, expected)

    def test_channels_last_stays(self, name):
        x = currents(T, 3, 4, 5, 6)
        x = LAYOUTS['channels_last'](x)
        assert make(name)(x).stride()[2:] == x.stride()[2:]

    def test_every_call_begins_at_rest_and_samples_are_apart(self, name):
        layer, x = make(name), currents(T, 3, 4, 5)
        expected = layer(x)
        layer(-x)
        assert torch.equal(layer(x), expected) and torch.equal(layer(x.flip(1)), expected.flip(1))

    def test_a_step_does_not_see_the_future_unless_chunk_steps_says_so(self, name):
        layer, x = make(name), currents(T, 3, 40)
        changed = x.clone()
        changed[3:] = 2 - x[3:]
        same = torch.equal(layer(x)[:3], layer(changed)[:3])
        assert same == (getattr(layer, 'chunk_steps', 1) == 1) == (name != 'psn')

    def test_nan_goes_out_from_its_step_on(self, name):
        layer, x = make(name), currents(T, 3, 7)
        expected = layer(x)
        x[2, 0, 0] = math.nan
        spikes = layer(x)
        seen_by = {'psn': slice(None), 'sliding_psn': slice(2, 6)}.get(name, slice(2, None))
        assert spikes[seen_by, 0, 0].isnan().all()
        expected[seen_by, 0, 0] = math.nan
        torch.testing.assert_close(spikes, expected, equal_nan=True, rtol=0, atol=0)

    @pytest.mark.parametrize('current', [math.inf, -math.inf])
    def test_an_infinite_current_is_a_current(self, name, current):
        layer, x = make(name), torch.zeros(T, 2, 3)
        if name == 'psn':
            layer.weight.data.fill_(1.0)  # at all steps it comes in with the weight of its own
        x[2, 0, 0] = current
        spikes = layer(x)
        assert spikes[2, 0, 0] == {math.inf: 1, -math.inf: -1 if name == 'ternary' else 0}[current]
        assert not spikes[:3].isnan().any()  # later ones have what `lif` has: a membrane that leaks and is infinite

    def test_settings_are_shown_and_copied(self, name):
        layer = make(name, v_threshold=0.75, surrogate='atan:3.0')
        assert 'v_threshold=0.75' in repr(layer) and 'ATan(alpha=3.0)' in repr(layer)
        x = currents(T, 2, 3)
        assert torch.equal(copy.deepcopy(layer)(x), layer(x))

    def test_a_lower_threshold_fires_more(self, name):
        x = currents(T, 3, 50)
        low, high = (make(name, v_threshold=v)(x).abs().mean() for v in (0.5, 1.5))
        assert low > high

    @pytest.mark.parametrize('backend', ['cpp', 'compile'])
    def test_another_backend_is_refused(self, name, backend):
        assert neurons.get(name)(backend='torch') and neurons.get(name)(backend='auto')
        with pytest.raises(ValueError, match=f"runs in plain torch.*was asked for '{backend}'"):
            neurons.get(name)(backend=backend)

    def test_input_without_time_is_refused(self, name):
        with pytest.raises(ValueError, match=r'needs floating-point x \[T, B, ...\]'):
            make(name)(torch.ones(T))

    def test_it_is_one_graph_to_torch_compile(self, name):
        layer, x = make(name).double(), currents(T, 3, 4, 5, dtype=torch.float64)
        upstream = torch.randn_like(x)
        compiled = torch.compile(layer, fullgraph=True, backend='aot_eager')
        for found, expected in zip(gradients(compiled, x, upstream), gradients(layer, x, upstream), strict=True):
            torch.testing.assert_close(found, expected)

    @pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning', 'ignore::FutureWarning')
    def test_it_is_traced_and_exported(self, name):
        layer, x = make(name).eval(), currents(T, 2, 3, 4)
        with torch.no_grad():
            assert torch.equal(torch.jit.trace(layer, x)(x), layer(x))
            assert torch.equal(torch.export.export(layer, (x,)).module()(x), layer(x))

    def test_settings_out_of_range_are_refused(self, name):
        with pytest.raises(ValueError, match='unknown surrogate'):
            neurons.get(name)(surrogate='tanh')
        if name not in ('psn', 'sliding_psn'):  # whose thresholds are learned, of any sign
            with pytest.raises(ValueError, match='v_threshold'):
                neurons.get(name)(v_threshold=-1.0)
            with pytest.raises(ValueError, match='tau'):
                neurons.get(name)(tau=0.5)


@pytest.mark.parametrize('name', [*STEPWISE, 'sliding_psn'])
def test_a_stream_in_pieces_is_the_whole(name):
    layer, x = make(name), currents(9, 3, 4, dtype=torch.bfloat16)
    state, pieces = None, []
    for piece in x.split([1, 1, 4, 3]):
        spikes, state = layer.stream(piece, state)
        pieces.append(spikes)
    assert torch.equal(torch.cat(pieces), layer(x))


class TestFixedSteps:
    def test_parameters_are_made_when_the_steps_are_told(self):
        layer = PSN().double()
        with pytest.raises(ValueError, match='PSN has parameters for every step and was not told T'):
            layer(torch.ones(3, 2))
        layer.set_num_steps(3)
        layer.set_num_steps(3)
        assert layer.weight.shape == (3, 3) and layer.weight.dtype == torch.float64
        assert PSN(num_steps=3).weight.shape == (3, 3)

    @pytest.mark.parametrize('name', ['psn', 'glif'])
    def test_another_number_of_steps_is_refused(self, name):
        layer = make(name)
        for use in (lambda: layer(torch.ones(4, 2)), lambda: layer.set_num_steps(4)):
            with pytest.raises(ValueError, match=r"each of 5 steps, and cannot run 4: .*num_steps=4.*'sliding_psn'"):
                use()
        assert layer.num_steps == T


def test_an_order_of_no_steps_is_refused():
    with pytest.raises(ValueError, match='order of at least 1 step, got 0'):
        SlidingPSN(order=0)


def test_a_neuron_of_ones_own_needs_its_step_alone():
    class Absolute(LeakyNeuron):
        def step(self, x, v):
            h = self.charge(x, v)
            s = self.spike(h.abs() - self.neuron.v_threshold)
            return s, self.reset(h, s, s * h)

    x = torch.tensor([-3.0, 0.5, 3.0]).view(3, 1)
    assert Absolute()(x).tolist() == [[1], [0], [1]]
