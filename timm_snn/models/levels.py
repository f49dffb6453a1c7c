"""Feature levels: which maps of the stages dense libraries are given, and what they may ask for."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..layers.patch_embed import InnerLevel

__all__ = ['feature_levels', 'inner_module', 'stage_of', 'take_indices']


def feature_levels(stages: Sequence[Any]) -> list[dict[str, Any]]:
    """timm's `feature_info`: of maps with the same stride, the last."""
    levels: dict[int, dict[str, Any]] = {}
    before = 1
    for i, stage in enumerate(stages):
        for inner in stage.inner_levels:
            levels[before * inner.reduction] = dict(num_chs=inner.num_chs, module=inner_module(i, inner))
        if stage.is_level:
            levels[stage.reduction] = dict(num_chs=stage.num_chs, module=f'stages.{i}')
        before = stage.reduction
    return [dict(level, reduction=reduction) for reduction, level in sorted(levels.items())]


def inner_module(stage: int, level: InnerLevel) -> str:
    return f'stages.{stage}.embed.units.{level.unit}'


def stage_of(level: Mapping[str, Any]) -> int:
    """The stage of an entry of `feature_info`."""
    return int(level['module'].split('.')[1])


def take_indices(
    feature_info: Sequence[Mapping[str, Any]], indices: int | Sequence[int] | None
) -> tuple[list[int], int]:
    """The indices of the levels to return, and the deepest: None is all, an int the last n, negatives from the end.

    Raises: ValueError for an index out of range.
    """
    number = len(feature_info)
    if indices is None:
        indices = number
    if isinstance(indices, int):
        taken = list(range(number - indices, number))
    else:
        taken = [i + number if i < 0 else i for i in indices]
    if not taken or min(taken) < 0 or max(taken) >= number:
        strides = [level['reduction'] for level in feature_info]
        remedy = ''
        if taken and max(taken) >= number:
            # segmentation_models_pytorch counts halvings, and asks for all levels down to 1/32 by default
            depth = strides[-1].bit_length() - 1
            remedy = f': ask for these, or pass extra_levels={max(taken) + 1 - number} to append more'
            remedy += f'; segmentation_models_pytorch asks for these with encoder_depth={depth}'
        raise ValueError(
            f'indices={indices} is out of range, the model has {number} feature levels, of strides {strides}{remedy}'
        )
    return taken, max(taken)
