"""timm's classifiers, whose `reset` does nothing without arguments.

SpikingJelly's `functional.reset_net` calls the `reset` of every module, to put neurons at rest. Ours have nothing to
reset, and that of timm's heads makes another classifier.
"""

from typing import Any

from timm.layers import ClassifierHead, ClNormMlpClassifierHead, NormMlpClassifierHead
from torch import nn

__all__ = ['Head', 'let_heads_be_reset']


class _Resettable:
    def reset(self, *args: Any, **kwargs: Any) -> None:
        if args or kwargs:
            super().reset(*args, **kwargs)  # type: ignore[misc]


class Head(_Resettable, ClassifierHead):
    """Pooling, dropout and a linear layer."""


class _NormMlpHead(_Resettable, NormMlpClassifierHead):
    pass


class _ClNormMlpHead(_Resettable, ClNormMlpClassifierHead):
    pass


_HEADS: dict[type, type] = {
    ClassifierHead: Head,
    NormMlpClassifierHead: _NormMlpHead,
    ClNormMlpClassifierHead: _ClNormMlpHead,
}


def let_heads_be_reset(model: nn.Module) -> None:
    """In a network that timm has made."""
    for module in model.modules():
        module.__class__ = _HEADS.get(type(module), type(module))
