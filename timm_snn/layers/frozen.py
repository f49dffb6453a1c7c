"""Batch norms that keep their statistics in training."""

from typing import Any

from torch import nn

__all__ = ['FrozenBatchNorm2d', 'frozen_class']


class _Frozen:
    """Mixin for batch norms: always in eval mode."""

    def train(self, mode: bool = True) -> Any:
        return super().train(False)  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        return _restored, (type(self).__mro__[2],), reduced[2]


_CLASSES: dict[type, Any] = {}


def frozen_class(cls: type) -> Any:
    """The class of the same layers that stay in eval mode; a frozen one is its own."""
    if issubclass(cls, _Frozen):
        return cls
    if cls not in _CLASSES:
        _CLASSES[cls] = type(f'Frozen{cls.__name__}', (_Frozen, cls), {})
    return _CLASSES[cls]


def _restored(cls: type[nn.Module]) -> Any:
    frozen = frozen_class(cls)
    return frozen.__new__(frozen)


FrozenBatchNorm2d = frozen_class(nn.BatchNorm2d)
