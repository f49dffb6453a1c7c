"""How the kernels are run, in Triton's interpreter on the CPU; test_triton.py runs this file in its own process.

What they compute is compared by test_conformance.py, in the same process.
"""

import copy
import importlib

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import timm_snn
from timm_snn.layers import ConvBnLif
from timm_snn.ops import Neuron, Sigmoid, bn_lif, lif, lif_stream, mssa

pytestmark = [
    pytest.mark.usefixtures('poisoned'),
    # lanes beyond the last neuron subtract infinities
    pytest.mark.filterwarnings('ignore:invalid value encountered:RuntimeWarning'),
]

# the package has functions of the files' names
lif_file, bn_lif_file, mssa_file, layout_file = (
    importlib.import_module(f'timm_snn.ops.backends.triton.{name}') for name in ('lif', 'bn_lif', 'mssa', 'layout')
)
OPCHECKS = ('test_schema', 'test_autograd_registration', 'test_faketensor', 'test_aot_dispatch_dynamic')
LEARNED = Neuron(tau=None, v_reset=None, detach_reset=False)


def currents(*shape: int) -> Tensor:
    return 1.5 * torch.randn(shape) + 0.5


def channels_last(x: Tensor) -> Tensor:
    return x.movedim(2, -1).contiguous().movedim(-1, 2)


def units(x: Tensor, backend: str, **settings) -> Tensor:
    """Batch norm and neuron, with a learnable scale."""
    chs = x.shape[2]
    zeros, ones = torch.zeros(chs), torch.ones(chs)
    return bn_lif(x, ones, zeros + 0.5, zeros, ones.clone(), training=True, backend=backend, **settings)


def test_gradients_of_the_spikes_or_the_membrane_alone():
    x = currents(4, 3, 5).requires_grad_()
    for output in (0, 1):
        grads = [torch.autograd.grad(lif_stream(x, backend=name)[output].sum(), x) for name in ('triton', 'torch')]
        torch.testing.assert_close(*grads)


def test_only_x_is_saved_and_the_last_membrane_is_left_out():
    saved: list[Tensor] = []
    x = currents(4, 3, 5).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        lif(x, backend='triton')
    assert [t.data_ptr() for t in saved] == [x.data_ptr()]
    assert lif_file.forward(x.detach(), None, None, Neuron(), False)[1].numel() == 0


@pytest.mark.parametrize('autocast', [False, True])
def test_the_kernels_really_run(monkeypatch, autocast):
    launched: list[str] = []
    launch = lif_file.launch
    monkeypatch.setattr(
        lif_file, 'launch', lambda kernel, *a, **k: (launched.append(kernel.__name__), launch(kernel, *a, **k))
    )
    x = currents(4, 3, 5).requires_grad_()
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        spikes = timm_snn.LIF(backend='triton')(x)
    spikes.sum().backward()
    assert launched == ['_forward_kernel', '_backward_kernel'] and spikes.dtype == x.grad.dtype == torch.float32


@pytest.mark.parametrize('dynamic', [None, True])
def test_compiles_whole_with_an_alpha_and_a_shape_that_change(dynamic):
    compiled = torch.compile(
        lambda x, surrogate: lif(x * 1.5, surrogate=surrogate, backend='triton'),
        fullgraph=True,
        backend='aot_eager',
        dynamic=dynamic,
    )
    for alpha, size in ((4.0, 3), (2.0, 3), (3.0, 5)):
        x = currents(4, 2, size).requires_grad_()
        (ours,) = torch.autograd.grad(compiled(x, Sigmoid(alpha)).sum(), x)
        (theirs,) = torch.autograd.grad(lif(x * 1.5, surrogate=Sigmoid(alpha), backend='torch').sum(), x)
        torch.testing.assert_close(ours, theirs)


def test_units_and_the_mask_of_mssa_compile_whole():
    x, k = currents(2, 2, 3, 5, 6).requires_grad_(), torch.randint(-2, 4, (2, 2, 3, 5, 7)).float().requires_grad_()
    for run, leaf in (
        (lambda x: units(2 * x, 'triton', pool=True), x),
        (lambda k: mssa([k, k], 2 * k, surrogate='atan', backend='triton'), k),
    ):
        compiled = torch.compile(run, fullgraph=True, backend='aot_eager')
        assert torch.equal(*(torch.autograd.grad(f(leaf).sum(), leaf)[0] for f in (compiled, run)))


def test_activation_checkpointing_changes_nothing():
    x = currents(4, 3, 5).requires_grad_()

    def block(x):
        return lif(1.5 * lif(x, backend='triton'), backend='triton')

    direct = torch.autograd.grad(block(x).sum(), x)
    assert torch.equal(torch.autograd.grad(checkpoint(block, x, use_reentrant=False).sum(), x)[0], direct[0])


@pytest.mark.parametrize('learned', [False, True])
def test_torch_finds_no_fault_with_the_operators_of_the_neuron(learned):
    x = currents(4, 2, 3)
    v = torch.randn(2, 3) if learned else None
    tau = torch.tensor(2.5) if learned else None
    key = (LEARNED if learned else Neuron(tau=2.5, surrogate=Sigmoid(2.0))).key
    leaves = [None if t is None else t.clone().requires_grad_() for t in (x, v, tau)]
    torch.library.opcheck(lif_file.lif.op, (*leaves, key, learned))
    backward = torch.ops.timm_snn.lif_triton_backward.default
    grad_v = torch.randn(2, 3) if learned else None
    torch.library.opcheck(backward, (torch.randn(4, 2, 3), grad_v, x, v, tau, key))


@pytest.mark.parametrize('pool', [False, True])
def test_torch_finds_no_fault_with_the_operators_of_batch_norm(pool):
    x = channels_last(currents(2, 2, 3, 5, 6)).requires_grad_()
    weight, tau = torch.ones(3, requires_grad=True), torch.tensor(2.5, requires_grad=True)
    arguments = (x, weight, weight.detach(), tau, LEARNED.key, 1e-5, pool)
    torch.library.opcheck(bn_lif_file._bn_lif.op, arguments, test_utils=OPCHECKS)
    detached = (x.detach(), weight.detach(), weight.detach(), None, Neuron().key, pool)
    torch.library.opcheck(bn_lif_file._affine_lif.op, detached, test_utils=OPCHECKS)


def test_torch_finds_no_fault_with_the_operator_of_mssa():
    q, k = (torch.randint(-2, 4, (2, 2, 3, 5, 7)).float().requires_grad_() for _ in range(2))
    tau = torch.tensor(2.5, requires_grad=True)
    torch.library.opcheck(mssa_file._mssa.op, (q, k, k, tau, LEARNED.key, True), test_utils=OPCHECKS)


def test_a_second_derivative_is_refused():
    x = currents(2, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(lif(x, backend='triton').sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match='no autograd formula'):
        gradient.sum().backward()


@pytest.mark.parametrize('lay_out', [lambda x: x, channels_last], ids=['contiguous', 'channels_last'])
def test_sums_in_many_tiles_and_shares(monkeypatch, lay_out):
    monkeypatch.setattr(bn_lif_file, 'STATISTICS_TILE', 32)
    monkeypatch.setattr(bn_lif_file, 'GRADIENT_TILE', 32)
    monkeypatch.setattr(layout_file, 'TARGET_PROGRAMS', 2)
    monkeypatch.setattr(bn_lif_file, '_plan', bn_lif_file._Plan)  # plans of other tests have other tiles
    for num_steps, chs, pool in ((2, 1, False), (2, 3, True), (9, 2, False)):
        x = lay_out(torch.randn(num_steps, 2, chs, 5, 6) * 3).requires_grad_()
        ours, theirs = (units(x, name, pool=pool, surrogate='atan') for name in ('triton', 'torch'))
        assert torch.equal(ours, theirs) and 0 < ours.mean() < 1
        upstream = torch.randn_like(ours)
        torch.testing.assert_close(
            *(torch.autograd.grad(spikes, x, upstream)[0] for spikes in (ours, theirs)), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize('layout', ['contiguous', 'tokens'])
def test_heads_and_images_larger_than_a_tile(layout):
    q, k = (torch.randint(-2, 4, (2, 2, 3, 130, 18)).float() for _ in range(2))
    if layout == 'tokens':
        q, k = (x.permute(0, 1, 4, 2, 3).contiguous().permute(0, 1, 3, 4, 2) for x in (q, k))
    q, k = q.requires_grad_(), k.requires_grad_()
    ours, theirs = (mssa([q], k, surrogate='atan', backend=name) for name in ('triton', 'torch'))
    assert torch.equal(ours, theirs)
    upstream = torch.randn_like(ours)
    for a, b in zip(*(torch.autograd.grad(out, (q, k), upstream) for out in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * max(1.0, b.abs().max().item()))


@pytest.mark.parametrize('dims', [1, 2])
@pytest.mark.parametrize('what', ['training', 'evaluation', 'fused'])
def test_a_unit_leaves_the_bias_of_its_convolution_to_the_kernel(monkeypatch, dims, what):
    unit = ConvBnLif(3, 5, 3, bias=True, pool=dims == 2, dims=dims).double()
    nn.init.uniform_(unit.conv.bias, 1, 2)
    nn.init.ones_(unit.bn.bias)
    unit = (timm_snn.fuse(unit) if what == 'fused' else unit).train(what == 'training')
    x = torch.randn(4, 2, 3, *[6] * dims, dtype=torch.float64)
    biases = []
    convolve = F.conv2d
    monkeypatch.setattr(F, 'conv2d', lambda *args, **how: biases.append(args[2]) or convolve(*args, **how))
    results = []
    for name in ('torch', 'triton'):
        twin = copy.deepcopy(unit)
        with timm_snn.use_backend(name), torch.set_grad_enabled(what == 'training'):
            spikes = twin(x)
        if what == 'training':
            (spikes * x.new_tensor(range(spikes.numel())).view_as(spikes)).sum().backward()
        results.append((spikes, twin.state_dict(), {name: p.grad for name, p in twin.named_parameters()}))
    assert [bias is None for bias in biases] == [False, True]
    ours, theirs = results
    assert torch.equal(ours[0], theirs[0]) and 0 < ours[0].mean() < 1
    torch.testing.assert_close(ours[1:], theirs[1:], rtol=1e-9, atol=1e-9)
