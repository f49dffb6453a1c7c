"""The same on a CUDA device as on the CPU; `pytest -m gpu` runs the conformance suite there too."""

import copy
import importlib

import pytest
import timm
import torch

import timm_snn
from tests.conftest import lively
from tests.support.scripts import run as run_script
from tests.support.training import QUICK, weights
from timm_snn import lif
from timm_snn.models import graphs
from timm_snn.ops import backend

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')]


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_spikes_and_gradients_are_those_of_the_cpu(dtype):
    x = (1.5 * torch.randn(4, 3, 33) + 0.5).to(dtype).requires_grad_()
    on_gpu = x.detach().cuda().requires_grad_()
    spikes, gpu_spikes = lif(x), lif(on_gpu)
    assert torch.equal(spikes, gpu_spikes.cpu())
    spikes.sum().backward()
    gpu_spikes.sum().backward()
    torch.testing.assert_close(on_gpu.grad.cpu(), x.grad)


def test_logits_in_float64_are_those_of_the_cpu(small):
    x = torch.rand(3, 1, 28, 28, dtype=torch.float64)
    expected = small(x)
    torch.testing.assert_close(small.cuda()(x.cuda()).cpu(), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_a_training_step_under_autocast(dtype):
    model = lively(timm.create_model('msvit_4_96')).cuda().train()
    with torch.autocast('cuda', dtype):
        logits = model(torch.rand(4, 1, 28, 28, device='cuda'))
    logits.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.fixture(params=['triton', 'cupy'])
def kernels(request) -> str:
    """The name of a backend made of kernels."""
    pytest.importorskip(request.param)
    if reason := backend._BACKENDS[request.param].why_not():
        pytest.skip(f'{request.param}: {reason}')
    return request.param


def test_kernels_run_on_the_current_stream_and_in_a_cuda_graph(kernels):
    x = torch.randn(4, 8, 64, device='cuda')
    lif(x, backend=kernels)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        spikes = lif(x, backend=kernels)
    x.copy_(torch.randn_like(x))
    graph.replay()
    assert torch.equal(spikes, lif(x, backend='torch'))


def test_auto_chooses_triton_and_autocast_changes_nothing(monkeypatch):
    pytest.importorskip('triton')
    launched = []
    file = importlib.import_module('timm_snn.ops.backends.triton.lif')  # the package has a function of this name
    launch = file.launch
    monkeypatch.setattr(
        file, 'launch', lambda kernel, *a, **k: (launched.append(kernel.__name__), launch(kernel, *a, **k))
    )
    monkeypatch.setattr(backend, '_logged', set())
    x = torch.randn(4, 3, 33, device='cuda', requires_grad=True)
    with torch.autocast('cuda', torch.bfloat16):
        spikes = lif(x)
    spikes.sum().backward()
    assert launched == ['_forward_kernel', '_backward_kernel'] and spikes.dtype == torch.float32
    assert torch.equal(spikes.cpu(), lif(x.cpu()))


def agree(ours, theirs, rtol=1e-5):
    """Tensor by tensor, relative to the largest value."""
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * max(1.0, b.abs().max().item()))


def test_triton_in_a_cuda_graph():
    x = torch.randn(4, 3, 1024, device='cuda', requires_grad=True)
    tau = torch.tensor(2.5, device='cuda', requires_grad=True)

    def step():
        spikes = lif(x, tau=tau, backend='triton')
        return spikes, *torch.autograd.grad(spikes.sum(), (x, tau))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for _ in range(3):
        with torch.no_grad():
            x.copy_(torch.randn_like(x))
        graph.replay()
        agree(captured, step(), rtol=0)


def test_a_training_step_in_a_cuda_graph(kernels):
    """Captured in bfloat16, as users train; autocast may not cache its casts then."""
    model = lively(timm.create_model('msvit_4_96', backend=kernels)).cuda().train()
    x, other = torch.rand(2, 4, 1, 28, 28, device='cuda')

    def step(forward, x):
        with torch.autocast('cuda', torch.bfloat16, cache_enabled=False):
            logits = forward(x)
        return logits.detach(), *torch.autograd.grad(logits.float().square().sum(), tuple(model.parameters()))

    expected = [tensor.clone() for tensor in step(model, x)]
    with torch.autocast('cuda', torch.bfloat16, cache_enabled=False):
        captured = torch.cuda.make_graphed_callables(torch.nn.Sequential(model), (other,))
    agree(step(captured, x), expected, rtol=1e-2)


def test_triton_compiles_with_inductor():
    compiled = torch.compile(lambda x: lif(2 * x, backend='triton'), fullgraph=True)
    x = torch.randn(4, 3, 33, device='cuda', requires_grad=True)
    agree(
        [compiled(x), *torch.autograd.grad(compiled(x).sum(), x)],
        [lif(2 * x), *torch.autograd.grad(lif(2 * x).sum(), x)],
    )


@pytest.fixture
def fused_pair(small):
    """A fused model, and the same that replays graphs; in float64, where no spike hangs on the last bit."""
    model = small.cuda()
    return timm_snn.fuse(model), timm_snn.fuse(model, cuda_graphs=True)


def pictures(batch, seed=0):
    return torch.rand(batch, 1, 28, 28, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).cuda()


@pytest.mark.parametrize('mode', [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_a_fused_model_replays_a_graph_for_each_size(fused_pair, mode):
    fused, graphed = fused_pair
    with mode():
        results = [(graphed(x), fused(x)) for x in (pictures(4), pictures(3), pictures(4, 1), pictures(3, 1))]
        results.append((graphed.forward_steps(pictures(3)), fused.forward_steps(pictures(3))))
    agree(*zip(*results, strict=True), rtol=1e-9)
    assert (len(graphed.forward._graphs), len(graphed.forward_steps._graphs)) == (2, 1)


def test_graphs_of_a_fused_model_under_autocast(fused_pair):
    fused, graphed = (model.float() for model in fused_pair)
    for seed in range(2):
        x = pictures(4, seed).float()
        with torch.inference_mode(), torch.autocast('cuda', torch.bfloat16):
            agree([graphed(x)], [fused(x)], rtol=1e-2)
    with torch.inference_mode():
        graphed(x)
    assert len(graphed.forward._graphs) == 2


@torch.no_grad()
def test_graphs_follow_weights_steps_and_streams(fused_pair):
    fused, graphed = fused_pair
    changes = (
        lambda model: model.head.fc.weight.mul_(2),
        lambda model: setattr(model, 'num_steps', 2),
        lambda model: model.cpu().cuda(),
        lambda model: model.load_state_dict({key: value * 1.01 for key, value in model.state_dict().items()}),
    )
    for seed, change in enumerate(changes):
        graphed(pictures(4))
        for model in fused_pair:
            change(model)
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
            x = pictures(4, seed)
            ours, expected = graphed(x), fused(x)
        torch.cuda.synchronize()
        agree([ours], [expected], rtol=1e-9)


def test_what_no_graph_of_a_fused_model_holds_runs_as_it_is(fused_pair):
    fused, graphed = fused_pair
    x = pictures(2).requires_grad_()
    agree(torch.autograd.grad(graphed(x).square().sum(), x), torch.autograd.grad(fused(x).square().sum(), x), rtol=1e-9)
    assert not graphed.forward._graphs
    other = copy.deepcopy(graphed)
    with torch.no_grad():
        agree([other(pictures(2)), graphed(pictures(2))], [fused(pictures(2))] * 2, rtol=1e-9)
    assert len(other.forward._graphs) == len(graphed.forward._graphs) == 1


@torch.no_grad()
def test_the_least_used_graph_of_a_fused_model_gives_way(fused_pair, monkeypatch):
    monkeypatch.setattr(graphs, '_MOST', 2)
    fused, graphed = fused_pair
    for batch in (1, 2, 3, 1, 2, 3):
        agree([graphed(pictures(batch))], [fused(pictures(batch))], rtol=1e-9)
    assert len(graphed.forward._graphs) == 2


def trained_weights(folder, *arguments):
    run_script('recipes/train.py', *QUICK, '--epochs', '1', '--log-with', 'none', *arguments, '--output', folder)
    return weights(folder)


PHASES = ['--num-steps-schedule', '0=1', '0.5=4', '--epochs', '2', '--max-train-samples', '1024']


@pytest.mark.parametrize('more', [[], ['--opt', 'muon', '--opt-kwargs', 'nesterov=True'], PHASES])
def test_the_recipe_with_a_cuda_graph_trains_as_without(tmp_path, more):
    options = [
        *more,
        '--max-steps',
        '12',
        '--model-ema',
        '--grad-accum-steps',
        '2',
        '--clip-grad',
        '1',
        '--deterministic',
    ]
    plain = trained_weights(tmp_path / 'plain', *options)
    recorded = trained_weights(tmp_path / 'graph', *options, '--cuda-graph')
    for name, weight in plain.items():
        torch.testing.assert_close(recorded[name].float(), weight.float(), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize('opt', ['adamw', 'muon'])
def test_a_loss_that_is_not_finite_stops_a_recorded_run(tmp_path, opt):
    with pytest.raises(SystemExit, match='the state before it and its batch are in'):
        trained_weights(tmp_path, '--lr', '1e30', '--warmup-epochs', '0', '--cuda-graph', '--opt', opt)
    assert (tmp_path / 'failed' / 'facts.json').is_file() and not (tmp_path / 'checkpoints').exists()
