"""Convolutions that do the work of spikes alone, on a CPU: a zero costs nothing.

Most inputs of a trained spiking network's convolutions are zero. A dense convolution multiplies them all; this one adds
the weights of those that are not, in the forward pass and in the gradient of the weights, as neuromorphic hardware
does. The arithmetic is that of `sparse_conv.cpp`; the reference is `torch.nn.functional.conv2d`.
"""

import ctypes
import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .backend import BackendUnavailable, asked_for, is_followed
from .backends.operator import Operator
from .layout import ceil_div
from .native.build import LIBRARIES, load_cpp, why_not_built
from .switches import switched, switches

__all__ = ['conv2d', 'sparse_spikes']

_logger = logging.getLogger(__name__)

_SOURCE = Path(__file__).with_name('native') / 'sparse_conv.cpp'
_OPTIONS = LIBRARIES['sparse_conv.cpp'].options
_NAMES = {torch.float32: 'float32', torch.bfloat16: 'bfloat16', torch.float64: 'float64'}
# Densities up to which skipping zeros was faster than torch: kernels of one tap, of several. Those of AVX-512 are by
# benchmarks/sparse_conv.py, of 128 channels and more; dense convolutions in float32 are faster there. A CPU with AMX,
# which has faster ones in bfloat16, was not measured.
_AVX2 = {'forward': (0.35, 0.5), 'weight_gradient': (0.25, 0.9)}
_AVX512 = {
    torch.float32: {'forward': (0.1, 0.25), 'weight_gradient': (0.05, 0.25)},
    torch.bfloat16: {'forward': (0.3, 0.6), 'weight_gradient': (0.3, 0.6)},
}
_CAPABILITY = torch.backends.cpu.get_cpu_capability()
_BREAK_EVEN = {dtype: _AVX512.get(dtype, _AVX2) if 'AVX512' in _CAPABILITY else _AVX2 for dtype in _NAMES}
_BLOCK = 32  # outputs that are summed together
_SAMPLE = 61  # every so many numbers are looked at for the density; a prime, so that no channel is left out
# torch's bfloat16 convolutions take many times as long as float32 ones on a CPU without AVX-512.
_SLOW_BFLOAT16 = _CAPABILITY in ('AVX2', 'DEFAULT')

# frozen weight -> what it was made from, and what kernels read, None if that is not finite. Laying weights out takes
# as long as a small model's forward pass. A version counter misses changes through `.data`, so their bits are compared.
_packed: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


@contextmanager
def sparse_spikes(max_density: float | None = None, *, enabled: bool = True) -> Iterator[None]:
    """Convolutions of the models inside the block skip zeros, on a CPU: the same sums, in another order.

        with torch.inference_mode(), timm_snn.ops.sparse_spikes():
            logits = model(images)

    Outside of any block, the models of `timm_snn.fuse` skip zeros where they can, unless the backend 'torch' is named,
    and no others do. `enabled=False` keeps them dense too.

    In training the gradient of the weights skips them as well; that of the input is a dense convolution as before. Time
    is then nearly proportional to the firing rates, so this pays for trained networks, the more the fewer spikes there
    are. Convolutions stay dense where it would not: with groups, dilated, with a stride and a kernel larger than 1, and
    where a sample of the input has more nonzeros than `max_density`, such as an image. By default that is the density
    up to which it was measured to be faster, 0.05 to 0.9 by kernel size, pass, dtype and CPU.

    Takes float32, bfloat16 and float64, summed in float32 or float64, and leaves maps channels_last. The C++ is built
    at the first block, for some seconds, and kept in the user's cache.

    Raises: ValueError unless 0 <= max_density <= 1; BackendUnavailable where it cannot be built and kept, or for input
    in float16 or on another device. With `enabled=False` nothing is built.
    """
    if isinstance(max_density, bool):
        raise ValueError(f'sparse_spikes got max_density={max_density}: enabled={max_density} turns it on or off')
    if max_density is not None and not 0 <= max_density <= 1:
        raise ValueError(f'sparse_spikes needs 0 <= max_density <= 1, got {max_density}')
    if enabled and (reason := why_not_built(_SOURCE, *_OPTIONS)):
        raise BackendUnavailable(f'sparse_spikes cannot run here: {reason}')
    with switched(skips_zeros=enabled, max_density=max_density):
        yield


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    groups: int,
    skips_zeros: bool = False,
    dilation: tuple[int, int] = (1, 1),
) -> Tensor:
    """`torch.nn.functional.conv2d`, or inside `sparse_spikes` what that promises. Shapes and errors: as those.

    `skips_zeros` does the same outside of any block, where that is possible: it passes over what a block refuses.
    """
    if torch.jit.is_scripting() or not _skips_zeros(x, weight, stride, padding, dilation, groups, skips_zeros):
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    return _conv_of_spikes(x, weight, bias, stride, padding)


@torch.jit.unused
def _skips_zeros(
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    by_default: bool,
) -> bool:
    """Whether this is a case for the kernels. What is wrong is not: torch raises its errors."""
    asked = switches().skips_zeros
    if asked is False or (asked is None and not (by_default and _can_skip(x))):
        return False
    if groups != 1 or max(dilation) > 1 or x.ndim != 4 or x.shape[1] != weight.shape[1]:
        return False
    if x.dtype != weight.dtype and not torch.is_autocast_enabled('cpu'):
        return False
    kernel = weight.shape[2:]
    if any(n + 2 * p < k for n, p, k in zip(x.shape[2:], padding, kernel, strict=True)):
        return False
    point_wise = max(kernel) == 1 and max(padding) == 0
    fits = weight.shape[1] < 2**16 and max(kernel) < 64  # positions are kept in 16 bits
    return (max(stride) == 1 or point_wise) and fits


def _can_skip(x: Tensor) -> bool:
    """Whether `_conv_of_spikes` takes x here. Whoever names the backend 'torch' wants that alone, and nothing built."""
    if asked_for(None)[0] == 'torch' or (not torch.compiler.is_compiling() and is_followed(x)):
        return False
    return x.device.type == 'cpu' and _dtype_of(x) in _NAMES and _is_built()


@torch.compiler.assume_constant_result  # torch.compile runs it instead of tracing it
def _is_built() -> bool:
    return _why_not_built() is None


@functools.cache
def _why_not_built() -> str | None:
    """Why the library cannot be used, tried and said once in a process."""
    if reason := why_not_built(_SOURCE, *_OPTIONS):
        _logger.info('convolutions do not skip zeros here: %s', reason)
    return reason


def _dtype_of(x: Tensor) -> torch.dtype:
    """What a convolution of x is asked for in."""
    return torch.get_autocast_dtype('cpu') if torch.is_autocast_enabled('cpu') else x.dtype


@torch.jit.unused
def _conv_of_spikes(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    dtype = _dtype_of(x)
    if x.device.type != 'cpu' or dtype not in _NAMES:
        raise BackendUnavailable(
            f'sparse_spikes takes float32, bfloat16 and float64 on a CPU, got {dtype} on {x.device}: leave it out there'
        )
    x = x[:, :, :: stride[0], :: stride[1]].to(dtype)
    return _conv(x, weight, bias, *padding, switches().max_density)


def _run_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, pad_h: int, pad_w: int, max_density: float | None
) -> Tensor:
    """Weights of another dtype are rounded to that of x, as under autocast."""
    x = x.contiguous(memory_format=torch.channels_last)
    rows = _packed_weight(weight, x) if _is_sparse(x, weight, 'forward', max_density) else None
    if rows is None:
        dtype = _dense_dtype(x)
        bias = None if bias is None else bias.to(x.dtype).to(dtype)
        y = F.conv2d(x.to(dtype), weight.to(x.dtype).to(dtype), bias, padding=(pad_h, pad_w))
        return y.to(x.dtype, memory_format=torch.channels_last)
    y = _empty_output(x, weight, pad_h, pad_w)
    offset = rows.new_zeros(rows.shape[0] * rows.shape[-1])
    if bias is not None:
        offset[: len(bias)] = bias.to(x.dtype)
    _call('forward', x, weight, (pad_h, pad_w), x, rows, offset, y)
    return y


_conv = Operator('sparse_conv', _run_forward)


@_conv.register_fake
def _(x, weight, bias, pad_h, pad_w, max_density):
    return _empty_output(x, weight, pad_h, pad_w)


def _run_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    pad_h: int,
    pad_w: int,
    needs_x: bool,
    needs_weight: bool,
    max_density: float | None,
) -> tuple[Tensor, Tensor]:
    """The gradients of x, in its dtype, and of the weight, in that of the weight; without elements if not needed."""
    x, grad = (t.contiguous(memory_format=torch.channels_last) for t in (x, grad))
    sparse = needs_weight and _is_sparse(x, weight, 'weight_gradient', max_density)
    wanted = (needs_x, needs_weight and not sparse, False)
    grad_x: Any = None
    grad_weight: Any = None
    if any(wanted):
        dtype = _dense_dtype(x)
        operands = (t.to(x.dtype).to(dtype) for t in (grad, x, weight))
        settings = ((1, 1), (pad_h, pad_w), (1, 1), False, (0, 0), 1)  # stride, padding, dilation, no transpose, groups
        grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(*operands, None, *settings, wanted)
    if sparse:
        grad_weight = torch.empty_like(weight, dtype=_sum_dtype(x.dtype))
        _call('weight_gradient', x, grad_weight, (pad_h, pad_w), x, grad, grad_weight)
    grad_x = grad_x if needs_x else x.new_empty(0)
    grad_weight = grad_weight if needs_weight else weight.new_empty(0)
    return grad_x.to(x.dtype), grad_weight.to(weight.dtype)


_conv_backward = Operator('sparse_conv_backward', _run_backward)


@_conv_backward.register_fake
def _(grad, x, weight, pad_h, pad_w, needs_x, needs_weight, max_density):
    return torch.empty_like(x) if needs_x else x.new_empty(0), (
        torch.empty_like(weight) if needs_weight else weight.new_empty(0)
    )


def _setup_context(ctx, inputs, output) -> None:
    x, weight, bias, *ctx.settings = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(x, weight)


def _backward(ctx, grad):
    x, weight = ctx.saved_tensors
    *padding, max_density = ctx.settings
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    grad_x, grad_weight = _conv_backward(grad, x, weight, *padding, needs_x, needs_weight, max_density)
    return (
        grad_x if needs_x else None,
        grad_weight if needs_weight else None,
        grad.sum([0, 2, 3], dtype=ctx.bias_dtype) if needs_bias else None,
        *[None] * len(ctx.settings),
    )


_conv.register_autograd(_backward, setup_context=_setup_context)


def _is_sparse(x: Tensor, weight: Tensor, what: str, max_density: float | None) -> bool:
    """Whether so few of a sample of x [N, C, H, W], channels_last, are nonzero that zeros are skipped."""
    if max_density is None:
        max_density = _BREAK_EVEN[x.dtype][what][weight[0, 0].numel() > 1]
    numbers = x.permute(0, 2, 3, 1).reshape(-1)
    sample = numbers[::_SAMPLE] if len(numbers) > _SAMPLE**2 else numbers
    return len(sample) > 0 and int(sample.count_nonzero()) <= max_density * len(sample)


def _dense_dtype(x: Tensor) -> torch.dtype:
    """What a dense convolution of x is computed in."""
    return torch.float32 if _SLOW_BFLOAT16 and x.dtype == torch.bfloat16 else x.dtype


def _call(name: str, x: Tensor, weight: Tensor, padding: tuple[int, int], *tensors: Tensor) -> Any:
    """What a function of sparse_conv.cpp returns for these tensors, and x and a weight of these shapes and strides."""
    n, c, h, w = x.shape
    o, _, *kernel = weight.shape
    shape = (ctypes.c_int64 * 13)(n, h, w, c, o, *kernel, *padding, *weight.stride())
    function = getattr(_library(), f'{name}_{_NAMES[x.dtype]}')
    return function(shape, *(ctypes.c_void_p(t.data_ptr()) for t in tensors), torch.get_num_threads())


def _library() -> ctypes.CDLL:
    return load_cpp(_SOURCE, *_OPTIONS)


def _empty_output(x: Tensor, weight: Tensor, pad_h: int, pad_w: int) -> Tensor:
    n, _, h, w = x.shape
    size = (n, weight.shape[0], h + 2 * pad_h - weight.shape[2] + 1, w + 2 * pad_w - weight.shape[3] + 1)
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _packed_weight(weight: Tensor, x: Tensor) -> Tensor | None:
    """[O, C, KH, KW] -> [blocks, KH, KW, C, block], rounded to the dtype of x; frozen ones are kept.

    None if the weight is not finite: to skip a zero is to say that its product is zero, which is NaN then.
    """
    made_from = None if weight.requires_grad else _fingerprint(weight)  # one that is trained changes with every update
    parameter = weight._base if weight._is_view() else weight  # tokens' weights come as a view
    key = (made_from, x.dtype, weight.shape, weight.stride())
    if made_from is not None and parameter in _packed and _packed[parameter][0] == key:
        return _packed[parameter][1]
    o, c, *kernel = weight.shape
    rows = torch.empty(ceil_div(o, _BLOCK), *kernel, c, _BLOCK, dtype=_sum_dtype(x.dtype))
    weight = weight.detach().to(x.dtype)
    finite_rows = rows if _call('pack', x, weight, (0, 0), weight, rows) else None
    if made_from is not None:
        _packed[parameter] = key, finite_rows
    return finite_rows


def _fingerprint(weight: Tensor) -> int | None:
    """A hash of its bits, in the order of memory; None if others lie between them."""
    if not (weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last)):
        return None
    result = ctypes.c_uint64()
    size = ctypes.c_int64(weight.numel() * weight.element_size())
    _library().fingerprint(ctypes.c_void_p(weight.data_ptr()), size, ctypes.byref(result), torch.get_num_threads())
    return result.value
