"""Kernels of the backward pass of batch norm with the neuron: sums per channel, then the gradient of x with them."""

import triton
import triton.language as tl

from .bn_kernels import load_channels
from .device import charge_and_reset, chunk_backward, load_tau, tau_gradient
from .layout import pixel_to_memory, to_memory, to_position, window_corner

__all__ = ['grad_x_kernel', 'gradient_sums_kernel', 'unpool_kernel']


@triton.jit
def gradient_sums_kernel(
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
    """Sums per channel of the neuron's gradient; with POOL that gradient is written as well, for `unpool_kernel`.

    The membrane is computed again. If its steps do not fit in registers, a first pass keeps it at the start of each
    chunk, from which the pass back takes the chunks one by one.
    """
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
def grad_x_kernel(
    x_ptr,  # [T, M]
    grad_spikes_ptr,  # [T, M]
    grad_x_ptr,  # [T, M]
    mean_ptr,  # [C]
    rstd_ptr,  # [C]
    weight_ptr,  # [C] or None
    bias_ptr,  # [C] or None
    sums_ptr,  # [2, C], of grad_y and of grad_y * xhat
    starts_ptr,  # [chunks, M] from gradient_sums_kernel, or None
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
    """The gradient of x without pooling: the neuron forward and back once more, now with the sums of each channel."""
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
def unpool_kernel(
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
    """The gradient of x with pooling: a pixel collects the gradients of the windows whose largest current it gave."""
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
