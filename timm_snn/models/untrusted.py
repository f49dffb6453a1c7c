"""Checks of weights from outside, which anyone may have written; `settings.py` has those of a config.json.

A wrong file ends in one line that names it and says what to do.
"""

import os
import pickle
import re
from collections.abc import Container, Mapping
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, HTTPError, OfflineModeIsEnabled
from safetensors import SafetensorError
from torch import Tensor, nn

from ..files import printable
from .keys import find_mismatches
from .pretrained import bounded_hub, first_line, hub_error, is_from_hub
from .weights import ignoring_numpy

__all__ = [
    'ReadingWeights',
    'WeightsMismatch',
    'adopt_sizes',
    'check_hash',
    'check_state_dict',
    'own_keys',
    'place_of',
    'unpickling_needs',
]

# What to do about a pickle, of authors who can be trusted.
ADVICE = "save the weights alone: torch.save(torch.load(FILE, weights_only=False)['state_dict'], 'weights.pth')"

# What reading weights raises.
_UNREADABLE = (
    *(SafetensorError, pickle.UnpicklingError, EOFError, OSError, RuntimeError, AttributeError, ValueError),
    *(HTTPError, HFValidationError, EntryNotFoundError),
)


class ReadingWeights:
    """Context manager for timm's model factory, in which an error while it reads the weights is told in one line.

    timm reads them between `begin` and `end`; what goes wrong before and after is not the file's fault, and raised as
    it is. Raises: RuntimeError, or huggingface_hub's own errors with another message.
    """

    def __init__(self, variant: str, cfg: dict[str, Any]) -> None:
        self.variant = variant
        self.cfg = cfg
        self.in_progress = False
        self.limits = ExitStack()

    def begin(self) -> None:
        self.in_progress = True

    def end(self) -> None:
        self.in_progress = False

    def __enter__(self) -> 'ReadingWeights':
        self.limits.enter_context(ignoring_numpy())
        if is_from_hub(self.cfg):
            self.limits.enter_context(bounded_hub())
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        self.limits.close()
        if self.in_progress and isinstance(error, _UNREADABLE):
            raise _unreadable(error, self.variant, self.cfg) from error


def _unreadable(error: Exception, variant: str, cfg: dict[str, Any]) -> Exception:
    from_hub = (HTTPError, EntryNotFoundError, OfflineModeIsEnabled, HFValidationError)
    if is_from_hub(cfg) and isinstance(error, from_hub):
        return hub_error(error, variant, cfg)
    return RuntimeError(
        f'cannot read weights for {variant} from {printable(place_of(cfg))}: {_reason(error, str(cfg.get("file")))}; '
        'expected a .safetensors file, or a .pth file with a state dict and no other objects'
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
    if needs := unpickling_needs(error):
        return f'{needs}; if you trust its authors, {ADVICE}'
    return first_line(error)


def unpickling_needs(error: Exception) -> str:
    """What a pickle that was refused would have run, or '' for another error. timm's advice is no argument of ours."""
    if not isinstance(error.__cause__, pickle.UnpicklingError):
        return ''
    names = re.search(r'Unsupported globals: (.*?)\. No automatic', str(error), re.DOTALL)
    return (
        f'it is no file of weights alone, but asks for {printable(names[1])}'
        if names
        else 'it is no file of weights alone'
    )


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
    if any(key.endswith('.multiplier') for key in state_dict):
        raise WeightsMismatch(
            'these are the whole numbers of a quantised model: timm_snn.load_quantized(folder) loads it'
        )
    if found := find_mismatches(state_dict, model, strict=False):
        summary = ', '.join(f'{len(keys)} keys {kind} (first: {printable(keys[0])})' for kind, keys in found.items())
        raise WeightsMismatch(
            f'these weights are not of this {type(model).__name__}: {summary}; expected {layouts}, '
            'and create_model with the arguments that the weights were trained with',
            found,
        )


def own_keys(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The key map of a family whose weights have its own keys alone. Raises: WeightsMismatch for others."""
    check_state_dict(state_dict, model, f'its own keys ({next(iter(model.state_dict()))})')
    return state_dict


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
