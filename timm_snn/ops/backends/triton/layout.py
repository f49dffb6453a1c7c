"""Where x and what the neurons give lie in memory: for the host, which plans the work, and for kernels, which index it.

The memory of a step is seen as [rows, C, inner]: a row is a sample and inner its pixels if x is contiguous; a row is a
pixel and inner is 1 in channels_last. A neuron of a channel has a position j = row * inner + its place in inner. Sums
per channel run over tiles [BLOCK_C, BLOCK_J] of channels and positions.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...layout import ceil_div, dense_strides

__all__ = ['ChannelLayout', 'pixel_to_memory', 'to_memory', 'to_position', 'window_corner']

MAX_SHARES, TARGET_PROGRAMS = 512, 2048


class ChannelLayout:
    """The memory of x [T, B, C, ...], that of the spikes, which are fewer with pooling, and how programs share them.

    Args:
        shape, strides: Those of x.
        pool: Whether the spikes are of the pooled grid.
    """

    def __init__(self, shape: torch.Size, strides: tuple[int, ...], pool: bool) -> None:
        self.pool = pool
        self.shape_in = self.shape_out = shape
        self.strides_in = self.strides_out = dense_strides(shape[1:], strides[1:])
        self.num_channels = shape[2]
        self.channels_last = self.strides_in[1] == 1 and self.num_channels > 1
        self.height, self.width = shape[3:] if pool else (1, 1)  # without pooling no kernel asks
        if pool:  # kernels find windows in two orders of axes only
            self.strides_in = self._image_strides(self.height, self.width)
            self.shape_out = torch.Size((*shape[:3], (self.height + 1) // 2, (self.width + 1) // 2))
            self.strides_out = self._image_strides(*self.shape_out[3:])
        self.sequence_in = math.prod(self.shape_in[1:]), *self.strides_in  # strides with those of a step
        self.sequence_out = math.prod(self.shape_out[1:]), *self.strides_out

    def _image_strides(self, H: int, W: int) -> tuple[int, ...]:
        C = self.num_channels
        return (C * H * W, 1, W * C, C) if self.channels_last else (C * H * W, H * W, W, 1)

    def empty_in(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Uninitialised memory for the gradient of x."""
        return x.new_empty_strided(self.shape_in, self.sequence_in, dtype=dtype)

    def empty_out(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Uninitialised memory for a number of each neuron and step."""
        return x.new_empty_strided(self.shape_out, self.sequence_out, dtype=dtype)

    def inner(self, strides: tuple[int, ...]) -> int:
        """Size of the last axis in the memory of a step, [rows, C, inner]."""
        return max(strides[1], 1) if self.num_channels > 1 else 1

    def num_positions(self, shape: torch.Size) -> int:
        """Neurons of a step per channel."""
        return shape[1] * math.prod(shape[3:])

    def index_dtype(self) -> tl.dtype:
        """Dtype of offsets in a step, with room for the last block: division is much faster in 32 bits."""
        return tl.int32 if math.prod(self.shape_in[1:]) < 2**31 - 2**16 else tl.int64

    def windows(self) -> dict[str, Any]:
        """Arguments by which kernels find the windows of pooling."""
        return dict(height=self.height, width=self.width, POOL=self.pool, CHANNELS_LAST=self.channels_last)

    def tiles(self, size: int) -> dict[str, int]:
        """A tile that reads memory in its order: a few channels at each position, or many positions of a channel."""
        channels = min(64, triton.next_power_of_2(self.num_channels)) if self.inner(self.strides_in) == 1 else 1
        return dict(BLOCK_C=channels, BLOCK_J=size // channels)

    def shares(self, num_positions: int, tiles: dict[str, int]) -> tuple[int, int]:
        """How many programs share the positions of a channel, and how many tiles each sums."""
        num_tiles = ceil_div(num_positions, tiles['BLOCK_J'])
        wanted = ceil_div(TARGET_PROGRAMS, ceil_div(self.num_channels, tiles['BLOCK_C']))
        tiles_each = ceil_div(num_tiles, min(MAX_SHARES, wanted))
        return (ceil_div(num_tiles, tiles_each) if tiles_each else 0), tiles_each


@triton.jit
def to_memory(c, j, num_channels, inner):
    """Offset of position j of channel c in the memory of a step, [rows, C, inner]."""
    return (j // inner * num_channels + c) * inner + j % inner


@triton.jit
def to_position(m, num_channels, inner):
    """Channel and position at an offset: the inverse of `to_memory`."""
    return m // inner % num_channels, m // (inner * num_channels) * inner + m % inner


@triton.jit
def pixel_to_memory(b, c, h, w, num_channels, height, width, CHANNELS_LAST: tl.constexpr):
    """Offset of a pixel of x."""
    if CHANNELS_LAST:
        offset = ((b * height + h) * width + w) * num_channels + c
    else:
        offset = ((b * num_channels + c) * height + h) * width + w
    return offset


@triton.jit
def window_corner(j, height, width):
    """Sample, top and left of the 3x3 window at a position of the pooled grid; both may be -1."""
    out_height = (height + 1) // 2
    out_width = (width + 1) // 2
    return j // (out_height * out_width), j // out_width % out_height * 2 - 1, j % out_width * 2 - 1
