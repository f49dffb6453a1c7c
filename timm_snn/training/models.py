"""Models by name, folder or checkpoint, ready to be trained or to be looked at."""

import json
import logging
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from huggingface_hub import try_to_load_from_cache
from timm.data import resolve_input_data_config
from timm.models import load_checkpoint
from torch import nn

from ..data import FrameSettings, set_frame_settings
from ..data.settings import saved_frames
from ..files import printable
from ..layers import ConvBn
from ..layers.conv import skip_zeros
from ..models import SpikingTransformer, fuse, load_quantized, save_for_hf
from ..models.pretrained import bounded_hub, missing_modules, weights_status
from ..models.untrusted import own_keys
from ..models.weights import check_finite
from ..ops import keep_freed_memory, lif, sparse_spikes
from ..ops.backend import asked_for
from ..ops.sparse_conv import conv2d
from ..progress import waiting
from .errors import UserError, one_line_errors

__all__ = [
    'channels',
    'check_neurons',
    'check_sparse_spikes',
    'early_exits',
    'fold_of',
    'fused',
    'input_config',
    'is_trained',
    'key_map',
    'made_ready',
    'open_model',
    'open_to_train',
    'options_file',
    'save_model',
    'saved_config',
    'steps_of',
]

_logger = logging.getLogger(__name__)

# With fewer, skipping zeros in training was slower at any density, on two cores with AVX2: weights are laid out anew at
# every step, and torch computes both gradients in one go.
TRAINED_CHANNELS = 128


def open_model(
    name: str,
    *,
    checkpoint: Path | None = None,
    pretrained: bool | None = None,
    num_steps: int | None = None,
    device: str = 'cpu',
    model_kwargs: dict[str, Any] | None = None,
) -> Any:
    """A model with its weights by name or folder, in eval mode on the device. Raises: UserError if it cannot be made.

    `checkpoint` is a file of weights, or a folder in OUTPUT/checkpoints, which brings its run's options of the model
    and of the images with it. By default NAME.TAG has the weights of that tag, if there are any.
    """
    pretrained = loads_pretrained(name, checkpoint, pretrained)
    is_saved = name.startswith(('local-dir:', 'hf-hub:'))
    keep_freed_memory()
    advice = "'local-dir:FOLDER' is what a training run saved in OUTPUT/model"
    with one_line_errors(f'create model {name!r}', advice), waiting(f'open {name}'):
        file, run, labels, frames, kwargs = checkpoint, {}, None, None, model_kwargs or {}
        if checkpoint and checkpoint.is_dir():
            run, labels, frames = run_options(checkpoint, name), run_labels(checkpoint), run_frames(checkpoint)
            sizes = {key: run[key] for key in ('num_classes', 'in_chans') if run.get(key)}
            kwargs = sizes | run.get('model_kwargs', {}) | kwargs
            averaged = checkpoint / 'ema.safetensors'
            file = averaged if averaged.is_file() else checkpoint / 'model.safetensors'  # as Accelerate names it
        if is_saved and file and not run:
            raise ValueError(
                'it has its own weights: leave out --checkpoint, but for one of a run that began with them'
            )
        if file and not file.is_file():
            raise FileNotFoundError(f'there is no file {file}')
        if 'quantization' in saved_config(name):
            if kwargs or name.startswith('hf-hub:'):
                raise ValueError(
                    'it is a quantised model, whose layers are what they are: leave out arguments of the model, and '
                    "download one from the Hub for 'local-dir:FOLDER'"
                )
            return _with_steps(load_quantized(name.partition(':')[2]), num_steps).to(device)
        with bounded_hub(), naming_imports(name, run):
            model: Any = timm.create_model(name, pretrained=pretrained or (is_saved and not file), **kwargs)
        if run:
            images = ('img_size', 'mean', 'std', 'crop_pct', 'interpolation')
            given = {key: run[key] for key in images if run.get(key) is not None}
            model.pretrained_cfg.update(resolve_input_data_config(model, args=given))
            # not those of the tag or of the model it began with: the run may have had other data
            model.pretrained_cfg.update(label_names=labels, label_descriptions=None)
            model.pretrained_cfg.update(frames=frames, source='file', file=str(file))
            if frames:
                model.pretrained_cfg.update(mean=frames['mean'], std=frames['std'])
        if file:
            # Strict, unlike pretrained=True, which would draw a new classifier where the classes differ.
            load_checkpoint(model, str(file), filter_fn=key_map(model))
            check_finite(model.state_dict(), file)
        _with_steps(model, num_steps)
        if not is_trained(name, checkpoint, pretrained):
            _logger.warning('note: %s has random weights: its spikes and all that follows say nothing', name)
        return model.eval().to(device)


def _with_steps(model: Any, num_steps: int | None) -> Any:
    if num_steps:
        if not hasattr(model, 'num_steps'):
            raise ValueError('it has no time steps: leave out --num-steps')
        model.num_steps = num_steps
    return model


def fused(model: Any, name: str) -> Any:
    """`timm_snn.fuse(model)`; as it is a model of another package and, with a note, one that cannot be fused."""
    if not has_our_units(model):
        return model
    try:
        return fuse(model)
    except ValueError as error:
        _logger.warning('note: %s runs as it is, not fused: %s', name, error)
        return model


def has_our_units(model: nn.Module) -> bool:
    return any(isinstance(module, ConvBn) for module in model.modules())


def open_to_train(
    name: str,
    *,
    pretrained: bool = False,
    checkpoint: Path | None = None,
    freeze: Sequence[str] = (),
    grad_checkpointing: bool = False,
    channels_last: bool | None = None,
    sparse_spikes: bool | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    drop_path: float | None = None,
    model_kwargs: dict[str, Any] | None = None,
) -> Any:
    """A model to be trained, of which the modules in `freeze` are not. Raises: UserError if it cannot be made.

    By default, models of this package are channels_last: their convolutions are faster so, those of tokens too. These
    skip zeros where that is possible, on a CPU, and a sample of their input says that it pays; by default those of many
    channels, with `sparse_spikes` all, and none if it is False.
    """
    with one_line_errors(f'create model {name!r}'), waiting(f'open {name}'):
        with bounded_hub(), naming_imports(name):
            model: Any = timm.create_model(
                name,
                pretrained=pretrained,
                checkpoint_path=str(checkpoint or ''),
                num_classes=num_classes,
                in_chans=in_chans,
                drop_path_rate=drop_path,
                **(model_kwargs or {}),
            )
        if checkpoint:
            check_finite(model.state_dict(), checkpoint)
        frames = saved_frames(model)
        if frames and frames.get('channels', 2) != channels(model):  # in_chans makes it a model of other frames
            set_frame_settings(model, None)
        if grad_checkpointing:
            model.set_grad_checkpointing()
        return made_ready(model, freeze, channels_last, sparse_spikes)


def made_ready(
    model: Any, freeze: Sequence[str] = (), channels_last: bool | None = None, sparse_spikes: bool | None = None
) -> Any:
    """The model laid out for training, see `open_to_train`. Raises: ValueError for a module that there is not."""
    modules = dict(model.named_modules())
    for frozen in freeze:
        if frozen not in modules:
            known = ', '.join(dict(model.named_children()))
            raise ValueError(f'it has no module {frozen!r} to freeze, but {known}')
        modules[frozen].requires_grad_(False)
    if sparse_spikes is not False:
        skip_zeros(model, 1 if sparse_spikes else TRAINED_CHANNELS)
    if channels_last is None:
        channels_last = has_our_units(model)
    return model.to(memory_format=torch.channels_last) if channels_last else model


def check_neurons(model: nn.Module, device: torch.device) -> None:
    """Raises: UserError if a backend of the neurons cannot run on the device."""
    with one_line_errors('run the neurons'):
        for backend in {getattr(module, 'backend', None) for module in model.modules()}:
            lif(torch.zeros(1, 1, device=device), backend=backend)


def check_sparse_spikes(device: torch.device) -> None:
    """Raises: UserError if convolutions cannot skip zeros on the device, or plain torch alone is asked for."""
    name, asked_by = asked_for(None)
    if name == 'torch':
        raise UserError(
            f"--sparse-spikes skips zeros by C++, and the backend 'torch', asked for by {asked_by}, is plain torch: "
            'leave out one of them'
        )
    with one_line_errors('skip zeros', 'leave out --sparse-spikes'), sparse_spikes():
        x = torch.zeros(1, 1, 1, 1, device=device)
        conv2d(x, x, None, (1, 1), (0, 0), 1)


def input_config(model: Any, is_events: bool = False, **given: Any) -> dict[str, Any]:
    """The preparation of a model's input: its own, but for img_size, mean, std, crop_pct or interpolation if given.

    Counts of events are not normalised by a mean and std of images: of a model that does not say how frames are made
    they stay as they are.
    """
    with one_line_errors('set up the transform of the images'):
        if is_events:
            frames = saved_frames(model) or {}
            given = {'mean': frames.get('mean') or (0.0,), 'std': frames.get('std') or (1.0,), **given}
        return resolve_input_data_config(model, args=given)


def save_model(
    model: Any,
    folder: Path,
    tag: str | None,
    names: list[str] | None,
    config: dict[str, Any],
    fold: str | None = None,
    frames: FrameSettings | None = None,
) -> None:
    """Write a trained model in the Hub's format, with the names of its classes and how its input is prepared.

    The tag names the training: that of the model it began with is not this one's. `fold` is the part of the data that
    was held out, for `fold_of`. `frames` says how those of events were made, None of a model of images.
    """
    model.to(memory_format=torch.contiguous_format)  # which safetensors needs
    cfg: dict[str, Any] = dict(tag=tag, label_names=None, label_descriptions=None)
    if frames:
        cfg['frames'] = frames.to_dict()
    else:
        model.pretrained_cfg.pop('frames', None)  # of the model it began with
    with one_line_errors(f'write {folder}'):
        about = dict(label_names=names, pretrained_cfg=cfg) | ({'fold': fold} if fold else {})
        save_for_hf(model, folder, model_config=about, data_config=config)


def fold_of(name: str, checkpoint: Path | None = None) -> str | None:
    """The fold of the data that the training of a saved model held out, as in '2/5'; None if there is none known."""
    if checkpoint:
        return run_options(checkpoint, name).get('fold') if checkpoint.is_dir() else None
    fold = saved_config(name).get('fold')
    return fold if isinstance(fold, str) and re.fullmatch(r'[0-9]{1,4}/[0-9]{1,4}', fold) else None


def saved_config(name: str) -> dict[str, Any]:
    """The config.json of 'local-dir:FOLDER' or, from the cache, of 'hf-hub:USER/NAME'; {} where there is none."""
    scheme, _, place = name.partition(':')
    file: Any = None
    if scheme == 'local-dir':
        file = Path(place) / 'config.json'
    elif scheme == 'hf-hub':
        repo, _, revision = place.partition('@')
        file = try_to_load_from_cache(repo, 'config.json', revision=revision or None)
    if not isinstance(file, (str, Path)) or not Path(file).is_file():
        return {}
    with one_line_errors(f'read {file}'):
        return json.loads(Path(file).read_text(encoding='utf-8'))


@contextmanager
def naming_imports(name: str, run: Mapping[str, Any] | None = None) -> Iterator[None]:
    """In it, an error about an unknown model or layer says what a saved folder, or a run by its options, needs.

    What they name is not imported: a file that came from anywhere would choose which code runs.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:
        advice = missing_modules(saved_config(name).get('pretrained_cfg') or {})
        if (imported := (run or {}).get('import')) and not advice:
            advice = f'its run had --import {printable(" ".join(map(str, imported)))}: pass that too'
        if not advice or advice in str(error) or not str(error).lower().startswith('unknown'):
            raise
        raise ValueError(f'{error}: {advice}') from error


def run_options(checkpoint: Path, name: str) -> dict[str, Any]:
    """The options of the training run that left OUTPUT/checkpoints/epoch_N, none for a folder without its config.

    Raises: ValueError if it trained another model.
    """
    config = options_file(checkpoint)
    if not config.is_file():
        return {}
    run = yaml.safe_load(config.read_text(encoding='utf-8'))
    if run['model'] != name:
        raise ValueError(f'{checkpoint} is of a run that trained {run["model"]!r}: pass --model {run["model"]}')
    return run


def options_file(checkpoint: Path) -> Path:
    """config.yaml in OUTPUT/checkpoints/epoch_N or, of a run of an earlier version, in OUTPUT."""
    own = checkpoint / 'config.yaml'
    return own if own.is_file() else checkpoint.resolve().parent.parent / 'config.yaml'


def run_labels(checkpoint: Path) -> Any:
    """The names of the classes of the data of the run that left OUTPUT/checkpoints/epoch_N, None until it has ended."""
    saved = checkpoint.resolve().parent.parent / 'model' / 'config.json'
    return json.loads(saved.read_text(encoding='utf-8')).get('label_names') if saved.is_file() else None


def run_frames(checkpoint: Path) -> Any:
    """How the frames of the run that left OUTPUT/checkpoints/epoch_N were made, None of images and earlier versions."""
    setup = checkpoint / 'setup.json'
    return json.loads(setup.read_text(encoding='utf-8')).get('frames') if setup.is_file() else None


def key_map(model: Any) -> Any:
    """The function that makes published key layouts those of the model; None for models of other libraries.

    A family in a package of a user's own has it under the name that timm has, or knows its own keys alone.
    """
    module = type(model).__module__
    if isinstance(model, SpikingTransformer):
        return getattr(sys.modules[module], 'checkpoint_filter_fn', own_keys)
    return getattr(sys.modules[module], 'checkpoint_filter_fn', None) if module.startswith('timm_snn.') else None


def channels(model: Any) -> int:
    return getattr(model, 'in_chans', None) or resolve_input_data_config(model)['input_size'][0]


def steps_of(model: Any) -> int:
    """T; a model without time steps has one."""
    return getattr(model, 'num_steps', 1)


def early_exits(model: Any) -> list[int]:
    """The steps after which a model answers as one of so few steps: all, or the ends of its chunks of steps."""
    chunk = getattr(model, 'chunk_steps', 1)
    return [*range(chunk, model.num_steps, chunk), model.num_steps]


def loads_pretrained(name: str, checkpoint: Path | None, pretrained: bool | None) -> bool:
    """What None, which leaves it to the name, means: yes for a tag of ours that has weights, without others."""
    if pretrained is None:
        return checkpoint is None and '.' in name and ':' not in name and weights_status(name) != 'not yet trained'
    return pretrained


def is_trained(name: str, checkpoint: Path | None, pretrained: bool | None) -> bool:
    from_elsewhere = name.startswith(('local-dir:', 'hf-hub:')) or checkpoint is not None
    return from_elsewhere or loads_pretrained(name, checkpoint, pretrained)
