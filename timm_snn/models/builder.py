"""What every family needs around timm's model factory: loading with clear errors, feature taps, per-stage arguments."""

import dataclasses
import os
import pickle
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from inspect import Parameter, signature
from typing import Any, TypeVar

from huggingface_hub.errors import EntryNotFoundError, HFValidationError, HTTPError, OfflineModeIsEnabled
from safetensors import SafetensorError
from timm.models import PretrainedCfg, build_model_with_cfg, resolve_pretrained_cfg
from torch import Tensor, nn

from ..layers import attentions, neurons, patch_embeds
from ..layers.registry import Registry
from .pretrained import FILENAME, check_hash, first_line, hub_error, is_from_hub, name_source, refuse_untrained

__all__ = [
    'KeyRules',
    'WeightsMismatch',
    'argument_names',
    'build_spiking_model',
    'check_state_dict',
    'find_mismatches',
    'match_pointwise_shapes',
    'named_layers',
    'per_stage',
    'rename_keys',
    'take_indices',
]

# A regular expression and what replaces its match, as in re.sub; applied one after the other.
KeyRules = Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]
ModelT = TypeVar('ModelT', bound=nn.Module)


def build_spiking_model(
    model_cls: type[ModelT],
    variant: str,
    pretrained: bool,
    filter_fn: Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]],
    num_levels: int,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    **kwargs: Any,
) -> ModelT:
    """timm's `build_model_with_cfg` for models whose features carry time; features_only has `num_levels` by default.

    timm replaces the classifier and adapts the first convolution of weights for other classes and channels. It goes by
    the pretrained config, we go by the weights, and only where the caller asked for a number of his own.

    Raises, in one line: RuntimeError if there are no weights, or they cannot be read or are for other classes or
    channels; huggingface_hub's own errors if the Hub does not have or give them; ValueError for a config.json whose
    settings are not those of a model of ours.
    """
    saved, where = kwargs.get('pretrained_model_args') or {}, ''  # came with the weights, not from the caller
    asked = {n for n in ('num_classes', 'in_chans') if n in kwargs and kwargs[n] != saved.get(n)}
    if kwargs.get('features_only'):
        asked.add('num_classes')  # there is no classifier
    if isinstance(pretrained_cfg, dict):
        if pretrained_cfg.get('source'):
            where = f'the config.json of {pretrained_cfg.get("hf_hub_id") or pretrained_cfg.get("file")}'
        check_saved(where or 'the pretrained_cfg given', pretrained_cfg, saved, model_cls)
        # a file cannot change which layers are which, nor how its weights are read
        own = resolve_pretrained_cfg(variant)
        ours = ('first_conv', 'classifier', 'fixed_input_size', 'label_offset', 'custom_load')
        pretrained_cfg = {**pretrained_cfg, **{key: getattr(own, key) for key in ours}}
    overlay = name_source(pretrained_cfg_overlay)
    cfg = resolve_pretrained_cfg(variant, pretrained_cfg, overlay).to_dict()
    if is_from_hub(cfg) and (cfg.get('source') or not cfg.get('hf_hub_filename')):  # a repository cannot name it
        overlay.setdefault('hf_hub_filename', FILENAME)
        cfg['hf_hub_filename'] = overlay['hf_hub_filename']
    if pretrained:
        refuse_untrained(cfg)
    # The model from when it is made until its weights are read: what goes wrong in between is the file's fault.
    reading: nn.Module | None = None

    def construct(**model_kwargs: Any) -> ModelT:
        nonlocal reading
        try:
            if where:
                check_size(model_cls, model_kwargs)
            model = model_cls(**model_kwargs)
        except (
            *(TypeError, ValueError, LookupError, AttributeError),
            *(ArithmeticError, RuntimeError, AssertionError),
        ) as error:
            if not where or set(model_kwargs) - argument_names(model_cls):
                raise
            raise ValueError(f'cannot make {variant} with the model_args of {where}: {first_line(error)}') from error
        reading = model if pretrained else None
        return model

    def fit(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        nonlocal reading
        if is_from_hub(cfg):
            check_hash(cfg, kwargs.get('cache_dir'))
        reading = None
        state_dict = filter_fn(state_dict, model)
        adopt_sizes(state_dict, model, asked)
        return state_dict

    try:
        model = build_model_with_cfg(
            construct,
            variant,
            pretrained,
            pretrained_cfg=pretrained_cfg,
            pretrained_cfg_overlay=overlay,
            pretrained_filter_fn=fit,
            # The getter calls forward_intermediates, which averages over time; timm's hooks would return [T, B, ...].
            feature_cfg=dict(out_indices=tuple(range(num_levels)), feature_cls='getter'),
            **kwargs,
        )
    except (
        *(SafetensorError, pickle.UnpicklingError, EOFError, OSError, RuntimeError, AttributeError),
        *(HTTPError, HFValidationError, EntryNotFoundError),
    ) as error:
        if reading is None:
            raise
        raise unreadable(error, variant, cfg) from error
    # Names of classes are those of weights; an untrained model has none, unless its tag was asked for.
    info: Any = model.pretrained_cfg
    names = info.get('label_names')
    if names and (len(names) != getattr(model, 'num_classes', 0) or not (pretrained or pretrained_cfg)):
        info.update(label_names=None, label_descriptions=None)
    return model


def argument_names(model_cls: type[nn.Module]) -> set[str]:
    """What its constructor takes, and those that its **kwargs go on to."""
    names: set[str] = set()
    for base in model_cls.__mro__:
        if '__init__' in vars(base):
            parameters = signature(vars(base)['__init__']).parameters.values()
            names |= {p.name for p in parameters if p.kind is not Parameter.VAR_KEYWORD} - {'self'}
            if not any(p.kind is Parameter.VAR_KEYWORD for p in parameters):
                break
    return names


def check_saved(where: str, cfg: dict[str, Any], saved: dict[str, Any], model_cls: type[nn.Module]) -> None:
    """Raises ValueError, in one line, if these are not the settings of a model of this class.

    They come from a file that anyone may have written: an unknown one is refused, and so are numbers with which the
    model would fill the memory before it said anything.
    """
    expected = argument_names(model_cls) - {'device', 'dtype', 'backend'}
    unknown = sorted(set(saved) - expected)
    if unknown:
        raise ValueError(f'{where} has unknown model_args {unknown}; expected some of {sorted(expected)}')
    for name, value in saved.items():
        most = 1000 if name in ('num_steps', 'depth', 'depths') else 100_000
        if any(abs(number) > most for number in _numbers(value)):
            raise ValueError(f'{where} has {name}={str(value)[:80]} among its model_args; expected at most {most:,}')
    unknown = sorted(set(cfg) - {field.name for field in dataclasses.fields(PretrainedCfg)})
    if unknown:
        raise ValueError(f'{where} has unknown keys {unknown} in its pretrained_cfg')
    size = cfg.get('input_size', (3, 224, 224))
    if not (isinstance(size, (list, tuple)) and len(size) == 3 and all(isinstance(n, int) and n > 0 for n in size)):
        raise ValueError(f'{where} has input_size={size!r}; expected channels, height and width, as [3, 224, 224]')
    if not isinstance(cfg.get('num_classes', 0), (int, type(None))):
        raise ValueError(f'{where} has num_classes={cfg["num_classes"]!r}; expected a whole number')
    if not isinstance(cfg.get('label_names'), (list, tuple, dict, type(None))):
        raise ValueError(f'{where} has label_names={str(cfg["label_names"])[:80]}; expected a list of names')


def check_size(model_cls: Callable[..., nn.Module], model_kwargs: Mapping[str, Any]) -> None:
    """Raises ValueError for a model of more than a billion parameters, without the memory for them."""
    size = sum(p.numel() for p in model_cls(**{**model_kwargs, 'device': 'meta'}).parameters())
    if size > 10**9:
        raise ValueError(f'it would have {size:,} parameters; expected at most a billion')


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, (int, float)):
        yield value


def unreadable(error: Exception, variant: str, cfg: dict[str, Any]) -> Exception:
    """What to raise if the weights that this pretrained config points to could not be read."""
    if not is_from_hub(cfg):
        place = cfg.get('file') or cfg.get('url') or 'the state dict given'
    elif isinstance(error, (HTTPError, EntryNotFoundError, OfflineModeIsEnabled, HFValidationError)):
        return hub_error(error, variant, cfg)
    else:
        place = f'{cfg["hf_hub_id"]} on the Hugging Face Hub, file {cfg["hf_hub_filename"]}'
    return RuntimeError(
        f'cannot read weights for {variant} from {place}: {_reason(error, str(cfg.get("file")))}; expected a '
        '.safetensors file, or a .pth file with a state dict that torch.load opens with weights_only=True'
    )


def _reason(error: Exception, file: str) -> str:
    if isinstance(error, FileNotFoundError):
        return f"it is a folder, which 'local-dir:{file}' loads" if os.path.isdir(file) else 'there is no such file'
    if isinstance(error, AttributeError):  # timm asks it for items() and its keys for startswith()
        return 'it holds no state dict'
    return first_line(error)


class WeightsMismatch(RuntimeError):
    """A readable state dict of another model; says what to do. `mismatches` has all that differs, by kind."""

    def __init__(self, message: str, mismatches: Mapping[str, list[str]] | None = None) -> None:
        super().__init__(message)
        self.mismatches = mismatches or {}


def check_state_dict(state_dict: Mapping[str, Tensor], model: nn.Module, layouts: str) -> None:
    """Refuse, in one line, a state dict that is not this model's, but for its classes and input channels.

    `layouts` names the key layouts that the family reads. Raises: RuntimeError.
    """
    if found := find_mismatches(state_dict, model, strict=False):
        summary = ', '.join(f'{len(keys)} keys {kind} (first: {keys[0]})' for kind, keys in found.items())
        raise WeightsMismatch(
            f'these weights are not of this {type(model).__name__}: {summary}; expected {layouts}, '
            'and create_model with the arguments that the weights were trained with',
            found,
        )


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


def named_layers(args: Mapping[str, Any]) -> dict[str, Any]:
    """A model's arguments as JSON can hold them: layers by the names they are registered by, others as they are."""
    registries = {'lif_layer': neurons, 'attn': attentions, 'patch_embed': patch_embeds}

    def named(registry: Registry, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [named(registry, layer) for layer in value]
        return registry.name_of(value) or value

    return {key: named(registries[key], value) if key in registries else value for key, value in args.items()}


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
