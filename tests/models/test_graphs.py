"""CUDA graphs of a fused model, with a graph that notes operations on a CPU and repeats them in the same memory."""

import contextlib
import copy
import io
import pickle

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import timm_snn
from tests.conftest import lively
from tests.models.test_base import Tiny
from timm_snn.models import graphs, save_for_hf


class Tape(TorchDispatchMode):
    """Stands for torch.cuda.CUDAGraph."""

    made: int = 0
    replayed: int = 0

    def __init__(self):
        super().__init__()
        type(self).made += 1
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def replay(self):
        type(self).replayed += 1
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            known = {t.untyped_storage().data_ptr() for t in torch.utils._pytree.tree_leaves(args) if is_tensor(t)}
            pairs = zip(torch.utils._pytree.tree_leaves(result), torch.utils._pytree.tree_leaves(again), strict=True)
            for old, new in pairs:
                if is_tensor(old) and old.untyped_storage().data_ptr() not in known:  # a view is there already
                    old.copy_(new)


def is_tensor(x) -> bool:
    return isinstance(x, torch.Tensor)


class Stream:
    """All that happens happens at once, in order."""

    def wait_stream(self, other): ...

    def wait_event(self, event):
        assert event == 'event'

    def record_event(self):
        return 'event'


@pytest.fixture
def cuda(monkeypatch):
    """A CPU that is taken for a CUDA device."""
    Tape.made = Tape.replayed = 0
    fakes = dict(
        CUDAGraph=Tape,
        graph=lambda tape, pool, capture_error_mode: tape,
        Stream=Stream,
        stream=lambda stream: contextlib.nullcontext(),
        current_stream=Stream,
        device=lambda device: contextlib.nullcontext(),
        synchronize=lambda: None,
        graph_pool_handle=lambda: 'pool',
        is_current_stream_capturing=lambda: False,
    )
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(graphs, '_is_on_gpu', lambda x: x.device.type == 'cpu')
    timm_snn.set_backend('torch')  # the tape sees the operations of torch alone


@pytest.fixture
def pair(cuda):
    """A fused model, and the same with graphs."""
    model = lively(Tiny(None).double().eval())
    return timm_snn.fuse(model), timm_snn.fuse(model, cuda_graphs=True)


def images(batch=2, seed=0):
    return torch.rand(batch, 2, 16, 24, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize('mode', [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_a_size_is_captured_once_and_replayed_with_the_images_of_each_call(pair, mode):
    fused, graphed = pair
    with mode():
        kept = [(graphed(images(seed=i)), fused(images(seed=i))) for i in range(3)]
        kept.append((graphed(images(1)), fused(images(1))))
        kept.append((graphed(images(seed=9)), fused(images(seed=9))))
    for ours, expected in kept:  # results of earlier calls have not been written over
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    assert (Tape.made, Tape.replayed) == (2, 5)


@torch.no_grad()
def test_whatever_changes_the_pass_is_another_graph(pair):
    fused, graphed = pair
    x = images()
    changes = [
        lambda model: None,
        lambda model: setattr(model, 'num_steps', 2),
        lambda model: timm_snn.set_backend('auto'),
        lambda model: model.float(),
    ]
    for number, change in enumerate(changes, 1):
        for model in pair:
            change(model)
        x = x.to(fused.head.fc.weight.dtype)
        for _ in range(2):
            torch.testing.assert_close(graphed(x), fused(x))
        assert Tape.made == number
    graphed(x.contiguous(memory_format=torch.channels_last))
    graphed(x.unsqueeze(1).expand(-1, 2, -1, -1, -1))  # frames
    assert Tape.made == len(changes) + 2


@torch.no_grad()
def test_weights_that_are_changed_in_place_count_and_others_are_captured(pair):
    fused, graphed = pair
    graphed(images())
    for model in pair:
        model.head.fc.weight.mul_(2)
    torch.testing.assert_close(graphed(images()), fused(images()))
    assert Tape.made == 1
    for model in pair:
        model.head.fc = torch.nn.Linear(4, 3).double().eval().requires_grad_(False)
    fused.load_state_dict(graphed.state_dict())
    torch.testing.assert_close(graphed(images()), fused(images()))
    assert Tape.made == 2


@torch.no_grad()
def test_the_sizes_that_were_used_last_are_kept(pair, monkeypatch):
    monkeypatch.setattr(graphs, '_MOST', 2)
    _, graphed = pair
    for batch in (1, 2, 1, 3, 1):  # 3 takes the place of 2
        graphed(images(batch))
    assert Tape.made == 3
    graphed(images(2))
    assert Tape.made == 4 and len(graphed.forward._graphs) == 2


def test_every_step_has_graphs_of_its_own(pair):
    fused, graphed = pair
    for _ in range(2):
        torch.testing.assert_close(graphed.forward_steps(images()), fused.forward_steps(images()))
    assert (Tape.made, Tape.replayed) == (1, 2)


def test_what_no_graph_holds_runs_as_it_is(pair):
    fused, graphed = pair
    x = images().requires_grad_()
    torch.testing.assert_close(
        torch.autograd.grad(graphed(x).square().sum(), x), torch.autograd.grad(fused(x).square().sum(), x)
    )
    seen = []
    hook = graphed.stages[0].register_forward_hook(lambda *_: seen.append(1))
    graphed(images())
    hook.remove()
    assert seen == [1]
    counted, expected = (timm_snn.profile(model, images(), progress=False).total for model in (graphed, fused))
    assert counted == expected and counted.firing_rate > 0
    graphed.head.requires_grad_(True)
    assert graphed(images()).requires_grad
    graphed.train()
    with torch.no_grad():
        graphed(images())
    graphed.eval()
    torch.testing.assert_close(graphed(x=images()), fused(images()))  # by name
    assert Tape.made == 0
    with pytest.raises(ValueError, match='expected'):
        graphed(torch.rand(3))


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning', 'ignore::FutureWarning', 'ignore::DeprecationWarning')
@torch.no_grad()
def test_exports_and_torch_compile_see_the_model(pair):
    fused, graphed = pair
    expected = fused(images())
    for other in (
        torch.jit.trace(graphed, images(), check_trace=False),
        torch.export.export(graphed, (images(),)).module(),
        torch.compile(graphed, backend='aot_eager'),
    ):
        torch.testing.assert_close(other(images()), expected)
    assert Tape.made == 0


@torch.no_grad()
def test_copies_and_pickles_capture_graphs_of_their_own(pair):
    fused, graphed = pair
    graphed(images())
    file = io.BytesIO()
    torch.save(graphed, file)
    file.seek(0)
    for other in (copy.deepcopy(graphed), pickle.loads(pickle.dumps(graphed)), torch.load(file, weights_only=False)):
        made = Tape.made
        other.head.fc.bias += 1
        torch.testing.assert_close(other(images()), fused(images()) + 1)
        assert Tape.made == made + 1 and type(other) is type(fused)
    assert list(graphed.state_dict()) == list(fused.state_dict())


def test_a_model_with_graphs_is_saved_in_the_format_of_the_hub(small, cuda, tmp_path):
    save_for_hf(timm_snn.fuse(small, cuda_graphs=True).to(memory_format=torch.contiguous_format), tmp_path)
    assert {file.name for file in tmp_path.iterdir()} >= {'model.safetensors', 'config.json'}


def test_a_deleted_model_leaves_no_graphs_behind(pair):
    import gc
    import weakref

    graphed = timm_snn.fuse(pair[0])  # of a fused model there are no norms left to fold
    graphs.use_graphs(graphed)
    graphed(images())
    graph = weakref.ref(next(iter(graphed.forward._graphs.values())))
    gc.disable()
    try:
        del graphed
        assert graph() is None
    finally:
        gc.enable()


@torch.no_grad()
def test_features_are_a_list_of_tensors(cuda):
    class Features(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = lively(Tiny(None).double())

        def forward(self, x):
            return self.model.forward_intermediates(x, intermediates_only=True)

    model = Features().eval()
    fused, graphed = timm_snn.fuse(model), timm_snn.fuse(model, cuda_graphs=True)
    for _ in range(2):
        torch.testing.assert_close(graphed(images()), fused(images()))
    assert Tape.made == 1


def test_a_capture_that_fails_says_what_to_do(pair, monkeypatch):
    _, graphed = pair

    def fail(*args, **kwargs):
        raise RuntimeError('operation not permitted when stream is capturing')

    monkeypatch.setattr(torch.cuda, 'graph', fail)
    with pytest.raises(RuntimeError, match=r'shape \(2, 2, 16, 24\): .* fuse the model without cuda_graphs'):
        graphed(images())


def test_without_a_cuda_device_it_is_refused():
    with pytest.raises(ValueError, match=r'a CUDA device, got Tiny on cpu: call model\.cuda\(\) first'):
        timm_snn.fuse(Tiny(None), cuda_graphs=True)
