"""The LIF neuron in Triton: one kernel per pass, each element of x read once per pass and nothing saved but x.

A program runs a block of neurons through all steps, with the membrane in registers. The backward pass computes the
membrane again: sequences of at most MAX_UNROLL steps stay in registers, longer ones in chunks of that length, for which
it first goes through x once more and stores the membrane at the start of each chunk.
"""

import functools
import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...layout import as_steps, ceil_div, dense_strides, have_strides
from ...neuron import Neuron, membrane_dtype
from ..operator import lif_operator, sum_by_channel
from .device import (
    MAX_UNROLL,
    block_size,
    charge,
    charge_and_reset,
    chunk_backward,
    gradient_settings,
    launch,
    load_tau,
    neuron_settings,
    reset,
    spike,
    step_settings,
    tau_gradient,
    why_no_kernel,
)

__all__ = ['backward', 'forward', 'lif', 'why_not']


def why_not(x: Tensor | None = None) -> str | None:
    """Why Triton cannot run x, or without x why it cannot run at all."""
    return why_no_kernel(x)


class _Plan:
    """What both passes need to know of x and of the neuron, the same for all tensors like x."""

    def __init__(self, shape: torch.Size, strides: tuple[int, ...], dtype: torch.dtype, neuron: Neuron) -> None:
        self.strides = dense_strides(shape[1:], strides[1:])
        self.num_neurons, self.membrane_dtype = math.prod(shape[1:]), membrane_dtype(dtype)
        self.sequence = self.num_neurons, *self.strides  # strides with those of a step
        self.is_dense = have_strides(shape[1:], strides[1:], self.strides)
        self.x_stride = strides[0] if self.is_dense else self.num_neurons
        chunks = ceil_div(shape[0], MAX_UNROLL)
        self.starts_shape = (chunks, self.num_neurons) if chunks > 1 else None
        block = block_size(dtype)
        self.grid = (ceil_div(self.num_neurons, block),)
        self.settings = step_settings(shape[0]) | neuron_settings(neuron, dtype) | dict(BLOCK=block)
        self.gradient_settings = self.settings | gradient_settings(neuron)

    def one_step(self, x: Tensor) -> Tensor:
        """An uninitialised membrane."""
        return x.new_empty_strided(x.shape[1:], self.strides, dtype=self.membrane_dtype)

    def channels(self, tau: Tensor | None) -> dict[str, Any]:
        """How the channel of a neuron follows from its place in memory, if each channel has a tau of its own."""
        if tau is None or tau.ndim == 0:
            return dict(num_channels=1, channel_stride=1, BY_CHANNEL=False)
        return dict(num_channels=len(tau), channel_stride=self.strides[1], BY_CHANNEL=True)

    def in_order(self, x: Tensor | None) -> Tensor | None:
        """A membrane or its gradient in the memory order of a step."""
        return None if x is None else as_steps(x[None], self.strides)


_plan = functools.lru_cache(maxsize=1024)(_Plan)  # the host bounds small batches


def forward(x: Tensor, v: Tensor | None, tau: Tensor | None, neuron: Neuron, needs_v: bool) -> tuple[Tensor, Tensor]:
    """The contract is that of `lif_operator`."""
    plan = _plan(x.shape, x.stride(), x.dtype, neuron)
    spikes = x.new_empty_strided(x.shape, plan.sequence)
    v_last = plan.one_step(x) if needs_v else x.new_empty(0, dtype=plan.membrane_dtype)
    launch(
        _forward_kernel,
        plan.grid,
        x if plan.is_dense else as_steps(x, plan.strides),
        spikes,
        plan.in_order(v),
        v_last if needs_v else None,
        plan.num_neurons,
        plan.x_stride,
        tau_ptr=tau,
        **plan.channels(tau),
        **plan.settings,
    )
    return spikes, v_last


def backward(
    grad_spikes: Tensor, grad_v: Tensor | None, x: Tensor, v: Tensor | None, tau: Tensor | None, neuron: Neuron
) -> tuple[Tensor, Tensor, Tensor]:
    """The contract is that of `lif_operator`."""
    plan = _plan(x.shape, x.stride(), x.dtype, neuron)
    if grad_spikes.stride()[1:] != plan.strides:
        grad_spikes = as_steps(grad_spikes, plan.strides)
    grad_x = x.new_empty_strided(x.shape, plan.sequence)
    grad_v0 = x.new_empty(0, dtype=plan.membrane_dtype) if v is None else plan.one_step(x)
    starts = None if plan.starts_shape is None else grad_v0.new_empty(plan.starts_shape)
    if tau is None:
        grad_tau = grad_v0.new_empty(0)
    else:  # a part from each program, or each neuron
        grad_tau = grad_v0.new_empty((plan.num_neurons,) if tau.ndim else plan.grid)
    launch(
        _backward_kernel,
        plan.grid,
        x if plan.is_dense else as_steps(x, plan.strides),
        grad_spikes,
        grad_x,
        plan.in_order(v),
        plan.in_order(grad_v),
        None if v is None else grad_v0,
        None if tau is None else grad_tau,
        starts,
        plan.num_neurons,
        plan.x_stride,
        grad_spikes.stride(0),
        tau_ptr=tau,
        **plan.channels(tau),
        **plan.gradient_settings,
    )
    return grad_x, grad_v0, grad_tau if tau is None else sum_by_channel(grad_tau, x, plan.strides, tau)


lif = lif_operator('triton', forward, backward)


@triton.jit
def _load_taus(tau_ptr, m, num_channels, channel_stride, tau, BY_CHANNEL: tl.constexpr, MEMBRANE: tl.constexpr):
    """tau of all neurons, or of each of those at m."""
    if BY_CHANNEL:
        taus = tl.load(tau_ptr + m // channel_stride % num_channels).to(MEMBRANE)
    else:
        taus = load_tau(tau_ptr, tau, MEMBRANE)
    return taus


@triton.jit
def _forward_kernel(
    x_ptr,  # [T, M]
    spikes_ptr,  # [T, M]
    v_ptr,  # [M], or None for a neuron at rest
    v_last_ptr,  # [M], or None if nobody needs it
    num_neurons: tl.int64,
    x_stride: tl.int64,  # of a step: 0 if x is a static image
    num_steps,
    tau_ptr,  # [1], [num_channels] if BY_CHANNEL, or None for the number
    num_channels,
    channel_stride,
    tau: tl.float64,
    v_threshold: tl.float64,
    v_rest: tl.float64,
    BY_CHANNEL: tl.constexpr,
    HARD_RESET: tl.constexpr,
    DECAY_INPUT: tl.constexpr,
    EXACT_INVERSE: tl.constexpr,
    MEMBRANE: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Spikes of a block of neurons, by chunks of UNROLL steps."""
    m = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = m < num_neurons
    tau = _load_taus(tau_ptr, m, num_channels, channel_stride, tau, BY_CHANNEL, MEMBRANE)
    v_threshold = tl.full([], v_threshold, MEMBRANE)
    v_rest = tl.full([], v_rest, MEMBRANE)
    v = tl.zeros([BLOCK], MEMBRANE) + v_rest
    if v_ptr is not None:
        v = tl.load(v_ptr + m, mask=inside, other=0.0)
    for start in range(0, num_steps, UNROLL):
        xs: tl.tuple = ()  # all loads first: none may wait for a store
        for i in tl.static_range(UNROLL):
            here = inside & (start + i < num_steps)
            xs += (tl.load(x_ptr + (start + i) * x_stride + m, mask=here, other=0.0).to(MEMBRANE),)
        for i in tl.static_range(UNROLL):
            h = charge(xs[i], v, tau, v_rest, DECAY_INPUT, EXACT_INVERSE)
            fires, v_next = reset(h, v_threshold, v_rest, HARD_RESET)
            v = tl.where(start + i < num_steps, v_next, v)
            spikes = spike(h, fires).to(spikes_ptr.dtype.element_ty)
            tl.store(spikes_ptr + (start + i) * num_neurons + m, spikes, mask=inside & (start + i < num_steps))
    if v_last_ptr is not None:
        tl.store(v_last_ptr + m, v, mask=inside)


@triton.jit
def _backward_kernel(
    x_ptr,  # [T, M]
    grad_spikes_ptr,  # [T, M]
    grad_x_ptr,  # [T, M]
    v_ptr,  # [M] or None
    grad_v_ptr,  # [M], of the last membrane, or None
    grad_v0_ptr,  # [M] or None
    grad_tau_ptr,  # [programs], [M] if BY_CHANNEL, or None
    starts_ptr,  # [chunks, M], scratch for the membrane at the start of each chunk; None if there is one chunk
    num_neurons: tl.int64,
    x_stride: tl.int64,
    grad_spikes_stride: tl.int64,
    num_steps,
    tau_ptr,  # [1], [num_channels] if BY_CHANNEL, or None for the number
    num_channels,
    channel_stride,
    tau: tl.float64,
    v_threshold: tl.float64,
    v_rest: tl.float64,
    alpha: tl.float64,
    BY_CHANNEL: tl.constexpr,
    HARD_RESET: tl.constexpr,
    DECAY_INPUT: tl.constexpr,
    EXACT_INVERSE: tl.constexpr,
    SURROGATE: tl.constexpr,
    DETACH_RESET: tl.constexpr,
    MEMBRANE: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradients of a block of neurons, from the last chunk of UNROLL steps to the first."""
    m = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = m < num_neurons
    tau = _load_taus(tau_ptr, m, num_channels, channel_stride, tau, BY_CHANNEL, MEMBRANE)
    v_threshold = tl.full([], v_threshold, MEMBRANE)
    v_rest = tl.full([], v_rest, MEMBRANE)
    alpha = tl.full([], alpha, MEMBRANE)
    v = tl.zeros([BLOCK], MEMBRANE) + v_rest
    if v_ptr is not None:
        v = tl.load(v_ptr + m, mask=inside, other=0.0)
    if starts_ptr is not None:
        for start in range(0, num_steps, UNROLL):
            tl.store(starts_ptr + start // UNROLL * num_neurons + m, v, mask=inside)
            for i in tl.static_range(UNROLL):
                here = inside & (start + i < num_steps)
                x = tl.load(x_ptr + (start + i) * x_stride + m, mask=here, other=0.0).to(MEMBRANE)
                h = charge(x, v, tau, v_rest, DECAY_INPUT, EXACT_INVERSE)
                _, v = reset(h, v_threshold, v_rest, HARD_RESET)
        tl.debug_barrier()  # another thread may load what this one has stored

    grad_v = tl.zeros([BLOCK], MEMBRANE)
    if grad_v_ptr is not None:
        grad_v = tl.load(grad_v_ptr + m, mask=inside, other=0.0)
    grad_tau = tl.zeros([BLOCK], MEMBRANE)
    for end in range(0, num_steps, UNROLL):  # counted from the last chunk
        start = (num_steps - 1) // UNROLL * UNROLL - end
        if starts_ptr is not None:
            v = tl.load(starts_ptr + start // UNROLL * num_neurons + m, mask=inside, other=0.0)
        xs: tl.tuple = ()
        grads: tl.tuple = ()
        for i in tl.static_range(UNROLL):
            here = inside & (start + i < num_steps)
            xs += (tl.load(x_ptr + (start + i) * x_stride + m, mask=here, other=0.0).to(MEMBRANE),)
            grad_ptr = grad_spikes_ptr + (start + i) * grad_spikes_stride + m
            grads += (tl.load(grad_ptr, mask=here, other=0.0).to(MEMBRANE),)
        hs, vs = charge_and_reset(xs, v, tau, v_threshold, v_rest, HARD_RESET, DECAY_INPUT, EXACT_INVERSE)
        grad_hs, grad_xs, grad_v = chunk_backward(
            grads,
            grad_v,
            hs,
            num_steps - start,
            tau,
            v_threshold,
            v_rest,
            alpha,
            HARD_RESET,
            DECAY_INPUT,
            EXACT_INVERSE,
            SURROGATE,
            DETACH_RESET,
        )
        for i in tl.static_range(UNROLL):
            grad_x = grad_xs[i].to(grad_x_ptr.dtype.element_ty)
            tl.store(grad_x_ptr + (start + i) * num_neurons + m, grad_x, mask=inside & (start + i < num_steps))
            if grad_tau_ptr is not None:
                grad_tau += tau_gradient(grad_hs[i], hs[i], vs[i], tau, v_rest, DECAY_INPUT)
    if grad_v0_ptr is not None:
        tl.store(grad_v0_ptr + m, grad_v, mask=inside)
    if grad_tau_ptr is not None:
        if BY_CHANNEL:
            tl.store(grad_tau_ptr + m, grad_tau, mask=inside)
        else:
            tl.store(grad_tau_ptr + tl.program_id(0), tl.sum(grad_tau, 0))
