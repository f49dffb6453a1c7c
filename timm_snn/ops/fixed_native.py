"""The ops of `fixed.py`, by C++ where the backend 'cpp' can run and by plain torch elsewhere: the same numbers.

They follow the choice of the neuron's backend: 'auto' takes C++ on a CPU where that can be built, a named one runs or
is refused. The C++ is `native/fixed.cpp`; its instructions are AVX-512 VNNI or AVX2 where the CPU has them. The
environment variable TIMM_SNN_INT8_LEVEL names others that it has: avx512_vnni, avx2 or plain. All give the same
numbers.
"""

import ctypes
import functools
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from . import fixed
from .backend import BackendUnavailable, asked_for, is_followed
from .fixed import LIMIT, FixedConvolution, FixedNeuron
from .layout import as_steps, have_strides, step_strides
from .native.build import LIBRARIES, load_cpp, why_not_built
from .switches import is_exporting

__all__ = ['conv_current', 'conv_lif', 'conv_sums', 'fixed_lif']

_logger = logging.getLogger(__name__)

_SOURCE = Path(__file__).with_name('native') / 'fixed.cpp'
_OPTIONS = LIBRARIES['fixed.cpp'].options
# In the order of fixed.cpp
_LEVELS = ('plain', 'avx2', 'avx512_vnni')
_TYPES = (torch.uint8, torch.int8, torch.int16)
_SUMS, _CURRENTS, _SPIKES = range(3)

# weight -> level and groups, and what kernels read of it, with a hash of the weight, by which they see a change
_packed: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


class _Unit(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ('T', 'N', 'H', 'W', 'C', 'O', 'KH', 'KW', 'SH', 'SW', 'PH', 'PW')),
        ('groups', ctypes.c_int64),
        ('strides', ctypes.c_int64 * 4),
        *((name, ctypes.c_int64) for name in ('x_step', 'x_type', 'pool', 'shift')),
        *((name, ctypes.c_int64) for name in ('leak_shift', 'hard_reset', 'v_reset', 'decay_input', 'threads')),
    )


_Tensors = ctypes.c_void_p * 9


def conv_sums(
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    groups: int = 1,
) -> Tensor:
    """`fixed.conv_sums`. Raises: BackendUnavailable for a named backend that cannot run it."""
    unused = torch.empty(0, dtype=torch.int32)
    conv = FixedConvolution(weight, unused, unused, 1, stride, padding, groups)
    if not _runs(x[None], conv):
        return fixed.conv_sums(x, weight, stride, padding, groups)
    return _convolve(_SUMS, x[None], conv)[0][0]


def conv_current(x: Tensor, conv: FixedConvolution, pool: bool = False) -> Tensor:
    """`fixed.conv_current`. Raises: BackendUnavailable for a named backend that cannot run it."""
    if not _runs(x[None], conv):
        return fixed.conv_current(x, conv, pool)
    return _convolve(_CURRENTS, x[None], conv, pool)[0][0]


def conv_lif(
    x: Tensor,
    v: Tensor | None,
    conv: FixedConvolution,
    threshold: Tensor,
    neuron: FixedNeuron,
    pool: bool = False,
    needs_v: bool = True,
) -> tuple[Tensor, Tensor]:
    """`fixed.conv_lif`, without elements in v if that is not needed. Raises: BackendUnavailable as `conv_current`."""
    if not _runs(x, conv):
        return fixed.conv_lif(x, v, conv, threshold, neuron, pool)
    return _convolve(_SPIKES, x, conv, pool, v, threshold, neuron, needs_v)


def fixed_lif(
    x: Tensor, v: Tensor | None, threshold: Tensor, neuron: FixedNeuron, needs_v: bool = True
) -> tuple[Tensor, Tensor]:
    """`fixed.fixed_lif`, without elements in v if that is not needed. Raises: BackendUnavailable as `conv_current`."""
    channels = threshold.numel()
    if not _is_native(x) or x.numel() == 0 or channels not in (1, x.shape[2]):
        return fixed.fixed_lif(x, v, threshold, neuron)
    if x.dtype != torch.int32:
        x = x.clamp(-LIMIT, LIMIT).to(torch.int32)
    strides = step_strides(x) if channels == 1 else _channels_last(x.shape[1:])
    steps = as_steps(x, strides)
    spikes = torch.empty_strided(x.shape, (steps.shape[1], *strides), dtype=torch.uint8)
    v_first = None if v is None else as_steps(v[None].to(torch.int32), strides)
    v_last = torch.empty_strided(x.shape[1:], strides, dtype=torch.int32) if needs_v else x.new_empty(0)
    unit = _Unit(T=len(x), x_step=steps.stride(0), threads=torch.get_num_threads(), **_settings(neuron))
    threshold = threshold.to(torch.int32).contiguous()
    _library().fire(
        *(ctypes.byref(unit), _address(steps), _address(threshold), channels, _address(v_first), _address(spikes)),
        *(_address(v_last) if needs_v else None, ctypes.c_int64(steps.shape[1]), _level()),
    )
    return spikes, v_last


def _convolve(
    kind: int,
    x: Tensor,
    conv: FixedConvolution,
    pool: bool = False,
    v: Tensor | None = None,
    threshold: Tensor | None = None,
    neuron: FixedNeuron | None = None,
    needs_v: bool = False,
) -> tuple[Tensor, Tensor]:
    """Sums, currents or spikes [T, B, O, H', W'] of x [T, B, C, H, W], and membranes if these are needed."""
    num_steps, n, c, h, w = x.shape
    weight, outputs, kernel = conv.weight, conv.weight.shape[0], conv.weight.shape[2:]
    if not (weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last)):
        weight = weight.contiguous()
    steps = x[:1] if x.stride(0) == 0 else x
    strides = _channels_last(x.shape[1:])
    if not have_strides(x.shape[1:], x.stride()[1:], strides):
        steps = torch.empty_strided(steps.shape, (n * c * h * w, *strides), dtype=x.dtype).copy_(steps)
    size = [
        (length + 2 * p - k) // s + 1 for length, p, k, s in zip((h, w), conv.padding, kernel, conv.stride, strict=True)
    ]
    if pool:
        size = [(length + 1) // 2 for length in size]
    unit = _Unit(
        *(num_steps, n, h, w, c, outputs, *kernel, *conv.stride, *conv.padding, conv.groups),
        *((ctypes.c_int64 * 4)(*weight.stride()), 0 if len(steps) < num_steps else steps.stride(0)),
        *(_TYPES.index(x.dtype), pool, conv.shift),
        **_settings(neuron or FixedNeuron()),
        threads=torch.get_num_threads(),
    )
    level = _level()
    shape = (n, outputs, *size)
    strides = _channels_last(shape)
    y = torch.empty_strided(
        (num_steps, *shape), (n * strides[0], *strides), dtype=torch.uint8 if kind == _SPIKES else torch.int32
    )
    v_last = torch.empty_strided(shape, strides, dtype=torch.int32) if needs_v else y.new_empty(0, dtype=torch.int32)
    if v is not None and not have_strides(v.shape, v.stride(), strides):
        v = torch.empty_strided(shape, strides, dtype=torch.int32).copy_(v)
    if threshold is not None:
        threshold = threshold.to(torch.int32).expand(outputs).contiguous()
    of_sums = kind == _SUMS
    tensors = (
        *(steps, weight, _packed_weight(weight, conv.weight, unit, level)),
        *(None if of_sums else conv.multiplier.contiguous(), None if of_sums else conv.bias.contiguous()),
        *(threshold, v, y, v_last if needs_v else None),
    )
    _library().run(ctypes.byref(unit), _Tensors(*map(_address, tensors)), kind, level)
    return y, v_last


def _runs(x: Tensor, conv: FixedConvolution) -> bool:
    """Whether the kernels take this convolution of x [T, B, C, H, W]. What is wrong is not: torch raises its errors."""
    if not _is_native(x) or x.dtype not in _TYPES or conv.weight.dtype != torch.int8 or x.numel() == 0:
        return False
    outputs, inputs, *kernel = conv.weight.shape
    fits = all(n + 2 * p >= k for n, p, k in zip(x.shape[3:], conv.padding, kernel, strict=True))
    return fits and x.shape[2] == inputs * conv.groups and outputs % conv.groups == 0


def _is_native(x: Tensor) -> bool:
    """Whether C++ runs x. Raises: BackendUnavailable for a named backend that cannot."""
    name, asked_by = asked_for(None)
    if name == 'torch' or is_exporting() or torch.compiler.is_compiling():
        return False
    is_known = name in ('auto', 'cpp')
    reason = _why_not(x) if is_known else "whole numbers run on the backends 'cpp' and 'torch' alone"
    if reason and name != 'auto':
        raise BackendUnavailable(f'LIF backend {name!r}, asked for by {asked_by}, cannot run: {reason}')
    return reason is None


def _why_not(x: Tensor) -> str | None:
    if x.device.type != 'cpu':
        return f'it is for a CPU, got a tensor on {x.device}'
    if is_followed(x):
        return 'something follows the operations, which is blind to C++'
    return _why_not_built()


@functools.cache
def _why_not_built() -> str | None:
    """Why the library cannot be used, tried and said once in a process."""
    if reason := why_not_built(_SOURCE, *_OPTIONS):
        _logger.info('whole numbers are computed by plain torch here: %s', reason)
    return reason


def _library() -> ctypes.CDLL:
    return load_cpp(_SOURCE, *_OPTIONS)


def _level() -> int:
    """The instructions to use. Raises ValueError for others than the CPU has."""
    best = _best_level()
    name = os.environ.get('TIMM_SNN_INT8_LEVEL')
    if not name:
        return best
    if name not in _LEVELS[: best + 1]:
        raise ValueError(f'TIMM_SNN_INT8_LEVEL is {name!r}: this CPU has {", ".join(_LEVELS[: best + 1])}')
    return _LEVELS.index(name)


@functools.cache
def _best_level() -> int:
    return _library().best_level()


def _packed_weight(weight: Tensor, key: Tensor, unit: _Unit, level: int) -> Tensor:
    """Memory for what kernels read of a weight, which they fill, and again after a change."""
    packed = _packed.get(key)
    made_for = (level, unit.groups, weight.stride())
    if packed is None or packed[0] != made_for:
        library = _library()
        library.packed_bytes.restype = ctypes.c_int64
        size = library.packed_bytes(ctypes.byref(unit), level)
        packed = _packed[key] = made_for, torch.zeros(-(-size // 8), dtype=torch.int64)
    return packed[1]


def _settings(neuron: FixedNeuron) -> dict[str, int]:
    return dict(
        leak_shift=-1 if neuron.leak_shift is None else neuron.leak_shift,
        hard_reset=neuron.v_reset is not None,
        v_reset=neuron.v_rest,
        decay_input=neuron.decay_input,
    )


def _channels_last(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of a step [B, C, *spatial] whose channels are together."""
    _, chs, *spatial = shape
    inner, size = [], chs
    for length in reversed(spatial):
        inner.append(size)
        size *= length
    return size, 1, *reversed(inner)


def _address(tensor: Tensor | None) -> ctypes.c_void_p | None:
    return None if tensor is None else ctypes.c_void_p(tensor.data_ptr())
