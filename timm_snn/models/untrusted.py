"""Checks of files from outside, config.json and weights, which anyone may have written.

A wrong one ends in one line that names the file and says what to do, and before anything large is made of it.
"""

import dataclasses
import os
import pickle
import re
from collections.abc import Container, Iterator, Mapping
from hashlib import sha256
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, HTTPError, OfflineModeIsEnabled
from safetensors import SafetensorError
from timm.models import PretrainedCfg, resolve_pretrained_cfg
from torch import Tensor, nn

from .keys import find_mismatches
from .pretrained import first_line, hub_error, is_from_hub

__all__ = [
    'ReadingWeights',
    'WeightsMismatch',
    'adopt_sizes',
    'argument_names',
    'check_config',
    'check_hash',
    'check_state_dict',
    'make_from_config',
    'place_of',
]

ModelT = TypeVar('ModelT', bound=nn.Module)

# What a constructor raises for settings that do not fit, and what reading weights raises.
_WRONG_SETTINGS = (
    *(TypeError, ValueError, LookupError, AttributeError),
    *(ArithmeticError, RuntimeError, AssertionError),
)
_UNREADABLE = (
    *(SafetensorError, pickle.UnpicklingError, EOFError, OSError, RuntimeError, AttributeError),
    *(HTTPError, HFValidationError, EntryNotFoundError),
)


def check_config(
    cfg: dict[str, Any], model_args: Mapping[str, Any], variant: str, model_cls: type[nn.Module]
) -> tuple[dict[str, Any], str]:
    """The pretrained_cfg of a config.json, or of the caller, without what a file cannot change, and the file's name.

    The name is '' for the caller's. A file cannot change which layers are which, nor how its weights are read.

    Raises: ValueError if the pretrained_cfg and the model_args are not the settings of a model of this class. Unknown
    ones are refused, and numbers with which the model would fill the memory before it said anything.
    """
    where = f'the config.json of {cfg.get("hf_hub_id") or cfg.get("file")}' if cfg.get('source') else ''
    _check_settings(where or 'the pretrained_cfg given', cfg, model_args, model_cls)
    own = resolve_pretrained_cfg(variant)
    ours = ('first_conv', 'classifier', 'fixed_input_size', 'label_offset', 'custom_load')
    return {**cfg, **{key: getattr(own, key) for key in ours}}, where


def _check_settings(
    where: str, cfg: Mapping[str, Any], model_args: Mapping[str, Any], model_cls: type[nn.Module]
) -> None:
    expected = argument_names(model_cls) - {'device', 'dtype', 'backend'}
    if unknown := sorted(set(model_args) - expected):
        raise ValueError(f'{where} has unknown model_args {unknown}; expected some of {sorted(expected)}')
    for name, value in model_args.items():
        most = 1000 if name in ('num_steps', 'depth', 'depths') else 100_000
        if any(abs(number) > most for number in _numbers(value)):
            raise ValueError(f'{where} has {name}={str(value)[:80]} among its model_args; expected at most {most:,}')
    if unknown := sorted(set(cfg) - {field.name for field in dataclasses.fields(PretrainedCfg)}):
        raise ValueError(f'{where} has unknown keys {unknown} in its pretrained_cfg')
    size = cfg.get('input_size', (3, 224, 224))
    if not (isinstance(size, (list, tuple)) and len(size) == 3 and all(isinstance(n, int) and n > 0 for n in size)):
        raise ValueError(f'{where} has input_size={size!r}; expected channels, height and width, as [3, 224, 224]')
    if not isinstance(cfg.get('num_classes', 0), (int, type(None))):
        raise ValueError(f'{where} has num_classes={cfg["num_classes"]!r}; expected a whole number')
    if not isinstance(cfg.get('label_names'), (list, tuple, dict, type(None))):
        raise ValueError(f'{where} has label_names={str(cfg["label_names"])[:80]}; expected a list of names')


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, (int, float)):
        yield value


def argument_names(model_cls: type[nn.Module]) -> set[str]:
    """The names of its constructor's arguments, those of base classes included where it has **kwargs."""
    names: set[str] = set()
    for base in model_cls.__mro__:
        if '__init__' in vars(base):
            parameters = signature(vars(base)['__init__']).parameters.values()
            names |= {p.name for p in parameters if p.kind is not Parameter.VAR_KEYWORD} - {'self'}
            if not any(p.kind is Parameter.VAR_KEYWORD for p in parameters):
                break
    return names


def make_from_config(model_cls: type[ModelT], variant: str, where: str, model_kwargs: dict[str, Any]) -> ModelT:
    """A model with the settings of the config.json that `where` names.

    Raises: ValueError for settings that make no model, or one of more than a billion parameters.
    """
    try:
        _check_size(model_cls, model_kwargs)
        return model_cls(**model_kwargs)
    except _WRONG_SETTINGS as error:
        if set(model_kwargs) - argument_names(model_cls):
            raise  # the caller's: those of the file were checked
        raise ValueError(f'cannot make {variant} with the model_args of {where}: {first_line(error)}') from error


def _check_size(model_cls: type[nn.Module], model_kwargs: Mapping[str, Any]) -> None:
    # A model on the meta device has its size and takes no memory. Only a model of a config.json is made twice like
    # this, in 10 to 30 ms: a twentieth of what msvit_10_768 takes in memory on one CPU core, all of it for msvit_4_96.
    size = sum(p.numel() for p in model_cls(**{**model_kwargs, 'device': 'meta'}).parameters())
    if size > 10**9:
        raise ValueError(f'it would have {size:,} parameters; expected at most a billion')


class ReadingWeights:
    """Context manager for timm's model factory, in which an error while it reads the weights is told in one line.

    timm reads them between `begin` and `end`; what goes wrong before and after is not the file's fault, and raised as
    it is. Raises: RuntimeError, or huggingface_hub's own errors with another message.
    """

    def __init__(self, variant: str, cfg: dict[str, Any]) -> None:
        self.variant = variant
        self.cfg = cfg
        self.in_progress = False

    def begin(self) -> None:
        self.in_progress = True

    def end(self) -> None:
        self.in_progress = False

    def __enter__(self) -> 'ReadingWeights':
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if self.in_progress and isinstance(error, _UNREADABLE):
            raise _unreadable(error, self.variant, self.cfg) from error


def _unreadable(error: Exception, variant: str, cfg: dict[str, Any]) -> Exception:
    from_hub = (HTTPError, EntryNotFoundError, OfflineModeIsEnabled, HFValidationError)
    if is_from_hub(cfg) and isinstance(error, from_hub):
        return hub_error(error, variant, cfg)
    return RuntimeError(
        f'cannot read weights for {variant} from {place_of(cfg)}: {_reason(error, str(cfg.get("file")))}; expected a '
        '.safetensors file, or a .pth file with a state dict that torch.load opens with weights_only=True'
    )


def place_of(cfg: Mapping[str, Any]) -> str:
    """Where the weights of a pretrained config come from, for messages."""
    if is_from_hub(cfg):
        return f'{cfg["hf_hub_id"]} on the Hugging Face Hub, file {cfg["hf_hub_filename"]}'
    return str(cfg.get('file') or cfg.get('url') or 'the state dict given')


def _reason(error: Exception, file: str) -> str:
    if isinstance(error, FileNotFoundError):
        return f"it is a folder, which 'local-dir:{file}' loads" if os.path.isdir(file) else 'there is no such file'
    if isinstance(error, AttributeError):  # timm asks it for items() and its keys for startswith()
        return 'it holds no state dict'
    return first_line(error)


def check_hash(cfg: Mapping[str, Any], cache_dir: str | Path | None) -> None:
    """Raises OSError if the downloaded weights are not those that the Hub has, which huggingface_hub does not check.

    It names a file in its cache by its SHA-256. Without links there, as on Windows, it cannot be told.
    """
    repo_id, _, revision = cfg['hf_hub_id'].partition('@')
    cached = try_to_load_from_cache(repo_id, cfg['hf_hub_filename'], cache_dir=cache_dir, revision=revision or None)
    if not isinstance(cached, str):
        return
    blob = Path(cached).resolve()
    if re.fullmatch('[0-9a-f]{64}', blob.name):
        with open(blob, 'rb') as file:
            digest = sha256()
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        if digest.hexdigest() != blob.name:
            raise OSError(f'its SHA-256 is not that of the Hub: delete {blob} to download it again')


class WeightsMismatch(RuntimeError):
    """A readable state dict of another model; says what to do. `mismatches` has all that differs, by kind."""

    def __init__(self, message: str, mismatches: Mapping[str, list[str]] | None = None) -> None:
        super().__init__(message)
        self.mismatches = mismatches or {}


def check_state_dict(state_dict: Mapping[str, Tensor], model: nn.Module, layouts: str) -> None:
    """Refuse, in one line, a state dict that is not this model's, but for its classes and input channels.

    `layouts` names the key layouts that the family reads. Raises: WeightsMismatch, a RuntimeError.
    """
    if found := find_mismatches(state_dict, model, strict=False):
        summary = ', '.join(f'{len(keys)} keys {kind} (first: {keys[0]})' for kind, keys in found.items())
        raise WeightsMismatch(
            f'these weights are not of this {type(model).__name__}: {summary}; expected {layouts}, '
            'and create_model with the arguments that the weights were trained with',
            found,
        )


def adopt_sizes(state_dict: Mapping[str, Tensor], model: nn.Module, asked: Container[str]) -> None:
    """Write the classes and input channels of these weights into the model's pretrained config, which timm goes by.

    Raises: WeightsMismatch if the model has others although they are not among the arguments that were `asked` for.
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
