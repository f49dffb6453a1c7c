import copy
import math
import pickle

import pytest
import torch

import timm_snn
from timm_snn.ops.surrogate import SURROGATES, ATan, Sigmoid, get_surrogate, make_surrogate, name_surrogate, spike


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


class TestSpike:
    """The step as a public function, for neurons of one's own."""

    def test_it_takes_names_with_and_without_alpha(self):
        x = torch.tensor([-0.3, 0.2, math.nan], requires_grad=True)
        for name, surrogate in (('atan', ATan()), ('atan:3.0', ATan(3.0))):
            (gradient,) = torch.autograd.grad(timm_snn.ops.spike(x, name).nansum(), x)
            torch.testing.assert_close(gradient[:2], surrogate.derivative(x.detach())[:2])
        assert timm_snn.ops.spike(x).detach().nan_to_num(-1).tolist() == [0, 1, -1]

    def test_whole_numbers_and_unknown_names_are_refused(self):
        with pytest.raises(ValueError, match=r'spike needs floating-point x, got torch.int64'):
            timm_snn.ops.spike(torch.arange(3))
        with pytest.raises(ValueError, match="unknown surrogate 'tanh'"):
            timm_snn.ops.spike(torch.ones(3), 'tanh')

    @pytest.mark.parametrize('name', SURROGATES)
    def test_second_derivatives_are_those_of_the_surrogate(self, name):
        x = torch.linspace(-0.9, 0.9, 8, dtype=torch.float64, requires_grad=True)
        found, expected = (
            torch.autograd.grad(torch.autograd.grad(y.square().sum(), x, create_graph=True)[0].sum(), x)[0]
            for y in (timm_snn.ops.spike(x, name), _as_spike(x, get_surrogate(name)))
        )
        torch.testing.assert_close(found, expected)
        assert found.any()

    @pytest.mark.filterwarnings('ignore:There is a performance drop')  # of clamp_ under vmap
    def test_a_neuron_of_it_runs_under_vmap_and_compile(self):
        x, upstream = torch.randn(3, 4), torch.randn(3, 4)
        expected = torch.func.vmap(lambda x: torch.func.vjp(timm_snn.ops.spike, x)[0])(x)
        assert torch.equal(expected, (x >= 0).float())
        x.requires_grad_()
        spike_of = torch.compile(lambda x: timm_snn.ops.spike(x, 'erf'), fullgraph=True, backend='aot_eager')
        torch.testing.assert_close(
            *(torch.autograd.grad(f(x), x, upstream)[0] for f in (spike_of, lambda x: timm_snn.ops.spike(x, 'erf')))
        )


def _as_spike(x, surrogate):
    """What has the values of the step, and all derivatives of the primitive."""
    soft = surrogate.primitive(x)
    return soft + ((x >= 0).to(x) - soft).detach()


class TestOwnSurrogates:
    @pytest.fixture
    def rectangle(self, monkeypatch):
        monkeypatch.setattr('timm_snn.ops.surrogate._OWN', {})
        return make_surrogate(
            'rectangle', lambda x: (x.abs() < 0.5).to(x.dtype), lambda x: (x + 0.5).clamp(0, 1), alpha=2.0
        )

    def test_alpha_sharpens(self, rectangle):
        x = torch.tensor([-0.3, -0.2, 0.1, 0.3], dtype=torch.float64)
        assert rectangle().derivative(x).tolist() == [0, 2, 2, 0]
        torch.testing.assert_close(rectangle().primitive(x), torch.tensor([0, 0.1, 0.7, 1], dtype=torch.float64))
        assert rectangle(1.0).derivative(x).tolist() == [1, 1, 1, 1]

    def test_it_is_called_by_name_and_named(self, rectangle):
        assert get_surrogate('rectangle') == rectangle(2.0) and get_surrogate('rectangle:3') == rectangle(3.0)
        assert name_surrogate(rectangle()) == 'rectangle' and name_surrogate(rectangle(3.0)) == 'rectangle:3.0'
        assert repr(rectangle()) == 'rectangle(alpha=2.0)'
        with pytest.raises(ValueError, match='rectangle needs alpha > 0'):
            rectangle(-1.0)

    def test_it_is_copied_and_pickled(self, rectangle):
        assert copy.deepcopy(rectangle(3.0)) == pickle.loads(pickle.dumps(rectangle(3.0))) == rectangle(3.0)
        old, new = rectangle(), make_surrogate('rectangle', torch.ones_like)
        assert copy.deepcopy(old) is old and get_surrogate('rectangle') == new()
        assert name_surrogate(old) is old  # the name is of another by now

    def test_lif_trains_with_it_where_a_backend_can(self, rectangle):
        x = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
        twin = make_surrogate('twin', get_surrogate('piecewise_quadratic').derivative)
        named, own = (
            torch.autograd.grad(timm_snn.lif(x, surrogate=each).sum(), x)[0] for each in ('piecewise_quadratic', twin())
        )
        torch.testing.assert_close(own, named)
        assert torch.autograd.grad(timm_snn.lif(x, surrogate=rectangle(1.0)).sum(), x)[0].any()
        with pytest.raises(timm_snn.BackendUnavailable, match="got rectangle: use backend='torch'"):
            timm_snn.lif(x, surrogate='rectangle', backend='cpp')

    def test_inductor_runs_it(self, rectangle):
        if (inductor := pytest.importorskip('timm_snn.ops.backends.inductor')).why_not():
            pytest.skip(inductor.why_not())
        x = torch.randn(3, 2, 5, requires_grad=True)
        compiled, plain = (
            torch.autograd.grad(timm_snn.lif(x, surrogate='rectangle', backend=name).sum(), x)[0]
            for name in ('compile', 'torch')
        )
        torch.testing.assert_close(compiled, plain)

    def test_a_primitive_may_be_left_out(self):
        with pytest.raises(NotImplementedError):
            make_surrogate('only_a_slope', torch.ones_like)().primitive(torch.ones(2))

    @pytest.mark.parametrize('name', ['atan', 'my surrogate', 3])
    def test_names_of_others_are_refused(self, name):
        with pytest.raises(ValueError, match=r"named by an identifier other than \['atan'"):
            make_surrogate(name, torch.ones_like)

    @pytest.mark.parametrize('function', [lambda x: x > 0, lambda x: x.sum(), lambda x: 1.0, lambda x: x.float()])
    def test_functions_that_do_not_keep_shape_and_dtype_are_refused(self, function):
        with pytest.raises(ValueError, match=r"surrogate 'mine' must map x .* expected \(5,\) of .*float64"):
            make_surrogate('mine', function)
