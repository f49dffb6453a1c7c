"""Which implementation runs the neuron, and how a user chooses it.

From the strongest wish to the weakest:

    LIF(backend='torch')                     one layer, or a model: create_model(..., backend='torch')
    with timm_snn.use_backend('torch'): ...  a block of code, in this thread or asyncio task
    timm_snn.set_backend('torch')            the process
    TIMM_SNN_BACKEND=torch                   the environment, read when timm_snn is imported
    'auto'                                   otherwise: the first backend that can run the input

A backend asked for by name runs or raises `BackendUnavailable`; only 'auto' chooses by itself, and logs what it chose.
"""

import importlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import lif_torch
from .cpp import why_no_compiler
from .surrogate import Surrogate, is_known
from .switches import kept, switched, switches

__all__ = ['BackendUnavailable', 'backend_report', 'keep_switches', 'set_backend', 'use_backend']

_logger = logging.getLogger(__name__)

# Name -> module that implements it, in the order in which 'auto' tries them; 'torch' runs everywhere and is last.
# 'compile' and 'cpp' take seconds to build when first called, so 'auto' uses 'compile' inside torch.compile only, and
# there first, and 'cpp' never.
# A backend is one file with `lif` as in lif_torch.py and `why_not(x)`: why it cannot run x, or without x why it cannot
# run at all, ending in what to install; None if it can. The file is imported when it is first asked for and may import
# what it needs at its top.
_MODULES: dict[str, str] = {
    'compile': 'timm_snn.ops.lif_compile',
    'cpp': 'timm_snn.ops.lif_cpp',
    'triton': 'timm_snn.ops.lif_triton',
    'cupy': 'timm_snn.ops.lif_cupy',
    'torch': 'timm_snn.ops.lif_torch',
}
_KERNELS = ('triton', 'cupy', 'cpp')  # they know the surrogates of our table only, the others take any
# Module that a backend lacks -> what to install, where that is not the module.
_PACKAGES = {'cupy': "'timm-snn[cupy]', or 'timm-snn[cupy13]' beside a torch for CUDA 13"}
_loaded: dict[str, ModuleType] = {'torch': lif_torch}
# Backend's module -> its fused ops and the modules that hold them. What a backend does not have is composed of its
# neuron and plain torch.
_FUSED: dict[str, dict[str, str]] = {
    'timm_snn.ops.lif_compile': {
        'bn_lif': 'timm_snn.ops.bn_lif_compile',
        'affine_lif': 'timm_snn.ops.bn_lif_compile',
    },
    'timm_snn.ops.lif_cpp': {
        'bn_lif': 'timm_snn.ops.bn_lif_cpp',
        'affine_lif': 'timm_snn.ops.bn_lif_cpp',
    },
    'timm_snn.ops.lif_triton': {
        'bn_lif': 'timm_snn.ops.bn_lif_triton',
        'bn_pool_lif': 'timm_snn.ops.bn_lif_triton',
        'affine_lif': 'timm_snn.ops.bn_lif_triton',
        'affine_pool_lif': 'timm_snn.ops.bn_lif_triton',
        'mssa': 'timm_snn.ops.mssa_triton',
    },
}

_in_process: str | None = None
_in_environment: str | None = os.environ.get('TIMM_SNN_BACKEND') or None
_logged: set[str] = set()


class BackendUnavailable(RuntimeError):
    """A backend was asked for by name and cannot run here, or not on this input; the message says why."""


def check_backend(name: str, asked_by: str) -> None:
    """Import the backend, so that it is there before torch.compile looks. Raises ValueError for an unknown name."""
    if name == 'auto':
        return
    if name not in _MODULES:
        raise ValueError(f'unknown LIF backend {name!r}, asked for by {asked_by}: use one of {["auto", *_MODULES]}')
    _import(name)


def set_backend(name: str | None) -> None:
    """Use this backend in the whole process; None takes the choice back. Raises ValueError for an unknown name."""
    global _in_process
    if name is not None:
        check_backend(name, 'set_backend')
    _in_process = name


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Use this backend inside the `with` block, in this thread or asyncio task, and in checkpointed blocks' backward.

    Raises: ValueError for an unknown name.
    """
    check_backend(name, 'use_backend')
    with switched(backend=name):
        yield


def keep_switches(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`function` with the backend and all switches that are chosen now, for activation checkpointing.

    The backward pass calls it again, and a forward pass that differs in the last bit would flip spikes between the
    loss and its gradient.
    """
    if torch.compiler.is_compiling():  # the backward pass is part of the graph
        return function
    return kept(function, backend=_asked_for(None)[0])


def backend_report() -> str:
    """A table for bug reports: every backend, and `sparse_spikes`: whether it can run here and, if not, why not."""
    for name in _MODULES:
        _import(name)
    rows = [(name, _loaded[name].why_not() or 'available') for name in _MODULES]
    name, asked_by = _asked_for(None)
    known = '' if name in ('auto', *_MODULES) else ', which does not exist'
    lines = [f'torch {torch.__version__}, CUDA {"available" if torch.cuda.is_available() else "not available"}']
    lines += [f'{name:<8} {status}' for name, status in rows]
    lines.append(f'sparse_spikes, for convolutions: {why_no_compiler() or "available"}')
    return '\n'.join([*lines, f'in use: {name} (by {asked_by}){known}'])


def resolve_backend(argument: str | None, x: Tensor, surrogate: Surrogate) -> ModuleType:
    """The module that runs x. Raises ValueError or BackendUnavailable as the module docstring says."""
    name, asked_by = _asked_for(argument)
    check_backend(name, asked_by)
    if name != 'auto':
        module = _loaded[name]
        if reason := module.why_not(x):
            raise BackendUnavailable(f'LIF backend {name!r}, asked for by {asked_by}, cannot run: {reason}')
        return module
    if torch.compiler.is_compiling():  # it sees the table of modules as it was at the first look
        for name in _MODULES:
            _import(name)
    for name in _MODULES:
        if name in ('compile', 'cpp') and not torch.compiler.is_compiling():
            continue
        _import(name)
        if _loaded[name].why_not(x) is None and (name not in _KERNELS or is_known(surrogate)):
            # in this order, so that torch.compile does not guard on the set and compile anew when a name is added
            if not torch.compiler.is_compiling() and name not in _logged:
                _logged.add(name)
                _logger.info('LIF backend: %s, chosen for a tensor on %s', name, x.device)
            return _loaded[name]
    raise BackendUnavailable('no LIF backend can run this input; see timm_snn.backend_report()')


def fused(op: str, backend: ModuleType) -> Callable[..., Any] | None:
    """This backend's fused `op`, if it has one.

    Inside torch.compile those of a CPU have none: Inductor does the fusing there.
    """
    name = _FUSED.get(backend.__name__, {}).get(op)
    if name is None or (torch.compiler.is_compiling() and backend.__name__ in (_MODULES['compile'], _MODULES['cpp'])):
        return None
    _import_fused(name)
    return getattr(_loaded[name], op)


def has_free_bias(backend: ModuleType) -> bool:
    """Whether the fused ops of this backend add a convolution's bias at no cost, where the convolution itself does."""
    return backend.__name__ == _MODULES['triton']


def _asked_for(argument: str | None) -> tuple[str, str]:
    """The backend's name and who asked for it."""
    for name, asked_by in (
        (argument, 'the argument `backend`'),
        (switches().backend, 'use_backend'),
        (_in_process, 'set_backend'),
        (_in_environment, 'TIMM_SNN_BACKEND'),
    ):
        if name is not None:
            return name, asked_by
    return 'auto', 'default'


@torch.compiler.assume_constant_result  # torch.compile runs it instead of tracing it, and wants a constant back
def _import(name: str) -> bool:
    if name not in _loaded:
        try:
            _loaded[name] = importlib.import_module(_MODULES[name])
        except ModuleNotFoundError as error:  # any other ImportError is a fault that must be seen
            _loaded[name] = _not_installed(name, f'{error}: pip install {_PACKAGES.get(error.name or "", error.name)}')
    return True


@torch.compiler.assume_constant_result
def _import_fused(name: str) -> bool:
    if name not in _loaded:
        _loaded[name] = importlib.import_module(name)
    return True


def _not_installed(name: str, reason: str) -> ModuleType:
    """A stand-in for a backend that lacks its library, which is no reason to stop 'auto' or the report."""
    module = ModuleType(name)
    module.why_not = lambda x=None: reason  # type: ignore[attr-defined]
    return module
