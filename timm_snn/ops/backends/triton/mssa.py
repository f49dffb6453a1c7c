"""The tail of multi-scale spiking attention in Triton: sum of the queries over channels, neuron, mask on the keys.

The forward pass is one kernel, which reads queries and keys once and writes the output. The backward pass works on the
mask's grid, smaller by the head's number of channels: it runs the neuron again from the summed current, multiplies in
one kernel over the keys, and has lif.py do the neuron's gradient. Every query gets the same gradient, constant
over the channels, as one expanded tensor.
"""

import functools
import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...layout import as_steps, ceil_div, dense_strides, empty_steps
from ...neuron import Neuron, membrane_dtype
from ..operator import Operator, empty_membrane, like_tau
from .device import charge, launch, load_tau, neuron_settings, reset, spike, triton_membrane
from .lif import backward, forward

__all__ = ['mssa']

TILE = 2048  # elements of a head: 16 for each of the 128 threads


def mssa(queries: Sequence[Tensor], k: Tensor, tau: Tensor | None, neuron: Neuron) -> Tensor:
    """LIF(sum of the queries, summed over D) * k.

    Shape: queries and k [T, B, heads, D, N] -> the same, in the dtype and layout of k.
    """
    first, *others = queries
    if len(others) > 1:  # the kernel takes two, as the paper has
        others = [sum(others[1:], others[0])]
    needs_grad = torch.is_grad_enabled() and (
        first.requires_grad
        or k.requires_grad
        or (len(others) > 0 and others[0].requires_grad)
        or (tau is not None and tau.requires_grad)
    )
    return _mssa(first, others[0] if others else None, k, tau, neuron, needs_grad)[0]


class _Plan:
    """What both passes need to know of the keys and of the neuron, the same for all tensors like k."""

    def __init__(self, shape: torch.Size, strides: tuple[int, ...], dtype: torch.dtype, neuron: Neuron) -> None:
        num_steps, batch, heads, D, N = shape
        self.strides = dense_strides(shape[1:], strides[1:])
        self.sequence = math.prod(shape[1:]), *self.strides  # strides with those of a step
        self.current_shape = num_steps, batch, heads, N
        self.membrane_dtype = membrane_dtype(dtype)
        block_d = min(triton.next_power_of_2(max(D, 1)), 128)
        block_n = min(triton.next_power_of_2(max(N, 1)), max(TILE // block_d, 16))
        tiles = ceil_div(N, block_n) if D else 0
        self.grid, self.mask_grid = (batch * heads, tiles), (num_steps * batch * heads, tiles)
        self.sizes, self.mask_sizes = (heads, D, N, num_steps), (batch, heads, D, N)
        blocks = dict(BLOCK_D=block_d, BLOCK_N=block_n)
        self.settings = neuron_settings(neuron, dtype) | blocks
        self.mask_settings = dict(MEMBRANE=triton_membrane(dtype)) | blocks

    def in_order(self, x: Tensor) -> Tensor:
        """x, or a copy, with the memory order of a step of the keys."""
        return x if x.stride()[1:] == self.strides else as_steps(x, self.strides)


_plan = functools.lru_cache(maxsize=1024)(_Plan)  # the host bounds small batches


def _run_forward(
    q: Tensor, p: Tensor | None, k: Tensor, tau: Tensor | None, neuron: Neuron, needs_grad: bool
) -> tuple[Tensor, Tensor]:
    plan = _plan(k.shape, k.stride(), k.dtype, neuron)
    q, p, out = plan.in_order(q), None if p is None else plan.in_order(p), k.new_empty_strided(k.shape, plan.sequence)
    k = plan.in_order(k)
    current = k.new_empty(plan.current_shape if needs_grad else 0, dtype=plan.membrane_dtype)
    launch(
        _mssa_kernel,
        plan.grid,
        q,
        p,
        k,
        out,
        current if needs_grad else None,
        q.stride(0),
        None if p is None else p.stride(0),
        k.stride(0),
        out.stride(0),
        *plan.strides,
        *plan.sizes,
        tau_ptr=tau,
        **plan.settings,
    )
    return out, current


_mssa = Operator('mssa_triton', _run_forward)


@_mssa.register_fake
def _(q, p, k, tau, neuron, needs_grad):
    return empty_steps(k), _current(k) if needs_grad else empty_membrane(k)


def _run_backward(
    grad_out: Tensor, k: Tensor, current: Tensor, tau: Tensor | None, neuron: Neuron
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of k, of the current [T, B, heads, N], and of tau."""
    plan = _plan(k.shape, k.stride(), k.dtype, neuron)
    attn, _ = forward(current, None, tau, neuron, False)
    grad_k, grad_attn = k.new_empty_strided(k.shape, plan.sequence), torch.empty_like(current)
    k, grad_out = plan.in_order(k), plan.in_order(grad_out)
    launch(
        _mask_backward_kernel,
        plan.mask_grid,
        k,
        grad_out,
        attn,
        grad_k,
        grad_attn,
        k.stride(0),
        grad_out.stride(0),
        grad_k.stride(0),
        *plan.strides,
        *plan.mask_sizes,
        **plan.mask_settings,
    )
    grad_current, _, grad_tau = backward(grad_attn, None, current, None, tau, neuron)
    return grad_k, grad_current, grad_tau


_mssa_backward = Operator('mssa_triton_backward', _run_backward)


@_mssa_backward.register_fake
def _(grad_out, k, current, tau, neuron):
    grad_tau = empty_membrane(k) if tau is None else current.new_empty(())
    return empty_steps(k), torch.empty_like(current), grad_tau


def _setup_context(ctx, inputs, output) -> None:
    q, p, k, tau, ctx.neuron, _ = inputs
    ctx.q_dtype, ctx.p_dtype = q.dtype, None if p is None else p.dtype
    ctx.set_materialize_grads(False)  # of the current, which nobody reads
    ctx.save_for_backward(k, output[1], tau)


def _backward(ctx, grad_out, _):
    k, current, tau = ctx.saved_tensors
    grad_k, grad_current, grad_tau = _mssa_backward(grad_out, k, current, tau, ctx.neuron)
    grad_q = grad_current.to(ctx.q_dtype).unsqueeze(3).expand(k.shape)
    return grad_q, None if ctx.p_dtype is None else grad_q.to(ctx.p_dtype), grad_k, like_tau(grad_tau, tau), None, None


_mssa.register_autograd(_backward, setup_context=_setup_context)


def _current(k: Tensor) -> Tensor:
    """Uninitialised [T, B, heads, N]; in the membrane's dtype, since half precision cannot hold large sums."""
    num_steps, batch, heads, _, N = k.shape
    return k.new_empty(num_steps, batch, heads, N, dtype=membrane_dtype(k.dtype))


@triton.jit
def _mssa_kernel(
    q_ptr,  # [T, B, heads, D, N], as the next three; all with the strides of k within a step
    p_ptr,  # or None
    k_ptr,
    out_ptr,
    current_ptr,  # [T, B, heads, N], or None if nobody needs it
    q_stride: tl.int64,  # of a step
    p_stride,
    k_stride: tl.int64,
    out_stride: tl.int64,
    stride_b: tl.int64,
    stride_h: tl.int64,
    stride_d,
    stride_n,
    num_heads,
    D,
    N,
    num_steps,
    tau_ptr,
    tau: tl.float64,
    v_threshold: tl.float64,
    v_rest: tl.float64,
    HARD_RESET: tl.constexpr,
    DECAY_INPUT: tl.constexpr,
    EXACT_INVERSE: tl.constexpr,
    MEMBRANE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Output of a head at BLOCK_N tokens: the neuron of the summed queries at each step masks the keys."""
    head = tl.program_id(0).to(tl.int64)  # of all samples
    d = tl.arange(0, BLOCK_D)[:, None]
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    tile = head // num_heads * stride_b + head % num_heads * stride_h + d * stride_d + n * stride_n
    tau = load_tau(tau_ptr, tau, MEMBRANE)
    v_threshold = tl.full([], v_threshold, MEMBRANE)
    v_rest = tl.full([], v_rest, MEMBRANE)
    v = tl.zeros([1, BLOCK_N], MEMBRANE) + v_rest
    for t in range(num_steps):
        total = tl.zeros([BLOCK_D, BLOCK_N], MEMBRANE)
        for first in range(0, D, BLOCK_D):
            inside = (first + d < D) & (n < N)
            offset = first * stride_d + tile
            total += tl.load(q_ptr + t * q_stride + offset, mask=inside, other=0.0).to(MEMBRANE)
            if p_ptr is not None:
                step = tl.full([], t, tl.int64) * p_stride
                total += tl.load(p_ptr + step + offset, mask=inside, other=0.0).to(MEMBRANE)
        current = tl.sum(total, 0)[None, :]
        if current_ptr is not None:
            row = (t * tl.num_programs(0) + head) * N
            tl.store(current_ptr + row + n, current, mask=n < N)
        h = charge(current, v, tau, v_rest, DECAY_INPUT, EXACT_INVERSE)
        fires, v = reset(h, v_threshold, v_rest, HARD_RESET)
        mask = spike(h, fires)
        for first in range(0, D, BLOCK_D):
            inside = (first + d < D) & (n < N)
            offset = first * stride_d + tile
            k = tl.load(k_ptr + t * k_stride + offset, mask=inside, other=0.0).to(MEMBRANE)
            out = (mask * k).to(out_ptr.dtype.element_ty)
            tl.store(out_ptr + t * out_stride + offset, out, mask=inside)


@triton.jit
def _mask_backward_kernel(
    k_ptr,  # [T, B, heads, D, N], as the next and grad_k; all with the strides of k within a step
    grad_out_ptr,
    attn_ptr,  # [T, B, heads, N], as grad_attn
    grad_k_ptr,
    grad_attn_ptr,
    k_stride: tl.int64,  # of a step
    grad_out_stride: tl.int64,
    grad_k_stride: tl.int64,
    stride_b: tl.int64,
    stride_h: tl.int64,
    stride_d,
    stride_n,
    batch,
    num_heads,
    D,
    N,
    MEMBRANE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Gradients of the keys, and of the mask as a sum over the channels of the head."""
    row = tl.program_id(0).to(tl.int64)
    t = row // (batch * num_heads)
    d = tl.arange(0, BLOCK_D)[:, None]
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    tile = row // num_heads % batch * stride_b + row % num_heads * stride_h + d * stride_d + n * stride_n
    attn = tl.load(attn_ptr + row * N + n, mask=n < N, other=0.0)
    total = tl.zeros([BLOCK_D, BLOCK_N], MEMBRANE)
    for first in range(0, D, BLOCK_D):
        inside = (first + d < D) & (n < N)
        offset = first * stride_d + tile
        k = tl.load(k_ptr + t * k_stride + offset, mask=inside, other=0.0).to(MEMBRANE)
        grad = tl.load(grad_out_ptr + t * grad_out_stride + offset, mask=inside, other=0.0).to(MEMBRANE)
        total += grad * k
        grad_k = (grad * attn).to(grad_k_ptr.dtype.element_ty)
        tl.store(grad_k_ptr + t * grad_k_stride + offset, grad_k, mask=inside)
    tl.store(grad_attn_ptr + row * N + n, tl.sum(total, 0)[None, :], mask=n < N)
