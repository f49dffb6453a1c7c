"""The neuron as one opaque operator, for backends made of kernels.

torch sees `timm_snn::lif` and `timm_snn::lif_backward` and never the kernels, so that torch.compile, CUDA graphs,
checkpointing and DDP work as with a built-in operator. The operators check nothing; `timm_snn.ops.lif` did. The string
`backend` names the module lif_<backend>.py, which has

    forward(x, v, tau, v_threshold, v_reset, decay_input, needs_v) -> (spikes, v_last)
    backward(grad_spikes, grad_v, x, v, tau, v_threshold, v_reset, decay_input, surrogate, alpha, detach_reset)
        -> (grad_x, grad_v0, grad_tau)

    x               [T, B, ...] of any strides, T >= 1, perhaps without elements
    v               [B, ...] of any strides and the membrane's dtype, or None for a neuron at rest
    tau             float, or a tensor of one element on the device of x, of any floating-point dtype
    surrogate       its name, with `alpha`
    grad_spikes     shape and dtype of x, any strides (all 0 after sum().backward())
    grad_v          shape and dtype of v_last, any strides, or None
    spikes, grad_x  laid out as layout.empty_steps(x)
    v_last          strides layout.step_strides(x), the membrane's dtype; without needs_v `empty_membrane(x)`
    grad_v0         laid out as v_last; `empty_membrane(x)` if v is None
    grad_tau        shape (), the membrane's dtype, summed in a fixed order; `empty_membrane(x)` if tau is a float

No output may be an input, nor share memory with one.
"""

import importlib
from types import ModuleType

import torch
from torch import Tensor

from ..backend import BackendUnavailable
from ..layout import empty_steps, step_strides
from ..neuron import membrane_dtype
from ..surrogate import SURROGATES, Surrogate, constant, is_known
from .operator import Operator

__all__ = ['constant_alpha', 'empty_membrane', 'lif', 'one_step', 'split_tau']


def lif(
    backend: str,
    x: Tensor,
    v: Tensor | None,
    *,
    tau: float | Tensor,
    v_threshold: float,
    v_reset: float | None,
    decay_input: bool,
    surrogate: Surrogate,
    detach_reset: bool,
    needs_v: bool = True,
) -> tuple[Tensor, Tensor]:
    """`reference.lif`, run by the kernels of a backend.

    Raises: BackendUnavailable for a surrogate that is not in the table of surrogate.py, whose derivative the kernels
    do not know.
    """
    alpha = constant_alpha(surrogate, backend)
    tau, tau_tensor = split_tau(tau, x)
    spikes, v_last = _lif(
        x, v, tau_tensor, tau, v_threshold, v_reset, decay_input, surrogate.name, alpha, detach_reset, needs_v, backend
    )
    return spikes, v_last


def constant_alpha(surrogate: Surrogate, backend: str) -> float:
    """The alpha of a surrogate that kernels know. Raises BackendUnavailable for another one."""
    if not is_known(surrogate):
        raise BackendUnavailable(
            f'LIF backend {backend!r} knows the surrogates {sorted(SURROGATES)}, got {type(surrogate).__name__}: '
            "use backend='torch', which takes any"
        )
    return constant(float(surrogate.alpha))


def split_tau(tau: float | Tensor, x: Tensor) -> tuple[float, Tensor | None]:
    """tau as an operator takes it: a number, and a tensor in its place if it is learned."""
    return (0.0, tau.to(x.device)) if isinstance(tau, Tensor) else (tau, None)


def one_step(x: Tensor) -> Tensor:
    """An uninitialised membrane [B, ...] for x [T, B, ...]."""
    return torch.empty_strided(x.shape[1:], step_strides(x), dtype=membrane_dtype(x.dtype), device=x.device)


def empty_membrane(x: Tensor) -> Tensor:
    """Stands for an output that nobody asked for."""
    return x.new_empty(0, dtype=membrane_dtype(x.dtype))


def _kernels(backend: str) -> ModuleType:
    return importlib.import_module(f'.{backend}', __package__)


def _run_forward(
    x: Tensor,
    v: Tensor | None,
    tau_tensor: Tensor | None,
    tau: float,
    v_threshold: float,
    v_reset: float | None,
    decay_input: bool,
    surrogate: str,
    alpha: float,
    detach_reset: bool,
    needs_v: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return _kernels(backend).forward(
        x, v, tau if tau_tensor is None else tau_tensor, v_threshold, v_reset, decay_input, needs_v
    )


_lif = Operator('lif', _run_forward)


@_lif.register_fake
def _(
    x, v, tau_tensor, tau, v_threshold, v_reset, decay_input, surrogate, alpha, detach_reset, needs_v, backend
):  # fmt: skip
    return empty_steps(x), one_step(x) if needs_v else empty_membrane(x)


def _run_backward(
    grad_spikes: Tensor,
    grad_v: Tensor | None,
    x: Tensor,
    v: Tensor | None,
    tau_tensor: Tensor | None,
    tau: float,
    v_threshold: float,
    v_reset: float | None,
    decay_input: bool,
    surrogate: str,
    alpha: float,
    detach_reset: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return _kernels(backend).backward(
        grad_spikes,
        grad_v,
        x,
        v,
        tau if tau_tensor is None else tau_tensor,
        v_threshold,
        v_reset,
        decay_input,
        surrogate,
        alpha,
        detach_reset,
    )


_lif_backward = Operator('lif_backward', _run_backward)


@_lif_backward.register_fake
def _(
    grad_spikes, grad_v, x, v, tau_tensor, tau, v_threshold, v_reset, decay_input, surrogate, alpha, detach_reset,
    backend,
):  # fmt: skip
    return (
        empty_steps(x),
        empty_membrane(x) if v is None else one_step(x),
        empty_membrane(x) if tau_tensor is None else x.new_empty((), dtype=membrane_dtype(x.dtype)),
    )


def _setup_context(ctx, inputs, output) -> None:
    x, v, tau_tensor, *ctx.settings, ctx.needs_v, ctx.backend = inputs
    ctx.save_for_backward(x, v, tau_tensor)


def _backward(ctx, grad_spikes, grad_v):
    x, v, tau_tensor = ctx.saved_tensors
    grad_x, grad_v0, grad_tau = _lif_backward(
        grad_spikes, grad_v if ctx.needs_v else None, x, v, tau_tensor, *ctx.settings, ctx.backend
    )
    return (
        grad_x,
        None if v is None else grad_v0,
        None if tau_tensor is None else grad_tau.reshape(tau_tensor.shape).to(tau_tensor.dtype),
        *[None] * (len(ctx.settings) + 2),
    )


_lif.register_autograd(_backward, setup_context=_setup_context)
