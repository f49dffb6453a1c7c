"""Batch norm, max pooling and the neuron as one op: what follows every convolution of a spiking transformer."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import Backend, resolve_backend
from .backends.reference import scale_and_shift
from .lif import check_input, check_settings
from .neuron import membrane_dtype
from .surrogate import Surrogate, get_surrogate

__all__ = ['bn_lif', 'pool_lif', 'takes_offset']


def bn_lif(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    pool: bool = False,
    offset: Tensor | None = None,
    tau: float | Tensor = 2.0,
    v_threshold: float = 1.0,
    v_reset: float | None = 0.0,
    decay_input: bool = True,
    surrogate: str | Surrogate = 'sigmoid',
    detach_reset: bool = True,
    backend: str | None = None,
) -> Tensor:
    """Batch norm per channel, 3x3 max pooling with stride 2 if `pool`, then `lif`.

    In training the statistics are those of all steps and samples, and the running ones are updated in place. A backend
    that fuses the three never writes what lies between them: it saves x alone for the backward pass and computes the
    rest again. Rounding of the normalised current differs between backends in the last bit, so a membrane that lies on
    the threshold may fire with one and not with another.

    Args:
        x: Output of a convolution, split into steps.
        weight, bias, running_mean, running_var: [C], of the batch norm.
        training: Whether to normalise by the statistics of x, else by the running ones.
        momentum: Weight of the new statistics in the running ones.
        offset: [C], the bias that a convolution has left out; stands for x + offset. See `takes_offset`.

    The others are those of `lif`. Shape: x [T, B, C, *spatial] -> spikes [T, B, C, *spatial], with `pool` of the halved
    sizes, rounded up. Raises: as `lif`; ValueError in training on one value per channel.
    """
    check_input(x)
    check_settings(tau, v_threshold, v_reset)
    surrogate = get_surrogate(surrogate)
    module = resolve_backend(backend, x, surrogate)
    neuron = dict(tau=tau, v_threshold=v_threshold, v_reset=v_reset, decay_input=decay_input)
    gradient = dict(surrogate=surrogate, detach_reset=detach_reset)
    count = x.numel() // max(x.shape[2], 1)
    if training and count > 1 and (op := _fused('bn', x, pool, module)):
        if offset is not None:  # the batch's mean takes it away again, so that its gradient is zero
            bias = torch.add(bias, offset, alpha=0)
        spikes, mean, var = op(x, weight, bias, eps=eps, **neuron, **gradient)
        with torch.no_grad():
            mean = mean if offset is None else mean + offset
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((var * (count / (count - 1))).to(running_var.dtype), momentum)
        return spikes
    if not training and not torch.is_grad_enabled() and (op := _fused('affine', x, pool, module)):
        dtype = membrane_dtype(x.dtype)
        mean = running_mean if offset is None else running_mean - offset
        scale, shift = scale_and_shift(weight, bias, mean.to(dtype), running_var.to(dtype), eps)
        return op(x, scale, shift, **neuron)
    # a view of T * B, which keeps channels_last
    y = F.batch_norm(
        _shifted(x, offset).flatten(0, 1), running_mean, running_var, weight, bias, training, momentum, eps
    )
    return module.lif(_pooled(y, pool).unflatten(0, [len(x), -1]), None, needs_v=False, **neuron, **gradient)[0]


def pool_lif(
    x: Tensor,
    *,
    pool: bool = True,
    offset: Tensor | None = None,
    tau: float | Tensor = 2.0,
    v_threshold: float = 1.0,
    v_reset: float | None = 0.0,
    decay_input: bool = True,
    surrogate: str | Surrogate = 'sigmoid',
    detach_reset: bool = True,
    backend: str | None = None,
) -> Tensor:
    """`bn_lif` without the batch norm, for a convolution that it has been folded into (`timm_snn.fuse`)."""
    check_input(x)
    check_settings(tau, v_threshold, v_reset)
    surrogate = get_surrogate(surrogate)
    module = resolve_backend(backend, x, surrogate)
    neuron = dict(tau=tau, v_threshold=v_threshold, v_reset=v_reset, decay_input=decay_input)
    # a backend that does not add the bias takes no shift without a scale either
    gains = pool if offset is None else module.adds_bias
    if gains and not torch.is_grad_enabled() and (op := _fused('affine', x, pool, module)):
        return op(x, None, offset, **neuron)
    y = _pooled(_shifted(x, offset).flatten(0, 1), pool).unflatten(0, [len(x), -1])
    return module.lif(y, None, needs_v=False, surrogate=surrogate, detach_reset=detach_reset, **neuron)[0]


def takes_offset(
    x: Tensor, *, training: bool, pool: bool, surrogate: str | Surrogate = 'sigmoid', backend: str | None = None
) -> bool:
    """Whether `bn_lif` and `pool_lif` should be given the bias of the convolution before them, which then has none.

    They are where one kernel stands for them and adds it on the way. cuDNN adds a bias in a pass of its own, and
    needs another one for its gradient.

    Args:
        x: Anything of the device and the dtype that they will get.
        training: Whether the statistics are to be those of x.
        pool, surrogate, backend: Those of the call.
    """
    module = resolve_backend(backend, x, get_surrogate(surrogate))
    if not training and torch.is_grad_enabled():
        return False
    return module.adds_bias and _fused('bn' if training else 'affine', x, pool, module) is not None


def _fused(what: str, x: Tensor, pool: bool, backend: Backend) -> Callable[..., Any] | None:
    if pool and x.ndim != 5:
        return None
    return backend.fused(f'{what}_pool_lif' if pool else f'{what}_lif')


def _shifted(x: Tensor, offset: Tensor | None) -> Tensor:
    return x if offset is None else x + offset.view(-1, *[1] * (x.ndim - 3))


def _pooled(x: Tensor, pool: bool) -> Tensor:
    if not pool:
        return x
    return F.max_pool1d(x, 3, 2, 1) if x.ndim == 3 else F.max_pool2d(x, 3, 2, 1)
