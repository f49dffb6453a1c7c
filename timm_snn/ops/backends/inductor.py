"""The neuron with bodies that Inductor compiles: on a CPU as fast as memory allows, and open to fusion.

Only x is saved for the backward pass, which computes the membrane again. Called eagerly, the bodies are compiled when
they are first met, once per setting, number of steps and dtype, for all sizes and orders of axes: seconds each, with a
C++ compiler on a CPU and Triton on a GPU. Inside torch.compile they become part of the graph, where Inductor fuses them
with what surrounds them.

Of batch norm, torch's own kernels take the statistics and their gradient, which Inductor does several times slower on a
CPU. The normalisation is compiled into the neuron's body, so the batch norm's output is never written and never saved.
"""

import functools
import shutil
import types
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch._inductor import config as inductor_config

from ..layout import as_steps, channel_strides, from_steps, inner_size, step_strides
from ..neuron import Neuron, by_channel, membrane_dtype
from .operator import like_tau
from .reference import scale_and_shift

__all__ = ['affine_lif', 'bn_lif', 'lif', 'why_not']

_UNROLLED = 8  # the most steps of a compiled body: longer sequences run it again, which bounds the time to compile
_CXX = inductor_config.cpp.cxx  # candidates, from the environment variable CXX
_CPP_COMPILERS = [name for name in (_CXX if isinstance(_CXX, tuple | list) else [_CXX]) if name and shutil.which(name)]


def why_not(x: Tensor | None = None) -> str | None:
    device = 'cpu' if x is None else x.device.type
    if device not in ('cpu', 'cuda'):
        return f'Inductor compiles for cpu and cuda, not for {device}'
    if device == 'cpu' and not _CPP_COMPILERS:
        return 'Inductor found no C++ compiler: install g++ or clang++, or name one in the environment variable CXX'
    return None


def lif(x: Tensor, v: Tensor | None, tau: Tensor | None, neuron: Neuron, needs_v: bool) -> tuple[Tensor, Tensor]:
    """As `reference.lif`."""
    tau = _in_membrane_dtype(tau, x)
    if torch.compiler.is_compiling():
        return _Lif.apply(x, v, tau, neuron.as_constants(), needs_v)
    if len(x) <= _UNROLLED or x.numel() == 0:
        return _Lif.apply(x, v, tau, neuron, needs_v)
    spikes, v_last = [], v
    for piece in x.split(_UNROLLED):
        fired, v_last = _Lif.apply(piece, v_last, tau, neuron, True)
        spikes.append(fired)
    return torch.cat(spikes), v_last  # type: ignore[return-value]


def _in_membrane_dtype(tau: Tensor | None, x: Tensor) -> Tensor | None:
    return tau if tau is None else tau.to(membrane_dtype(x.dtype))


class _Lif(torch.autograd.Function):
    @staticmethod
    def forward(x, v, tau, neuron, needs_v):
        if torch.compiler.is_compiling() or x.numel() == 0:
            return fire(x, v, None if tau is None else by_channel(tau, x.ndim - 1), neuron)
        strides = step_strides(x)
        steps, tau = _for_bodies(as_steps(x, strides), x, strides, tau), _along_channels(tau)
        v = None if v is None else _for_bodies(as_steps(v[None], strides), x, strides, tau)[0]
        spikes, *rest = run_compiled(fire, 2 if needs_v else 1, neuron, steps, v, tau)
        v_last = from_steps(rest[0].view(1, -1), x[:1], strides)[0] if needs_v else None
        return from_steps(spikes.view(len(x), -1), x, strides), v_last

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, v, tau, ctx.neuron, _ = inputs
        ctx.save_for_backward(x, v, tau)

    @staticmethod
    def backward(ctx, grad, grad_v):
        x, v, tau = ctx.saved_tensors
        if torch.compiler.is_compiling() or x.numel() == 0:
            shaped = None if tau is None else by_channel(tau, x.ndim - 1)
            grad_x, grad_v, grad_tau = fire_backward(grad, grad_v, x, v, shaped, ctx.neuron)
            return grad_x, grad_v, like_tau(grad_tau, tau), None, None
        strides = step_strides(x)
        steps, grad = (_for_bodies(as_steps(t, strides), x, strides, tau) for t in (x, grad))
        v, grad_v = (
            None if t is None else _for_bodies(as_steps(t[None], strides), x, strides, tau)[0] for t in (v, grad_v)
        )
        wanted = 3 if tau is not None else 2 if v is not None else 1
        grad_x, *rest = run_compiled(fire_backward, wanted, ctx.neuron, grad, grad_v, steps, v, _along_channels(tau))
        grad_v, grad_tau = (*rest, None, None)[:2]
        if grad_v is not None:
            grad_v = from_steps(grad_v.view(1, -1), x[:1], strides)[0]
        return from_steps(grad_x.view(len(x), -1), x, strides), grad_v, like_tau(grad_tau, tau), None, None


def _for_bodies(steps: Tensor, x: Tensor, strides: tuple[int, ...], tau: Tensor | None) -> Tensor:
    """[T, M] as it is or, if channels of x differ in tau, as [T, rows, C, S]."""
    return steps if tau is None or tau.ndim == 0 else steps.unflatten(1, (-1, x.shape[2], strides[1]))


def _along_channels(tau: Tensor | None) -> Tensor | None:
    """() as it is, [C] as [C, 1]."""
    return tau if tau is None or tau.ndim == 0 else tau[:, None]


def fire(
    x: Tensor, v: Tensor | None, tau: Tensor | None, neuron: Neuron, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """x [T, ...] -> spikes in this dtype, by default that of x, and the last membrane."""
    dtype = dtype or x.dtype
    _, charged, v = unroll(x.to(membrane_dtype(x.dtype)).unbind(0), v, tau, neuron)
    return torch.stack([spikes_of(h, dtype, neuron) for h in charged]), v


def spikes_of(h: Tensor, dtype: torch.dtype, neuron: Neuron) -> Tensor:
    """1 where a charged membrane meets the threshold, NaN where it is NaN, else 0.

    A choice of constants is 3 times as fast as a cast to bfloat16.
    """
    one, zero, nan = (torch.full((), value, dtype=dtype, device=h.device) for value in (1.0, 0.0, torch.nan))
    return torch.where(h >= neuron.v_threshold, one, torch.where(h.isnan(), nan, zero))


def fire_backward(
    grad: Tensor, grad_v: Tensor | None, x: Tensor, v: Tensor | None, tau: Tensor | None, neuron: Neuron
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradients of the spikes and of the last membrane -> those of x, v and tau, as far as they are there.

    From the last step to the first, with c the gradient of the membrane after a step and R its derivative by h:
    gh = gs * surrogate'(h - v_threshold) + c * R, then c = gh * (1 - 1 / tau) for the step before. A learned tau is
    shaped to broadcast over a step, here and in all bodies.
    """
    dtype = membrane_dtype(x.dtype)
    currents, grads = x.to(dtype).unbind(0), grad.to(dtype).unbind(0)
    grad_currents, grad_v, grad_tau = unroll_backward(grads, grad_v, currents, v, tau, neuron)
    return torch.stack(grad_currents).to(x.dtype), grad_v if v is not None else None, grad_tau


def unroll(
    currents: Sequence[Tensor], v: Tensor | None, tau: Tensor | None, neuron: Neuron
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """The recurrence of `timm_snn.ops.lif` -> per step the membrane before it and the charged one, and the last."""
    v_rest = neuron.v_rest
    v = torch.full_like(currents[0], v_rest) if v is None else v
    before, charged = [], []
    for x in currents:
        before.append(v)
        leak = v - v_rest if v_rest else v
        h = v + _over_tau(x - leak, tau, neuron) if neuron.decay_input else v - _over_tau(leak, tau, neuron) + x
        v = torch.where(h >= neuron.v_threshold, h - neuron.v_threshold if neuron.v_reset is None else v_rest, h)
        charged.append(h)
    return before, charged, v


def unroll_backward(
    grads: Sequence[Tensor],
    grad_v: Tensor | None,
    currents: Sequence[Tensor],
    v: Tensor | None,
    tau: Tensor | None,
    neuron: Neuron,
) -> tuple[list[Tensor], Tensor, Tensor | None]:
    """`fire_backward` step by step."""
    v_rest = neuron.v_rest
    rate: float | Tensor = 1 / (neuron.tau if tau is None else tau)  # type: ignore[operator]
    before, charged, _ = unroll(currents, v, tau, neuron)
    c = torch.zeros_like(currents[0]) if grad_v is None else grad_v
    grad_currents, by_tau = [], torch.zeros_like(currents[0])
    for grad, x, v_before, h in reversed(list(zip(grads, currents, before, charged, strict=True))):
        derivative = neuron.surrogate.derivative(h - neuron.v_threshold)
        if neuron.v_reset is None:
            through_reset = c if neuron.detach_reset else c - c * (neuron.v_threshold * derivative)
        else:
            through_reset = torch.where(h >= neuron.v_threshold, 0.0, c)
            if not neuron.detach_reset:
                through_reset = through_reset + c * (torch.where(h.isinf(), 0.0, v_rest - h) * derivative)
        grad_h = grad * derivative + through_reset
        grad_currents.append(grad_h * rate if neuron.decay_input else grad_h)
        c = grad_h * (1 - rate)
        if tau is not None:
            leak = v_before - v_rest
            by_tau = by_tau + grad_h * (leak - x if neuron.decay_input else leak)
    return grad_currents[::-1], c, None if tau is None else by_tau.sum_to_size(tau.shape) * rate * rate


def _over_tau(x: Tensor, tau: Tensor | None, neuron: Neuron) -> Tensor:
    """A division, which a multiplication may replace only where the inverse is exact: a spike hangs on the last bit."""
    if tau is not None:
        return x / tau
    return x * (1 / neuron.tau) if neuron.inverse_is_exact else x / neuron.tau  # type: ignore[operator]


def run_compiled(body: Callable, num_outputs: int, neuron: Neuron, *args: Tensor | None) -> tuple[Tensor, ...]:
    """The first outputs of `body(*args, neuron)`, compiled for any size.

    Dynamo counts compilations per code object and gives up after a few, so whatever it would compile anew for gets a
    code object of its own: besides dtypes and layouts these are sizes of 1, and sizes that are equal by chance.
    It would also look at the tensors that views are views of; `.data` is a view of nothing.
    """
    tensors = [arg.data for arg in args if arg is not None]
    sizes = [size for x in tensors for size in x.shape]
    device = tensors[0].device.type
    key = (
        len(tensors[0]),
        torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device),
        *(size if size == 1 else sizes.index(size) for size in sizes),
        *((x.dtype, x.device, x.stride()[:1] == (0,), x.is_contiguous(), x.is_inference()) for x in tensors),
        *(arg is None for arg in args),
    )
    return _compiled(body, num_outputs, neuron, key)(*(None if arg is None else arg.data for arg in args))


@functools.cache
def _compiled(body: Callable, num_outputs: int, neuron: Neuron, key: tuple) -> Callable:
    def run(*args):
        return body(*args, neuron.as_constants())[:num_outputs]

    code = run.__code__.replace(co_name=body.__name__)
    function = types.FunctionType(code, run.__globals__, closure=run.__closure__)
    return torch.compile(function, dynamic=True, fullgraph=True)


def bn_lif(
    x: Tensor, weight: Tensor, bias: Tensor, tau: Tensor | None, neuron: Neuron, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """x [T, B, C, *spatial] -> spikes, and the batch's mean and biased variance [C] without a gradient."""
    return _BnLif.apply(x, weight, bias, _in_membrane_dtype(tau, x), neuron, eps)


def affine_lif(x: Tensor, scale: Tensor, shift: Tensor, tau: Tensor | None, neuron: Neuron) -> Tensor:
    """The neuron of x * scale + shift, [C] each, without a gradient."""
    return _fire(x, scale, shift, _in_membrane_dtype(tau, x), neuron)


class _BnLif(torch.autograd.Function):
    @staticmethod
    def forward(x, weight, bias, tau, neuron, eps):
        running = torch.zeros(2, x.shape[2], dtype=membrane_dtype(x.dtype), device=x.device)  # sets the results' dtype
        mean, var = torch.batch_norm_update_stats(x.flatten(0, 1), running[0], running[1], 0.0)
        scale, shift = scale_and_shift(weight, bias, mean, var, eps)
        return _fire(x, scale, shift, tau, neuron), mean, var

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, bias, tau, ctx.neuron, ctx.eps = inputs
        _, mean, var = output
        ctx.mark_non_differentiable(mean, var)
        ctx.save_for_backward(x, weight, bias, tau, mean, var)

    @staticmethod
    def backward(ctx, grad, *_):
        x, weight, bias, tau, mean, var = ctx.saved_tensors
        scale, shift = scale_and_shift(weight, bias, mean, var, ctx.eps)
        strides = channel_strides(x)
        args = (_by_channel(grad, x, strides), _by_channel(x, x, strides), scale, shift, tau)
        grad_y, *grad_tau = run_compiled(_affine_fire_backward, 1 if tau is None else 2, ctx.neuron, *args)
        grad_y = from_steps(grad_y.flatten(1), x, strides)
        grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad_y.flatten(0, 1),
            x.flatten(0, 1),
            weight,
            None,
            None,
            mean,
            (var + ctx.eps).rsqrt(),
            True,
            ctx.eps,
            [True] * 3,
        )
        return grad_x.unflatten(0, x.shape[:2]), grad_weight, grad_bias, *(grad_tau or (None,)), None, None


def _fire(x: Tensor, scale: Tensor, shift: Tensor, tau: Tensor | None, neuron: Neuron) -> Tensor:
    strides = channel_strides(x)
    (spikes,) = run_compiled(_affine_fire, 1, neuron, _by_channel(x, x, strides), scale, shift, tau)
    return from_steps(spikes.flatten(1), x, strides)


def _affine_fire(x: Tensor, scale: Tensor, shift: Tensor, tau: Tensor | None, neuron: Neuron) -> tuple[Tensor, ...]:
    return fire(_normalised(x, scale, shift), None, tau, neuron, x.dtype)


def _affine_fire_backward(
    grad: Tensor, x: Tensor, scale: Tensor, shift: Tensor, tau: Tensor | None, neuron: Neuron
) -> tuple[Tensor, Tensor | None]:
    grad_y, _, grad_tau = fire_backward(grad, None, _normalised(x, scale, shift), None, tau, neuron)
    return grad_y.to(x.dtype), grad_tau


def _normalised(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x [T, ..., C, S] -> the current, in the membrane's dtype."""
    return x.to(membrane_dtype(x.dtype)) * scale[:, None] + shift[:, None]


def _by_channel(x: Tensor, like: Tensor, strides: tuple[int, ...]) -> Tensor:
    """x -> [T, B, C, S] if it is contiguous, [T, B * S, C, 1] if it is channels_last."""
    steps = as_steps(x, strides)
    return steps.unflatten(1, [-1, like.shape[2], inner_size(like, strides)])
