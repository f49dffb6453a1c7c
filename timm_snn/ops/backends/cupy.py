"""The LIF neuron in CUDA C++, compiled when it is first needed by CuPy: one kernel per pass, in lif.cu.

CuPy compiles and launches; the memory is torch's, on torch's stream, so that nothing is copied and a CUDA graph can
record it (a kernel must have run once before: compiling cannot be recorded).
"""

import functools
import math
from typing import Any

import cupy
import torch
from torch import Tensor

from ..layout import as_steps, empty_steps, step_strides
from ..neuron import Neuron, membrane_dtype
from .cuda_source import BLOCK, CHUNK, OPTIONS, SOURCE, STORED, backward_kernel, forward_kernel, neurons_per_thread
from .operator import empty_membrane, lif_operator, one_step, sum_by_channel

__all__ = ['lif', 'why_not']


def _why_no_compiler() -> str | None:
    try:
        cupy.cuda.nvrtc.getVersion()
    except RuntimeError as error:  # CuPy looks for the library only now
        return f"CuPy cannot load its compiler NVRTC ({error}): pip install 'timm-snn[{_EXTRA}]'"
    return None


_EXTRA = 'cupy13' if (torch.version.cuda or '').startswith('13.') else 'cupy'
_NO_COMPILER = _why_no_compiler()  # once, so that torch.compile need not look


def why_not(x: Tensor | None = None) -> str | None:
    """Why CuPy cannot run x, or without x why it cannot run at all."""
    if not torch.cuda.is_available() or torch.version.cuda is None:
        return 'it needs an NVIDIA GPU, and torch finds none'
    if _NO_COMPILER:
        return _NO_COMPILER
    if x is not None and not x.is_cuda:
        return f'it needs a tensor on a CUDA device, got one on {x.device}'
    if x is not None and x.dtype not in STORED:
        return f'it needs float16, bfloat16, float32 or float64, got {x.dtype}'
    return None


def _forward(x: Tensor, v: Tensor | None, tau: Tensor | None, neuron: Neuron, needs_v: bool) -> tuple[Tensor, Tensor]:
    """The contract is that of `lif_operator`."""
    strides = step_strides(x)
    steps = as_steps(x, strides)
    v_first = None if v is None else as_steps(v[None], strides)
    spikes = empty_steps(x)
    v_last = one_step(x) if needs_v else empty_membrane(x)
    num_neurons = steps.shape[1]
    width = neurons_per_thread(steps, v_first, spikes, v_last, strides=(steps.stride(0),))
    _launch(
        forward_kernel(steps, width, neuron, _is_by_channel(tau)),
        num_neurons // width,
        x.device,
        spikes,
        v_last if needs_v else None,
        steps,
        v_first,
        *_settings(neuron, tau, x.dtype, strides),
        num_neurons,
        steps.shape[0],
        steps.stride(0),
    )
    return spikes, v_last


def _backward(
    grad_spikes: Tensor, grad_v: Tensor | None, x: Tensor, v: Tensor | None, tau: Tensor | None, neuron: Neuron
) -> tuple[Tensor, Tensor, Tensor]:
    """The contract is that of `lif_operator`."""
    strides = step_strides(x)
    steps, grad_steps = as_steps(x, strides), as_steps(grad_spikes, strides)
    v_first = None if v is None else as_steps(v[None], strides)
    grad_v_last = None if grad_v is None else as_steps(grad_v[None], strides)
    grad_x = empty_steps(x)
    grad_v0 = empty_membrane(x) if v is None else one_step(x)
    num_steps, num_neurons = steps.shape
    checkpoints = x.new_empty(math.ceil(num_steps / CHUNK) - 1, num_neurons, dtype=grad_v0.dtype)
    width = neurons_per_thread(
        steps,
        *(grad_steps, v_first, grad_v_last, grad_x, grad_v0, checkpoints),
        strides=(steps.stride(0), grad_steps.stride(0)),
    )
    num_threads = num_neurons // width
    parts = 0 if tau is None else num_neurons if _is_by_channel(tau) else num_threads
    grad_tau = x.new_empty(parts, dtype=grad_v0.dtype)  # from each neuron, or thread
    _launch(
        backward_kernel(steps, width, neuron, _is_by_channel(tau)),
        num_threads,
        x.device,
        grad_x,
        None if v is None else grad_v0,
        grad_tau,
        checkpoints,
        grad_steps,
        grad_v_last,
        steps,
        v_first,
        *_settings(neuron, tau, x.dtype, strides),
        float(neuron.surrogate.alpha),
        num_neurons,
        num_steps,
        steps.stride(0),
        grad_steps.stride(0),
    )
    return grad_x, grad_v0, grad_tau if tau is None else sum_by_channel(grad_tau, x, strides, tau)


lif = lif_operator('cupy', _forward, _backward)


def _is_by_channel(tau: Tensor | None) -> bool:
    return tau is not None and tau.ndim > 0


def _settings(neuron: Neuron, tau: Tensor | None, dtype: torch.dtype, strides: tuple[int, ...]) -> tuple[Any, ...]:
    """Of a neuron, as the kernels take them."""
    learned = None if tau is None else tau.to(membrane_dtype(dtype)).contiguous()
    channels = (len(tau), strides[1]) if tau is not None and tau.ndim else (1, 1)
    return learned, *channels, float(neuron.tau or 0.0), float(neuron.v_threshold), float(neuron.v_rest)


def _launch(name: str, num_threads: int, device: torch.device, *args: Tensor | float | int | None) -> None:
    """CuPy passes an int as 64 bits, which is what a pointer has, and a float as double."""
    if num_threads == 0:  # CUDA refuses an empty grid
        return
    pointers = [0 if arg is None else arg.data_ptr() if isinstance(arg, Tensor) else arg for arg in args]
    with torch.cuda.device(device), _stream(torch.cuda.current_stream(device).cuda_stream):
        _kernel(name)((math.ceil(num_threads / BLOCK),), (BLOCK,), tuple(pointers))


@functools.cache
def _kernel(name: str) -> Any:
    """Compiled when it is first launched on a device, or taken from CuPy's cache on disk."""
    return cupy.RawModule(code=SOURCE, options=OPTIONS, name_expressions=[name]).get_function(name)


@functools.lru_cache(maxsize=64)
def _stream(pointer: int) -> Any:
    return cupy.cuda.Stream.from_external(_TorchStream(pointer))


class _TorchStream:
    """CUDA's stream protocol, which torch.cuda.Stream has only in later releases than the oldest that we support."""

    def __init__(self, pointer: int):
        self.pointer = pointer

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.pointer  # version of the protocol
