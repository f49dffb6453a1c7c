"""The C++ backend against plain torch."""

import pytest
import torch

import timm_snn
from tests.ops.test_lif import currents
from timm_snn import lif, lif_stream
from timm_snn.ops import bn_lif
from timm_snn.ops.backends import cpp
from timm_snn.ops.surrogate import SURROGATES, Surrogate

pytestmark = pytest.mark.skipif(cpp.why_not_here() is not None, reason=str(cpp.why_not_here()))
HALF = (torch.float16, torch.bfloat16)


def assert_equal_to_torch(x, v=None, **kwargs):
    """Spikes and last membrane to the bit, and all gradients."""
    inputs = [t for t in (x, v, kwargs.get('tau')) if isinstance(t, torch.Tensor)]
    results = [lif_stream(x, v, backend=backend, **kwargs) for backend in ('torch', 'cpp')]
    (spikes, v_last), (ours, our_v) = results
    assert torch.equal(ours, spikes) and ours.dtype == spikes.dtype and torch.equal(our_v, v_last)
    upstream = [torch.randn_like(spikes), torch.randn_like(v_last)]
    expected, gradients = (torch.autograd.grad(result, inputs, upstream) for result in results)
    tolerance = dict(rtol=2e-2, atol=1e-2) if x.dtype in HALF else dict(rtol=1e-5, atol=1e-5)
    for gradient, e in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, e, **tolerance)


@pytest.mark.parametrize('shape', [(4, 0, 5), (4, 1), (1, 31), (3, 32), (2, 4097), (4, 3, 5003)])
def test_any_size(shape):
    assert_equal_to_torch(currents(*shape).requires_grad_())


@pytest.mark.parametrize('surrogate', SURROGATES)
def test_what_is_no_number_stays_visible(surrogate):
    x = currents(4, 3, 40)
    x[1, 0, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    x.requires_grad_()
    ours, expected = (
        torch.autograd.grad(lif(x, surrogate=surrogate, backend=b).sum(), x)[0].isnan() for b in ('cpp', 'torch')
    )
    assert expected.any() and torch.equal(ours[:, 0, 0], expected[:, 0, 0])
    assert torch.equal(ours[:, :, 3:], expected[:, :, 3:])


def test_layouts_are_kept_and_not_copied(monkeypatch):
    monkeypatch.setattr(torch.Tensor, 'copy_', lambda *args: pytest.fail('a copy was made'))
    x = currents(4, 2, 6, 5, 3)
    expected = lif(x, backend='torch')
    channels_last = x.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, (4, 2))
    spikes = lif(channels_last, backend='cpp')
    assert torch.equal(spikes, expected) and spikes.stride() == channels_last.stride()
    held = x[:1].expand(4, -1, -1, -1, -1)  # the same memory at every step
    assert torch.equal(lif(held, backend='cpp'), lif(held.contiguous(), backend='torch'))


def test_tensors_of_any_layout():
    x = currents(4, 2, 6, 5).requires_grad_()
    for upstream in (torch.ones(()).expand(4, 2, 6, 5), torch.randn(5, 6, 2, 4).permute(3, 2, 1, 0)):
        expected, gradient = (torch.autograd.grad(lif(x, backend=b), x, upstream)[0] for b in ('torch', 'cpp'))
        torch.testing.assert_close(gradient, expected)
    for view in (x.transpose(0, 1).contiguous().transpose(0, 1), x.repeat_interleave(2, -1)[..., ::2]):
        assert torch.equal(lif(view, backend='cpp'), lif(x, backend='torch'))


@pytest.mark.parametrize('dtype', HALF)
def test_numbers_of_half_precision_are_read_and_rounded_as_torch_does(dtype):
    """A neuron that never fires and forgets at once hands x to its membrane, and the membrane's gradient to x."""
    kwargs = dict(tau=1.0, v_threshold=torch.finfo(torch.float32).max, backend='cpp')
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    every = every[every.isfinite()]
    assert torch.equal(lif_stream(every[None, None], **kwargs)[1][0], every.float())
    exact = torch.cat([every.float(), torch.randn(50000) * 2.0 ** torch.randint(-30, 17, (50000,))])
    halfway = torch.cat([exact, (every.float()[1:] + every.float()[:-1]) / 2])
    x = torch.zeros(1, 1, len(halfway), dtype=dtype, requires_grad=True)
    (grad,) = torch.autograd.grad(lif_stream(x, **kwargs)[1], x, halfway[None])
    assert torch.equal(grad[0, 0], halfway.to(dtype))


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('chs', [1, 6, 40, 96])
def test_batch_norm_over_many_pieces_is_that_of_torch_on_any_number_of_threads(chs, channels_last, dtype):
    x = torch.randn(3, 2, chs, 70, 71).to(dtype)
    x = (x.movedim(2, -1).contiguous().movedim(-1, 2) if channels_last else x).requires_grad_()
    upstream = torch.randn_like(x)

    def run(x, backend):
        weight, bias = (torch.full((chs,), value, requires_grad=True) for value in (1.2, 0.3))
        spikes = bn_lif(x, weight, bias, torch.zeros(chs), torch.ones(chs), training=True, backend=backend)
        return spikes, *torch.autograd.grad(spikes, (x, weight, bias), upstream.to(x.dtype))

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        single = run(x, 'cpp')
        torch.set_num_threads(3)
        assert all(map(torch.equal, single, run(x, 'cpp')))
    finally:
        torch.set_num_threads(threads)
    spikes, *gradients = single
    expected_spikes, *expected = run(x, 'torch')  # rounds the normalised current
    assert (spikes != expected_spikes).float().mean() < {torch.float32: 4e-5, torch.bfloat16: 4e-3}[dtype]
    for gradient, e in zip(gradients, expected, strict=True) if dtype == torch.float32 else ():
        assert (gradient - e).norm() < 2e-3 * e.norm()
    assert (gradients[0] - expected[0]).float().norm() < 5e-2 * expected[0].float().norm()


def test_the_kernels_ran(monkeypatch):
    called, run = [], cpp._call
    for module in (cpp,):
        monkeypatch.setattr(module, '_call', lambda name, *args: called.append(name) or run(name, *args))
    x = currents(4, 3, 77).bfloat16().requires_grad_()
    weight, mean = torch.ones(77, requires_grad=True), torch.zeros(77)
    with torch.autocast('cpu', torch.bfloat16), timm_snn.use_backend('cpp'):
        spikes = lif(x)
        normed = bn_lif(x, weight, weight, mean, mean + 1, training=True)
    (spikes.sum() + normed.sum()).backward()
    assert sorted(called) == sorted(['fire', 'fire_backward', 'bn_fire', 'bn_backward'])
    assert spikes.dtype == normed.dtype == torch.bfloat16
    assert torch.equal(spikes, lif(x, backend='torch'))


def test_a_second_derivative_is_refused():
    x = currents(4, 3, 7).requires_grad_()
    weight, mean = torch.ones(7, requires_grad=True), torch.zeros(7)
    for spikes in (lif(x, backend='cpp'), bn_lif(x, weight, weight, mean, mean + 1, training=True, backend='cpp')):
        (gradient,) = torch.autograd.grad(spikes.sum(), x, create_graph=True)
        with pytest.raises(RuntimeError):
            gradient.square().sum().backward()


def test_part_of_the_graph_inside_torch_compile():
    x = currents(4, 3, 7).requires_grad_()
    compiled = torch.compile(lambda x: lif(2 * x, backend='cpp'), fullgraph=True, backend='aot_eager')
    expected = lif(2 * x, backend='torch')
    assert torch.equal(compiled(x), expected)
    torch.testing.assert_close(*(torch.autograd.grad(spikes.sum(), x) for spikes in (compiled(x), expected)))


def test_what_it_cannot_run_is_refused(monkeypatch):
    class Mine(Surrogate):
        name = 'mine'

    with pytest.raises(timm_snn.BackendUnavailable, match=r"'cpp'.* knows the surrogates"):
        lif(currents(4, 3), surrogate=Mine(1.0), backend='cpp')
    with pytest.raises(timm_snn.BackendUnavailable, match=r"'cpp'.*for a CPU"):
        lif(currents(4, 3).to('meta'), backend='cpp')
    monkeypatch.setattr(cpp, 'why_not_built', lambda *_: 'there is no compiler')
    with pytest.raises(timm_snn.BackendUnavailable, match=r"'cpp'.*there is no compiler"):
        lif(currents(4, 3), backend='cpp')
