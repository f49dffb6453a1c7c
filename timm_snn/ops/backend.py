"""Which implementation runs the neuron, and how a user chooses it.

From the strongest wish to the weakest:

    LIF(backend='torch')                     one layer, or a model: create_model(..., backend='torch')
    with timm_snn.use_backend('torch'): ...  a block of code, in this thread or asyncio task
    timm_snn.set_backend('torch')            the process
    TIMM_SNN_BACKEND=torch                   the environment, read when timm_snn is imported
    'auto'                                   otherwise: the first backend that can run the input

A backend asked for by name runs or raises `BackendUnavailable`; only 'auto' chooses by itself, and logs what it chose.
It passes a backend by that cannot be built here, after one warning that says why.

Exports (torch.jit.trace, torch.export, ONNX) always take 'torch', whoever asked for another one: they record plain
operations, which other machines can run.
"""

import importlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..files import printable
from .native.build import why_not_here
from .neuron import Neuron
from .surrogate import SURROGATES, Surrogate, is_known
from .switches import is_exporting, kept, switched, switches

__all__ = ['BackendUnavailable', 'backend_report', 'backends', 'set_backend', 'use_backend']

_logger = logging.getLogger(__name__)


class BackendUnavailable(RuntimeError):
    """A backend was asked for by name and cannot run here, or not on this input; the message says why."""


@dataclass(frozen=True)
class Backend:
    """An implementation of the neuron: one module and what is to be known of it before it is imported.

    The module has `lif` and `why_not(x)`: why it cannot run tensors of the dtype and device of x, or without x why it
    cannot run at all, ending in what to install; None if it can. It may have `prepare()`, which builds what it runs
    unless that is done, and returns why it cannot, or None. It may have fused ops, which are found by name: `bn_lif`,
    `bn_pool_lif`, `affine_lif`, `affine_pool_lif` and `mssa`; what it lacks is composed of its neuron and plain torch.
    All have the contracts of backends/reference.py. It is imported when it is first asked for and may import what it
    needs at its top.
    """

    name: str
    module: str  # in backends/, or a full name
    install: str = ''  # what to install if its library is missing, where that is not the library's name
    any_surrogate: bool = True  # not only those of the table in surrogate.py
    # When 'auto' tries it: always, inside torch.compile alone, or where nobody follows the operations (`is_followed`).
    auto: Literal['always', 'compiling', 'unfollowed'] = 'always'
    fuses_when_compiling: bool = True  # inside torch.compile its fused ops are faster than what Inductor makes
    adds_bias: bool = False  # its fused ops add a convolution's bias at no cost, where the convolution itself does not

    def why_not(self) -> str | None:
        """Why it cannot run at all, or None."""
        _import(self.name)
        return _modules[self.name].why_not()

    def prepare(self) -> str | None:
        """Build what it runs, unless that is done; why that cannot be, or None."""
        prepare = getattr(_modules[self.name], 'prepare', None)
        return None if prepare is None else prepare()

    @property
    def lif(self) -> Callable[..., tuple[Tensor, Tensor]]:
        """`reference.lif` by this backend."""
        return _modules[self.name].lif

    def fused(self, op: str) -> Callable[..., Any] | None:
        """Its fused op of this name, if it has one that is faster here than plain torch around the neuron."""
        if torch.compiler.is_compiling() and not self.fuses_when_compiling:
            return None
        return getattr(_modules[self.name], op, None)


# In the order in which 'auto' tries them.
_BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend('compile', 'inductor', auto='compiling', fuses_when_compiling=False),
        Backend('cpp', 'cpp', any_surrogate=False, auto='unfollowed'),
        Backend('triton', 'triton', any_surrogate=False, adds_bias=True),
        Backend(
            'cupy',
            'cupy',
            install="'timm-snn[cupy]', or 'timm-snn[cupy13]' beside a torch for CUDA 13",
            any_surrogate=False,
        ),
        Backend('torch', 'reference'),  # runs everywhere
    )
}
_modules: dict[str, ModuleType] = {}

_in_process: str | None = None
_in_environment: str | None = os.environ.get('TIMM_SNN_BACKEND') or None
_logged: set[str] = set()
_unprepared: dict[str, str] = {}  # backends that 'auto' could not build in this process, and why; it tries once
_preparing = threading.Lock()
# What runs outside torch.compile, by all that decides it: the name asked for or 'auto', device, dtype, surrogate, and
# whether something follows the operations. A small network asks hundreds of times a second.
_choices: dict[tuple[str, torch.device, torch.dtype, type[Surrogate], bool], Backend] = {}


def backends() -> list[str]:
    """The names of all backends, whether they can run here or not."""
    return list(_BACKENDS)


def check_backend(name: str, asked_by: str) -> None:
    """Import the backend, so that it is there before torch.compile looks. Raises ValueError for an unknown name."""
    if name == 'auto':
        return
    if name not in _BACKENDS:
        raise ValueError(f'unknown LIF backend {name!r}, asked for by {asked_by}: use one of {["auto", *_BACKENDS]}')
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
    return kept(function, backend=asked_for(None)[0])


def backend_report() -> str:
    """A table for bug reports: every backend, and `sparse_spikes`: whether it can run here and, if not, why not.

    Below it is what 'auto' takes on a CPU, on CUDA and inside torch.compile, and why none that it would rather take.
    """
    has_cuda = torch.cuda.is_available()
    reasons = {name: backend.why_not() for name, backend in _BACKENDS.items()}
    lines = [
        f'torch {torch.__version__}, CUDA {"available" if has_cuda else "not available"}',
        *(f'{name:<8} {_available(reason)}' for name, reason in reasons.items()),
        f'sparse_spikes, for convolutions: {_available(why_not_here())}',
        f"'auto' on a CPU: {_describe_choice('cpu', False, reasons)}",
        f"'auto' on CUDA: {_describe_choice('cuda', False, reasons) if has_cuda else 'torch finds no such device'}",
        f"'auto' inside torch.compile: {_describe_choice('cuda' if has_cuda else 'cpu', True, reasons)}",
    ]
    name, asked_by = asked_for(None)
    known = '' if name in ('auto', *_BACKENDS) else ', which does not exist'
    return '\n'.join([*lines, f'in use: {name} (by {asked_by}){known}'])


def _available(reason: str | None) -> str:
    return 'available' if reason is None else printable(reason, 400)


def _describe_choice(device: str, is_compiling: bool, reasons: dict[str, str | None]) -> str:
    """What 'auto' takes for float32 and why none before it, given why backends cannot run at all. Builds nothing."""
    x = torch.empty(1, 1, device=device)
    passed_by: list[str] = []
    for name, backend in _BACKENDS.items():
        reason = 'see above' if reasons[name] else _unprepared.get(name) or _modules[name].why_not(x)
        if not _is_tried(backend, is_compiling, is_compiling):
            reason = 'inside torch.compile alone' if backend.auto == 'compiling' else 'outside torch.compile alone'
        if reason is None:
            return '; '.join([name, *passed_by])
        passed_by.append(f'not {name}: {printable(reason, 400)}')
    return '; '.join(['none', *passed_by])


def resolve_backend(argument: str | None, x: Tensor, neuron: Neuron) -> Backend:
    """The backend that runs x. Raises ValueError or BackendUnavailable as the module docstring says."""
    watch = switches().watch
    backend = _resolve(argument, x, neuron.surrogate)
    return backend if watch is None else watch(backend, neuron)


def _resolve(argument: str | None, x: Tensor, surrogate: Surrogate) -> Backend:
    name, asked_by = asked_for(argument)
    if is_exporting():
        check_backend(name, asked_by)
        _import('torch')
        return _BACKENDS['torch']
    if torch.compiler.is_compiling():
        for each in _BACKENDS if name == 'auto' else ():  # it sees the table of modules as it was at the first look
            _import(each)
        return _find(name, asked_by, x, surrogate, is_compiling=True, followed=True)
    key = (name, x.device, x.dtype, type(surrogate), is_followed(x))
    if key not in _choices:
        _choices[key] = _find(name, asked_by, x, surrogate, is_compiling=False, followed=key[-1])
    return _choices[key]


def _find(name: str, asked_by: str, x: Tensor, surrogate: Surrogate, *, is_compiling: bool, followed: bool) -> Backend:
    """The backend of this name if it can run x, or what 'auto' takes. Raises: as `resolve_backend`."""
    check_backend(name, asked_by)
    if name == 'auto':
        return _choose(x, surrogate, is_compiling, followed)
    backend = _BACKENDS[name]
    if reason := _modules[name].why_not(x) or _why_not_surrogate(backend, surrogate) or backend.prepare():
        raise BackendUnavailable(f'LIF backend {name!r}, asked for by {asked_by}, cannot run: {reason}')
    return backend


def _choose(x: Tensor, surrogate: Surrogate, is_compiling: bool, followed: bool) -> Backend:
    """The first backend that 'auto' can take. Raises: BackendUnavailable."""
    for name, backend in _BACKENDS.items():
        if not _is_tried(backend, is_compiling, followed):
            continue
        _import(name)
        if _modules[name].why_not(x) or _why_not_surrogate(backend, surrogate):
            continue
        if is_compiling:
            return backend
        if _is_prepared(backend):
            if name not in _logged:
                _logged.add(name)
                _logger.info('LIF backend: %s, chosen for a tensor on %s', name, x.device)
            return backend
    raise BackendUnavailable('no LIF backend can run this input; see timm_snn.backend_report()')


def _is_tried(backend: Backend, is_compiling: bool, followed: bool) -> bool:
    return backend.auto == 'always' or (is_compiling if backend.auto == 'compiling' else not followed)


def _is_prepared(backend: Backend) -> bool:
    """Whether it is built, now or before. One that cannot be is tried once in a process, and warned of once."""
    with _preparing:  # other threads wait, for the warning as for the build
        if backend.name in _unprepared:
            return False
        reason = backend.prepare()
        if reason is not None:
            _unprepared[backend.name] = reason
            # of the processes that one launcher starts, the first of a machine speaks for all
            level = logging.WARNING if os.environ.get('LOCAL_RANK', '0') == '0' else logging.INFO
            _logger.log(
                level,
                "LIF backend %r is passed by, and what 'auto' takes instead is slower: %s. Start again when that is "
                "mended; TIMM_SNN_BACKEND=torch, or timm_snn.set_backend('torch'), chooses without this warning",
                *(backend.name, printable(reason, 400)),
            )
        return reason is None


def is_followed(x: Tensor) -> bool:
    """Whether a transform of torch.func, a dispatch mode or a subclass of Tensor follows what is done with x.

    A kernel that reads memory is invisible to them; plain torch is not.
    """
    return (
        type(x) not in (Tensor, nn.Parameter)
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
    )


def _why_not_surrogate(backend: Backend, surrogate: Surrogate) -> str | None:
    if backend.any_surrogate or is_known(surrogate):
        return None
    return (
        f"it knows the surrogates {sorted(SURROGATES)}, got {type(surrogate).__name__}: use backend='torch', which "
        'takes any'
    )


def asked_for(argument: str | None) -> tuple[str, str]:
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
    if name not in _modules:
        module, install = _BACKENDS[name].module, _BACKENDS[name].install
        try:
            _modules[name] = importlib.import_module(module if '.' in module else f'{__package__}.backends.{module}')
        except ModuleNotFoundError as error:  # any other ImportError is a fault that must be seen
            _modules[name] = _not_installed(name, f'{error}: pip install {install or error.name}')
    return True


def _not_installed(name: str, reason: str) -> ModuleType:
    """A stand-in for a backend that lacks its library, which is no reason to stop 'auto' or the report."""
    module = ModuleType(name)
    module.why_not = lambda x=None: reason  # type: ignore[attr-defined]
    return module
