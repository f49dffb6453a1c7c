"""Operators that torch.compile sees as one, and that eager mode calls without the dispatcher.

torch never sees what is inside, so that torch.compile, CUDA graphs, checkpointing and DDP work as with a built-in
operator. torch.library runs Python of its own around every call, for the forward and the backward pass, and where the
kernels are short it takes longer than they do: eager mode calls the function directly.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..layout import empty_steps, step_strides
from ..neuron import Neuron, membrane_dtype

__all__ = ['Operator', 'empty_membrane', 'lif_operator', 'like_tau', 'one_step', 'sum_by_channel']

_PLAIN = (Tensor, nn.Parameter)


class Operator:
    """`torch.ops.timm_snn.<name>`, made of a Python function that changes none of its arguments.

    Args:
        name: In the namespace timm_snn.
        function: With a signature from which torch.library can make a schema. It may take a `Neuron`, which is its key
            in the schema.
    """

    def __init__(self, name: str, function: Callable) -> None:
        parameters = inspect.signature(function).parameters.values()
        self._neuron_at = next((i for i, parameter in enumerate(parameters) if parameter.annotation is Neuron), None)
        self.op: Any = torch.library.custom_op(f'timm_snn::{name}', self._with_key(function), mutates_args=())
        self._plain = self._function = function
        self._has_gradient = False

    def register_fake(self, function: Callable) -> None:
        """What gives outputs of the right shape and layout from tensors without data."""
        self.op.register_fake(function)

    def register_autograd(self, backward: Callable, setup_context: Callable) -> None:
        """As those of torch.library; without it the operator has no gradient."""
        self.op.register_autograd(
            backward, setup_context=lambda ctx, inputs, output: setup_context(ctx, self._decoded(inputs), output)
        )
        function = self._function

        class Direct(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *args: Any) -> Any:
                output = function(*args)
                setup_context(ctx, args, output)  # here, as torch's own hook looks up signatures in every call
                return output

            @staticmethod
            def backward(ctx: Any, *grads: Any) -> Any:
                return backward(ctx, *grads)

        self._function = Direct.apply
        self._has_gradient = True

    def __call__(self, *args: Any) -> Any:
        # A tracer, a transform of torch.func and a subclass such as FakeTensor must see the operator.
        if torch.compiler.is_compiling() or torch._C._is_tracing() or torch._C._are_functorch_transforms_active():
            return self.op(*self._encoded(args))
        # Without a gradient of its own, as in a second derivative, it must say so.
        refuses_grad = not self._has_gradient and torch.is_grad_enabled()
        for arg in args:
            if isinstance(arg, Tensor) and (type(arg) not in _PLAIN or (refuses_grad and arg.requires_grad)):
                return self.op(*self._encoded(args))
        return (self._function if torch.is_grad_enabled() else self._plain)(
            *args
        )  # autograd takes a while to do nothing

    def _encoded(self, args: Sequence[Any]) -> list[Any]:
        """Arguments as the schema has them."""
        args = list(args)
        if self._neuron_at is not None:
            args[self._neuron_at] = args[self._neuron_at].key
        return args

    def _decoded(self, args: Sequence[Any]) -> list[Any]:
        """Arguments as the function takes them."""
        args = list(args)
        if self._neuron_at is not None:
            args[self._neuron_at] = Neuron.from_key(args[self._neuron_at])
        return args

    def _with_key(self, function: Callable) -> Callable:
        """The function with the signature of the schema."""
        if self._neuron_at is None:
            return function

        def keyed(*args: Any) -> Any:
            return function(*self._decoded(args))

        signature = inspect.signature(function)
        parameters = [p.replace(annotation=str) if p.annotation is Neuron else p for p in signature.parameters.values()]
        keyed.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return keyed


def lif_operator(backend: str, forward: Callable, backward: Callable) -> Operator:
    """`reference.lif` run by the kernels of a backend.

        forward(x, v, tau, neuron, needs_v) -> (spikes, v_last)
        backward(grad_spikes, grad_v, x, v, tau, neuron) -> (grad_x, grad_v0, grad_tau)

        x               [T, B, ...] of any strides, T >= 1, perhaps without elements
        v               [B, ...] of any strides and the membrane's dtype, or None for a neuron at rest
        tau             None, or if learned a tensor () or, for x [T, B, C, ...] with C > 1, [C], on the device of x and
                        of any floating-point dtype
        grad_spikes     shape and dtype of x, any strides (all 0 after sum().backward())
        grad_v          shape and dtype of v_last, any strides, or None
        spikes, grad_x  laid out as layout.empty_steps(x)
        v_last          strides layout.step_strides(x), the membrane's dtype; without needs_v `empty_membrane(x)`
        grad_v0         laid out as v_last; `empty_membrane(x)` if v is None
        grad_tau        shape of tau, the membrane's dtype, summed in a fixed order; `empty_membrane(x)` if tau is None

    No output may be an input, nor share memory with one.
    """

    lif = Operator(f'lif_{backend}', forward)
    lif_backward = Operator(f'lif_{backend}_backward', backward)

    @lif.register_fake
    def _(x, v, tau, neuron, needs_v):
        return empty_steps(x), one_step(x) if needs_v else empty_membrane(x)

    @lif_backward.register_fake
    def _(grad_spikes, grad_v, x, v, tau, neuron):
        grad_tau = empty_membrane(x) if tau is None else x.new_empty(tau.shape, dtype=membrane_dtype(x.dtype))
        return empty_steps(x), empty_membrane(x) if v is None else one_step(x), grad_tau

    def setup_context(ctx, inputs, output) -> None:
        x, v, tau, ctx.neuron, ctx.needs_v = inputs
        ctx.set_materialize_grads(False)  # a kernel to write zeros that nobody reads
        ctx.save_for_backward(x, v, tau)

    def differentiate(ctx, grad_spikes, grad_v):
        x, v, tau = ctx.saved_tensors
        grad_spikes = torch.zeros_like(x) if grad_spikes is None else grad_spikes  # if the membrane alone is used
        grad_x, grad_v0, grad_tau = lif_backward(grad_spikes, grad_v if ctx.needs_v else None, x, v, tau, ctx.neuron)
        return grad_x, None if v is None else grad_v0, like_tau(grad_tau, tau), None, None

    lif.register_autograd(differentiate, setup_context=setup_context)
    return lif


def like_tau(grad_tau: Tensor | None, tau: Tensor | None) -> Tensor | None:
    """The gradient of a learned tau in its shape and dtype; None if it is not learned."""
    return None if tau is None or grad_tau is None else grad_tau.reshape(tau.shape).to(tau.dtype)


def sum_by_channel(parts: Tensor, x: Tensor, strides: tuple[int, ...], tau: Tensor) -> Tensor:
    """The gradient of tau, of its parts: any for tau (), those of all neurons in the order of `strides` for tau [C]."""
    if tau.ndim == 0:
        return parts.sum()
    return parts.as_strided(x.shape[1:], strides).transpose(0, 1).flatten(1).sum(1)


def one_step(x: Tensor) -> Tensor:
    """An uninitialised membrane [B, ...] for x [T, B, ...]."""
    return torch.empty_strided(x.shape[1:], step_strides(x), dtype=membrane_dtype(x.dtype), device=x.device)


def empty_membrane(x: Tensor) -> Tensor:
    """Stands for an output that nobody asked for."""
    return x.new_empty(0, dtype=membrane_dtype(x.dtype))
