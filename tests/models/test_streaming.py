"""Streams: the model that sees all frames at once, bit by bit, and nothing leaks out of it.

Every family frame by frame is in tests/models/test_families.py.
"""

import copy

import pytest
import timm
import torch
import torch.nn.utils.prune
from safetensors.torch import load, save
from torch import Tensor, nn

import timm_snn
from tests.conftest import lively
from tests.support.families import SMALLEST, shallow
from timm_snn.layers import neurons
from timm_snn.models import SpikingTransformer


def frames_for(model: nn.Module, steps: int = 4, batch: int = 1, size: tuple[int, int] = (32, 32)) -> Tensor:
    return torch.rand(batch, steps, model.in_chans, *size, dtype=next(model.parameters()).dtype)


def make(name: str, **kwargs: object) -> SpikingTransformer:
    torch.manual_seed(0)
    return lively(shallow(timm.create_model(name, num_classes=10, **kwargs)).double().eval())


@torch.no_grad()
def whole(model: nn.Module, frames: Tensor) -> Tensor:
    """Logits of every step, of all frames at once."""
    twin = copy.deepcopy(model)
    twin.num_steps = frames.shape[1]
    return twin.forward_steps(frames)


def running_mean(logits: Tensor) -> Tensor:
    return logits.cumsum(1) / torch.arange(1, logits.shape[1] + 1, dtype=logits.dtype).view(1, -1, 1)


@pytest.mark.parametrize('name', SMALLEST)
def test_chunks_of_every_family_fused_with_states_saved_in_between(name):
    model = timm_snn.fuse(make(name))
    frames = frames_for(model)
    steps = whole(model, frames)
    assert not torch.allclose(steps[:, 0], steps[:, 1])
    first, second = timm_snn.stream(model), timm_snn.stream(model)
    torch.testing.assert_close(first(frames[:, :2]), running_mean(steps)[:, :2], rtol=0, atol=1e-12)
    second.load_state(load(save(first.state())))
    answers = second(frames[:, 2:])
    torch.testing.assert_close(answers, running_mean(steps)[:, 2:], rtol=0, atol=1e-12)
    assert first.num_steps == 2 and second.num_steps == 4
    model.num_steps = 4
    with torch.no_grad():
        torch.testing.assert_close(answers[:, -1], model(frames), rtol=0, atol=1e-12)


@pytest.fixture
def small() -> SpikingTransformer:
    return make('msvit_4_96')


def test_streams_and_the_model_know_nothing_of_each_other(small):
    frames = frames_for(small, batch=2)
    expected = running_mean(whole(small, frames))
    with torch.no_grad():
        alone = small(frames)
    first, second = timm_snn.stream(small), timm_snn.stream(small)
    for t, frame in enumerate(frames.unbind(1)):
        torch.testing.assert_close(first(frame), expected[:, t], rtol=0, atol=1e-12)
        with torch.no_grad():
            assert torch.equal(small(frames), alone)
        second(1 - frame)
    assert small.num_steps == 4 and type(small.stem.units[0].lif) is timm_snn.LIF


def test_a_stream_sees_with_the_weights_of_the_model(small):
    stream = timm_snn.stream(small)
    frames = frames_for(small)
    stream(frames)
    with torch.no_grad():
        small.head.fc.bias += 1
    stream.reset()
    torch.testing.assert_close(stream(frames), running_mean(whole(small, frames)), rtol=0, atol=1e-12)


def test_reset_puts_every_neuron_at_rest(small):
    stream = timm_snn.stream(small)
    frames = frames_for(small)
    answers = stream(frames)
    assert not torch.equal(stream(frames), answers)
    stream.reset()
    assert torch.equal(stream(frames), answers) and stream.num_steps == 4


def test_a_finite_tau_forgets(small):
    frames = frames_for(small)
    steps = whole(small, frames)
    weights = 0.75 ** torch.arange(3.0, -1, -1, dtype=torch.float64)
    expected = torch.einsum('t,btc->bc', weights, steps) / weights.sum()
    torch.testing.assert_close(timm_snn.stream(small, tau=4)(frames)[:, -1], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(timm_snn.stream(small, tau=1)(frames), steps, rtol=0, atol=1e-12)


def test_half_precision_carries_membranes_in_float32():
    model = make('msvit_4_96').bfloat16()
    stream = timm_snn.stream(model)
    assert stream(frames_for(model)).dtype == torch.bfloat16
    assert {v.dtype for key, v in stream.state().items() if key.endswith('.v')} == {torch.float32}


def test_a_twin_without_membranes_averages():
    model = timm.create_model('msvit_4_96', act='relu').double().eval()
    frames = frames_for(model)
    with torch.no_grad():
        expected = torch.stack([model(frame) for frame in frames.unbind(1)], 1)
    torch.testing.assert_close(timm_snn.stream(model)(frames), running_mean(expected), rtol=0, atol=1e-12)


class Counter(nn.Module):
    """Fires at every second step, if it fires."""

    def __init__(self, v_threshold: float = 1.0, backend: str | None = None) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return self.stream(x, None)[0]

    def stream(self, x, state):
        seen = torch.zeros((), dtype=torch.long) if state is None else state['seen']
        steps = seen + torch.arange(len(x))
        return (steps % 2).to(x).view(-1, *[1] * (x.ndim - 1)) * (x > 0), {'seen': seen + len(x)}


class Silent(Counter):
    """Says nothing of its own forward."""

    def forward(self, x: Tensor) -> Tensor:
        return 0 * x


def test_a_neuron_of_ones_own():
    model = make('msvit_4_96', lif_layer=Counter)
    frames = frames_for(model)
    stream = timm_snn.stream(model)
    answers = torch.stack([stream(frame) for frame in frames.unbind(1)], 1)
    assert not torch.allclose(answers[:, 0], answers[:, 1])
    torch.testing.assert_close(answers, running_mean(whole(model, frames)), rtol=0, atol=1e-12)


class OwnSoftmax(nn.Softmax):
    pass


@pytest.mark.parametrize('shared', [False, True])
def test_converted_models(shared):
    """Some of their layers see running means; an activation may be called at several places."""
    activation = nn.ReLU()
    ann = nn.Sequential(
        nn.Conv2d(2, 8, 3), activation, nn.Conv2d(8, 8, 3), activation if shared else nn.ReLU(), OwnSoftmax(1),
        nn.Flatten(), nn.LazyLinear(5),
    )  # fmt: skip
    ann(torch.rand(1, 2, 8, 8))
    ann = timm_snn.models.quantize_activations(ann.double().eval(), levels=4)
    model = timm_snn.convert(ann, num_steps=6, images=torch.rand(1, 2, 8, 8).double())
    frames = torch.rand(2, 6, 2, 8, 8).double()
    stream, other = timm_snn.stream(model), timm_snn.stream(model)
    answers = [stream(frames[:, 0])]
    other.load_state(stream.state())
    answers = torch.stack([*answers, *(other(frame) for frame in frames[:, 1:].unbind(1))], 1)
    torch.testing.assert_close(answers, running_mean(whole(model, frames)), rtol=0, atol=1e-12)


def test_a_pass_that_fails_moves_no_neuron(small):
    stream = timm_snn.stream(small)
    frames = frames_for(small)
    stream(frames[:, 0])
    before = stream.state()
    head, small.head.fc = small.head.fc, None
    hook = stream._model.head.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        stream(frames[:, 1])
    hook.remove()
    small.head.fc = head
    assert all(torch.equal(before[key], value) for key, value in stream.state().items())
    torch.testing.assert_close(stream(frames[:, 1:]), running_mean(whole(small, frames))[:, 1:], rtol=0, atol=1e-12)


def test_frames_of_another_shape_are_refused(small):
    stream = timm_snn.stream(small)
    stream(frames_for(small)[:, 0])
    for batch, size in ((2, (32, 32)), (1, (48, 48))):
        with pytest.raises(ValueError, match=r'expected a frame \[1, 1, 32, 32\] as those before, .* reset\(\)'):
            stream(frames_for(small, batch=batch, size=size)[:, 0])
    stream.reset()
    stream(frames_for(small, batch=2, size=(48, 48))[:, 0])
    with pytest.raises(ValueError, match=r'expected a frame \[B, C, H, W\] or several'):
        stream(torch.zeros(1, 32, 32))


def test_a_recording_is_no_batch_of_frames(small):
    """A model that sees events, of four steps."""
    small.pretrained_cfg['frames'] = {'num_steps': 4}
    frames = frames_for(small)
    with pytest.raises(ValueError, match=r'may be all frames of one recording: pass x\.unsqueeze\(0\)'):
        timm_snn.stream(small)(frames[0])
    several = timm_snn.stream(small)(frames[0].unsqueeze(1))
    torch.testing.assert_close(several[:1, 0], timm_snn.stream(small)(frames[:, 0]), rtol=0, atol=1e-12)


def test_a_model_that_cannot_be_copied_says_so(small):
    torch.nn.utils.prune.random_unstructured(small.head.fc, 'weight', 0.5)
    with pytest.raises(ValueError, match=r'cannot stream this MSViT: .*prune\.remove'):
        timm_snn.stream(small)


def test_the_state_of_another_model_is_refused(small):
    stream = timm_snn.stream(small)
    answer = stream(frames_for(small))
    other = timm_snn.stream(make('spikformer_2_256'))
    other(frames_for(other._model))
    with pytest.raises(ValueError, match='only one of both has'):
        stream.load_state(other.state())
    with pytest.raises(ValueError, match='only one of both has'):
        stream.load_state({'epoch': torch.tensor(3)})
    assert stream.num_steps == answer.shape[1]
    assert timm_snn.stream(small).state() == {}
    stream.load_state({})
    assert stream.num_steps == 0


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(attn='statten'), r'attn, a SpatialTemporalAttention, sees 2 steps at once'),
        (dict(lif_layer=Silent), r'stem.units.0.lif, a Silent, does not say what it remembers'),
        (dict(lif_layer=lambda **_: nn.Tanh()), r'stem.units.0.lif, a Tanh, does not say what it remembers'),
    ],
)
def test_what_cannot_be_streamed_says_why(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        timm_snn.stream(timm.create_model('msvit_4_96', **changes).eval())
    assert '\n' not in str(error.value)


def test_other_models_training_and_taus_are_refused(small):
    with pytest.raises(ValueError, match=r'call model\.eval\(\) first'):
        timm_snn.stream(small.train())
    with pytest.raises(ValueError, match='no classifier of timm_snn'):
        timm_snn.stream(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r'1 <= tau frames, got tau=0\.5'):
        timm_snn.stream(small.eval(), tau=0.5)
    with pytest.raises(ValueError, match='lif_rate has not learned its firing rates'):
        timm_snn.stream(timm.create_model('spikingresformer_ti').eval())


@pytest.mark.parametrize('name', neurons.names())
def test_every_registered_neuron_streams_or_says_why_not(name):
    model = make('msvit_4_96', lif_layer=name, **(dict(num_steps=1) if name == 'relu' else {}))
    try:
        stream = timm_snn.stream(model)
    except ValueError as error:
        reason = str(error)
        assert 'steps at once' in reason or 'does not say what it remembers' in reason
        return
    frames = frames_for(model)
    answers = torch.stack([stream(frame) for frame in frames.unbind(1)], 1)
    if name != 'relu':
        torch.testing.assert_close(answers, running_mean(whole(model, frames)), rtol=0, atol=1e-12)
