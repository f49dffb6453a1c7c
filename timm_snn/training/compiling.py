"""torch.compile by regions: the stem, the patch embeddings and the blocks of a model, each on its own.

A whole model makes one graph of everything, and compiles it anew for another size of the batch. A region is compiled
once for training and once for evaluation, for any batch, and blocks that are alike share the code. What is between
regions runs eagerly: the sums of stochastic depth, whose random numbers are then those of an eager run, and the head.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..layers.temporal import DropPath
from ..models.base import SpikingStage, SpikingTransformer

__all__ = ['CompiledRegions']

# Entries that one forward method may have in Dynamo's cache: kinds of blocks, each in training and in evaluation.
_MOST_GRAPHS = 256


class CompiledRegions:
    """The regions of a model, compiled in place: its keys, hooks and copies are those of the model as it was.

    Args:
        model: One of ours, which is left as it is until a region is first called. Any other is a single region.
        say: Called with a line before the first pass of a kind, and with one after it.
    """

    def __init__(self, model: nn.Module, say: Callable[[str], None]) -> None:
        self.regions = regions_of(model)
        self._say = say
        self._passed: set[str] = set()
        limit = torch._dynamo.config.recompile_limit
        torch._dynamo.config.recompile_limit = max(limit, _MOST_GRAPHS)
        for region in self.regions:
            compile_in_place(region)

    @contextmanager
    def first(self, what: str) -> Iterator[None]:
        """Around every pass of a kind: says of the first one that it compiles, and how long that took."""
        if what in self._passed:
            yield
            return
        self._say(f'compiling {len(self.regions)} parts of the model for {what}, which takes a while ...')
        start = time.perf_counter()
        yield
        self._passed.add(what)
        self._say(f'... {time.perf_counter() - start:.0f} s with the first {what}')


def regions_of(model: nn.Module) -> list[nn.Module]:
    """What is compiled on its own; the model itself if it is none of ours."""
    if not any(isinstance(module, SpikingTransformer) for module in model.modules()):
        return [model]
    found: list[nn.Module] = []
    for module in model.modules():
        if isinstance(module, SpikingTransformer):
            found += [module.stem]
        elif isinstance(module, SpikingStage):
            found += [module.embed, *(part for block in module.blocks for part in _without_drop_path(block))]
    return [module for module in found if not isinstance(module, nn.Identity)]


def _without_drop_path(module: nn.Module) -> Iterator[nn.Module]:
    """The module, or its parts if it drops paths: the rates of its neighbours differ, and would be compiled into it."""
    if isinstance(module, DropPath):
        return
    if not any(isinstance(part, DropPath) and part.drop_prob for part in module.modules()):
        yield module
        return
    for part in module.children():
        yield from _without_drop_path(part)


def compile_in_place(region: nn.Module) -> None:
    """As `region.compile()`, for any size of the batch, which is axis 1 of what a region gets."""
    compiled: Any = torch.compile(region._call_impl, dynamic=False)

    def call(x: Tensor, *args: Any) -> Any:
        if x.ndim > 2:
            torch._dynamo.maybe_mark_dynamic(x, 1)
        return compiled(x, *args)

    # torch's own place for it: copies and pickles of the module leave it out
    region._compiled_call_impl = call  # type: ignore[assignment]
