"""The neuron in C++ for a CPU: one pass over memory forward, one backward, in lif.cpp.

Built when it is first used, see cpp.py: some seconds once on a machine, for all settings, sizes and dtypes.
"""

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import lif_op
from .cpp import load_cpp, why_no_compiler
from .layout import as_steps, empty_steps, step_strides
from .surrogate import SURROGATES

__all__ = ['backward', 'call', 'forward', 'lif', 'why_not']

_SOURCE = Path(__file__).with_name('lif.cpp')
# No product is fused with a sum, which would move spikes; a choice between numbers may compute both.
_OPTIONS = ('-ffp-contract=off', '-fno-trapping-math')
_NAMES = {
    torch.float32: 'float32',
    torch.bfloat16: 'bfloat16',
    torch.float16: 'float16',
    torch.float64: 'float64',
}

_NO_COMPILER = why_no_compiler()  # once, so that torch.compile need not look


class _Call(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ('T', 'rows', 'C', 'S', 'x_stride', 'grad_stride')),
        *((name, ctypes.c_double) for name in ('tau', 'v_threshold', 'v_rest', 'alpha')),
        *((name, ctypes.c_int32) for name in ('hard_reset', 'decay_input', 'detach_reset', 'surrogate', 'threads')),
    )


def why_not(x: Tensor | None = None) -> str | None:
    """Why nothing can be built here, or why this does not run x."""
    if x is not None and x.device.type != 'cpu':
        return f'it is for a CPU, got a tensor on {x.device}'
    if x is not None and x.dtype not in _NAMES:
        return f'it needs float16, bfloat16, float32 or float64, got {x.dtype}'
    return _NO_COMPILER


def lif(x: Tensor, v: Tensor | None, **settings: Any) -> tuple[Tensor, Tensor]:
    """`lif_torch.lif` in two passes."""
    return lif_op.lif('cpp', x, v, **settings)


def forward(
    x: Tensor,
    v: Tensor | None,
    tau: float | Tensor,
    v_threshold: float,
    v_reset: float | None,
    decay_input: bool,
    needs_v: bool,
) -> tuple[Tensor, Tensor]:
    """The contract is that of lif_op.py."""
    strides = step_strides(x)
    steps, spikes = as_steps(x, strides), empty_steps(x)
    v_first = None if v is None else as_steps(v[None], strides)
    v_last = lif_op.one_step(x) if needs_v else lif_op.empty_membrane(x)
    neuron = (float(tau), v_threshold, v_reset, decay_input)
    call('fire', steps, (), neuron, (steps, v_first, None, None, spikes, v_last if needs_v else None))
    return spikes, v_last


def backward(
    grad_spikes: Tensor,
    grad_v: Tensor | None,
    x: Tensor,
    v: Tensor | None,
    tau: float | Tensor,
    v_threshold: float,
    v_reset: float | None,
    decay_input: bool,
    surrogate: str,
    alpha: float,
    detach_reset: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The contract is that of lif_op.py."""
    strides = step_strides(x)
    steps, grad_steps = as_steps(x, strides), as_steps(grad_spikes, strides)
    v_first, grad_v = (None if t is None else as_steps(t[None], strides) for t in (v, grad_v))
    grad_x = empty_steps(x)
    grad_v_first = lif_op.empty_membrane(x) if v is None else lif_op.one_step(x)
    learned = isinstance(tau, Tensor)
    grad_tau = grad_v_first.new_zeros(()) if learned else lif_op.empty_membrane(x)
    call(
        'fire_backward',
        steps,
        (),
        (float(tau), v_threshold, v_reset, decay_input, surrogate, alpha, detach_reset),
        (
            *(steps, v_first, grad_steps, grad_v, grad_x),
            *(None if v is None else grad_v_first, grad_tau if learned else None),
        ),
        grad_steps.stride(0),
    )
    return grad_x, grad_v_first, grad_tau


def call(
    name: str,
    steps: Tensor,
    channels: tuple[int, ...],
    neuron: tuple,
    tensors: tuple[Tensor | None, ...],
    stride: int = 0,
) -> None:
    """Run a function of lif.cpp.

    Args:
        steps: x as [T, M].
        channels: C and S of a step [rows, C, S], if the function needs to know.
        neuron: As far as it needs to know: tau, v_threshold, v_reset, decay_input, surrogate, alpha, detach_reset.
        tensors: What the function takes after the call.
        stride: Between the steps of the gradient.
    """
    defaults: tuple[Any, ...] = (2.0, 1.0, 0.0, True, 'sigmoid', 1.0, True)
    tau, v_threshold, v_reset, decay_input, surrogate, alpha, detach_reset = neuron + defaults[len(neuron) :]
    num_steps, num_neurons = steps.shape
    C, S = channels or (1, num_neurons)
    settings = _Call(
        *(num_steps, num_neurons // max(C * S, 1), C, S, steps.stride(0), stride),
        *(tau, v_threshold, v_reset or 0.0, alpha),
        *(v_reset is not None, decay_input, detach_reset, list(SURROGATES).index(surrogate), torch.get_num_threads()),
    )
    function = getattr(load_cpp(_SOURCE, *_OPTIONS), f'{name}_{_NAMES[steps.dtype]}')
    function(ctypes.byref(settings), *(None if t is None else ctypes.c_void_p(t.data_ptr()) for t in tensors))
