import math

import pytest
import torch
from torch import Tensor

from timm_snn.ops import Sigmoid, lif, lif_stream
from timm_snn.ops.surrogate import SURROGATES, get_surrogate

TAUS, THRESHOLDS, RESETS, STEPS = (2.0, 1.5, 4.0), (1.0, 0.5), (0.0, -0.2, None), (1, 2, 4, 9)


def currents(*shape: int, seed: int = 0, **kwargs) -> Tensor:
    return 1.5 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **kwargs) + 0.5


def by_hand(
    x: Tensor,
    tau=2.0,
    v_threshold=1.0,
    v_reset=0.0,
    decay_input=True,
    detach_reset=True,
    surrogate='sigmoid',
    smooth=False,
    v=None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The recurrence written again: a step whose gradient is that of the primitive, by a straight-through sum.

    With `smooth` the step is the primitive itself, so that autograd's gradient is the true one and can be checked
    numerically. Returns spikes, membrane before the reset, last membrane.
    """
    rest = v_reset or 0.0
    v = torch.full_like(x[0], rest) if v is None else v
    spikes, membranes = [], []
    for x_t in x:
        h = v + (x_t - (v - rest)) / tau if decay_input else v - (v - rest) / tau + x_t
        above = (h - rest) / (v_threshold - rest) - 1 if isinstance(v_threshold, Tensor) else h - v_threshold
        p = get_surrogate(surrogate).primitive(above)
        s = p if smooth else (h >= v_threshold).to(h) + p - p.detach()
        gate = s.detach() if detach_reset else s
        v = h - gate * v_threshold if v_reset is None else gate * rest + (1 - gate) * h
        spikes.append(s)
        membranes.append(h)
    return torch.stack(spikes), torch.stack(membranes), v


@pytest.mark.parametrize('detach_reset', [True, False])
@pytest.mark.parametrize('decay_input', [True, False])
@pytest.mark.parametrize('v_reset', RESETS)
@pytest.mark.parametrize('surrogate', SURROGATES)
def test_spikes_and_gradients_equal_an_independent_loop(surrogate, v_reset, decay_input, detach_reset):
    kwargs = dict(tau=1.7, v_threshold=0.8, v_reset=v_reset, decay_input=decay_input, detach_reset=detach_reset)
    x = currents(6, 3, 5, dtype=torch.float64).requires_grad_()
    upstream = torch.randn(5, 3, 6, dtype=torch.float64).permute(2, 1, 0)  # not contiguous

    spikes = lif(x, surrogate=surrogate, **kwargs)
    expected, _, _ = by_hand(x, surrogate=surrogate, **kwargs)

    assert 0.1 < spikes.mean() < 0.9
    torch.testing.assert_close(spikes, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(spikes, x, upstream)[0],
        torch.autograd.grad(expected, x, upstream)[0],
        rtol=1e-10,
        atol=1e-12,
    )


@pytest.mark.parametrize('v_reset', RESETS)
@pytest.mark.parametrize('decay_input', [True, False])
def test_the_loop_is_differentiated_right(v_reset, decay_input):
    """gradcheck of the loop that the test above compares with, as a smooth neuron, which has a true gradient."""
    x = currents(4, 2, 3, dtype=torch.float64).requires_grad_()
    tau = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    settings = dict(v_reset=v_reset, decay_input=decay_input, detach_reset=False, smooth=True)
    assert torch.autograd.gradcheck(lambda x, tau: by_hand(x, tau, **settings)[0], (x, tau))


def test_gradcheck_through_the_membrane():
    """Below the threshold the neuron is linear, so our own op has a true gradient there: in x, tau and v."""
    x = 0.1 * currents(5, 2, 3, dtype=torch.float64).requires_grad_()
    v = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    tau = torch.tensor(2.5, dtype=torch.float64, requires_grad=True)
    for decay_input in (True, False):
        assert torch.autograd.gradcheck(
            lambda x, v, tau, d=decay_input: lif_stream(x, v, tau=tau, v_threshold=50.0, decay_input=d)[1], (x, v, tau)
        )


def test_a_learnable_tau_gets_the_loops_gradient():
    x = currents(5, 4, 3, dtype=torch.float64)
    tau = torch.tensor([2.3], dtype=torch.float64, requires_grad=True)
    ours, loops = lif(x, tau=tau), by_hand(x, tau)[0]
    upstream = torch.randn_like(ours)
    torch.testing.assert_close(torch.autograd.grad(ours, tau, upstream), torch.autograd.grad(loops, tau, upstream))


@pytest.mark.parametrize('detach_reset', [True, False])
@pytest.mark.parametrize('v_reset', RESETS)
@pytest.mark.parametrize('v_threshold', THRESHOLDS)
@pytest.mark.parametrize('tau', TAUS)
def test_equal_to_spikingjelly(tau, v_threshold, v_reset, detach_reset):
    neuron = pytest.importorskip('spikingjelly.activation_based.neuron')
    surrogate = pytest.importorskip('spikingjelly.activation_based.surrogate')
    for decay_input in (True, False):
        for num_steps in STEPS:
            node = neuron.LIFNode(
                tau=tau,
                decay_input=decay_input,
                v_threshold=v_threshold,
                v_reset=v_reset,
                surrogate_function=surrogate.Sigmoid(alpha=4.0),
                detach_reset=detach_reset,
                step_mode='m',
            )
            kwargs = dict(tau=tau, v_threshold=v_threshold, v_reset=v_reset, decay_input=decay_input)
            x = currents(num_steps, 7, 11, seed=num_steps).requires_grad_()
            theirs, ours = node(x), lif(x, detach_reset=detach_reset, backend='torch', **kwargs)

            differ = theirs != ours
            if tau == 2.0:  # the division is exact
                assert not differ.any()
            else:  # rounding differs: allowed only where the membrane is on the threshold, and for what follows from it
                membranes = by_hand(x.detach(), detach_reset=detach_reset, **kwargs)[1]
                first = differ & (differ.cumsum(0) == 1)
                assert ((membranes - v_threshold).abs()[first] <= 1e-6).all()
            same = ~differ.any(0)
            assert same.float().mean() > 0.99
            upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)) * same
            (expected,) = torch.autograd.grad(theirs, x, upstream)
            (gradient,) = torch.autograd.grad(ours, x, upstream)
            assert (gradient - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize(('name', 'theirs'), [('sigmoid', 'Sigmoid'), ('atan', 'ATan'), ('erf', 'Erf')])
def test_surrogates_have_spikingjellys_default_sharpness(name, theirs):
    surrogate = pytest.importorskip('spikingjelly.activation_based.surrogate')
    x = torch.linspace(-2, 2, 41, requires_grad=True)
    (expected,) = torch.autograd.grad(getattr(surrogate, theirs)()(x).sum(), x)
    torch.testing.assert_close(SURROGATES[name]().derivative(x.detach()), expected)


@pytest.mark.parametrize('v_reset', RESETS)
@pytest.mark.parametrize('cut', [1, 3, 6])
def test_a_stream_in_two_pieces_equals_the_whole(v_reset, cut):
    x = currents(7, 2, 3).requires_grad_()
    first, v = lif_stream(x[:cut], v_reset=v_reset)
    second, v = lif_stream(x[cut:], v, v_reset=v_reset)
    whole, v_whole = lif_stream(x, v_reset=v_reset)
    assert torch.equal(torch.cat([first, second]), whole) and torch.equal(v, v_whole)
    upstream = torch.randn_like(whole)
    pieces = torch.autograd.grad(torch.cat([first, second]), x, upstream, retain_graph=True)
    torch.testing.assert_close(pieces, torch.autograd.grad(whole, x, upstream))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_has_a_float32_membrane(dtype):
    x = currents(16, 4, 33).to(dtype)
    spikes, v = lif_stream(x)
    assert spikes.dtype == dtype and v.dtype == torch.float32
    assert torch.equal(spikes.float(), lif(x.float()))
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(lif(x).sum(), x)
    assert gradient.dtype == dtype and gradient.isfinite().all()


def test_autocast_changes_nothing():
    x = currents(4, 2, 8)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(lif(x), lif(x.clone()))
        spikes = lif(x)
    assert spikes.dtype == torch.float32 and torch.equal(spikes, lif(x))


@pytest.mark.parametrize('shape', [(1, 1), (3, 0, 4), (2, 1, 0), (9, 5, 7, 3, 1)])
def test_odd_and_empty_sizes(shape):
    spikes, v = lif_stream(currents(*shape))
    assert spikes.shape == shape and v.shape == shape[1:]


def test_layouts_do_not_matter():
    x = currents(4, 2, 6, 5, 3)
    expected = lif(x)
    assert torch.equal(lif(x.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, (4, 2))), expected)
    assert torch.equal(lif(x.transpose(0, 1).contiguous().transpose(0, 1)), expected)
    held = x[:1].expand(4, -1, -1, -1, -1)  # stride 0 along time
    assert torch.equal(lif(held), lif(held.contiguous()))


def test_calls_leave_nothing_behind():
    x = currents(4, 2, 3)
    assert torch.equal(lif(x), lif(x))
    x.requires_grad_()
    for _ in range(2):  # the field's "backward through the graph a second time"
        lif(x).sum().backward()


def test_a_spike_needs_the_past_only():
    x = currents(6, 2, 3)
    changed = x.clone()
    changed[4:] = 7
    assert torch.equal(lif(x)[:4], lif(changed)[:4])


def test_one_step_by_hand():
    """tau 2, threshold 1: a current of 2 just reaches it; the reset forgets the rest."""
    x = torch.tensor([2.0, 1.0, 2.0]).view(3, 1, 1)
    spikes, v = lif_stream(x)
    assert spikes.flatten().tolist() == [1, 0, 1] and v.item() == 0  # h = 1, 0.5, 1.25
    _, v = lif_stream(x, v_reset=None)
    assert v.item() == 0.25


def test_compiles_without_graph_breaks():
    x = currents(4, 2, 3).requires_grad_()
    compiled = torch.compile(lambda x: lif(x, surrogate='atan'), fullgraph=True, backend='aot_eager')
    assert torch.equal(compiled(x), lif(x, surrogate='atan'))
    expected = torch.autograd.grad(lif(x, surrogate='atan').sum(), x)
    torch.testing.assert_close(torch.autograd.grad(compiled(x).sum(), x), expected)


@pytest.mark.parametrize('dynamic', [None, True])
def test_alpha_may_change_under_compile(dynamic):
    """torch.compile makes a float that changes a symbol, and failed on one that several backwards share."""
    x = currents(4, 2, 3).requires_grad_()
    compiled = torch.compile(lif, fullgraph=True, backend='eager', dynamic=dynamic)
    for alpha in (4.0, 2.0, 3.0):
        gradients = [torch.autograd.grad(f(x, surrogate=Sigmoid(alpha)).sum(), x) for f in (compiled, lif)]
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(x=torch.ones(3)), r'x \[T, B, ...\] with T >= 1, got \(3,\)'),
        (dict(x=torch.ones(0, 3)), 'T >= 1'),
        (dict(x=torch.ones(2, 3, dtype=torch.int64)), 'floating-point'),
        (dict(tau=0.5), '1 <= tau steps, got tau=0.5'),
        (dict(tau=math.nan), '1 <= tau'),
        (dict(tau=math.inf), 'tau=inf, which does not leak, needs decay_input=False'),
        (
            dict(tau=torch.ones(3)),
            r'one tau for all neurons, or one for each of the C channels.* got \(3,\) for x \(2, 3\)',
        ),
        (dict(v_threshold=torch.ones(3)), 'needs one v_threshold for all neurons'),
        (dict(v_reset=torch.tensor(0.0)), 'v_reset must be a number, got tensor'),
        (dict(surrogate=Sigmoid(torch.tensor(4.0))), 'alpha of the surrogate must be a number, got tensor'),
        (dict(v_threshold=-1.0), 'finite v_threshold above the resting potential.* got v_threshold=-1.0, v_reset=0.0'),
        (dict(v_threshold=-1.0, v_reset=None), '0 for a soft reset: got v_threshold=-1.0, v_reset=None'),
        (dict(v_threshold=math.nan), 'finite v_threshold'),
        (dict(v_reset=-math.inf), 'finite v_threshold'),
        (dict(surrogate=['atan']), 'unknown surrogate'),
        (dict(surrogate='tanh'), "unknown surrogate 'tanh'"),
        (dict(v=torch.ones(4)), r'needs v \(3,\) of torch.float32, got \(4,\)'),
        (dict(v=torch.ones(3, dtype=torch.float64)), 'pass the v that the last call returned'),
    ],
)
def test_bad_input_is_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        lif_stream(**{'x': torch.ones(2, 3), **kwargs})


def test_without_leak_nothing_is_lost():
    """Currents of 1/4 add up to a spike at every fourth step, and a soft reset keeps what is above the threshold."""
    x = torch.full((12, 1), 0.25)
    x[5] += 0.25
    spikes = lif(x, tau=math.inf, decay_input=False, v_reset=None)
    assert spikes.flatten().nonzero().flatten().tolist() == [3, 6, 10]


@pytest.mark.parametrize('v_reset', RESETS)
def test_a_neuron_whose_current_is_nan_says_nan_from_then_on(v_reset):
    x = currents(5, 2)
    x[2, 0] = math.nan
    spikes, v = lif_stream(x, v_reset=v_reset)
    expected, v_expected = lif_stream(x[:, 1:], v_reset=v_reset)
    assert spikes[:2].isfinite().all() and spikes[2:, 0].isnan().all() and v[0].isnan()
    assert torch.equal(spikes[:, 1:], expected) and torch.equal(v[1:], v_expected)


def test_a_neuron_fires_at_an_infinite_current_and_starts_again():
    x = torch.tensor([[math.inf], [3.0], [0.5]]).requires_grad_()
    spikes, v = lif_stream(x, v_reset=-0.2, detach_reset=False)
    expected, v_expected = lif_stream(x[1:], v_reset=-0.2)
    assert spikes[0] == 1 and torch.equal(spikes[1:], expected) and torch.equal(v, v_expected)
    (grad,) = torch.autograd.grad(v.sum() + spikes.sum(), x)
    assert grad.isfinite().all()


@pytest.mark.parametrize('detach_reset', [True, False])
@pytest.mark.parametrize('decay_input', [True, False])
@pytest.mark.parametrize('v_reset', RESETS)
@pytest.mark.parametrize('by_channel', [False, True])
def test_learned_settings_equal_an_independent_loop(by_channel, v_reset, decay_input, detach_reset):
    """Spikes, the membrane in units of the current, and the gradients of everything."""
    kwargs = dict(v_reset=v_reset, decay_input=decay_input, detach_reset=detach_reset)
    x, v = currents(6, 3, 5, 2, dtype=torch.float64), currents(3, 5, 2, seed=1, dtype=torch.float64)
    tau = torch.linspace(1.5, 4, 5) if by_channel else torch.tensor([1.7])
    v_threshold = torch.linspace(0.4, 1.2, 5) if by_channel else torch.tensor(0.7)
    leaves = [t.double().requires_grad_() for t in (x, v, tau, v_threshold)]
    x, v, tau, v_threshold = leaves
    results = lif_stream(x, v, tau=tau, v_threshold=v_threshold, **kwargs)
    shaped = [t[:, None] if by_channel else t for t in (tau, v_threshold)]
    spikes, _, v_last = by_hand(x, *shaped, v=v, **kwargs)
    assert 0.1 < spikes.mean() < 0.9
    torch.testing.assert_close(results, (spikes, v_last), rtol=0, atol=1e-12)
    upstream = [torch.randn_like(t) for t in results]
    torch.testing.assert_close(
        torch.autograd.grad(results, leaves, upstream), torch.autograd.grad((spikes, v_last), leaves, upstream)
    )


def test_a_threshold_that_is_met_exactly_fires():
    theta = torch.tensor(0.7)
    assert lif(torch.full((1, 1), 0.7), tau=1.0, v_threshold=theta) == 1
    assert lif(torch.full((1, 1), 0.7), tau=1.0, v_threshold=theta.nextafter(torch.tensor(1.0))) == 0


@pytest.mark.parametrize('v_threshold', [0.5, 1.0])
def test_a_threshold_in_a_tensor_gives_the_spikes_of_the_number(v_threshold):
    x = currents(8, 4, 6)
    assert torch.equal(lif(x, v_threshold=torch.tensor(v_threshold)), lif(x, v_threshold=v_threshold))


def test_compiled_calls_learn_thresholds_and_time_constants():
    x = currents(4, 2, 3, 5)
    learned = dict(tau=torch.tensor([1.5, 2.0, 3.0]), v_threshold=torch.tensor([0.5, 1.0, 1.5]))
    leaves = [t.requires_grad_() for t in learned.values()]
    compiled = torch.compile(lif, fullgraph=True, backend='aot_eager')
    gradients = [torch.autograd.grad(f(x, **learned).square().sum(), leaves) for f in (compiled, lif)]
    torch.testing.assert_close(*gradients)
    assert all(grad.all() for grad in gradients[0])
