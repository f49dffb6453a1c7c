"""Batch norm, optional max pooling and the neuron in Triton, without writing the currents in between.

    forward    statistics of x per channel; then y = BN(x), pool, neuron in registers: only spikes are written
    backward   y and the membrane again, the neuron's gradient, its sums per channel; then all again, with the sums

Element-wise passes run through memory in blocks. Sums per channel run over tiles of channels and positions, which
layout.py plans, in two stages of fixed order: each program sums its share of the positions, then the shares are added.

With pooling the spikes, their gradient and the gradient of the current live on the pooled grid. The current of each of
its positions comes from one pixel, which `argmax` names by its place in the 3x3 window. So sums run over that grid too,
and a pixel collects the gradient from the windows that cover it, at most four.
"""

import math
from functools import partial
from typing import Any

import torch
import triton
from torch import Tensor

from ...layout import as_steps, ceil_div
from ...neuron import Neuron, membrane_dtype
from ..operator import Operator, empty_membrane, like_tau
from .bn_gradient_kernels import grad_x_kernel, gradient_sums_kernel, unpool_kernel
from .bn_kernels import combine_kernel, fire_kernel, statistics_kernel
from .device import (
    MAX_UNROLL,
    block_size,
    gradient_settings,
    launch,
    neuron_settings,
    step_settings,
    triton_membrane,
)
from .layout import ChannelLayout

__all__ = ['affine_lif', 'affine_pool_lif', 'bn_lif', 'bn_pool_lif']

STATISTICS_TILE, GRADIENT_TILE = 1024, 512  # elements; the gradient holds several values per element and step


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
    layout = ChannelLayout(x, pool)
    spikes = layout.empty_out(x.dtype)
    _fire(layout, spikes, None, (None, None, scale, shift), neuron_settings(neuron, tau, x.dtype))
    return spikes


_affine_lif = Operator('affine_lif_triton', _run_affine)


@_affine_lif.register_fake
def _(x, scale, shift, tau, neuron, pool):
    return ChannelLayout(x, pool).empty_out(x.dtype)


def _run_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    tau: Tensor | None,
    neuron: Neuron,
    eps: float,
    pool: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    layout = ChannelLayout(x, pool)
    mean, var, rstd = _statistics(layout, eps)
    spikes = layout.empty_out(x.dtype)
    argmax = layout.empty_out(torch.uint8) if pool else x.new_empty(0, dtype=torch.uint8)
    norm = (mean, rstd, weight, bias)
    _fire(layout, spikes, argmax if pool else None, norm, neuron_settings(neuron, tau, x.dtype))
    return spikes, mean, var, rstd, argmax


_bn_lif = Operator('bn_lif_triton', _run_forward)


@_bn_lif.register_fake
def _(x, weight, bias, tau, neuron, eps, pool):
    layout = ChannelLayout(x, pool)
    mean, var, rstd = (x.new_empty(x.shape[2], dtype=membrane_dtype(x.dtype)) for _ in range(3))
    argmax = layout.empty_out(torch.uint8) if pool else x.new_empty(0, dtype=torch.uint8)
    return layout.empty_out(x.dtype), mean, var, rstd, argmax


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
    return _gradients(
        ChannelLayout(x, pool), grad_spikes, argmax if pool else None, (mean, rstd, weight, bias), settings
    )


_bn_lif_backward = Operator('bn_lif_triton_backward', _run_backward)


@_bn_lif_backward.register_fake
def _(grad_spikes, x, mean, rstd, argmax, weight, bias, tau, neuron, pool):
    grad_tau = empty_membrane(x) if tau is None else x.new_empty((), dtype=membrane_dtype(x.dtype))
    return ChannelLayout(x, pool).empty_in(x.dtype), mean.new_empty(2, x.shape[2]), grad_tau


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


def _statistics(layout: ChannelLayout, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance and 1/sqrt(variance + eps) of each channel."""
    x, C = layout.x, layout.num_channels
    mean, var, rstd = (x.new_empty(C, dtype=membrane_dtype(x.dtype)) for _ in range(3))
    if x.numel() == 0:
        return mean.fill_(math.nan), var.fill_(math.nan), rstd.fill_(math.nan)
    steps = as_steps(x, layout.strides_in)
    tiles = layout.tiles(STATISTICS_TILE)
    num_positions = layout.num_positions(layout.shape_in)
    num_shares, tiles_each = layout.shares(num_positions, tiles)
    parts = mean.new_empty(num_shares, 2, C)
    launch(
        statistics_kernel,
        (ceil_div(C, tiles['BLOCK_C']), num_shares),
        steps,
        parts,
        num_positions,
        C,
        layout.inner(layout.strides_in),
        steps.stride(0),
        tiles_each,
        **step_settings(x.shape[0]),
        **tiles,
        MEMBRANE=triton_membrane(x.dtype),
        INDEX=layout.index_dtype(),
    )
    launch(
        combine_kernel,
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
    layout: ChannelLayout,
    spikes: Tensor,
    argmax: Tensor | None,
    norm: tuple[Tensor | None, ...],
    neuron: dict[str, Any],
) -> None:
    """Write the spikes, and for the backward pass where each pooled current is from."""
    steps = as_steps(layout.x, layout.strides_in)
    num_neurons = math.prod(layout.shape_out[1:])
    # a window is nine loads, enough to keep in flight: unrolled as well they would take seconds to compile
    unroll = dict(num_steps=layout.x.shape[0], UNROLL=1) if layout.pool else step_settings(layout.x.shape[0])
    block = block_size(spikes.dtype)
    launch(
        fire_kernel,
        ceil_div(num_neurons, block),
        steps,
        spikes,
        argmax,
        *norm,
        num_neurons,
        layout.num_channels,
        layout.inner(layout.strides_out),
        steps.stride(0),
        **layout.windows(),
        **unroll,
        **neuron,
        INDEX=layout.index_dtype(),
        BLOCK=block,
    )


def _gradients(
    layout: ChannelLayout,
    grad_spikes: Tensor,
    argmax: Tensor | None,
    norm: tuple[Tensor | None, ...],
    neuron: dict[str, Any],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, of (bias, weight), and of tau."""
    x, C, num_steps = layout.x, layout.num_channels, layout.x.shape[0]
    dtype = membrane_dtype(x.dtype)
    steps = as_steps(x, layout.strides_in)
    grad_steps = as_steps(grad_spikes, layout.strides_out)
    num_neurons, num_positions = math.prod(layout.shape_out[1:]), layout.num_positions(layout.shape_out)
    tiles = layout.tiles(GRADIENT_TILE)
    num_shares, tiles_each = layout.shares(num_positions, tiles)
    num_programs = (ceil_div(C, tiles['BLOCK_C']), num_shares)
    learned = neuron['tau_ptr'] is not None
    chunks = ceil_div(num_steps, MAX_UNROLL)

    parts = x.new_empty(num_shares, 2, C, dtype=dtype)
    grad_y = layout.empty_out(dtype) if layout.pool else None
    grad_tau = x.new_empty(math.prod(num_programs) if learned else 0, dtype=dtype)
    starts = x.new_empty(chunks, num_neurons, dtype=dtype) if chunks > 1 else None
    launch(
        gradient_sums_kernel,
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
        layout.inner(layout.strides_out),
        steps.stride(0),
        grad_steps.stride(0),
        tiles_each,
        **layout.windows(),
        **tiles,
        **step_settings(num_steps),
        **neuron,
        INDEX=layout.index_dtype(),
    )
    sums = parts.sum(0)

    grad_x = layout.empty_in(x.dtype)
    num_inputs, block = math.prod(layout.shape_in[1:]), block_size(x.dtype)
    num_blocks = ceil_div(num_inputs, block)
    count = num_steps * layout.num_positions(layout.shape_in)
    if grad_y is None:
        launch(
            grad_x_kernel,
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
            layout.inner(layout.strides_in),
            steps.stride(0),
            grad_steps.stride(0),
            **step_settings(num_steps),
            **neuron,
            INDEX=layout.index_dtype(),
            BLOCK=block,
        )
    else:
        launch(
            unpool_kernel,
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
            layout.inner(layout.strides_in),
            steps.stride(0),
            layout.height,
            layout.width,
            CHANNELS_LAST=layout.channels_last,
            MEMBRANE=neuron['MEMBRANE'],
            INDEX=layout.index_dtype(),
            BLOCK=block,
        )
    return grad_x, sums, grad_tau.sum() if learned else grad_tau
