"""What every family needs around timm's model factory: loading with clear errors, feature taps, per-stage arguments."""

import os
import pickle
import re
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, TypeVar

from safetensors import SafetensorError
from timm.models import build_model_with_cfg
from torch import Tensor, nn

__all__ = [
    'KeyRules',
    'build_spiking_model',
    'check_state_dict',
    'match_pointwise_shapes',
    'per_stage',
    'rename_keys',
    'take_indices',
]

# A regular expression and what replaces its match, as in re.sub; applied one after the other.
KeyRules = Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]
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

    timm replaces the classifier and adapts the first convolution of weights for other classes and channels. It goes by
    the pretrained config, we go by the weights, and only where the caller asked for a number of his own.

    Raises: RuntimeError in one line if weights cannot be read, or are for other classes or channels.
    """
    saved = kwargs.get('pretrained_model_args') or {}  # came with the weights, not from the caller
    asked = {n for n in ('num_classes', 'in_chans') if n in kwargs and kwargs[n] != saved.get(n)}
    if kwargs.get('features_only'):
        asked.add('num_classes')  # there is no classifier
    # The model from when it is made until its weights are read: what goes wrong in between is the file's fault.
    reading: nn.Module | None = None

    def construct(**model_kwargs: Any) -> ModelT:
        nonlocal reading
        model = reading = model_cls(**model_kwargs)
        return model

    def fit(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        nonlocal reading
        reading = None
        state_dict = filter_fn(state_dict, model)
        adopt_sizes(state_dict, model, asked)
        return state_dict

    try:
        return build_model_with_cfg(
            construct,
            variant,
            pretrained,
            pretrained_filter_fn=fit,
            # The getter calls forward_intermediates, which averages over time; timm's hooks would return [T, B, ...].
            feature_cfg=dict(out_indices=tuple(range(num_levels)), feature_cls='getter'),
            **kwargs,
        )
    except (SafetensorError, pickle.UnpicklingError, EOFError, OSError, RuntimeError, AttributeError) as error:
        file = getattr(reading, 'pretrained_cfg', {}).get('file')
        if not file:
            raise
        raise RuntimeError(
            f'cannot read weights for {variant} from {file}: {_reason(error, file)}; expected a .safetensors file, or '
            'a .pth file with a state dict that torch.load opens with weights_only=True'
        ) from error


def _reason(error: Exception, file: str) -> str:
    if isinstance(error, FileNotFoundError):
        return f"it is a folder, which 'local-dir:{file}' loads" if os.path.isdir(file) else 'there is no such file'
    if isinstance(error, AttributeError):  # timm asks it for items() and its keys for startswith()
        return 'it holds no state dict'
    return str(error).splitlines()[0] if str(error) else type(error).__name__


class WeightsMismatch(RuntimeError):
    """A readable state dict of another model; says what to do."""


def check_state_dict(state_dict: Mapping[str, Tensor], model: nn.Module, layouts: str) -> None:
    """Refuse, in one line, a state dict that is not this model's, but for its classes and input channels.

    `layouts` names the key layouts that the family reads. Raises: RuntimeError.
    """
    expected = model.state_dict()
    cfg: Any = model.pretrained_cfg
    classifier, first_conv = f'{cfg["classifier"]}.', f'{cfg["first_conv"]}.weight'

    def fits(key: str) -> bool:
        value, shape = state_dict[key], expected[key].shape
        free_axis = 1 if key == first_conv else 0 if key.startswith(classifier) else None
        return (
            isinstance(value, Tensor)
            and value.ndim == len(shape)
            and all(axis == free_axis or value.shape[axis] == shape[axis] for axis in range(len(shape)))
        )

    missing = [k for k in expected if k not in state_dict and not k.startswith(classifier)]
    unexpected = [k for k in state_dict if k not in expected and not k.startswith(classifier)]
    other = [k for k in expected if k in state_dict and not fits(k)]
    if missing or unexpected or other:
        kinds = (('missing', missing), ('unexpected', unexpected), ('of another shape', other))
        found = ', '.join(f'{len(keys)} keys {kind} (first: {keys[0]})' for kind, keys in kinds if keys)
        raise WeightsMismatch(
            f'these weights are not of this {type(model).__name__}: {found}; expected {layouts}, '
            'and create_model with the arguments that the weights were trained with'
        )


def adopt_sizes(state_dict: Mapping[str, Tensor], model: nn.Module, asked: Container[str]) -> None:
    """Write the classes and input channels of these weights into the model's pretrained config, which timm goes by.

    Raises: RuntimeError if the model has others although they are not among the arguments that were `asked` for.
    """
    cfg: Any = model.pretrained_cfg
    weight = state_dict.get(f'{cfg["classifier"]}.weight')
    sizes = {
        'num_classes': 0 if weight is None else len(weight),
        'in_chans': state_dict[f'{cfg["first_conv"]}.weight'].shape[1],
    }
    for name, size in sizes.items():
        if size != getattr(model, name) and name not in asked:
            raise WeightsMismatch(
                f'these weights have {name}={size} and the model {name}={getattr(model, name)}: pass {name}={size} to '
                f'create_model, or another {name} to adapt the weights'
            )
    cfg['num_classes'] = sizes['num_classes']
    cfg['input_size'] = (sizes['in_chans'], *cfg['input_size'][1:])


def rename_keys(state_dict: Mapping[str, Tensor], rules: KeyRules, unused: str | None = None) -> dict[str, Tensor]:
    """Another key layout in our names, without the keys in which `unused`, a regular expression, is found.

    `unused` is for parameters that the released code has and never computes with.
    """
    renamed = {}
    for key, value in state_dict.items():
        if unused is not None and re.search(unused, key):
            continue
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    return renamed


def match_pointwise_shapes(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Point-wise weights in the model's shape: the same map is [o, i] in a linear layer and [o, i, 1(, 1)] in ours."""
    shapes = {key: value.shape for key, value in model.state_dict().items()}

    def fit(key: str, value: Any) -> Any:
        shape = shapes.get(key, ())
        pointwise = isinstance(value, Tensor) and value.ndim > 1 and all(n == 1 for n in (*value.shape[2:], *shape[2:]))
        return value.reshape(shape) if pointwise and value.shape[:2] == shape[:2] else value

    return {key: fit(key, value) for key, value in state_dict.items()}


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
