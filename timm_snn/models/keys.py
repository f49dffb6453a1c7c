"""State dicts of other layouts in our names, and what tells one model's from another's."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

__all__ = ['KeyRules', 'find_mismatches', 'match_pointwise_shapes', 'rename_keys', 'rename_known_layout']

# A regular expression and what replaces its match, as in re.sub; applied one after the other.
KeyRules = Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]


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


def rename_known_layout(state_dict: Mapping[str, Tensor], layouts: Mapping[str, KeyRules]) -> dict[str, Tensor]:
    """A state dict renamed by the rules of the first layout whose mark, a key, it has; of none, as it is."""
    for mark, rules in layouts.items():
        if mark in state_dict:
            return rename_keys(state_dict, rules)
    return dict(state_dict)


def match_pointwise_shapes(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Point-wise weights in the model's shape: the same map is [o, i] in a linear layer and [o, i, 1(, 1)] in ours."""
    shapes = {key: value.shape for key, value in model.state_dict().items()}

    def fit(key: str, value: Any) -> Any:
        shape = shapes.get(key, ())
        pointwise = isinstance(value, Tensor) and value.ndim > 1 and all(n == 1 for n in (*value.shape[2:], *shape[2:]))
        return value.reshape(shape) if pointwise and value.shape[:2] == shape[:2] else value

    return {key: fit(key, value) for key, value in state_dict.items()}


def find_mismatches(state_dict: Mapping[str, Tensor], model: nn.Module, strict: bool) -> dict[str, list[str]]:
    """Keys that are missing, unexpected, or of another shape, by kind; none if the state dict is this model's.

    Unless `strict`, it may have other classes, or no classifier, and other input channels.
    """
    expected = model.state_dict()
    cfg: Any = model.pretrained_cfg
    classifier, first_conv = f'{cfg["classifier"]}.', f'{cfg["first_conv"]}.weight'

    def may_differ(key: str) -> bool:
        return not strict and key.startswith(classifier)

    def fits(key: str) -> bool:
        value, shape = state_dict[key], expected[key].shape
        free_axis = None if strict else 1 if key == first_conv else 0 if key.startswith(classifier) else None
        return (
            isinstance(value, Tensor)
            and value.ndim == len(shape)
            and all(axis == free_axis or value.shape[axis] == shape[axis] for axis in range(len(shape)))
        )

    found = {
        'missing': [k for k in expected if k not in state_dict and not may_differ(k)],
        'unexpected': [k for k in state_dict if k not in expected and not may_differ(k)],
        'of another shape': [
            f'{k}, {_shape(state_dict[k])} instead of {_shape(expected[k])}'
            for k in expected
            if k in state_dict and not fits(k)
        ],
    }
    return {kind: keys for kind, keys in found.items() if keys}


def _shape(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f'a {type(value).__name__}'
    return 'x'.join(map(str, value.shape)) or 'a number'
