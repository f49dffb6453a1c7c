"""Batch norm + pooling + neuron, and the mask of MSSA, against the same composed of torch's own layers."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.ops.test_lif import currents
from timm_snn.ops import bn_lif, lif, mssa, pool_lif
from timm_snn.ops.backends import inductor
from timm_snn.ops.native import build

T, C = 4, 6
BACKENDS = ['torch', 'compile', *(['cpp'] if build.why_not_here() is None else [])]


@pytest.fixture
def uncompiled(monkeypatch):
    """The compiled backend's bodies without Inductor, and a list of those that ran."""
    ran = []

    def plain(body, num_outputs, s, *args):
        ran.append(body.__name__)
        return body(*args, s)[:num_outputs]

    monkeypatch.setattr(inductor, '_CPP_COMPILERS', ['not needed'])
    monkeypatch.setattr(inductor, 'run_compiled', plain)
    monkeypatch.setattr(inductor, 'run_compiled', plain)
    return ran


def steps(*shape: int, channels_last: bool = False, dtype=torch.float32) -> Tensor:
    x = currents(T, *shape).to(dtype)
    if channels_last:
        x = x.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, (T, -1))
    return x.requires_grad_()


def parameters(dtype=torch.float32) -> list[Tensor]:
    """Weight, bias, running mean, running variance."""
    g = torch.Generator().manual_seed(1)
    weight, bias, mean, var = torch.rand(4, C, generator=g, dtype=dtype) + 0.5
    return [weight.requires_grad_(), bias.requires_grad_(), mean.detach().clone(), var.detach().clone()]


def composed(x, weight, bias, mean, var, training, pool, **neuron):
    y = F.batch_norm(x.flatten(0, 1), mean, var, weight, bias, training)
    if pool:
        y = F.max_pool2d(y, 3, 2, 1) if x.ndim == 5 else F.max_pool1d(y, 3, 2, 1)
    return lif(y.unflatten(0, (T, -1)), backend='torch', **neuron)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('pool', [False, True])
@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize(('shape', 'channels_last'), [((3, C, 7, 5), False), ((3, C, 7, 5), True), ((2, C, 9), False)])
def test_equal_to_the_composition(uncompiled, backend, pool, training, shape, channels_last):
    """Spikes, running statistics and every gradient; float64, where no membrane lies on the threshold."""
    x = steps(*shape, channels_last=channels_last, dtype=torch.float64)
    neuron = dict(tau=1.7, v_threshold=0.8, v_reset=None, detach_reset=False, surrogate='atan')
    ours, theirs = parameters(torch.float64), parameters(torch.float64)
    spikes = bn_lif(x, *ours, training=training, pool=pool, backend=backend, **neuron)
    expected = composed(x, *theirs, training, pool, **neuron)

    assert torch.equal(spikes, expected) and 0.1 < spikes.mean() < 0.95
    torch.testing.assert_close(ours[2:], theirs[2:])
    upstream = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad(spikes, (x, *ours[:2]), upstream),
        torch.autograd.grad(expected, (x, *theirs[:2]), upstream),
        rtol=1e-9,
        atol=1e-9,
    )
    with torch.no_grad():
        assert torch.equal(
            bn_lif(x, *ours, training=training, pool=pool, backend=backend, **neuron),
            composed(x, *theirs, training, pool, **neuron),
        )


def test_the_batch_norms_output_is_not_saved(uncompiled):
    saved = []
    x = steps(3, C, 7, 5)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        spikes = bn_lif(x, *parameters(), training=True, backend='compile')
    assert [t.data_ptr() for t in saved if t.numel() > C] == [x.data_ptr()]
    torch.autograd.grad(spikes.sum(), x)
    assert uncompiled == ['_affine_fire', '_affine_fire_backward']


def test_inference_is_one_body(uncompiled):
    with torch.no_grad():
        bn_lif(steps(3, C, 7, 5), *parameters(), training=False, backend='compile')
    assert uncompiled == ['_affine_fire']


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_flips_are_few_in_low_precision(uncompiled, dtype):
    """The fused current is not rounded to the input's dtype, so it is nearer to float64 than the composition."""
    x = steps(8, C, 28, 28, dtype=dtype)
    spikes, expected = (bn_lif(x, *parameters(), training=True, backend=backend) for backend in ('compile', 'torch'))
    assert (spikes != expected).float().mean() < {torch.float32: 4e-5, torch.bfloat16: 4e-3}[dtype]
    exact = bn_lif(x.double(), *parameters(torch.float64), training=True, backend='torch')
    assert (spikes != exact).float().mean() <= (expected != exact).float().mean()


@pytest.mark.parametrize('channels_last', [False, True])
def test_a_learnable_tau(uncompiled, channels_last):
    x, tau = steps(3, C, 7, 5, channels_last=channels_last), torch.tensor(2.0, requires_grad=True)
    upstream = torch.randn(T, 3, C, 7, 5)
    gradients = [
        torch.autograd.grad(bn_lif(x, *parameters(), training=True, tau=tau, backend=b), (x, tau), upstream)
        for b in BACKENDS
    ]
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(inductor.why_not() is not None, reason=str(inductor.why_not()))
def test_the_compiled_form():
    """What Inductor makes of it, contiguous and channels_last, with one set of bodies."""
    for channels_last in (False, True):
        x = steps(3, C, 7, 5, channels_last=channels_last)
        results = []
        for backend in BACKENDS:
            weight, bias, *running = parameters()
            spikes = bn_lif(x, weight, bias, *running, training=True, backend=backend)
            results.append([spikes, *running, *torch.autograd.grad(spikes.sum(), (x, weight, bias))])
        for result in results[1:]:
            torch.testing.assert_close(result, results[0], rtol=1e-4, atol=1e-5)
            assert result[0].stride() == results[0][0].stride()


def test_one_value_per_channel_is_refused():
    with pytest.raises(ValueError, match='more than 1 value per channel'):
        bn_lif(torch.ones(1, 1, C, 1, 1), *parameters(), training=True)


def test_parts_of_the_graph_inside_torch_compile(uncompiled):
    x = steps(3, C, 7, 5, dtype=torch.float64)
    parts = parameters(torch.float64)
    compiled = torch.compile(lambda x: bn_lif(x, *parts, training=True, pool=True), fullgraph=True, backend='aot_eager')
    assert torch.equal(compiled(x), composed(x, *parameters(torch.float64), True, True))
    assert uncompiled == []


def test_pooling_alone(uncompiled):
    x = steps(3, C, 7, 5)
    expected = lif(F.max_pool2d(x.flatten(0, 1), 3, 2, 1).unflatten(0, (T, -1)))
    for backend in BACKENDS:
        assert torch.equal(pool_lif(x, backend=backend), expected)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('num_queries', [1, 2])
def test_mssa_equals_its_equation(uncompiled, backend, num_queries):
    shape = (T, 2, 3, 8, 5)
    *queries, k = (
        (torch.rand(shape, dtype=torch.float64) > 0.8).double().requires_grad_() for _ in range(num_queries + 1)
    )
    out = mssa(queries, k, v_threshold=0.5, backend=backend)
    expected = lif(sum(queries).sum(3, keepdim=True), v_threshold=0.5, backend='torch') * k
    assert torch.equal(out, expected) and 0 < out.mean() < k.mean()
    upstream = torch.randn_like(out)
    torch.testing.assert_close(
        torch.autograd.grad(out, [*queries, k], upstream), torch.autograd.grad(expected, [*queries, k], upstream)
    )
