"""Neurons of SpikingJelly and snnTorch as layers of ours: all steps in one call, and nothing left behind.

A model takes their classes as they are, `timm.create_model('msvit_4_96', lif_layer=LIFNode)`, and puts an adapter
around each neuron. It knows them by the module of their class, so that neither library is imported here.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

__all__ = ['SnnTorchNeuron', 'SpikingJellyNeuron', 'adapter_of']


class SpikingJellyNeuron(nn.Module):
    """A neuron of SpikingJelly, in its step mode 'm', which is reset before and after every call.

    Its settings stay SpikingJelly's, such as a reset that is not detached: `lif_kwargs` and partials have them by its
    names. Shape: [T, B, ...] -> what it answers, spikes [T, B, ...].
    """

    threshold: ClassVar[str] = 'v_threshold'  # the name of this setting

    def __init__(self, neuron: nn.Module) -> None:
        super().__init__()
        self.neuron = neuron
        part: Any
        for part in neuron.modules():
            if hasattr(part, 'step_mode'):
                part.step_mode = 'm'

    def forward(self, x: Tensor) -> Tensor:
        self._rest()
        spikes = self.neuron(x)
        self._rest()  # the membrane's graph would be kept, and copies of the model fail
        return spikes

    def _rest(self) -> None:
        part: Any
        for part in self.neuron.modules():
            if hasattr(part, 'reset'):
                part.reset()


class SnnTorchNeuron(nn.Module):
    """A neuron of snnTorch, which is called for one step after the other and begins every call at rest.

    Shape: [T, B, ...] -> its spikes [T, B, ...].
    """

    threshold: ClassVar[str] = 'threshold'

    def __init__(self, neuron: nn.Module) -> None:
        super().__init__()
        self.neuron = neuron

    def forward(self, x: Tensor) -> Tensor:
        neuron: Any = self.neuron
        neuron.reset_mem()
        spikes = []
        for x_t in x.unbind(0):
            output = neuron(x_t)  # it keeps its membranes, and returns them after the spikes
            spikes.append(output[0] if isinstance(output, tuple) else output)
        neuron.reset_mem()
        return torch.stack(spikes)


_Adapter = type[SpikingJellyNeuron] | type[SnnTorchNeuron]
_ADAPTERS: dict[str, _Adapter] = {'spikingjelly': SpikingJellyNeuron, 'snntorch': SnnTorchNeuron}


def adapter_of(cls: Any) -> _Adapter | None:
    """The adapter for a class of one of the two libraries, or one derived of it; None for any other."""
    libraries = (base.__module__.partition('.')[0] for base in getattr(cls, '__mro__', ()))
    return next((_ADAPTERS[library] for library in libraries if library in _ADAPTERS), None)
