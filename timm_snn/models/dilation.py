"""Dilation: deep stages that keep the resolution, for segmentation (`create_model(..., output_stride=8)`)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch import nn

from ..layers import DualSpikeSelfAttention, SpikingPatchSplitting
from ..layers.conv import DilatedMaxPool, MapConv, SpikePool
from .base import SpikingTransformer

__all__ = ['dilate']

_OUTPUT_STRIDES = (8, 16, 32)


def dilate(model: nn.Module, output_stride: int, name: str) -> None:
    """Let no map of the model be smaller than 1 / `output_stride` of the input; a model of larger ones stays as it is.

    Strides and poolings beyond become 1, and every kernel behind is dilated by what they would have divided the map by
    (atrous convolution, arXiv 1412.7062). At every so many pixels its result is that of the usual model, exactly, up
    to the first attention, which sees all pixels: sums over tokens become larger, and the number of patches that DSSA
    divides by grows with the map. Weights, their names and their shapes stay.

    The walk takes the children of a module as one after the other, as they were registered, and a `shortcut` as beside
    the others. It is checked against the reductions that the stages announce.

    Args:
        model: Changed in place, with the reductions in its `feature_info`.
        name: Of the model, for errors.

    Raises: ValueError for an output_stride other than 8, 16 and 32, and for a model that cannot be dilated to it.
    """
    if type(output_stride) is not int or output_stride not in _OUTPUT_STRIDES:
        raise ValueError(f'output_stride must be 8, 16 or 32, got {output_stride!r}')
    infos: Any = model.feature_info
    if max(info['reduction'] for info in infos) <= output_stride:
        return
    try:
        if not isinstance(model, SpikingTransformer):
            raise _CannotDilateError(f'the layers of a {type(model).__name__} have no dilation')
        _dilate_stages(model, output_stride)
    except _CannotDilateError as error:
        taken = [stride for stride in _OUTPUT_STRIDES if stride >= infos[-1]['reduction']]
        expected = f'expected one of {taken} or None' if taken else 'leave it out'
        raise ValueError(f'{name} cannot have output_stride={output_stride}, since {error}: {expected}') from None
    for info in infos:
        info['reduction'] = min(info['reduction'], output_stride)


class _CannotDilateError(Exception):
    """With the reason."""


def _dilate_stages(model: SpikingTransformer, output_stride: int) -> None:
    stages: Sequence[Any] = list(model.stages)
    reduction = _Walk(output_stride).through(model.stem, 1)
    for i, stage in enumerate(stages):
        reduction = _Walk(output_stride, deepest=stage.reduction).through(stage, reduction)
        if reduction != stage.reduction:
            raise _CannotDilateError(f'stage {i} changes the resolution by other layers than convolutions and pooling')
        stage.reduction = min(reduction, output_stride)


@dataclass
class _Walk:
    """Through layers in the order in which they run, with the size of the map in the usual model: 1 / `reduction`."""

    output_stride: int
    deepest: int | None = None  # at the end of the stage; None if it is not known

    def through(self, module: nn.Module, reduction: int) -> int:
        """Dilate what is in the module, and say the reduction behind it."""
        dilation = max(1, reduction // self.output_stride)
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.MaxPool2d, SpikePool)):
            return self._dilate(module, reduction, dilation)
        if isinstance(module, DualSpikeSelfAttention) and module.num_patches is not None:
            module.num_patches *= dilation**2
        before = reduction
        for name, part in _parts(module):
            if name == 'shortcut':
                self.through(part, before)
            else:
                reduction = self.through(part, reduction)
        return reduction

    def _dilate(self, layer: Any, reduction: int, dilation: int) -> int:
        stride = max(_both(layer.stride))
        behind = reduction * stride
        if stride > 1 and self.deepest is not None and behind > self.deepest:
            return reduction  # attention cuts its input into patches, and leaves the stream's resolution as it is
        if behind > self.output_stride and behind % self.output_stride:
            raise _CannotDilateError(f'it divides the resolution by {reduction} and then by {behind}')
        kept = min(behind, self.output_stride) // min(reduction, self.output_stride)
        if (kept, dilation) != (stride, 1):
            _set(layer, kept, dilation)
        return behind


def _parts(module: Any) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(module, SpikingPatchSplitting):
        parts = [module.pool_input, *chain(*zip(module.units, module.pools, strict=True)), module.position]
        yield from (('', part) for part in parts if part is not None)
    else:
        yield from module.named_children()


def _set(layer: Any, stride: int, dilation: int) -> None:
    """Give it this stride and dilation, and so much padding that the map keeps its size but for the stride."""
    if isinstance(layer, SpikePool):
        layer.stride, layer.dilation = stride, dilation
    elif isinstance(layer, nn.MaxPool2d):
        layer.__class__ = DilatedMaxPool
        layer.stride, layer.dilation, layer.padding = stride, dilation, dilation
    else:
        size = layer.kernel_size[-1]
        if size % 2 == 0 and layer.padding[-1] == 0:
            if not isinstance(layer, MapConv):
                raise _CannotDilateError(f'a {type(layer).__name__} with an even kernel has no border on one side')
            layer.border = dilation * (size - 1) + 1 - stride
        layer.padding = tuple(padding * dilation for padding in layer.padding)
        layer.stride, layer.dilation = (stride,) * len(layer.stride), (dilation,) * len(layer.dilation)


def _both(value: Any) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value, value)
