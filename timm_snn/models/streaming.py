"""A model that sees one frame after the other, as they come, and carries every membrane from one to the next."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from ..layers import DropPath, RunningFiringRate, neurons
from ..ops.neuron import membrane_dtype
from ..wrappers import unwrapped
from .base import SpikingTransformer
from .conversion import ConvertedModel
from .graphs import GraphedMethod
from .quantized import QuantizedModel

__all__ = ['Stream', 'stream']


def stream(model: nn.Module, *, tau: float = math.inf) -> Stream:
    """The model for frames that arrive one by one: it answers after each of them, and its membranes go on.

        stream = timm_snn.stream(model)
        for frame in camera:               # [B, C, H, W]
            logits = stream(frame)         # [B, num_classes]
        stream.reset()                     # another scene: all neurons are at rest again

    After T frames that is `model(frames)` of all T, whatever T and the model's `num_steps`: what a family computes in a
    step depends on that step and on membranes alone. In float64 the two agree to rounding. In float32 sums over more or
    fewer frames at once may round differently, and a membrane that lies on its threshold then fires in one and not in
    the other. The answer is the mean of all logits since the reset, as the model's own. With a finite `tau` it forgets:
    the logits of k frames ago count (1 - 1 / tau)^k as much as those of now, and tau=1 leaves the last frame's alone.

    The stream sees with the model's weights, also when they are changed in place, and never touches the model, which
    may be used in between. Several streams of one model know nothing of each other. Fused models stream faster
    (`timm_snn.fuse`), and so does what has no membranes (`act='relu'`, integer neurons).

    A neuron of one's own streams if it has a method `stream(x, state)` beside `forward(x)`: it gets x [t, B, ...] and
    what it returned last, a dict of tensors, or None at rest, and returns spikes and the next such dict. One without
    memory says `memoryless = True`.

        def stream(self, x, state):
            v = torch.zeros_like(x[0]) if state is None else state['v']
            ...
            return torch.stack(spikes), {'v': v}

    Args:
        model: A classifier of timm_snn, or a segmenter of spikes, whose answers are maps, in eval mode, on its device.
            What is made of it later, such as another head, the stream does not see. A module of one's own streams if it
            has `num_steps` and `forward_steps` as a classifier has, and says `streams = True`.
        tau: In frames, at least 1; of the readout alone.

    Raises: ValueError for a model that cannot be streamed, with the reason: training mode, layers that see several
    steps at once (`chunk_steps` above 1), neurons that do not say what they remember.
    """
    return Stream(model, tau)


class Stream:
    """What `timm_snn.stream` returns."""

    def __init__(self, model: Any, tau: float = math.inf) -> None:
        if not 1 <= tau <= math.inf:
            raise ValueError(f'a stream needs 1 <= tau frames, got tau={tau}')
        model = unwrapped(model)
        if reason := _why_not(model):
            raise ValueError(f'cannot stream this {type(model).__name__}: {reason}')
        self._model, self._tau = _sharing_weights(model), tau
        self._usual_steps = model.num_steps
        self._memory = _Memory()
        self._names = _carry_membranes(self._model, self._memory)
        self.reset()

    def reset(self) -> None:
        """Forget everything: every neuron at rest, no frame seen."""
        self._memory.states = {}
        self._num_steps = 0
        self._logits: Tensor | None = None  # the answer after the last frame
        self._shape: torch.Size | None = None

    @property
    def num_steps(self) -> int:
        """How many frames were seen since the reset."""
        return self._num_steps

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """The answer after this frame, [B, C, H, W] -> [B, classes], or after each, [B, t, C, H, W] -> [B, t, classes].

        Raises: ValueError for a frame of another shape than those since the reset, and for [T, C, H, W] in a model of
        events with so many steps, which may be a recording.
        """
        if x.ndim not in (4, 5) or (x.ndim == 5 and x.shape[1] == 0):
            raise ValueError(f'expected a frame [B, C, H, W] or several [B, t, C, H, W], got {list(x.shape)}')
        if x.ndim == 4 and getattr(self._model, 'takes_events', False) and 1 < len(x) == self._usual_steps:
            raise ValueError(
                f'expected a frame [B, C, H, W], got {list(x.shape)}, which may be all frames of one recording: pass '
                f'x.unsqueeze(0); or the frames of {len(x)} cameras: pass x.unsqueeze(1)'
            )
        frames = x.unsqueeze(1) if x.ndim == 4 else x
        shape = frames[:, 0].shape
        if self._shape not in (None, shape):
            raise ValueError(
                f'expected a frame {list(self._shape)} as those before, got {list(shape)}: membranes are those of one '
                'batch and one size, and reset() begins anew'
            )
        logits = [self._readout(step) for step in self._steps(frames).unbind(1)]
        self._shape = shape
        return logits[0] if x.ndim == 4 else torch.stack(logits, 1)

    def _steps(self, frames: Tensor) -> Tensor:
        """Logits of these steps alone, [B, t, classes]. If this fails, no neuron has seen them."""
        self._memory.pending = {}
        if getattr(self._model, 'act', None) == 'relu':  # has one step
            logits = torch.cat([self._model.forward_steps(frame) for frame in frames.split(1, 1)], 1)
        else:
            if self._model.num_steps != frames.shape[1]:
                self._model.num_steps = frames.shape[1]
            logits = self._model.forward_steps(frames)
        self._memory.states = self._memory.pending
        return logits

    def _readout(self, logits: Tensor) -> Tensor:
        """The mean of all logits, of which those of k frames ago have the weight (1 - 1 / tau)^k."""
        self._num_steps += 1
        kept = 1 - 1 / self._tau
        weights = self._num_steps if kept == 1 else (1 - kept**self._num_steps) / (1 - kept)
        if isinstance(self._model, QuantizedModel) and kept == 1:
            return self._mean_of_sum(logits)
        current = logits.to(membrane_dtype(logits.dtype))
        self._logits = current if self._logits is None else self._logits + (current - self._logits) / weights
        return self._logits.to(logits.dtype)

    def _mean_of_sum(self, logits: Tensor) -> Tensor:
        """The mean as a quantised model takes it of all steps at once: float64 holds sums of its logits exactly."""
        total = logits.double() if self._logits is None else self._logits + logits
        self._logits = total
        return (total / self._num_steps).to(logits.dtype)

    def state(self) -> dict[str, Tensor]:
        """All that the stream remembers, in copies that safetensors can save; {} before the first frame."""
        if self._logits is None or self._shape is None:
            return {}
        found = {
            'num_steps': torch.tensor(self._num_steps),
            'frame_shape': torch.tensor(self._shape),
            'logits': self._logits,
        }
        for name, states in self._memory.states.items():
            for call, state in enumerate(states):
                found |= {f'{name}.{call}.{key}': value for key, value in state.items()}
        return {key: value.clone(memory_format=torch.contiguous_format) for key, value in found.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a `state()` of this model or of one with the same layers.

        Raises: ValueError for the state of another model; the stream is as it was then.
        """
        if not state:
            self.reset()
            return
        device = next(self._model.parameters()).device
        found: dict[str, dict[int, dict[str, Tensor]]] = {}
        readout = {}
        for key, value in state.items():
            if key in ('num_steps', 'frame_shape', 'logits'):
                readout[key] = value
                continue
            named = re.fullmatch(r'(.+)\.(\d+)\.([^.]+)', key)
            name, call, part = named.groups() if named else (key, '0', '')
            found.setdefault(name, {}).setdefault(int(call), {})[part] = value.to(device)
        if len(readout) < 3 or found.keys() != self._names:
            other = sorted(found.keys() ^ self._names) or sorted(state)
            raise ValueError(f'expected the state of a stream of this model, and only one of both has {other[0]!r}')
        self._memory.states = {name: [calls[call] for call in sorted(calls)] for name, calls in found.items()}
        self._num_steps = int(readout['num_steps'])
        self._logits = readout['logits'].to(device)
        self._shape = torch.Size(readout['frame_shape'].tolist())


_CHANGED_BY_TRAINING = (_BatchNorm, _DropoutNd, DropPath, RunningFiringRate)


class _Memory:
    """What the neurons of a stream remember, by their names, of each call in a pass: a network may use one twice."""

    def __init__(self) -> None:
        self.states: dict[str, list[dict[str, Tensor]]] = {}  # after the last pass
        self.pending: dict[str, list[dict[str, Tensor]]] = {}  # of this pass until now


class _Carried(nn.Module):
    """A neuron that goes on from where it was."""

    def __init__(self, name: str, neuron: Any, memory: _Memory) -> None:
        super().__init__()
        self.name, self.neuron, self.memory = name, neuron, memory

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        states = self.memory.states.get(self.name)
        pending = self.memory.pending.setdefault(self.name, [])
        y, state = self.neuron.stream(*args, **kwargs, state=states[len(pending)] if states else None)
        pending.append(state)
        return y


def _why_not(model: Any) -> str | None:
    """Why a model cannot be streamed, or None."""
    known = (SpikingTransformer, ConvertedModel, QuantizedModel)
    if not isinstance(model, known) and not getattr(model, 'streams', False):
        return 'it is no classifier of timm_snn; of a traced or exported one, stream the model that it was made of'
    for name, module in model.named_modules():
        if module.training and isinstance(module, _CHANGED_BY_TRAINING):
            return f'{name} is in training mode, in which it sees all steps of a batch at once: call model.eval() first'
        steps = getattr(module, 'chunk_steps', 1)
        if module is not model and steps > 1:
            return f'{name}, a {type(module).__name__}, sees {steps} steps at once, of which later ones are yet to come'
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            return f'the batch norm {name} has no running statistics and sees all steps of a batch at once'
        if isinstance(module, RunningFiringRate) and not module.running.any():
            return f'{name} has not learned its firing rates and would take those of each frame: train the model first'
        if is_neuron(name, module) and not (_streams(module) or getattr(module, 'memoryless', False)):
            return (
                f'{name}, a {type(module).__name__}, does not say what it remembers from step to step: give the class '
                'a method stream(x, state), or memoryless = True (help(timm_snn.stream))'
            )
    return None


def is_neuron(name: str, module: nn.Module) -> bool:
    """Whether models call it as a neuron: by its place, or because it is registered as one."""
    place = name.rpartition('.')[2]
    at_place = (place == 'lif' or place.endswith('_lif')) and not isinstance(module, nn.Identity)
    return at_place or neurons.name_of(type(module)) is not None


def _streams(module: nn.Module) -> bool:
    """Whether it has a method `stream`, and not that of a class whose `forward` it has replaced."""
    definers = {
        method: next((c for c in type(module).__mro__ if method in vars(c)), None) for method in ('stream', 'forward')
    }
    stream, forward = definers['stream'], definers['forward']
    return stream is not None and forward is not None and issubclass(stream, forward)


def _sharing_weights(model: nn.Module) -> Any:
    """A copy of the modules alone, in eval mode. Raises: ValueError if it cannot be copied."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    try:
        made: Any = copy.deepcopy(model, shared)
    except RuntimeError as error:
        raise ValueError(
            f'cannot stream this {type(model).__name__}: a module in it keeps a tensor that was computed with a '
            'gradient, as pruned weights are: torch.nn.utils.prune.remove(module, name) ends that'
        ) from error
    for name in [name for name, value in vars(made).items() if isinstance(value, GraphedMethod)]:
        delattr(made, name)  # a graph would not carry membranes
    return made.eval()


def _carry_membranes(model: nn.Module, memory: _Memory) -> set[str]:
    """Replace all neurons that remember; returns their names, of which one at several places has the first."""
    carried: dict[nn.Module, _Carried] = {}

    def replace(parent: nn.Module, prefix: str) -> None:
        for place, module in parent.named_children():
            if _streams(module):
                if module not in carried:
                    carried[module] = _Carried(f'{prefix}{place}', module, memory)
                setattr(parent, place, carried[module])
            else:
                replace(module, f'{prefix}{place}.')

    replace(model, '')
    return {module.name for module in carried.values()}
