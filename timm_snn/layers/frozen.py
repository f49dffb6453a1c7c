"""Batch norms that keep their statistics in training."""

from functools import cache
from typing import Any

from torch import nn

__all__ = ['FrozenBatchNorm2d', 'frozen_class']


class _Frozen:
    """Mixin for batch norms: always in eval mode."""

    def train(self, mode: bool = True) -> Any:
        return super().train(False)  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> Any:
        _, _, state, *_ = super().__reduce_ex__(protocol)
        return _restored, (type(self).__mro__[2],), state


@cache
def frozen_class(cls: type[nn.Module]) -> type[nn.Module]:
    """The class of the same layers that stay in eval mode; a frozen one is its own."""
    return cls if issubclass(cls, _Frozen) else type(f'Frozen{cls.__name__}', (_Frozen, cls), {})


def _restored(cls: type[nn.Module]) -> nn.Module:
    frozen = frozen_class(cls)
    return frozen.__new__(frozen)


FrozenBatchNorm2d = frozen_class(nn.BatchNorm2d)
