"""Batch norm, optional max pooling and the neuron in Triton, without writing the currents in between.

    forward    statistics of x per channel; then y = BN(x), pool, neuron in registers: only spikes are written
    backward   y and the membrane again, the neuron's gradient, its sums per channel; then all again, with the sums

A kernel sees the memory of a step as [rows, C, inner]: a row is a sample and inner its pixels if x is contiguous; a
row is a pixel and inner is 1 in channels_last. Element-wise passes run through memory in blocks. Sums per channel run
over tiles [BLOCK_C, BLOCK_J] of channels and positions, j = row * inner + inner position, in two stages of fixed order:
each program sums its share of the positions, then the shares are added.

With pooling the spikes, their gradient and the current's gradient live on the pooled grid. Each of its positions has
its current from one pixel, which `argmax` names by its place in the 3x3 window, so that sums run over that grid too and
a pixel collects the gradient from the at most four windows that cover it.
"""

import math
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...layout import as_steps, ceil_div, step_strides
from ...neuron import Neuron, membrane_dtype
from ..operator import Operator, empty_membrane, like_tau
from .device import (
    MAX_UNROLL,
    block_size,
    charge_and_reset,
    chunk_backward,
    gradient_settings,
    launch,
    load_tau,
    neuron_settings,
    reset,
    step_settings,
    tau_gradient,
    triton_membrane,
)

__all__ = ['affine_lif', 'affine_pool_lif', 'bn_lif', 'bn_pool_lif']

STATISTICS_TILE, GRADIENT_TILE = 1024, 512  # elements; the gradient holds several values per element and step
MAX_SHARES, TARGET_PROGRAMS = 512, 2048


def bn_lif(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    tau: Tensor | None,
    neuron: Neuron,
    eps: float,
    pool: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Batch norm with the batch's statistics over all axes but C, max pooling 3x3 of stride 2 if asked for, LIF.

    Shape: x [T, B, C, ...] -> spikes [T, B, C, ...] in the dtype of x, with pooling [T, B, C, (H+1)//2, (W+1)//2]; mean
    and biased variance [C] in the membrane's dtype, without a gradient.
    """
    spikes, mean, var, _, _ = _bn_lif(x, weight, bias, tau, neuron, eps, pool)
    return spikes, mean.detach(), var.detach()


def affine_lif(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, tau: Tensor | None, neuron: Neuron, pool: bool = False
) -> Tensor:
    """LIF(pool(x * scale + shift)) for inference, without a gradient; scale and shift [C], or None for x itself.

    Shape: as `bn_lif`.
    """
    return _affine_lif(x, scale, shift, tau, neuron, pool)


bn_pool_lif, affine_pool_lif = partial(bn_lif, pool=True), partial(affine_lif, pool=True)


def _run_affine(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, tau: Tensor | None, neuron: Neuron, pool: bool
) -> Tensor:
    grid = _Grid(x, pool)
    spikes = grid.empty_out(x.dtype)
    _fire(grid, spikes, None, (None, None, scale, shift), neuron_settings(neuron, tau, x.dtype))
    return spikes


_affine_lif = Operator('affine_lif_triton', _run_affine)


@_affine_lif.register_fake
def _(x, scale, shift, tau, neuron, pool):
    return _Grid(x, pool).empty_out(x.dtype)


def _run_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    tau: Tensor | None,
    neuron: Neuron,
    eps: float,
    pool: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    grid = _Grid(x, pool)
    mean, var, rstd = _statistics(grid, eps)
    spikes = grid.empty_out(x.dtype)
    argmax = grid.empty_out(torch.uint8) if pool else x.new_empty(0, dtype=torch.uint8)
    norm = (mean, rstd, weight, bias)
    _fire(grid, spikes, argmax if pool else None, norm, neuron_settings(neuron, tau, x.dtype))
    return spikes, mean, var, rstd, argmax


_bn_lif = Operator('bn_lif_triton', _run_forward)


@_bn_lif.register_fake
def _(x, weight, bias, tau, neuron, eps, pool):
    grid = _Grid(x, pool)
    mean, var, rstd = (x.new_empty(x.shape[2], dtype=membrane_dtype(x.dtype)) for _ in range(3))
    argmax = grid.empty_out(torch.uint8) if pool else x.new_empty(0, dtype=torch.uint8)
    return grid.empty_out(x.dtype), mean, var, rstd, argmax


def _run_backward(
    grad_spikes: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    argmax: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    tau: Tensor | None,
    neuron: Neuron,
    pool: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, of (bias, weight) as one tensor [2, C], and of tau."""
    settings = {**neuron_settings(neuron, tau, x.dtype), **gradient_settings(neuron)}
    return _gradients(_Grid(x, pool), grad_spikes, argmax if pool else None, (mean, rstd, weight, bias), settings)


_bn_lif_backward = Operator('bn_lif_triton_backward', _run_backward)


@_bn_lif_backward.register_fake
def _(grad_spikes, x, mean, rstd, argmax, weight, bias, tau, neuron, pool):
    grad_tau = empty_membrane(x) if tau is None else x.new_empty((), dtype=membrane_dtype(x.dtype))
    return _Grid(x, pool).empty_in(x.dtype), mean.new_empty(2, x.shape[2]), grad_tau


def _setup_context(ctx, inputs, output) -> None:
    x, weight, bias, tau, ctx.neuron, _, ctx.pool = inputs
    _, mean, _, rstd, argmax = output
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # four kernels to write zeros that nobody reads
    ctx.save_for_backward(x, mean, rstd, argmax, weight, bias, tau)


def _backward(ctx, grad_spikes, *_):
    *saved, weight, bias, tau = ctx.saved_tensors
    grad_x, grad_affine, grad_tau = _bn_lif_backward(grad_spikes, *saved, weight, bias, tau, ctx.neuron, ctx.pool)
    return (
        grad_x,
        None if weight is None else grad_affine[1].to(weight.dtype),
        None if bias is None else grad_affine[0].to(bias.dtype),
        like_tau(grad_tau, tau),
        *[None] * 3,
    )


_bn_lif.register_autograd(_backward, setup_context=_setup_context)


class _Grid:
    """Where x [T, B, C, ...] and what comes out of it lie in memory."""

    def __init__(self, x: Tensor, pool: bool) -> None:
        self.x, self.pool = x, pool
        self.shape_in = self.shape_out = x.shape
        self.strides_in = self.strides_out = step_strides(x)
        self.num_channels = x.shape[2]
        self.channels_last = self.strides_in[1] == 1 and self.num_channels > 1
        self.height, self.width = x.shape[3:] if pool else (1, 1)  # otherwise not needed
        if pool:  # windows are found in two orders of axes only
            self.strides_in = self._image_strides(self.height, self.width)
            self.shape_out = torch.Size((*x.shape[:3], (self.height + 1) // 2, (self.width + 1) // 2))
            self.strides_out = self._image_strides(*self.shape_out[3:])

    def _image_strides(self, H: int, W: int) -> tuple[int, ...]:
        C = self.num_channels
        return (C * H * W, 1, W * C, C) if self.channels_last else (C * H * W, H * W, W, 1)

    def empty_in(self, dtype: torch.dtype) -> Tensor:
        """Uninitialised, for the gradient of x."""
        return self._empty(self.shape_in, self.strides_in, dtype)

    def empty_out(self, dtype: torch.dtype) -> Tensor:
        """Uninitialised, for what the neurons give."""
        return self._empty(self.shape_out, self.strides_out, dtype)

    def _empty(self, shape: torch.Size, strides: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        strides = (math.prod(shape[1:]), *strides)
        return torch.empty_strided(shape, strides, dtype=dtype, device=self.x.device)

    def inner(self, strides: tuple[int, ...]) -> int:
        """Of the memory of a step as [rows, C, inner]."""
        return max(strides[1], 1) if self.num_channels > 1 else 1

    def num_positions(self, shape: torch.Size) -> int:
        """Neurons of a step per channel."""
        return shape[1] * math.prod(shape[3:])

    def index(self) -> tl.dtype:
        """Of a neuron in a step, with room for a last block; division is much faster in 32 bits."""
        return tl.int32 if math.prod(self.shape_in[1:]) < 2**31 - 2**16 else tl.int64

    def windows(self) -> dict[str, Any]:
        """What kernels need to find windows."""
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


def _statistics(grid: _Grid, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance and 1/sqrt(variance + eps) of each channel."""
    x, C = grid.x, grid.num_channels
    mean, var, rstd = (x.new_empty(C, dtype=membrane_dtype(x.dtype)) for _ in range(3))
    if x.numel() == 0:
        return mean.fill_(math.nan), var.fill_(math.nan), rstd.fill_(math.nan)
    steps = as_steps(x, grid.strides_in)
    tiles = grid.tiles(STATISTICS_TILE)
    num_positions = grid.num_positions(grid.shape_in)
    num_shares, tiles_each = grid.shares(num_positions, tiles)
    parts = mean.new_empty(num_shares, 2, C)
    launch(
        _statistics_kernel,
        (ceil_div(C, tiles['BLOCK_C']), num_shares),
        steps,
        parts,
        num_positions,
        C,
        grid.inner(grid.strides_in),
        steps.stride(0),
        tiles_each,
        **step_settings(x.shape[0]),
        **tiles,
        MEMBRANE=triton_membrane(x.dtype),
        INDEX=grid.index(),
    )
    launch(
        _combine_kernel,
        ceil_div(C, 16),
        parts,
        mean,
        var,
        rstd,
        num_positions,
        C,
        num_shares,
        tiles_each * tiles['BLOCK_J'],
        x.shape[0],
        eps,
        MEMBRANE=triton_membrane(x.dtype),
        BLOCK_C=16,
        BLOCK_SHARES=triton.next_power_of_2(num_shares),
    )
    return mean, var, rstd


def _fire(
    grid: _Grid, spikes: Tensor, argmax: Tensor | None, norm: tuple[Tensor | None, ...], neuron: dict[str, Any]
) -> None:
    """Write the spikes, and for the backward pass where each pooled current is from."""
    steps = as_steps(grid.x, grid.strides_in)
    num_neurons = math.prod(grid.shape_out[1:])
    # a window is nine loads, enough to keep in flight: unrolled as well they would take seconds to compile
    unroll = dict(num_steps=grid.x.shape[0], UNROLL=1) if grid.pool else step_settings(grid.x.shape[0])
    block = block_size(spikes.dtype)
    launch(
        _fire_kernel,
        ceil_div(num_neurons, block),
        steps,
        spikes,
        argmax,
        *norm,
        num_neurons,
        grid.num_channels,
        grid.inner(grid.strides_out),
        steps.stride(0),
        **grid.windows(),
        **unroll,
        **neuron,
        INDEX=grid.index(),
        BLOCK=block,
    )


def _gradients(
    grid: _Grid,
    grad_spikes: Tensor,
    argmax: Tensor | None,
    norm: tuple[Tensor | None, ...],
    neuron: dict[str, Any],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, of (bias, weight), and of tau."""
    x, C, num_steps = grid.x, grid.num_channels, grid.x.shape[0]
    dtype = membrane_dtype(x.dtype)
    steps = as_steps(x, grid.strides_in)
    grad_steps = as_steps(grad_spikes, grid.strides_out)
    num_neurons, num_positions = math.prod(grid.shape_out[1:]), grid.num_positions(grid.shape_out)
    tiles = grid.tiles(GRADIENT_TILE)
    num_shares, tiles_each = grid.shares(num_positions, tiles)
    num_programs = (ceil_div(C, tiles['BLOCK_C']), num_shares)
    learned = neuron['tau_ptr'] is not None
    chunks = ceil_div(num_steps, MAX_UNROLL)

    parts = x.new_empty(num_shares, 2, C, dtype=dtype)
    grad_y = grid.empty_out(dtype) if grid.pool else None
    grad_tau = x.new_empty(math.prod(num_programs) if learned else 0, dtype=dtype)
    starts = x.new_empty(chunks, num_neurons, dtype=dtype) if chunks > 1 else None
    launch(
        _gradient_sums_kernel,
        num_programs,
        steps,
        grad_steps,
        argmax,
        *norm,
        parts,
        grad_y,
        grad_tau if learned else None,
        starts,
        num_neurons,
        num_positions,
        C,
        grid.inner(grid.strides_out),
        steps.stride(0),
        grad_steps.stride(0),
        tiles_each,
        **grid.windows(),
        **tiles,
        **step_settings(num_steps),
        **neuron,
        INDEX=grid.index(),
    )
    sums = parts.sum(0)

    grad_x = grid.empty_in(x.dtype)
    num_inputs, block = math.prod(grid.shape_in[1:]), block_size(x.dtype)
    num_blocks = ceil_div(num_inputs, block)
    count = num_steps * grid.num_positions(grid.shape_in)
    if grad_y is None:
        launch(
            _grad_x_kernel,
            num_blocks,
            steps,
            grad_steps,
            grad_x,
            *norm,
            sums,
            starts,
            float(count),
            num_inputs,
            C,
            grid.inner(grid.strides_in),
            steps.stride(0),
            grad_steps.stride(0),
            **step_settings(num_steps),
            **neuron,
            INDEX=grid.index(),
            BLOCK=block,
        )
    else:
        launch(
            _unpool_kernel,
            (num_blocks, num_steps),
            steps,
            grad_y,
            argmax,
            grad_x,
            *norm[:3],
            sums,
            float(count),
            num_inputs,
            num_neurons,
            C,
            grid.inner(grid.strides_in),
            steps.stride(0),
            grid.height,
            grid.width,
            CHANNELS_LAST=grid.channels_last,
            MEMBRANE=neuron['MEMBRANE'],
            INDEX=grid.index(),
            BLOCK=block,
        )
    return grad_x, sums, grad_tau.sum() if learned else grad_tau


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


@triton.jit
def load_channels(ptr, c, mask, default, MEMBRANE: tl.constexpr):
    """A parameter per channel, or its default if there is none."""
    return tl.load(ptr + c, mask=mask, other=0.0).to(MEMBRANE) if ptr is not None else tl.full([], default, MEMBRANE)


@triton.jit
def load_xhat(
    x_ptr,
    argmax_ptr,
    m,
    c,
    j,
    mask,
    mean,
    rstd,
    num_channels,
    height,
    width,
    CHANNELS_LAST: tl.constexpr,
    MEMBRANE: tl.constexpr,
):
    """The normalised x that a neuron's current is from: its own, or that of the pixel that argmax names."""
    offset = m
    if argmax_ptr is not None:
        place = tl.load(argmax_ptr + m, mask=mask, other=4).to(m.dtype)
        b, top, left = window_corner(j, height, width)
        offset = pixel_to_memory(b, c, top + place // 3, left + place % 3, num_channels, height, width, CHANNELS_LAST)
    return (tl.load(x_ptr + offset, mask=mask, other=0.0).to(MEMBRANE) - mean) * rstd


@triton.jit
def _statistics_kernel(
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
def _combine_kernel(
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
    var = tl.maximum(var + tl.sum(distance * distance * fraction, 0)[None, :], 0.0)
    tl.store(mean_ptr + c, mean, mask=c < num_channels)
    tl.store(var_ptr + c, var, mask=c < num_channels)
    tl.store(rstd_ptr + c, 1 / tl.sqrt(var + tl.full([], eps, MEMBRANE)), mask=c < num_channels)


@triton.jit
def _fire_kernel(
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
                    larger = exists & (candidate > y)
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
            spikes = fires.to(tl.float32).to(spikes_ptr.dtype.element_ty)
            tl.store(spikes_ptr + (start + i) * num_neurons + m, spikes, mask=here)
            if argmax_ptr is not None:
                tl.store(argmax_ptr + (start + i) * num_neurons + m, places[i].to(tl.uint8), mask=here)


@triton.jit
def _gradient_sums_kernel(
    x_ptr,  # [T, M of x]
    grad_spikes_ptr,  # [T, M]
    argmax_ptr,  # [T, M] with POOL, else None
    mean_ptr,  # [C]
    rstd_ptr,  # [C]
    weight_ptr,  # [C] or None
    bias_ptr,  # [C] or None
    parts_ptr,  # [shares, 2, C]: sums of grad_y and of grad_y * xhat
    grad_y_ptr,  # [T, M] with POOL, else None
    grad_tau_ptr,  # [programs] or None
    starts_ptr,  # [chunks, M], membrane at the start of each chunk; None if there is one chunk
    num_neurons: tl.int64,
    num_positions,
    num_channels,
    inner,
    x_stride: tl.int64,
    grad_spikes_stride: tl.int64,
    tiles_each,
    height,
    width,
    num_steps,
    tau_ptr,
    tau: tl.float64,
    v_threshold: tl.float64,
    v_rest: tl.float64,
    alpha: tl.float64,
    HARD_RESET: tl.constexpr,
    DECAY_INPUT: tl.constexpr,
    EXACT_INVERSE: tl.constexpr,
    SURROGATE: tl.constexpr,
    DETACH_RESET: tl.constexpr,
    POOL: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    MEMBRANE: tl.constexpr,
    INDEX: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)[:, None]
    mean = load_channels(mean_ptr, c, c < num_channels, 0.0, MEMBRANE)
    rstd = load_channels(rstd_ptr, c, c < num_channels, 1.0, MEMBRANE)
    weight = load_channels(weight_ptr, c, c < num_channels, 1.0, MEMBRANE)
    bias = load_channels(bias_ptr, c, c < num_channels, 0.0, MEMBRANE)
    tau = load_tau(tau_ptr, tau, MEMBRANE)
    v_threshold = tl.full([], v_threshold, MEMBRANE)
    v_rest = tl.full([], v_rest, MEMBRANE)
    alpha = tl.full([], alpha, MEMBRANE)

    total = tl.zeros([BLOCK_C, BLOCK_J], MEMBRANE)
    total_xhat = tl.zeros([BLOCK_C, BLOCK_J], MEMBRANE)
    grad_tau = tl.zeros([BLOCK_C, BLOCK_J], MEMBRANE)
    for tile in range(tiles_each):
        j = (tl.program_id(1).to(INDEX) * tiles_each + tile) * BLOCK_J + tl.arange(0, BLOCK_J)[None, :]
        inside = (c < num_channels) & (j < num_positions)
        m = to_memory(c, j, num_channels, inner)
        v = tl.zeros([BLOCK_C, BLOCK_J], MEMBRANE) + v_rest
        if starts_ptr is not None:
            for start in range(0, num_steps, UNROLL):
                tl.store(starts_ptr + start // UNROLL * num_neurons + m, v, mask=inside)
                currents: tl.tuple = ()
                for i in tl.static_range(UNROLL):
                    here = inside & (start + i < num_steps)
                    x_step = x_ptr + (start + i) * x_stride
                    argmax_step = argmax_ptr + (start + i) * num_neurons if POOL else None
                    xhat = load_xhat(
                        x_step, argmax_step, m, c, j, here, mean, rstd, num_channels, height, width, CHANNELS_LAST,
                        MEMBRANE,
                    )  # fmt: skip
                    currents += (xhat * weight + bias,)
                v = charge_and_reset(currents, v, tau, v_threshold, v_rest, HARD_RESET, DECAY_INPUT, EXACT_INVERSE)[1][
                    UNROLL
                ]
            tl.debug_barrier()  # another thread may load what this one has stored

        grad_v = tl.zeros([BLOCK_C, BLOCK_J], MEMBRANE)
        for end in range(0, num_steps, UNROLL):  # counted from the last chunk
            start = (num_steps - 1) // UNROLL * UNROLL - end
            if starts_ptr is not None:
                v = tl.load(starts_ptr + start // UNROLL * num_neurons + m, mask=inside, other=0.0)
            xhats: tl.tuple = ()
            ys: tl.tuple = ()
            grads: tl.tuple = ()
            for i in tl.static_range(UNROLL):
                here = inside & (start + i < num_steps)
                x_step = x_ptr + (start + i) * x_stride
                argmax_step = argmax_ptr + (start + i) * num_neurons if POOL else None
                xhat = load_xhat(
                    x_step, argmax_step, m, c, j, here, mean, rstd, num_channels, height, width, CHANNELS_LAST, MEMBRANE
                )
                xhats += (xhat,)
                ys += (xhat * weight + bias,)
                grad_ptr = grad_spikes_ptr + (start + i) * grad_spikes_stride + m
                grads += (tl.load(grad_ptr, mask=here, other=0.0).to(MEMBRANE),)
            hs, vs = charge_and_reset(ys, v, tau, v_threshold, v_rest, HARD_RESET, DECAY_INPUT, EXACT_INVERSE)
            grad_hs, grad_ys, grad_v = chunk_backward(
                grads, grad_v, hs, num_steps - start, tau, v_threshold, v_rest, alpha,
                HARD_RESET, DECAY_INPUT, EXACT_INVERSE, SURROGATE, DETACH_RESET,
            )  # fmt: skip
            for i in tl.static_range(UNROLL):
                total += grad_ys[i]
                total_xhat += grad_ys[i] * xhats[i]
                if grad_y_ptr is not None:
                    here = inside & (start + i < num_steps)
                    tl.store(grad_y_ptr + (start + i) * num_neurons + m, grad_ys[i], mask=here)
                if grad_tau_ptr is not None:
                    grad_tau += tau_gradient(grad_hs[i], hs[i], vs[i], tau, v_rest, DECAY_INPUT)
    part_ptr = parts_ptr + tl.program_id(1) * 2 * num_channels + c
    tl.store(part_ptr, tl.sum(total, 1)[:, None], mask=c < num_channels)
    tl.store(part_ptr + num_channels, tl.sum(total_xhat, 1)[:, None], mask=c < num_channels)
    if grad_tau_ptr is not None:
        program = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
        tl.store(grad_tau_ptr + program, tl.sum(tl.sum(grad_tau, 1), 0))


@triton.jit
def _grad_x_kernel(
    x_ptr,  # [T, M]
    grad_spikes_ptr,  # [T, M]
    grad_x_ptr,  # [T, M]
    mean_ptr,  # [C]
    rstd_ptr,  # [C]
    weight_ptr,  # [C] or None
    bias_ptr,  # [C] or None
    sums_ptr,  # [2, C], of grad_y and of grad_y * xhat
    starts_ptr,  # [chunks, M] from _gradient_sums_kernel, or None
    count: tl.float64,  # terms in each sum
    num_neurons: tl.int64,
    num_channels,
    inner,
    x_stride: tl.int64,
    grad_spikes_stride: tl.int64,
    num_steps,
    tau_ptr,
    tau: tl.float64,
    v_threshold: tl.float64,
    v_rest: tl.float64,
    alpha: tl.float64,
    HARD_RESET: tl.constexpr,
    DECAY_INPUT: tl.constexpr,
    EXACT_INVERSE: tl.constexpr,
    SURROGATE: tl.constexpr,
    DETACH_RESET: tl.constexpr,
    MEMBRANE: tl.constexpr,
    INDEX: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    m = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    inside = m < num_neurons
    c = m // inner % num_channels
    mean = load_channels(mean_ptr, c, inside, 0.0, MEMBRANE)
    rstd = load_channels(rstd_ptr, c, inside, 1.0, MEMBRANE)
    weight = load_channels(weight_ptr, c, inside, 1.0, MEMBRANE)
    bias = load_channels(bias_ptr, c, inside, 0.0, MEMBRANE)
    share = 1 / tl.full([], count, MEMBRANE)
    mean_grad = tl.load(sums_ptr + c, mask=inside, other=0.0) * share
    mean_grad_xhat = tl.load(sums_ptr + num_channels + c, mask=inside, other=0.0) * share
    tau = load_tau(tau_ptr, tau, MEMBRANE)
    v_threshold = tl.full([], v_threshold, MEMBRANE)
    v_rest = tl.full([], v_rest, MEMBRANE)
    alpha = tl.full([], alpha, MEMBRANE)

    v = tl.zeros([BLOCK], MEMBRANE) + v_rest
    grad_v = tl.zeros([BLOCK], MEMBRANE)
    for end in range(0, num_steps, UNROLL):  # counted from the last chunk
        start = (num_steps - 1) // UNROLL * UNROLL - end
        if starts_ptr is not None:
            v = tl.load(starts_ptr + start // UNROLL * num_neurons + m, mask=inside, other=0.0)
        xhats: tl.tuple = ()
        ys: tl.tuple = ()
        grads: tl.tuple = ()
        for i in tl.static_range(UNROLL):
            here = inside & (start + i < num_steps)
            x = tl.load(x_ptr + (start + i) * x_stride + m, mask=here, other=0.0).to(MEMBRANE)
            xhats += ((x - mean) * rstd,)
            ys += (xhats[i] * weight + bias,)
            grad_ptr = grad_spikes_ptr + (start + i) * grad_spikes_stride + m
            grads += (tl.load(grad_ptr, mask=here, other=0.0).to(MEMBRANE),)
        hs, _ = charge_and_reset(ys, v, tau, v_threshold, v_rest, HARD_RESET, DECAY_INPUT, EXACT_INVERSE)
        _, grad_ys, grad_v = chunk_backward(
            grads, grad_v, hs, num_steps - start, tau, v_threshold, v_rest, alpha,
            HARD_RESET, DECAY_INPUT, EXACT_INVERSE, SURROGATE, DETACH_RESET,
        )  # fmt: skip
        for i in tl.static_range(UNROLL):
            grad_x = weight * rstd * (grad_ys[i] - mean_grad - xhats[i] * mean_grad_xhat)
            grad_x_ptrs = grad_x_ptr + (start + i) * num_neurons + m
            tl.store(grad_x_ptrs, grad_x.to(grad_x_ptr.dtype.element_ty), mask=inside & (start + i < num_steps))


@triton.jit
def _unpool_kernel(
    x_ptr,  # [T, M of x]
    grad_y_ptr,  # [T, M]
    argmax_ptr,  # [T, M]
    grad_x_ptr,  # [T, M of x]
    mean_ptr,  # [C]
    rstd_ptr,  # [C]
    weight_ptr,  # [C] or None
    sums_ptr,  # [2, C], of grad_y and of grad_y * xhat
    count: tl.float64,  # pixels of a channel, over which batch norm took its means
    num_inputs: tl.int64,
    num_neurons: tl.int64,
    num_channels,
    inner,
    x_stride: tl.int64,
    height,
    width,
    CHANNELS_LAST: tl.constexpr,
    MEMBRANE: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK: tl.constexpr,
):
    m = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    t = tl.program_id(1)
    inside = m < num_inputs
    c, j = to_position(m, num_channels, inner)
    mean = load_channels(mean_ptr, c, inside, 0.0, MEMBRANE)
    rstd = load_channels(rstd_ptr, c, inside, 1.0, MEMBRANE)
    weight = load_channels(weight_ptr, c, inside, 1.0, MEMBRANE)
    share = 1 / tl.full([], count, MEMBRANE)
    mean_grad = tl.load(sums_ptr + c, mask=inside, other=0.0) * share
    mean_grad_xhat = tl.load(sums_ptr + num_channels + c, mask=inside, other=0.0) * share

    b = j // (height * width)
    h = j // width % height
    w = j % width
    out_height = (height + 1) // 2
    out_width = (width + 1) // 2
    grad_y = tl.zeros([BLOCK], MEMBRANE)
    for k in tl.static_range(4):  # an even row lies in one window, an odd one in the next as well; so do columns
        out_h = h // 2 + k // 2
        out_w = w // 2 + k % 2
        covers = inside & (out_h < out_height) & (out_w < out_width)
        place = (h - out_h * 2 + 1) * 3 + w - out_w * 2 + 1
        covers = covers & (h - out_h * 2 >= -1) & (w - out_w * 2 >= -1)
        window = t * num_neurons + pixel_to_memory(
            b, c, out_h, out_w, num_channels, out_height, out_width, CHANNELS_LAST
        )
        routes = covers & (tl.load(argmax_ptr + window, mask=covers, other=9) == place)
        grad_y += tl.load(grad_y_ptr + window, mask=routes, other=0.0)
    xhat = (tl.load(x_ptr + t * x_stride + m, mask=inside, other=0.0).to(MEMBRANE) - mean) * rstd
    grad_x = weight * rstd * (grad_y - mean_grad - xhat * mean_grad_xhat)
    tl.store(grad_x_ptr + t * num_inputs + m, grad_x.to(grad_x_ptr.dtype.element_ty), mask=inside)
