"""Switches that a user turns for a block of code: one set per thread or asyncio task, kept by activation checkpointing.

A switch is a field of `Switches` and a context manager that turns it by `switched`. A new thread starts with none of
them turned.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch

__all__ = ['Switches', 'is_exporting', 'kept', 'switched', 'switches']


@dataclass(frozen=True)
class Switches:
    """All switches of a thread; where code compiles, numbers and strings alone, for torch.compile to guard on."""

    backend: str | None = None  # of the neuron, by `use_backend`
    skips_zeros: bool | None = None  # in convolutions, by `sparse_spikes`; None leaves it to each convolution
    max_density: float | None = None  # up to which it does
    # what stands for a backend, by that and the neuron, while somebody watches, eagerly
    watch: Callable[[Any, Any], Any] | None = None


_OFF = Switches()
_switches: ContextVar[Switches] = ContextVar('timm_snn_switches', default=_OFF)
# torch.compile reads context variables from torch 2.14 on. Before, compiled code sees what the last thread has set.
_COMPILES_CONTEXT = tuple(int(n) for n in torch.__version__.split('.')[:2]) >= (2, 14)
_last_set = _OFF


def is_exporting() -> bool:
    """True while a model is traced for use elsewhere: by torch.jit.trace, torch.export or an ONNX exporter.

    A kernel that is called through memory, or ops of our own, would be lost there, so plain torch runs.
    """
    return torch.jit.is_tracing() or torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export()


def switches() -> Switches:
    """Those of this thread or task; all off in exports."""
    # The usual case at no cost, but for exports, which trace or compile; torch.compile would not look at it again.
    if not torch.compiler.is_compiling() and not torch._C._is_tracing() and _switches.get() is _OFF:
        return _OFF
    if is_exporting():
        return Switches(skips_zeros=False)
    if not _COMPILES_CONTEXT and torch.compiler.is_compiling():
        return _last_set
    return _switches.get()


@contextmanager
def switched(**changes: Any) -> Iterator[None]:
    """Turn these switches inside the `with` block, in this thread or task."""
    outer = _switches.get()
    _set(replace(outer, **changes))
    try:
        yield
    finally:
        _set(outer)


def kept(function: Callable[[Any], Any], **changes: Any) -> Callable[[Any], Any]:
    """`function` with the switches as they are now and these changes, whenever and in whichever thread it is called.

    Activation checkpointing calls it again in the backward pass, after the `with` blocks have ended and, on a GPU, in
    a thread of autograd's.
    """
    now = replace(switches(), **changes)

    def run(x: Any) -> Any:
        outer = _switches.get()
        _set(now)
        try:
            return function(x)
        finally:
            _set(outer)

    return run


def _set(switches: Switches) -> None:
    global _last_set
    _switches.set(switches)
    _last_set = switches
