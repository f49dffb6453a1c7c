"""Folders of saved segmenters and detectors: config.json and model.safetensors."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ..files import check_regular_file, printable, write_whole, write_whole_text
from ..models.pretrained import FILENAME, first_line
from ..models.settings import check_argument, check_cfg, make_from_config
from ..models.weights import check_finite
from ..wrappers import unwrapped
from .detector import create_detector
from .model import DenseModel
from .segmenter import create_segmenter

__all__ = ['load', 'save']

_MAKERS: dict[str, Callable[..., Any]] = {'segmentation': create_segmenter, 'detection': create_detector}
_INPUT = ('input_size', 'mean', 'std', 'interpolation', 'frames')


def save(
    model: nn.Module,
    folder: str | Path,
    *,
    class_names: Sequence[str] | None = None,
    data_config: Mapping[str, Any] | None = None,
) -> None:
    """Write config.json and model.safetensors, for `load`.

    Args:
        class_names: By label; None for `model.label_names`.
        data_config: How the input was prepared, as timm has it ('input_size', 'mean', 'std', 'interpolation', and
            'frames' of events); what is left out is as in `model.pretrained_cfg`.

    Raises: ValueError for another kind of model, for names of another number of classes, and for a layer that has no
    name in a registry.
    """
    model = unwrapped(model)
    if not isinstance(model, DenseModel):
        raise ValueError(f'expected a model of create_segmenter or create_detector, got a {type(model).__name__}')
    names = model.label_names if class_names is None else list(class_names)
    if names is not None and len(names) != model.num_classes:
        raise ValueError(f'expected {model.num_classes} class_names, got {len(names)}')
    given = {**model.pretrained_cfg, **(data_config or {})}
    config = {
        'task': model.task,
        'arguments': model.arguments,
        'label_names': names,
        **{key: given.get(key) for key in _INPUT},
    }
    try:
        text = json.dumps(config, indent=2)
    except TypeError as error:
        raise ValueError(
            f'an argument of the model is no plain value ({error}): register the layer, as in '
            "timm_snn.layers.neurons.register('my_neuron')(layer), and save again"
        ) from error
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with write_whole(folder / FILENAME) as unfinished:
        save_file({key: value.contiguous() for key, value in model.state_dict().items()}, unfinished)
    write_whole_text(folder / 'config.json', text + '\n')


def load(folder: str | Path) -> Any:
    """The model that `save` wrote, in eval mode.

    Raises: OSError for a file that is missing or no file, ValueError for another kind of folder, settings that make no
    model, and weights that are not the model's or not finite.
    """
    config_file, weights_file = Path(folder) / 'config.json', Path(folder) / FILENAME
    where = printable(str(config_file))
    check_regular_file(config_file)
    check_regular_file(weights_file)
    try:
        config = json.loads(config_file.read_text(encoding='utf-8'))
        make, arguments = _MAKERS[config['task']], dict(config['arguments'])
        backbone, num_classes = arguments.pop('backbone'), arguments.pop('num_classes')
        is_name = re.fullmatch(r'[\w.\-]+', backbone)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f'{where} is not of a segmenter or detector that timm_snn.dense.save wrote: {first_line(error)}'
        ) from error
    if not is_name:
        raise ValueError(f'{where} has the backbone {printable(backbone)}; expected the name of a model')
    prepared = {key: config[key] for key in _INPUT if config.get(key) is not None}
    check_cfg(where, prepared)
    for key in ('mean', 'std'):
        if not all(isinstance(number, (int, float)) for number in prepared.get(key, ())):
            raise ValueError(f'{where} has {key}={printable(prepared[key])}; expected a number for each channel')
    names = config.get('label_names')
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError(f'{where} has label_names={printable(names)}; expected a list of names')
    for name, value in [('num_classes', num_classes), *arguments.items()]:
        check_argument(where, 'arguments', name, value)

    def made_on(device: str = 'cpu', **arguments: Any) -> Any:
        with torch.device(device):
            return make(backbone, num_classes, **arguments)

    on_device: Any = made_on  # which is called as a class of models would be
    try:
        model = make_from_config(on_device, 'the model', where, arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f'cannot make a model with the arguments of {where}: {first_line(error)}') from error
    try:
        state_dict = load_file(weights_file)
        model.load_state_dict(state_dict)
    except (RuntimeError, SafetensorError) as error:
        reason = printable(' '.join(str(error).split()), 400)
        raise ValueError(f'{printable(str(weights_file))} does not hold the weights of its config: {reason}') from error
    check_finite(state_dict, weights_file)
    model.pretrained_cfg.update(prepared)
    model.label_names = names
    return model.eval()
