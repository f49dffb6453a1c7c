"""Kernels of the forward pass of batch norm with the neuron: statistics in two stages, then pooling and spikes."""

import triton
import triton.language as tl

from .device import charge_and_reset, load_tau, reset, spike
from .layout import pixel_to_memory, to_memory, to_position, window_corner

__all__ = ['combine_kernel', 'fire_kernel', 'load_channels', 'statistics_kernel']


@triton.jit
def statistics_kernel(
    x_ptr,  # [T, M]
    parts_ptr,  # [shares, 2, C]: mean, and sum of squared distances from it
    num_positions,
    num_channels,
    inner,
    x_stride: tl.int64,
    tiles_each,
    num_steps,
    MEMBRANE: tl.constexpr,
    INDEX: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    """Sums of x - shift and of its square, where shift is the mean of the program's first tile.

    The variance is the difference of two such sums. It loses few digits however large the mean of x is: the shift is
    the mean of one tile of few, so that the square of its distance from the mean of all is at most as many variances.
    """
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)[:, None]
    first = tl.program_id(1).to(INDEX) * tiles_each * BLOCK_J
    j = first + tl.arange(0, BLOCK_J)[None, :]
    inside = (c < num_channels) & (j < num_positions)
    x = tl.load(x_ptr + to_memory(c, j, num_channels, inner), mask=inside, other=0.0).to(MEMBRANE)
    shift = tl.sum(x, 1)[:, None] / tl.minimum(num_positions - first, BLOCK_J).to(MEMBRANE)

    total = tl.zeros([BLOCK_C, BLOCK_J], MEMBRANE)
    squares = tl.zeros([BLOCK_C, BLOCK_J], MEMBRANE)
    for tile in range(tiles_each):
        j = first + tile * BLOCK_J + tl.arange(0, BLOCK_J)[None, :]
        inside = (c < num_channels) & (j < num_positions)
        m = to_memory(c, j, num_channels, inner)
        for start in range(0, num_steps, UNROLL):
            for i in tl.static_range(UNROLL):
                here = inside & (start + i < num_steps)
                x = tl.load(x_ptr + (start + i) * x_stride + m, mask=here, other=0.0).to(MEMBRANE)
                distance = tl.where(here, x - shift, 0.0)
                total += distance
                squares += distance * distance
    count = tl.minimum(num_positions - first, tiles_each * BLOCK_J).to(MEMBRANE) * num_steps
    off = tl.sum(total, 1)[:, None] / count
    part_ptr = parts_ptr + tl.program_id(1) * 2 * num_channels + c
    tl.store(part_ptr, shift + off, mask=c < num_channels)
    tl.store(part_ptr + num_channels, tl.sum(squares, 1)[:, None] - off * off * count, mask=c < num_channels)


@triton.jit
def combine_kernel(
    parts_ptr,  # [shares, 2, C]
    mean_ptr,  # [C]
    var_ptr,  # [C]
    rstd_ptr,  # [C]
    num_positions,
    num_channels,
    num_shares,
    positions_each,  # the last share may have fewer
    num_steps,
    eps: tl.float64,
    MEMBRANE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_SHARES: tl.constexpr,
):
    """Mean, biased variance and 1/sqrt(variance + eps) of each channel, from the shares of its positions."""
    c = (tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C))[None, :]
    share = tl.arange(0, BLOCK_SHARES)[:, None]
    inside = (c < num_channels) & (share < num_shares)
    part_ptr = parts_ptr + share * 2 * num_channels + c
    means = tl.load(part_ptr, mask=inside, other=0.0)
    squares = tl.load(part_ptr + num_channels, mask=inside, other=0.0)
    num_left = num_positions - share.to(tl.int64) * positions_each
    num_positions = tl.full([], num_positions, MEMBRANE)
    fraction = tl.maximum(tl.minimum(num_left, positions_each), 0).to(MEMBRANE) / num_positions

    mean = tl.sum(means * fraction, 0)[None, :]
    distance = tl.where(inside, means - mean, 0.0)
    var = tl.sum(squares, 0)[None, :] / (num_positions * num_steps)
    var += tl.sum(distance * distance * fraction, 0)[None, :]
    var = tl.where(var < 0, 0.0, var)  # NaN stays, which a maximum loses
    tl.store(mean_ptr + c, mean, mask=c < num_channels)
    tl.store(var_ptr + c, var, mask=c < num_channels)
    tl.store(rstd_ptr + c, 1 / tl.sqrt(var + tl.full([], eps, MEMBRANE)), mask=c < num_channels)


@triton.jit
def fire_kernel(
    x_ptr,  # [T, M of x]
    spikes_ptr,  # [T, M]
    argmax_ptr,  # [T, M], or None if nobody needs it
    mean_ptr,  # [C] or None, as the next three
    rstd_ptr,
    weight_ptr,
    bias_ptr,
    num_neurons: tl.int64,
    num_channels,
    inner,
    x_stride: tl.int64,
    height,
    width,
    num_steps,
    tau_ptr,
    tau: tl.float64,
    v_threshold: tl.float64,
    v_rest: tl.float64,
    HARD_RESET: tl.constexpr,
    DECAY_INPUT: tl.constexpr,
    EXACT_INVERSE: tl.constexpr,
    POOL: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    MEMBRANE: tl.constexpr,
    INDEX: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Spikes of a block of neurons; with POOL the current is the largest in its window, and argmax says where."""
    m = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    inside = m < num_neurons
    c, j = to_position(m, num_channels, inner)
    mean = load_channels(mean_ptr, c, inside, 0.0, MEMBRANE)
    rstd = load_channels(rstd_ptr, c, inside, 1.0, MEMBRANE)
    weight = load_channels(weight_ptr, c, inside, 1.0, MEMBRANE)
    bias = load_channels(bias_ptr, c, inside, 0.0, MEMBRANE)
    tau = load_tau(tau_ptr, tau, MEMBRANE)
    v_threshold = tl.full([], v_threshold, MEMBRANE)
    v_rest = tl.full([], v_rest, MEMBRANE)
    v = tl.zeros([BLOCK], MEMBRANE) + v_rest
    for start in range(0, num_steps, UNROLL):
        ys: tl.tuple = ()
        places: tl.tuple = ()
        for i in tl.static_range(UNROLL):
            here = inside & (start + i < num_steps)
            step_ptr = x_ptr + (start + i) * x_stride
            if POOL:
                b, top, left = window_corner(j, height, width)
                y = tl.full([BLOCK], float('-inf'), MEMBRANE)
                place = tl.full([BLOCK], 4, tl.int32)  # the middle lies inside any image
                for k in tl.static_range(9):
                    h = top + k // 3
                    w = left + k % 3
                    exists = here & (h >= 0) & (h < height) & (w >= 0) & (w < width)
                    pixel = pixel_to_memory(b, c, h, w, num_channels, height, width, CHANNELS_LAST)
                    x = tl.load(step_ptr + pixel, mask=exists, other=0.0).to(MEMBRANE)
                    candidate = (x - mean) * rstd * weight + bias
                    larger = exists & ((candidate > y) | (candidate != candidate))  # NaN is the largest, as in torch
                    y = tl.where(larger, candidate, y)
                    place = tl.where(larger, k, place)
                places += (place,)
            else:
                y = (tl.load(step_ptr + m, mask=here, other=0.0).to(MEMBRANE) - mean) * rstd * weight + bias
            ys += (y,)
        hs, vs = charge_and_reset(ys, v, tau, v_threshold, v_rest, HARD_RESET, DECAY_INPUT, EXACT_INVERSE)
        v = vs[UNROLL]
        for i in tl.static_range(UNROLL):
            here = inside & (start + i < num_steps)
            fires = reset(hs[i], v_threshold, v_rest, HARD_RESET)[0]
            spikes = spike(hs[i], fires).to(spikes_ptr.dtype.element_ty)
            tl.store(spikes_ptr + (start + i) * num_neurons + m, spikes, mask=here)
            if argmax_ptr is not None:
                tl.store(argmax_ptr + (start + i) * num_neurons + m, places[i].to(tl.uint8), mask=here)


@triton.jit
def load_channels(ptr, c, mask, default, MEMBRANE: tl.constexpr):
    """A parameter per channel, or its default if there is none."""
    return tl.load(ptr + c, mask=mask, other=0.0).to(MEMBRANE) if ptr is not None else tl.full([], default, MEMBRANE)
