"""Where x and what comes out of it lie in memory, as kernels find it.

A kernel sees the memory of a step as [rows, C, inner]: a row is a sample and inner its pixels if x is contiguous; a
row is a pixel and inner is 1 in channels_last.
"""

import triton
import triton.language as tl

__all__ = ['pixel_to_memory', 'to_memory', 'to_position', 'window_corner']


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
