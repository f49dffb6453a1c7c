"""torch.compile by regions: the blocks of a model, each on its own.

A whole model makes one graph of everything, and compiles it anew for another size of the batch. A block is compiled
once for training and once for evaluation, and blocks that are alike share the code. A batch of another size than the
first, as the last one of an evaluation, runs eagerly. Stem, patch embeddings and head are not repeated and run eagerly
too, and so does stochastic depth: its rates differ by block and would be compiled into it, and its random numbers stay
those of an eager run.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..layers.temporal import DropPath
from ..models.base import SpikingStage
from ..ops.backends import inductor
from ..ops.native.build import why_not_here
from ..progress import waiting
from .errors import UserError

__all__ = ['CompiledBlocks', 'backend_to_compile', 'compile_in_place', 'regions_of']

# Graphs that one forward method may have: kinds of blocks, in training and in evaluation. Dynamo's default is 8.
_MOST_GRAPHS = 256
_USUAL_SECONDS = 60


class CompiledBlocks:
    """The blocks of a model, compiled in place when they first run: its keys, hooks and copies stay as they are.

    Args:
        model: If it is none of ours, it is a single region.
        device: That it runs on.
        say: Called with a line before the first pass of a kind, and with one after it.

    Raises: UserError if Inductor cannot compile for the device.
    """

    def __init__(self, model: nn.Module, device: torch.device, say: Callable[[str], None]) -> None:
        if reason := inductor.why_not(torch.empty(0, device=device)):
            raise UserError(f'cannot compile: {reason}; or train without --compile')
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MOST_GRAPHS)
        self._say = say
        self._passed: set[str] = set()
        self._shapes = [compile_in_place(region) for region in regions_of(model)]

    @contextmanager
    def first(self, what: str) -> Iterator[None]:
        """Around every pass of a kind: says of the first that it compiles, and how long that took."""
        if what in self._passed:
            yield
            return
        self._say(f'compiling {len(self._shapes)} regions of the model in the first {what}, for a minute or so ...')
        start = time.perf_counter()
        with waiting(f'compiling in the first {what}', _USUAL_SECONDS):
            yield
        self._passed.add(what)
        self._say(f'the first {what} took {time.perf_counter() - start:.1f} s; the others are not compiled again')

    def forget(self) -> None:
        """Compile the regions for the shapes of the next update, which differ from those up to now."""
        self._passed.discard('update')
        for shapes in self._shapes:
            shapes.pop(True, None)


def backend_to_compile(device: torch.device) -> str | None:
    """The backend to compile a model with if nobody chose one; None for that of `timm_snn.ops.backend`.

    The kernels of 'cpp' are single operators in the graph. Where Inductor writes the neurons of a block itself, it
    compiles for about twice the CPU time.
    """
    chosen = os.environ.get('TIMM_SNN_BACKEND')
    return 'cpp' if device.type == 'cpu' and not chosen and why_not_here() is None else None


def regions_of(model: nn.Module) -> list[nn.Module]:
    """What is compiled on its own: blocks, or the parts of those that drop paths; a model of others as a whole."""
    stages = [module for module in model.modules() if isinstance(module, SpikingStage)]
    if not stages:
        return [model]
    return [part for stage in stages for block in stage.blocks for part in _without_drop_path(block)]


def _without_drop_path(module: nn.Module) -> Iterator[nn.Module]:
    if isinstance(module, DropPath):
        return
    if any(isinstance(part, DropPath) and part.drop_prob for part in module.modules()):
        for part in module.children():
            yield from _without_drop_path(part)
    else:
        yield module


def compile_in_place(region: nn.Module) -> dict[bool, torch.Size]:
    """As `region.compile()`, for the shape of its first input in training and in evaluation; others run eagerly.

    Returns these shapes by `region.training`, where taking one out lets another be the first.
    """
    compiled: Any = torch.compile(region._call_impl, dynamic=False)
    shapes: dict[bool, torch.Size] = {}

    def call(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        run = compiled if x.shape == shapes.setdefault(region.training, x.shape) else region._call_impl
        return run(x, *args, **kwargs)

    region._compiled_call_impl = call  # torch's own place for it, which copies and pickles of a module leave out
    return shapes
