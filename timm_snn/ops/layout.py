"""Memory layout of a sequence: one flat vector of neurons per step, whatever the order of axes within a step.

A neuron only looks back in time, so a kernel may see x [T, B, ...] as [T, M] and need not know whether a step is
contiguous or channels_last, nor whether the steps are the same memory (a static image expanded along T).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    'as_steps',
    'ceil_div',
    'channel_strides',
    'dense_strides',
    'empty_steps',
    'from_steps',
    'have_strides',
    'inner_size',
    'step_strides',
]


def step_strides(x: Tensor) -> tuple[int, ...]:
    """Strides of one step of x [T, B, ...] if it is dense in some order of its axes, else those of a contiguous one."""
    return dense_strides(x.shape[1:], x.stride()[1:])


def dense_strides(shape: Sequence[int], strides: tuple[int, ...]) -> tuple[int, ...]:
    """The strides if memory of this shape is dense with them, else those of contiguous memory."""
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(strides, shape, strict=True) if n != 1):
        if stride != expected:
            return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
        expected *= size
    return strides


def channel_strides(x: Tensor) -> tuple[int, ...]:
    """Strides of one step of x [T, B, C, ...] that are contiguous or channels_last, the latter if x has them."""
    strides = step_strides(x)
    chs, *spatial = x.shape[2:]
    size = math.prod(spatial)
    channels_last = x[0].movedim(1, -1).is_contiguous()
    if channels_last and strides == x.stride()[1:]:
        return strides
    inner = [math.prod(spatial[i + 1 :]) for i in range(len(spatial))]
    return chs * size, size, *inner


def inner_size(x: Tensor, strides: tuple[int, ...]) -> int:
    """S of a step of x [T, B, C, ...] as [rows, C, S], for `channel_strides`: the pixels, or 1 in channels_last."""
    return 1 if strides[1] == 1 else math.prod(x.shape[3:])


def empty_steps(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Uninitialised, of the shape of x and with its order of axes, one step after the other."""
    num_neurons = math.prod(x.shape[1:])
    return torch.empty_strided(x.shape, (num_neurons, *step_strides(x)), dtype=dtype or x.dtype, device=x.device)


def as_steps(x: Tensor, strides: tuple[int, ...]) -> Tensor:
    """x [T, B, ...] -> [T, M], M running in memory order of `strides`; a view where x has them, else of a copy."""
    num_steps, num_neurons = x.shape[0], math.prod(x.shape[1:])
    if not have_strides(x.shape[1:], x.stride()[1:], strides):
        x = torch.empty_strided(x.shape, (num_neurons, *strides), dtype=x.dtype, device=x.device).copy_(x)
    return x.as_strided((num_steps, num_neurons), (x.stride(0), 1))


def have_strides(shape: Sequence[int], ours: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether our strides are those wanted, but for axes of one element."""
    return ours == strides or all(a == b for a, b, n in zip(ours, strides, shape, strict=True) if n != 1)


def from_steps(steps: Tensor, x: Tensor, strides: tuple[int, ...]) -> Tensor:
    """[T, M] -> the shape of x [T, B, ...], the inverse of `as_steps`; a view."""
    return steps.as_strided(x.shape, (steps.stride(0), *strides))


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up. Triton's cdiv is one of its kernels' functions, slow to call from the host."""
    return -(-a // b)
