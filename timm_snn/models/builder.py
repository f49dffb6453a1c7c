"""What every family needs around timm's model factory: loading with clear errors, feature taps, per-stage arguments."""

import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from safetensors import SafetensorError
from timm.models import build_model_with_cfg
from torch import Tensor, nn

__all__ = ['build_spiking_model', 'check_state_dict', 'per_stage', 'take_indices']

ModelT = TypeVar('ModelT', bound=nn.Module)


def build_spiking_model(
    model_cls: Callable[..., ModelT],
    variant: str,
    pretrained: bool,
    filter_fn: Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]],
    num_levels: int,
    **kwargs: Any,
) -> ModelT:
    """timm's `build_model_with_cfg` for models whose features carry time; features_only has `num_levels` by default.

    Raises: RuntimeError in one line if the weight file that the user named is missing or cannot be read.
    """
    try:
        return build_model_with_cfg(
            model_cls,
            variant,
            pretrained,
            pretrained_filter_fn=filter_fn,
            # The getter calls forward_intermediates, which averages over time; timm's hooks would return [T, B, ...].
            feature_cfg=dict(out_indices=tuple(range(num_levels)), feature_cls='getter'),
            **kwargs,
        )
    except (SafetensorError, pickle.UnpicklingError, EOFError, OSError, RuntimeError) as error:
        file = (kwargs.get('pretrained_cfg_overlay') or {}).get('file')
        if not (pretrained and file) or isinstance(error, WeightsMismatch):
            raise
        reason = str(error).splitlines()[0] if str(error) else 'there is no such file'
        raise RuntimeError(
            f'cannot read weights for {variant} from {file}: {reason}; expected a .safetensors file, or a .pth file '
            'that torch.load opens with weights_only=True'
        ) from error


class WeightsMismatch(RuntimeError):
    """A readable state dict of another model; already says what to do."""


def check_state_dict(state_dict: Mapping[str, Tensor], model: nn.Module, layouts: str) -> None:
    """Refuse, in one line, a state dict that is not this model's; timm adapts input channels and classifier later.

    `layouts` names the key layouts that the family reads. Raises: RuntimeError.
    """
    expected = model.state_dict()
    adapted = ('head.fc.',)
    missing = [k for k in expected if k not in state_dict and not k.startswith(adapted)]
    unexpected = [k for k in state_dict if k not in expected and not k.startswith(adapted)]
    # The first convolution may have other input channels, so axis 1 of convolutions is left to timm.
    other = [
        k
        for k in expected
        if k in state_dict
        and not k.startswith(adapted)
        and (state_dict[k].shape[:1] != expected[k].shape[:1] or state_dict[k].shape[2:] != expected[k].shape[2:])
    ]
    if missing or unexpected or other:
        kinds = (('missing', missing), ('unexpected', unexpected), ('of another shape', other))
        found = ', '.join(f'{len(keys)} keys {kind} (first: {keys[0]})' for kind, keys in kinds if keys)
        raise WeightsMismatch(
            f'these weights are not of this {type(model).__name__}: {found}; expected {layouts}, '
            'and create_model with the arguments that the weights were trained with'
        )


def per_stage(value: Any, num_stages: int, name: str) -> tuple:
    """One value for every stage, or a sequence with one per stage. Raises ValueError for another length."""
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,) * num_stages
    if len(values) != num_stages:
        raise ValueError(f'expected one {name} for each of {num_stages} stages, got {len(values)}: {values}')
    return values


def take_indices(num_features: int, indices: int | Sequence[int] | None) -> tuple[list[int], int]:
    """Which of `num_features` taps to return, and the deepest: None is all, an int the last n, negatives from the end.

    Raises: ValueError for an index out of range.
    """
    if indices is None:
        indices = num_features
    if isinstance(indices, int):
        taken = list(range(num_features - indices, num_features))
    else:
        taken = [i + num_features if i < 0 else i for i in indices]
    if not taken or min(taken) < 0 or max(taken) >= num_features:
        raise ValueError(f'indices={indices} is out of range, the model has {num_features} feature levels')
    return taken, max(taken)
