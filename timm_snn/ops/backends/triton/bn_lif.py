"""Batch norm, optional max pooling and the neuron in Triton, without writing the currents in between.

    forward    statistics of x per channel; then y = BN(x), pool, neuron in registers: only spikes are written
    backward   y and the membrane again, the neuron's gradient, its sums per channel; then all again, with the sums

Element-wise passes run through memory in blocks. Sums per channel run over tiles of channels and positions, which
layout.py plans, in two stages of fixed order: each program sums its share of the positions, then the shares are added.

With pooling the spikes, their gradient and the gradient of the current live on the pooled grid. The current of each of
its positions comes from one pixel, which `argmax` names by its place in the 3x3 window. So sums run over that grid too,
and a pixel collects the gradient from the windows that cover it, at most four.

The host bounds small batches, so what depends on shapes and settings alone is derived once for them, in a `_Plan`.
"""

import functools
import math

import torch
import triton
from torch import Tensor

from ...layout import as_steps, ceil_div, have_strides
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
    spikes, statistics, _ = _bn_lif(x, weight, bias, tau, neuron, eps, pool)
    mean, var, _ = statistics.detach().unbind()
    return spikes, mean, var


def affine_lif(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, tau: Tensor | None, neuron: Neuron, pool: bool = False
) -> Tensor:
    """LIF(pool(x * scale + shift)) for inference, without a gradient; scale and shift [C], or None for x itself.

    Shape: as `bn_lif`.
    """
    return _affine_lif(x, scale, shift, tau, neuron, pool)


bn_pool_lif, affine_pool_lif = functools.partial(bn_lif, pool=True), functools.partial(affine_lif, pool=True)


class _Plan:
    """What the passes over x need to know of its memory and of the neuron: the same for all tensors like x.

    Grids are those of the kernels of the same name, and settings what these get by name beside `tau_ptr`.
    """

    def __init__(
        self, shape: torch.Size, strides: tuple[int, ...], dtype: torch.dtype, pool: bool, neuron: Neuron
    ) -> None:
        layout = self.layout = ChannelLayout(shape, strides, pool)
        C = self.num_channels = layout.num_channels
        self.num_steps, self.membrane_dtype = shape[0], membrane_dtype(dtype)
        self.is_dense = have_strides(shape[1:], strides[1:], layout.strides_in)
        self.x_stride = strides[0] if self.is_dense else layout.sequence_in[0]
        self.num_inputs, self.num_neurons = layout.sequence_in[0], layout.sequence_out[0]
        self.num_positions_in = layout.num_positions(layout.shape_in)
        self.num_positions = layout.num_positions(layout.shape_out)
        self.inner_in, self.inner = layout.inner(layout.strides_in), layout.inner(layout.strides_out)
        self.count = float(self.num_steps * self.num_positions_in)
        chunks = ceil_div(self.num_steps, MAX_UNROLL)
        self.starts_shape = (chunks, self.num_neurons) if chunks > 1 else None

        of_steps, index = step_settings(self.num_steps), dict(INDEX=layout.index_dtype())
        of_membrane = dict(MEMBRANE=triton_membrane(dtype))
        of_neuron = neuron_settings(neuron, dtype)
        of_gradient = of_neuron | gradient_settings(neuron)
        block = block_size(dtype)

        tiles = layout.tiles(STATISTICS_TILE)
        self.num_shares, self.tiles_each = layout.shares(self.num_positions_in, tiles)
        self.positions_each = self.tiles_each * tiles['BLOCK_J']
        self.statistics_grid = ceil_div(C, tiles['BLOCK_C']), self.num_shares
        self.statistics_settings = of_steps | tiles | of_membrane | index
        self.combine_grid = (ceil_div(C, 16),)
        self.combine_settings = of_membrane | dict(
            BLOCK_C=16, BLOCK_SHARES=triton.next_power_of_2(max(self.num_shares, 1))
        )

        self.fire_grid = (ceil_div(self.num_neurons, block),)
        # a window is nine loads, enough to keep in flight: unrolled as well they would take seconds to compile
        unroll = dict(num_steps=self.num_steps, UNROLL=1) if pool else of_steps
        self.fire_settings = layout.windows() | unroll | of_neuron | index | dict(BLOCK=block)

        tiles = layout.tiles(GRADIENT_TILE)
        self.num_gradient_shares, self.gradient_tiles_each = layout.shares(self.num_positions, tiles)
        self.sums_grid = ceil_div(C, tiles['BLOCK_C']), self.num_gradient_shares
        self.sums_settings = layout.windows() | tiles | of_steps | of_gradient | index
        self.grad_x_grid = (ceil_div(self.num_inputs, block),)
        self.grad_x_settings = of_steps | of_gradient | index | dict(BLOCK=block)
        self.unpool_grid = *self.grad_x_grid, self.num_steps
        self.unpool_settings = of_membrane | index | dict(CHANNELS_LAST=layout.channels_last, BLOCK=block)

    def sequence(self, x: Tensor) -> Tensor:
        """x, or a copy, with the memory order of `layout.strides_in` within a step."""
        return x if self.is_dense else as_steps(x, self.layout.strides_in)


_plan = functools.lru_cache(maxsize=1024)(_Plan)  # several per unit and size of batch


def _plan_for(x: Tensor, pool: bool, neuron: Neuron) -> _Plan:
    return _plan(x.shape, x.stride(), x.dtype, pool, neuron)


def _run_affine(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, tau: Tensor | None, neuron: Neuron, pool: bool
) -> Tensor:
    plan = _plan_for(x, pool, neuron)
    spikes = plan.layout.empty_out(x, x.dtype)
    _fire(plan, plan.sequence(x), spikes, None, (None, None, scale, shift), tau)
    return spikes


_affine_lif = Operator('affine_lif_triton', _run_affine)


@_affine_lif.register_fake
def _(x, scale, shift, tau, neuron, pool):
    return ChannelLayout(x.shape, x.stride(), pool).empty_out(x, x.dtype)


def _run_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    tau: Tensor | None,
    neuron: Neuron,
    eps: float,
    pool: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Spikes, statistics [3, C] (mean, biased variance and 1/sqrt(variance + eps)), and where pooled currents are from.

    The last is empty without pooling.
    """
    plan = _plan_for(x, pool, neuron)
    steps = plan.sequence(x)
    statistics = _statistics(plan, steps, eps)
    spikes = plan.layout.empty_out(x, x.dtype)
    argmax = plan.layout.empty_out(x, torch.uint8) if pool else x.new_empty(0, dtype=torch.uint8)
    mean, _, rstd = statistics.unbind()
    _fire(plan, steps, spikes, argmax if pool else None, (mean, rstd, weight, bias), tau)
    return spikes, statistics, argmax


_bn_lif = Operator('bn_lif_triton', _run_forward)


@_bn_lif.register_fake
def _(x, weight, bias, tau, neuron, eps, pool):
    layout = ChannelLayout(x.shape, x.stride(), pool)
    statistics = x.new_empty(3, x.shape[2], dtype=membrane_dtype(x.dtype))
    argmax = layout.empty_out(x, torch.uint8) if pool else x.new_empty(0, dtype=torch.uint8)
    return layout.empty_out(x, x.dtype), statistics, argmax


def _run_backward(
    grad_spikes: Tensor,
    x: Tensor,
    statistics: Tensor,
    argmax: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    tau: Tensor | None,
    neuron: Neuron,
    pool: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, of (bias, weight) as one tensor [2, C], and of tau."""
    plan = _plan_for(x, pool, neuron)
    mean, _, rstd = statistics.unbind()
    return _gradients(plan, plan.sequence(x), grad_spikes, argmax if pool else None, (mean, rstd, weight, bias), tau)


_bn_lif_backward = Operator('bn_lif_triton_backward', _run_backward)


@_bn_lif_backward.register_fake
def _(grad_spikes, x, statistics, argmax, weight, bias, tau, neuron, pool):
    grad_tau = empty_membrane(x) if tau is None else x.new_empty((), dtype=membrane_dtype(x.dtype))
    grad_x = ChannelLayout(x.shape, x.stride(), pool).empty_in(x, x.dtype)
    return grad_x, statistics.new_empty(2, x.shape[2]), grad_tau


def _setup_context(ctx, inputs, output) -> None:
    x, weight, bias, tau, ctx.neuron, _, ctx.pool = inputs
    _, statistics, argmax = output
    ctx.mark_non_differentiable(statistics, argmax)
    ctx.set_materialize_grads(False)  # kernels to write zeros that nobody reads
    ctx.save_for_backward(x, statistics, argmax, weight, bias, tau)


def _backward(ctx, grad_spikes, *_):
    *saved, weight, bias, tau = ctx.saved_tensors
    grad_x, grad_affine, grad_tau = _bn_lif_backward(grad_spikes, *saved, weight, bias, tau, ctx.neuron, ctx.pool)
    return (
        grad_x,
        None if weight is None else grad_affine[1].to(weight.dtype),
        None if bias is None else grad_affine[0].to(bias.dtype),
        None if tau is None else like_tau(grad_tau, tau),
        *[None] * 3,
    )


_bn_lif.register_autograd(_backward, setup_context=_setup_context)


def _statistics(plan: _Plan, steps: Tensor, eps: float) -> Tensor:
    """Mean, biased variance and 1/sqrt(variance + eps) of each channel."""
    C = plan.num_channels
    statistics = steps.new_empty(3, C, dtype=plan.membrane_dtype)
    if steps.numel() == 0:
        return statistics.fill_(math.nan)
    parts = statistics.new_empty(plan.num_shares, 2, C)
    launch(
        statistics_kernel,
        plan.statistics_grid,
        steps,
        parts,
        plan.num_positions_in,
        C,
        plan.inner_in,
        plan.x_stride,
        plan.tiles_each,
        **plan.statistics_settings,
    )
    launch(
        combine_kernel,
        plan.combine_grid,
        parts,
        *statistics.unbind(),
        plan.num_positions_in,
        C,
        plan.num_shares,
        plan.positions_each,
        plan.num_steps,
        eps,
        **plan.combine_settings,
    )
    return statistics


def _fire(
    plan: _Plan,
    steps: Tensor,
    spikes: Tensor,
    argmax: Tensor | None,
    norm: tuple[Tensor | None, ...],
    tau: Tensor | None,
) -> None:
    """Write the spikes, and for the backward pass where each pooled current is from."""
    launch(
        fire_kernel,
        plan.fire_grid,
        steps,
        spikes,
        argmax,
        *norm,
        plan.num_neurons,
        plan.num_channels,
        plan.inner,
        plan.x_stride,
        tau_ptr=tau,
        **plan.fire_settings,
    )


def _gradients(
    plan: _Plan,
    steps: Tensor,
    grad_spikes: Tensor,
    argmax: Tensor | None,
    norm: tuple[Tensor | None, ...],
    tau: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, of (bias, weight), and of tau."""
    layout, C, dtype = plan.layout, plan.num_channels, plan.membrane_dtype
    if grad_spikes.stride()[1:] != layout.strides_out:
        grad_spikes = as_steps(grad_spikes, layout.strides_out)
    grad_stride = grad_spikes.stride(0)

    parts = steps.new_empty(plan.num_gradient_shares, 2, C, dtype=dtype)
    grad_y = layout.empty_out(steps, dtype) if argmax is not None else None
    grad_tau = parts.new_empty(0 if tau is None else math.prod(plan.sums_grid))
    starts = None if plan.starts_shape is None else parts.new_empty(plan.starts_shape)
    launch(
        gradient_sums_kernel,
        plan.sums_grid,
        steps,
        grad_spikes,
        argmax,
        *norm,
        parts,
        grad_y,
        None if tau is None else grad_tau,
        starts,
        plan.num_neurons,
        plan.num_positions,
        C,
        plan.inner,
        plan.x_stride,
        grad_stride,
        plan.gradient_tiles_each,
        tau_ptr=tau,
        **plan.sums_settings,
    )
    sums = parts.sum(0)

    grad_x = layout.empty_in(steps, steps.dtype)
    if grad_y is None:
        launch(
            grad_x_kernel,
            plan.grad_x_grid,
            steps,
            grad_spikes,
            grad_x,
            *norm,
            sums,
            starts,
            plan.count,
            plan.num_inputs,
            C,
            plan.inner_in,
            plan.x_stride,
            grad_stride,
            tau_ptr=tau,
            **plan.grad_x_settings,
        )
    else:
        launch(
            unpool_kernel,
            plan.unpool_grid,
            steps,
            grad_y,
            argmax,
            grad_x,
            *norm[:3],
            sums,
            plan.count,
            plan.num_inputs,
            plan.num_neurons,
            C,
            plan.inner_in,
            plan.x_stride,
            layout.height,
            layout.width,
            **plan.unpool_settings,
        )
    return grad_x, sums, grad_tau if tau is None else grad_tau.sum()
