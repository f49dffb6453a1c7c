"""Training and eval mode of a model's modules."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ['evaluating']


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """In eval mode inside; every module gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training
