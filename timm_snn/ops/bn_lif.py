"""Batch norm, max pooling and the neuron as one op: what follows every convolution of a spiking transformer."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import Backend, resolve_backend
from .backends.reference import scale_and_shift
from .lif import check_input, scaled
from .neuron import Learned, Neuron, describe_neuron, membrane_dtype
from .surrogate import Surrogate

__all__ = ['Implementation', 'bn_lif', 'choose_implementation', 'fire_normalised', 'fire_pooled', 'pool_lif']


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
    v_threshold: float | Tensor = 1.0,
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
        offset: [C], the bias that a convolution has left out; stands for x + offset.

    The others are those of `lif`. Shape: x [T, B, C, *spatial] -> spikes [T, B, C, *spatial], with `pool` of the halved
    sizes, rounded up. Raises: as `lif`; ValueError in training on one value per channel.
    """
    check_input(x)
    neuron, learned = describe_neuron(tau, v_threshold, v_reset, decay_input, surrogate, detach_reset)
    implementation = choose_implementation(x, neuron, learned, backend, pool=pool, training=training)
    norm = (weight, bias, running_mean, running_var)
    return fire_normalised(
        implementation,
        x,
        norm,
        training,
        momentum,
        eps,
        pool=pool,
        offset=offset,
        neuron=neuron,
        learned=learned,
    )


def pool_lif(
    x: Tensor,
    *,
    pool: bool = True,
    offset: Tensor | None = None,
    tau: float | Tensor = 2.0,
    v_threshold: float | Tensor = 1.0,
    v_reset: float | None = 0.0,
    decay_input: bool = True,
    surrogate: str | Surrogate = 'sigmoid',
    detach_reset: bool = True,
    backend: str | None = None,
) -> Tensor:
    """`bn_lif` without the batch norm, for a convolution that it has been folded into (`timm_snn.fuse`)."""
    check_input(x)
    neuron, learned = describe_neuron(tau, v_threshold, v_reset, decay_input, surrogate, detach_reset)
    implementation = choose_implementation(x, neuron, learned, backend, pool=pool, training=False)
    return fire_pooled(implementation, x, pool=pool, offset=offset, neuron=neuron, learned=learned)


class Implementation(NamedTuple):
    """What runs a unit: a backend, and its one op for batch norm, pooling and neuron if it has one for this case."""

    backend: Backend
    fused: Callable[..., Any] | None

    @property
    def takes_offset(self) -> bool:
        """Whether it wants the bias of the convolution before, which then has none.

        cuDNN adds a bias in a pass of its own and needs another one for its gradient; a fused op adds it on the way.
        """
        return self.fused is not None and self.backend.adds_bias


def choose_implementation(
    x: Tensor, neuron: Neuron, learned: Learned, backend: str | None, *, pool: bool, training: bool
) -> Implementation:
    """Looked up once for a unit, before its convolution.

    Args:
        x: Anything of the device, rank and dtype that the unit will get.
        backend: By name, or None for the switches.
        training: Whether to normalise by the batch's statistics.
    """
    chosen = resolve_backend(backend, x, neuron)
    has_op = (training or not torch.is_grad_enabled()) and (x.ndim == 5 or not pool) and not learned.is_by_channel
    op = f'{"bn" if training else "affine"}_{"pool_" if pool else ""}lif'
    return Implementation(chosen, chosen.fused(op) if has_op else None)


def fire_normalised(
    implementation: Implementation,
    x: Tensor,
    norm: tuple[Tensor, Tensor, Tensor, Tensor],
    training: bool,
    momentum: float,
    eps: float,
    *,
    pool: bool,
    offset: Tensor | None,
    neuron: Neuron,
    learned: Learned,
) -> Tensor:
    """`bn_lif` by an implementation that was chosen before; `norm` is weight, bias, running mean and variance."""
    backend, fused = implementation
    weight, bias, running_mean, running_var = norm
    tau, scale = learned.of(x)
    if scale is not None:  # which is the norm's, and commutes with pooling
        weight, bias = ((t / scale).to(t.dtype) for t in (weight, bias))
    count = x.numel() // max(x.shape[2], 1)
    if fused and training and count > 1:
        if offset is not None:  # the batch's mean takes it away again, so that its gradient is zero
            bias = torch.add(bias, offset, alpha=0)
        spikes, mean, var = fused(x, weight, bias, tau, neuron, eps)
        mean, var = mean.detach(), var.detach()
        mean = mean if offset is None else mean + offset.detach()
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        running_var.lerp_((var * (count / (count - 1))).to(running_var.dtype), momentum)
        return spikes
    if fused and not training:
        dtype = membrane_dtype(x.dtype)
        mean = running_mean if offset is None else running_mean - offset
        scale, shift = scale_and_shift(weight, bias, mean.to(dtype), running_var.to(dtype), eps)
        return fused(x, scale, shift, tau, neuron)
    # a view of T * B, which keeps channels_last
    y = F.batch_norm(
        _shifted(x, offset).flatten(0, 1), running_mean, running_var, weight, bias, training, momentum, eps
    )
    return backend.lif(_pooled(y, pool).unflatten(0, [len(x), -1]), None, tau, neuron, False)[0]


def fire_pooled(
    implementation: Implementation,
    x: Tensor,
    *,
    pool: bool,
    offset: Tensor | None,
    neuron: Neuron,
    learned: Learned,
) -> Tensor:
    """`pool_lif` by an implementation that was chosen before."""
    backend, fused = implementation
    learned = learned.of(x)
    gains = pool if offset is None else implementation.takes_offset
    if fused and gains and learned.scale is None:
        return fused(x, None, offset, learned.tau, neuron)
    y = _pooled(_shifted(x, offset).flatten(0, 1), pool).unflatten(0, [len(x), -1])
    return backend.lif(scaled(y, learned), None, learned.tau, neuron, False)[0]


def _shifted(x: Tensor, offset: Tensor | None) -> Tensor:
    return x if offset is None else (x + offset.view(-1, *[1] * (x.ndim - 3))).to(x.dtype)


def _pooled(x: Tensor, pool: bool) -> Tensor:
    if not pool:
        return x
    return F.max_pool1d(x, 3, 2, 1) if x.ndim == 3 else F.max_pool2d(x, 3, 2, 1)
