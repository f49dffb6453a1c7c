"""Checks of the settings in a config.json, which anyone may have written.

A wrong one ends in one line that names the file and says what was expected, before anything large is made of it.
"""

import dataclasses
import reprlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from inspect import Parameter, signature
from typing import Any, TypeVar

from timm.models import resolve_pretrained_cfg
from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from ..files import printable
from .pretrained import SpikingCfg, first_line

__all__ = ['argument_names', 'arguments_of', 'check_argument', 'check_cfg', 'check_config', 'make_from_config']

ModelT = TypeVar('ModelT', bound=nn.Module)

MAX_ELEMENTS = 10**9  # parameters and buffers of a model; ours have 70 million at most
MAX_MODULES = 10_000  # ours have 600 at most; more would take more than a second to make
MAX_ITEMS = 1000  # values of one setting, those of inner lists included
MAX_TEXT = 1000  # characters
MAX_NESTING = 8
MAX_SIDE = 16_384  # pixels of an image's side

# What a constructor raises for settings that do not fit.
_WRONG_SETTINGS = (
    *(TypeError, ValueError, LookupError, AttributeError),
    *(ArithmeticError, RuntimeError, AssertionError),
)


def check_config(
    cfg: dict[str, Any], model_args: Mapping[str, Any], variant: str, model_cls: type[nn.Module]
) -> tuple[dict[str, Any], str]:
    """The pretrained_cfg of a config.json, or of the caller, without what a file cannot change, and the file's name.

    The name is '' for the caller's. A file cannot change which layers are which, nor how its weights are read.

    Raises: ValueError if the pretrained_cfg and the model_args are not the settings of a model of this class. Unknown
    ones are refused, values that are no numbers where numbers are needed, and those that are absurdly large.
    """
    where = f'the config.json of {cfg.get("hf_hub_id") or cfg.get("file")}' if cfg.get('source') else ''
    _check_model_args(where or 'the pretrained_cfg given', model_args, model_cls)
    check_cfg(where or 'the pretrained_cfg given', cfg)
    own = resolve_pretrained_cfg(variant)
    ours = ('first_conv', 'classifier', 'fixed_input_size', 'label_offset', 'custom_load')
    return {**cfg, **{key: getattr(own, key) for key in ours}}, where


def _check_model_args(where: str, model_args: Mapping[str, Any], model_cls: type[nn.Module]) -> None:
    of_builder = {'act': None, 'lif_kwargs': None, 'output_stride': None}
    defaults = {**arguments_of(model_cls)[0], **of_builder}
    expected = set(defaults) - {'device', 'dtype', 'backend'}
    if unknown := sorted(set(model_args) - expected):
        raise ValueError(f'{where} has unknown model_args {printable(unknown)}; expected some of {sorted(expected)}')
    for name, value in model_args.items():
        takes_bools = not any(type(leaf) in (int, float) for leaf in _leaves(defaults[name]))
        check_argument(where, 'model_args', name, value, takes_bools)


def check_argument(where: str, kind: str, name: str, value: Any, takes_bools: bool = True) -> None:
    """Raises: ValueError for an argument, among those that `where` calls `kind`, that is absurdly large."""
    most = 1000 if name in ('num_steps', 'depth', 'depths') else 100_000
    if expected := _fault(value, most, takes_bools):
        raise ValueError(f'{where} has {name}={_shown(value)} among its {kind}; expected {expected}')


def check_cfg(where: str, cfg: Mapping[str, Any]) -> None:
    """Raises: ValueError unless these are settings of a pretrained_cfg, within bounds."""
    if unknown := sorted(set(cfg) - {field.name for field in dataclasses.fields(SpikingCfg)}):
        raise ValueError(f'{where} has unknown keys {printable(unknown)} in its pretrained_cfg')
    if not isinstance(cfg.get('modules'), (list, type(None))):
        raise ValueError(f'{where} has modules={_shown(cfg["modules"])}; expected a list of names')
    names = ('label_names', 'label_descriptions')
    for key in names:
        if not isinstance(cfg.get(key), (list, tuple, dict, type(None))):
            raise ValueError(f'{where} has {key}={_shown(cfg[key])}; expected a list of names')
    if not isinstance(cfg.get('frames'), (dict, type(None))):
        raise ValueError(f'{where} has frames={_shown(cfg["frames"])}; expected the settings of event frames by name')
    for key, value in cfg.items():
        most = 2**40 if key == 'frames' else 10**6  # microseconds of a bin
        if key not in (*names, 'state_dict') and (expected := _fault(value, most, takes_bools=True)):
            raise ValueError(f'{where} has {key}={_shown(value)}; expected {expected}')
    for key in ('input_size', 'test_input_size', 'min_input_size'):
        size = cfg.get(key, (3, 224, 224) if key == 'input_size' else None)
        if size is None and key != 'input_size':
            continue
        is_list = isinstance(size, (list, tuple)) and len(size) == 3
        if not is_list or not all(type(n) is int and 0 < n <= MAX_SIDE for n in size):
            raise ValueError(
                f'{where} has {key}={_shown(size)}; expected channels, height and width, up to {MAX_SIDE:,}, '
                'as [3, 224, 224]'
            )
    if type(cfg.get('num_classes', 0)) not in (int, type(None)):
        raise ValueError(f'{where} has num_classes={_shown(cfg["num_classes"])}; expected a whole number')


def _fault(value: Any, most: float, takes_bools: bool) -> str:
    """What was expected of a setting instead, or '' for one that may be tried."""
    for count, leaf in enumerate(_leaves(value)):
        if count > MAX_ITEMS or leaf is _TOO_DEEP:
            return f'at most {MAX_ITEMS:,} values in {MAX_NESTING} lists in each other'
        if isinstance(leaf, str) and len(leaf) > MAX_TEXT:
            return f'at most {MAX_TEXT:,} characters'
        if isinstance(leaf, bool) and not takes_bools:
            return 'numbers'
        if isinstance(leaf, (int, float)) and not -most <= leaf <= most:  # NaN, too
            return f'at most {most:,}'
    return ''


_TOO_DEEP = object()


def _leaves(value: Any, nesting: int = 0) -> Iterator[Any]:
    """The values in lists and dicts, with those; empty ones, which take time as well, count as one."""
    if not isinstance(value, (list, tuple, dict)):
        yield value
    elif nesting == MAX_NESTING:
        yield _TOO_DEEP
    else:
        yield None
        for item in value.values() if isinstance(value, dict) else value:
            yield from _leaves(item, nesting + 1)


def _shown(value: Any) -> str:
    return printable(reprlib.repr(value))  # of long and deep values a part


def argument_names(model_cls: type[nn.Module]) -> set[str]:
    """The names of its constructor's arguments, those of base classes included where it has **kwargs."""
    return set(arguments_of(model_cls)[0])


def arguments_of(layer: Callable[..., Any]) -> tuple[dict[str, Any], bool]:
    """The default of each argument of a function or class, and whether it takes any other too.

    A class with **kwargs takes those of its base classes; any, if it is the last one before nn.Module.
    """
    makers = [vars(base).get('__init__') for base in layer.__mro__] if isinstance(layer, type) else [layer]
    defaults: dict[str, Any] = {}
    takes_any = False
    for maker in filter(None, makers):
        if maker is nn.Module.__init__:
            break
        parameters = [p for name, p in signature(maker).parameters.items() if name != 'self']
        defaults = {p.name: p.default for p in parameters if p.kind not in _REST} | defaults
        takes_any = any(p.kind is Parameter.VAR_KEYWORD for p in parameters)
        if not takes_any:
            break
    return defaults, takes_any


_REST = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


def make_from_config(model_cls: type[ModelT], variant: str, where: str, model_kwargs: dict[str, Any]) -> ModelT:
    """A model with the settings of the config.json that `where` names.

    Raises: ValueError for settings that make no model, or one of more than a billion parameters or 10,000 modules.
    """
    try:
        # A model on the meta device has its size and takes no memory. Only a model of a config.json is made twice like
        # this, in 10 to 30 ms: a twentieth of what msvit_10_768 takes in memory on one CPU core, all of it for
        # msvit_4_96.
        with _bounded():
            model_cls(**{**model_kwargs, 'device': 'meta'})
        return model_cls(**model_kwargs)
    except _WRONG_SETTINGS as error:
        if set(model_kwargs) - argument_names(model_cls):
            raise  # the caller's: those of the file were checked
        raise ValueError(f'cannot make {variant} with the model_args of {where}: {first_line(error)}') from error


@contextmanager
def _bounded() -> Iterator[None]:
    """End the making of a model as soon as it is too large; other threads make theirs meanwhile, without a bound.

    Whichever settings make it large: a bound for each alone would leave their products.
    """
    thread, modules, elements = threading.get_ident(), 0, 0

    def count(parent: nn.Module, name: str, part: Any) -> None:
        nonlocal modules, elements
        if part is None or threading.get_ident() != thread:
            return
        if isinstance(part, nn.Module):
            modules += 1
        else:
            elements += part.numel()
        if modules > MAX_MODULES:
            raise ValueError(f'it would have more than {MAX_MODULES:,} modules')
        if elements > MAX_ELEMENTS:
            raise ValueError(f'it would have at least {elements:,} parameters; expected at most a billion')

    hooks = [
        register(count)
        for register in (
            register_module_module_registration_hook,
            register_module_parameter_registration_hook,
            register_module_buffer_registration_hook,
        )
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
