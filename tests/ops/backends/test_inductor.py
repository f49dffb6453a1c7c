"""The compiled backend against plain torch: its formulas in every setting, its compiled form in a few."""

import pytest
import torch

import timm_snn
from tests.ops.test_lif import currents
from timm_snn import lif, lif_stream
from timm_snn.ops.backends import inductor
from timm_snn.ops.surrogate import Sigmoid

needs_compiler = pytest.mark.skipif(inductor.why_not() is not None, reason=str(inductor.why_not()))


@pytest.fixture
def uncompiled(monkeypatch):
    """The bodies without Inductor, which takes seconds for each setting."""
    monkeypatch.setattr(inductor, '_CPP_COMPILERS', ['not needed'])
    monkeypatch.setattr(inductor, 'run_compiled', lambda body, n, s, *args: body(*args, s)[:n])


@pytest.fixture
def ran(monkeypatch):
    """The bodies that were run compiled: proof that the backend was used."""
    bodies = []
    run_compiled = inductor.run_compiled

    def spy(body, *args):
        bodies.append(body.__name__)
        return run_compiled(body, *args)

    monkeypatch.setattr(inductor, 'run_compiled', spy)
    return bodies


def assert_equal_to_torch(x, v=None, **kwargs):
    """Spikes, last membrane and all gradients of the compiled backend."""
    inputs = [t for t in (x, v, kwargs.get('tau')) if isinstance(t, torch.Tensor)]
    results = [lif_stream(x, v, backend=backend, **kwargs) for backend in ('torch', 'compile')]
    (spikes, v_last), (ours, our_v) = results
    assert torch.equal(ours, spikes) and ours.dtype == spikes.dtype
    torch.testing.assert_close(our_v, v_last)
    upstream = [torch.randn_like(spikes), torch.randn_like(v_last)]
    expected, gradients = (torch.autograd.grad(result, inputs, upstream) for result in results)
    half = x.dtype in (torch.float16, torch.bfloat16)
    for gradient, e in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, e, **(dict(rtol=2e-2, atol=1e-2) if half else dict(rtol=1e-5, atol=1e-5)))


def test_layouts_are_kept_and_not_copied(uncompiled, monkeypatch):
    monkeypatch.setattr(torch.Tensor, 'copy_', lambda *args: pytest.fail('a copy was made'))
    x = currents(4, 2, 6, 5, 3)
    expected = lif(x, backend='torch')
    channels_last = x.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, (4, 2))
    spikes = lif(channels_last, backend='compile')
    assert torch.equal(spikes, expected) and spikes.stride() == channels_last.stride()
    held = x[:1].expand(4, -1, -1, -1, -1)  # the same memory at every step
    assert torch.equal(lif(held, backend='compile'), lif(held.contiguous(), backend='torch'))


def test_upstream_gradients_of_any_layout(uncompiled):
    x = currents(4, 2, 6, 5).requires_grad_()
    for upstream in (torch.ones(()).expand(4, 2, 6, 5), torch.randn(5, 6, 2, 4).permute(3, 2, 1, 0)):
        expected, gradient = (
            torch.autograd.grad(lif(x, backend=backend), x, upstream)[0] for backend in ('torch', 'compile')
        )
        torch.testing.assert_close(gradient, expected)


def test_only_x_is_saved(uncompiled):
    saved = []
    x = currents(4, 2, 33).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        lif(x, backend='compile')
    assert [t.data_ptr() for t in saved] == [x.data_ptr()]


def test_steps_that_are_not_dense(uncompiled):
    x = currents(4, 2, 6, 5, 3)
    for view in (x.transpose(0, 1).contiguous().transpose(0, 1), x.repeat_interleave(2, -1)[..., ::2]):
        assert torch.equal(lif(view, backend='compile'), lif(x, backend='torch'))


@needs_compiler
def test_compiled_once_for_all_sizes(ran):
    inductor._compiled.cache_clear()
    with torch._dynamo.config.patch(error_on_recompile=True):  # of a body, which would give up after a few
        for shape in [(4, 3, 5, 7), (4, 2, 64), (4, 1, 1001)]:
            assert_equal_to_torch(currents(*shape).requires_grad_())
    assert ran == ['fire', 'fire_backward'] * 3 and inductor._compiled.cache_info().currsize == 2


@needs_compiler
@pytest.mark.parametrize('shape', [(4, 0, 5), (4, 1, 1)])
def test_empty_and_single(shape):
    assert_equal_to_torch(currents(*shape).requires_grad_())


@needs_compiler
def test_compiled_spikes_under_autocast_in_bfloat16(ran):
    x = currents(4, 3, 77).bfloat16()
    with torch.autocast('cpu', torch.bfloat16):
        spikes = lif(x, backend='compile')
    assert ran == ['fire'] and spikes.dtype == torch.bfloat16
    assert torch.equal(spikes, lif(x, backend='torch'))


@needs_compiler
def test_a_learnable_tau_compiled():
    assert_equal_to_torch(currents(4, 3, 7).requires_grad_(), tau=torch.tensor(2.5, requires_grad=True))


def test_part_of_the_graph_inside_torch_compile(ran):
    """'auto' takes it there, where it costs no further compilation and is fused with its neighbours."""
    x = currents(4, 3, 7).requires_grad_()
    compiled = torch.compile(lambda x: lif(2 * x, surrogate=Sigmoid(3.0)), fullgraph=True, backend='aot_eager')
    expected = lif(2 * x, surrogate=Sigmoid(3.0))
    assert torch.equal(compiled(x), expected)
    gradients = [torch.autograd.grad(spikes.sum(), x) for spikes in (compiled(x), expected)]
    torch.testing.assert_close(*gradients)
    assert ran == []


def test_without_a_compiler_it_is_refused(monkeypatch):
    monkeypatch.setattr(inductor, '_CPP_COMPILERS', [])
    with pytest.raises(timm_snn.BackendUnavailable, match=r"'compile'.*no C\+\+ compiler: install g\+\+"):
        lif(currents(4, 3), backend='compile')
    assert torch.equal(lif(currents(4, 3)), lif(currents(4, 3), backend='torch'))  # 'auto' does without
