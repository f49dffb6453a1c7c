"""Frozen batch norms, for training with few images in a batch."""

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..layers.frozen import frozen_class

__all__ = ['freeze_norms']


def freeze_norms(module: nn.Module) -> int:
    """Let every batch norm in the module keep its statistics, weight and bias for ever; returns how many there are.

    They normalise by their running statistics in training too, also after `train()`: a detector is trained with few
    images in a batch, whose own statistics are noise. This is for trained backbones; untrained ones have no statistics
    yet. Nothing is replaced, and state dicts stay what they are.

    Raises: ValueError for a norm without running statistics.
    """
    norms: dict[str, Any] = {name: m for name, m in module.named_modules() if isinstance(m, _BatchNorm)}
    for name, norm in norms.items():
        if norm.running_mean is None:
            raise ValueError(f'the batch norm {name} has no running statistics that it could keep')
    for norm in norms.values():
        norm.__class__ = frozen_class(type(norm))
        norm.eval().requires_grad_(False)
    return len(norms)
