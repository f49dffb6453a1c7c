"""Components by name, so that a model takes them as strings and a user adds one without editing our files."""

import sys
import warnings
from collections.abc import Callable
from typing import TypeVar

from torch import nn

__all__ = ['Registry', 'attentions', 'neurons', 'patch_embeds']

LayerFn = Callable[..., nn.Module]
L = TypeVar('L', bound=LayerFn)


class Registry:
    """Layers of one kind by name.

        @neurons.register('noisy_lif')
        class NoisyLIF(nn.Module):
            def __init__(self, v_threshold: float = 1.0): ...  # with a default: attention alone sets it

        timm.create_model('msvit_4_96', lif_layer='noisy_lif')

    `usage` is how models call the layers of this kind; `register` takes whatever can be called like that.
    """

    def __init__(self, kind: str, usage: str) -> None:
        self.kind = kind
        self.usage = usage
        self._layers: dict[str, LayerFn] = {}
        self._modules: dict[str, str] = {}

    def register(self, name: str) -> Callable[[L], L]:
        """Decorator: adds a class, or a function that returns a module, by this name; warns if it replaces one."""

        if not isinstance(name, str):
            raise TypeError(f'register needs a name: @register("my_{self.kind.split()[0]}"), got {name!r}')

        module = sys._getframe(1).f_globals.get('__name__', '')  # a partial of a class of ours does not say where it is

        def add(layer: L) -> L:
            if name in self._layers:
                warnings.warn(f'{self.kind} {name!r} is registered again and replaced', stacklevel=2)
            self._layers[name] = layer
            self._modules[name] = module
            return layer

        return add

    def get(self, layer: str | LayerFn) -> LayerFn:
        """The layer of this name; a class or function is returned as it is. Raises ValueError for anything else."""
        if callable(layer) and not isinstance(layer, nn.Module):
            return layer
        if not isinstance(layer, str):
            raise ValueError(f'expected a name or a class of {self.kind} layers, got {layer!r}')
        if layer not in self._layers:
            raise ValueError(f'unknown {self.kind} {layer!r}: use one of {self.names()} or register it first')
        return self._layers[layer]

    def name_of(self, layer: object) -> str | None:
        """The name under which this very layer is registered."""
        return next((name for name, known in self._layers.items() if known is layer), None)

    def module_of(self, name: object) -> str:
        """The module that registered the layer of this name, '' if none did."""
        return self._modules.get(name, '') if isinstance(name, str) else ''

    def names(self) -> list[str]:
        return sorted(self._layers)

    def __repr__(self) -> str:
        return f'Registry of {self.kind} layers {self.names()}, called as {self.usage}'


neurons = Registry('neuron', 'layer([v_threshold=...], [backend=...]): [T, B, ...] -> spikes [T, B, ...]')
attentions = Registry(
    'attention',
    'layer(dim, num_heads, attn_v_threshold=..., lif_layer=..., [query_kernels=...,] [pre_activation=...,] device=..., '
    'dtype=...): [T, B, dim, H, W] -> [T, B, dim, H, W]',
)
patch_embeds = Registry(
    'patch embedding',
    'layer(in_chs, widths, pools, lif_layer=..., device=..., dtype=...): '
    '[T, B, in_chs, H, W] -> [T, B, widths[-1], H / 2**sum(pools), W / 2**sum(pools)], sizes rounded up',
)
