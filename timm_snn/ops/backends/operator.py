"""Operators that torch.compile sees as one, and that eager mode calls without the dispatcher.

torch.library runs Python of its own around every call, for the forward and the backward pass, and where the kernels are
short it takes longer than they do.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ['Operator']


class Operator:
    """`torch.ops.timm_snn.<name>`, made of a Python function that changes none of its arguments.

    Args:
        name: In the namespace timm_snn.
        function: With a signature from which torch.library can make a schema.
    """

    def __init__(self, name: str, function: Callable) -> None:
        self.op: Any = torch.library.custom_op(f'timm_snn::{name}', function, mutates_args=())
        self._function = function
        self._has_gradient = False

    def register_fake(self, function: Callable) -> None:
        """What gives outputs of the right shape and layout from tensors without data."""
        self.op.register_fake(function)

    def register_autograd(self, backward: Callable, setup_context: Callable) -> None:
        """As those of torch.library; without it the operator has no gradient."""
        self.op.register_autograd(backward, setup_context=setup_context)
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
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active():
            return self.op(*args)
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        if any(type(tensor) not in (Tensor, nn.Parameter) for tensor in tensors):
            return self.op(*args)
        # Without a gradient of its own, as in a second derivative, it must say so.
        if not self._has_gradient and torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            return self.op(*args)
        return self._function(*args)
