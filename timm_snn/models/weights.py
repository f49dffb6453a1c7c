"""State dicts as they come in: out of the containers that training code saves them in, and finite."""

import argparse
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from ..files import printable

__all__ = ['check_finite', 'ignoring_numpy', 'unpack']

SHOWN = 3  # names in an error
AVERAGED = ('state_dict_ema', 'model_ema')  # what timm prefers, in its order
USUAL = ('state_dict', 'model')
WRAPPERS = (
    *('module.', '_orig_mod.', 'model.', 'net.', 'network.', 'backbone.', 'encoder.', 'timm_model.', 'ema_model.'),
    *('teacher.', 'student.'),
)
NESTING = 4


class Ignored:
    """What is read in the place of a NumPy value beside weights, such as the best accuracy. It calls nothing."""

    def __init__(self, *args: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def ignoring_numpy() -> AbstractContextManager:
    """In it, torch.load(weights_only=True) passes over NumPy values, and over the options that timm keeps."""
    modules = ('numpy.core.multiarray', 'numpy._core.multiarray')
    names = [f'{module}.{name}' for module in modules for name in ('scalar', '_reconstruct')]
    kinds = ('Bool', *(f'{u}Int{n}' for u in ('', 'U') for n in (8, 16, 32, 64)), 'Float16', 'Float32', 'Float64')
    names += ['numpy.dtype', 'numpy.ndarray', *(f'numpy.dtypes.{kind}DType' for kind in kinds)]
    return torch.serialization.safe_globals([argparse.Namespace, *((Ignored, name) for name in names)])


def unpack(checkpoint: Any, *, use_ema: bool = True, key: str | None = None) -> dict[str, Any]:
    """The state dict in what training code has saved, without the prefixes that wrappers give all of its keys.

    Averaged weights are taken where timm would, and not without `use_ema`; `key` names another part.
    Raises: ValueError if there is no state dict, or more than one that could be meant.
    """
    if not isinstance(checkpoint, Mapping):
        raise ValueError('it holds no state dict')
    parts = dict(_state_dicts(checkpoint, NESTING))
    if key is not None:
        if key not in parts:
            raise ValueError(f'it holds no state dict {key!r}, but {_listed(parts) or "none by a name"}')
        return _unwrap(parts[key])
    if not parts:
        if not any(isinstance(value, Tensor) for value in checkpoint.values()):
            raise ValueError('it holds no state dict')
        return _unwrap(checkpoint)
    for name in (*AVERAGED * use_ema, *USUAL):
        if name in parts:
            return _unwrap(parts[name])
    if not use_ema:
        parts = {name: part for name, part in parts.items() if name not in AVERAGED} or parts
    if len(parts) > 1:
        raise ValueError(
            f'it holds {len(parts)} state dicts, {_listed(parts)}: name one, by --key of hub/convert.py or by '
            "pretrained_cfg_overlay=dict(state_dict=torch.load(FILE)['NAME'])"
        )
    return _unwrap(*parts.values())


def _state_dicts(checkpoint: Mapping[Any, Any], nesting: int, prefix: str = '') -> Iterator[tuple[str, Mapping]]:
    """By name, as model or checkpoint.model, every innermost mapping that holds tensors."""
    for name, value in checkpoint.items():
        if isinstance(value, Mapping) and nesting and name != 'optimizer':
            inner = list(_state_dicts(value, nesting - 1, f'{prefix}{name}.'))
            if inner:
                yield from inner
            elif any(isinstance(leaf, Tensor) for leaf in value.values()):
                yield f'{prefix}{name}', value


def _listed(parts: Mapping[str, Any]) -> str:
    return printable(', '.join(parts))


def _unwrap(state_dict: Mapping[Any, Any]) -> dict[str, Any]:
    if not all(isinstance(key, str) for key in state_dict):
        raise ValueError('it holds no state dict')
    found = {key: value for key, value in state_dict.items() if key != 'n_averaged'}  # of torch's AveragedModel
    while prefix := next((p for p in WRAPPERS if found and all(key.startswith(p) for key in found)), None):
        found = {key.removeprefix(prefix): value for key, value in found.items()}
    return found


def check_finite(state_dict: Mapping[str, Any], source: object) -> None:
    """Weights and buffers with NaN or infinities are of a training that failed, and would answer with confidence.

    `source` is where they come from, for the message. Integers and values that are no tensors are passed over.
    Raises: ValueError that names the first of them.
    """
    wrong = [key for key, value in state_dict.items() if isinstance(value, Tensor) and not _is_finite(value)]
    if wrong:
        names = ', '.join(printable(key, 80) for key in wrong[:SHOWN])
        more = f' and {len(wrong) - SHOWN} more' if len(wrong) > SHOWN else ''
        raise ValueError(
            f'{printable(source)} has NaN or infinite values in {names}{more}: a training that failed leaves such '
            'weights; take a checkpoint from before'
        )


def _is_finite(value: Tensor) -> bool:
    if value.is_meta or not (value.is_floating_point() or value.is_complex()):
        return True
    if value.element_size() == 1:  # float8, of which torch cannot tell
        value = value.float()
    return bool(torch.isfinite(value).all())
