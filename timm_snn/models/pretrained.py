"""Pretrained weights: the tags that have any, where they come from, and the messages where they do not load."""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
from huggingface_hub import HfApi, get_session
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from timm.models import PretrainedCfg, get_model_args, resolve_pretrained_cfg
from timm.models import save_for_hf as timm_save_for_hf
from torch import nn

from ..files import flush, printable
from ..layers import attentions, neurons, patch_embeds
from ..wrappers import unwrapped

__all__ = ['hub_cfgs', 'list_pretrained', 'recipe_of', 'save_for_hf', 'weights_status']

# The organisation on the Hugging Face Hub. TIMM_SNN_HUB_ORG, read once, is a laboratory that serves its own weights.
_OUR_ORG = 'timm-snn'
HUB_ORG = os.environ.get('TIMM_SNN_HUB_ORG') or _OUR_ORG

# The tags whose repository in our organisation holds weights. After an upload, add the tag here and nowhere else.
PUBLISHED: frozenset[str] = frozenset()

# A file NAME.TAG.safetensors in this folder ships with the package and is found without an entry anywhere.
WEIGHTS = Path(__file__).parents[1] / 'weights'

FILENAME = 'model.safetensors'

LONGEST_WAIT = 60  # seconds that a server may ask for between two tries, of which huggingface_hub makes six

_recipes: dict[str, str] = {}  # of each tag, the training config below recipes/configs


@dataclass
class SpikingCfg(PretrainedCfg):
    """timm's pretrained config, with what else a model of this package brings with it.

    frames: How the frames of an event camera are made (`timm_snn.data.FrameSettings`).
    modules: Those outside of this package that a saved model's layers are of, which have to be imported before.
    """

    frames: dict[str, Any] | None = None
    modules: list[str] | None = None


class UntrainedCfg(SpikingCfg):
    """A pretrained config with an address where there is nothing yet: timm does not list it among the pretrained."""

    @property
    def has_weights(self) -> bool:
        return False


def hub_cfgs(cfgs: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Pretrained configs by NAME.TAG, completed with the address of the weights.

    The key `recipe`, which timm does not have, names the config below recipes/configs that trains this tag.
    """
    completed = {}
    for name, cfg in cfgs.items():
        cfg = dict(cfg)
        _recipes[name] = cfg.pop('recipe')
        cfg.update(hf_hub_id=f'{HUB_ORG}/{name}', hf_hub_filename=FILENAME)
        status = weights_status(name) if HUB_ORG == _OUR_ORG else 'theirs'
        if status == 'shipped':
            cfg['file'] = str(_shipped(name))
        completed[name] = (UntrainedCfg if status == 'not yet trained' else SpikingCfg)(**cfg)
    return completed


def weights_status(name: str) -> str:
    """'shipped' with the package, 'published' on the Hub by us, or 'not yet trained', for the weights of NAME.TAG."""
    if _shipped(name).is_file():
        return 'shipped'
    return 'published' if name in PUBLISHED else 'not yet trained'


def recipe_of(name: str) -> str | None:
    """The config below recipes/configs, without .yaml, that trains NAME.TAG; None for what is no tag of ours."""
    return _recipes.get(name)


def _shipped(name: str) -> Path:
    return WEIGHTS / f'{name}.safetensors'


def list_pretrained(filter: str | Iterable[str] = '', exclude_filters: str | Iterable[str] = '') -> list[str]:
    """The models of this package whose weights can be loaded, by NAME.TAG; arguments as of `timm.list_pretrained`.

    With TIMM_SNN_HUB_ORG set, timm's own list has every tag; this one asks the Hub for those that the organisation has,
    and raises huggingface_hub's error if it does not answer.
    """
    models = timm.list_models(filter, exclude_filters=exclude_filters, include_tags=True)
    ours = [name for name in models if is_ours(name)]
    if HUB_ORG == _OUR_ORG:
        return [name for name in ours if weights_status(name) != 'not yet trained']
    served = {model.id for model in HfApi().list_models(author=HUB_ORG)}
    return [name for name in ours if f'{HUB_ORG}/{name}' in served]


def is_ours(name: str) -> bool:
    """True if NAME.TAG is a model of this package."""
    cfg = timm.get_pretrained_cfg(name)
    return bool(cfg and cfg.hf_hub_id == f'{HUB_ORG}/{name}') and module_of(name.partition('.')[0]).startswith(
        'timm_snn.'
    )


def save_for_hf(
    model: nn.Module,
    folder: str | Path,
    model_config: dict[str, Any] | None = None,
    model_args: dict[str, Any] | None = None,
    safe_serialization: Any = True,
    data_config: dict[str, Any] | None = None,
) -> None:
    """timm's `save_for_hf`, with safetensors unless asked otherwise, and a folder that transformers loads as well.

    timm 1.0.31 writes num_classes among the model_args besides its own place, and transformers 5 does not take both.

    Raises: ValueError, before anything is written, for a layer that has no name in a registry.
    """
    for name, value in get_model_args(model, model_args).items():
        for layer in value if isinstance(value, (list, tuple)) else (value,):
            if callable(layer):
                raise ValueError(
                    f'{name}={layer} is a layer without a name, by which config.json could hold it: register it, as in '
                    "timm_snn.layers.neurons.register('my_neuron')(layer), and save again"
                )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix='.unfinished_', dir=folder) as unfinished:  # a kill leaves the earlier files whole
        timm_save_for_hf(model, unfinished, model_config, model_args, safe_serialization, data_config)
        path = Path(unfinished) / 'config.json'
        config = json.loads(path.read_text(encoding='utf-8'))
        config['model_args'].pop('num_classes', None)
        config['pretrained_cfg'].pop('modules', None)  # of the folder that it was loaded from
        if modules := modules_of(model):
            config['pretrained_cfg']['modules'] = modules
        path.write_text(json.dumps(config, indent=2) + '\n', encoding='utf-8')
        for file in sorted(Path(unfinished).iterdir()):
            flush(file)
            file.replace(folder / file.name)
    flush(folder)


def modules_of(model: nn.Module) -> list[str]:
    """The modules outside of PyTorch, timm and this package that define its layers, or register them or the model."""
    model = unwrapped(model)
    cfg: Any = model.pretrained_cfg
    registries = {'lif_layer': neurons, 'attn': attentions, 'mixers': attentions, 'patch_embed': patch_embeds}
    found = {type(module).__module__ for module in model.modules()}
    found |= {module_of(cfg['architecture'])} - {''}
    for key, value in get_model_args(model).items():
        names = value if isinstance(value, list) else [value]
        found |= {registries[key].module_of(name) for name in names if key in registries} - {''}
    return sorted(name for name in found if name.partition('.')[0] not in ('torch', 'timm', 'timm_snn'))


def missing_modules(cfg: Mapping[str, Any]) -> str:
    """What is to be done for a saved model whose modules are not imported, '' for nothing.

    They are named and never imported from here: a file that came from anywhere would choose which code runs.
    """
    names = cfg.get('modules')
    if not isinstance(names, (list, tuple)):
        return ''
    missing = [name for name in names if name == '__main__' or name not in sys.modules]
    if not missing:
        return ''
    scripts = {'__main__': 'the script or notebook that saved it'}
    what = printable(', '.join(str(scripts.get(name, name)) for name in missing), 200)
    return f'it was saved with layers of {what}: install that and import it first, in the scripts with --import'


@contextmanager
def naming_modules(cfg: Mapping[str, Any]) -> Iterator[None]:
    """In it, a ValueError says also which modules of a saved model, with this pretrained_cfg, are not imported."""
    try:
        yield
    except ValueError as error:
        if advice := missing_modules(cfg):
            raise ValueError(f'{error}; {advice}') from error
        raise


def resolve_source(variant: str, pretrained_cfg: Any, overlay: Mapping[str, Any] | None) -> dict[str, Any]:
    """timm's `resolve_pretrained_cfg`, where a source of weights that the overlay names is the only one.

    timm has an order of its own. From a repository comes model.safetensors and no pickle in its place, unless the
    overlay names a file too; a repository's own config cannot name one.
    """
    overlay = dict(overlay or {})
    sources = ('state_dict', 'file', 'hf_hub_id', 'url')
    if any(overlay.get(key) for key in sources):
        overlay = {**dict.fromkeys((*sources, 'source')), **overlay}
    if isinstance(pretrained_cfg, dict):
        pretrained_cfg = SpikingCfg(**pretrained_cfg)
    cfg = resolve_pretrained_cfg(variant, pretrained_cfg, overlay).to_dict()
    if is_from_hub(cfg) and not overlay.get('hf_hub_filename'):
        named_by_file = cfg.get('source') or overlay.get('hf_hub_id')
        cfg['hf_hub_filename'] = FILENAME if named_by_file else cfg.get('hf_hub_filename') or FILENAME
    return cfg


def is_from_hub(cfg: Mapping[str, Any]) -> bool:
    """True if timm takes the weights of this pretrained config from the Hub."""
    if cfg.get('source'):
        return cfg['source'] == 'hf-hub'
    return bool(cfg.get('hf_hub_id')) and not (cfg.get('state_dict') or cfg.get('file'))


def refuse_untrained(cfg: Mapping[str, Any]) -> None:
    """Raises RuntimeError, with what to do, if nobody has these weights.

    Those of another package's models are not sought in our organisation, whatever their config says.
    """
    name = f'{cfg["architecture"]}.{cfg["tag"]}' if cfg.get('tag') else cfg['architecture']
    by_tag = is_from_hub(cfg) and not cfg.get('source') and name in _recipes
    module = module_of(cfg['architecture'])
    if module.startswith('timm_snn.') and by_tag and cfg['hf_hub_id'] == f'{_OUR_ORG}/{name}' and name not in PUBLISHED:
        how = f'--config {_recipes[name]} --model {name}'
        raise RuntimeError(
            f'No pretrained weights exist for {name}: it has not been trained yet, or not been published, and would be '
            f'at https://huggingface.co/{cfg["hf_hub_id"]}. Begin without weights by pretrained=False, which is '
            f'encoder_weights=None in segmentation_models_pytorch, train it with `timm-snn train {how}`, '
            f"load a file of yours with pretrained_cfg_overlay=dict(file='model.safetensors'), or set TIMM_SNN_HUB_ORG "
            'to an organisation that has it; timm_snn.list_pretrained() lists what can be loaded'
        )
    is_ours_alone = not module.startswith('timm_snn.') and by_tag and cfg['hf_hub_id'] == f'{HUB_ORG}/{name}'
    if is_ours_alone or not any(cfg.get(key) for key in ('state_dict', 'file', 'hf_hub_id', 'url')):
        raise RuntimeError(
            f'No pretrained weights exist for {name}: its pretrained config names no source. Give its entry in '
            f"default_cfgs an hf_hub_id='USER/NAME', a url or a file, in {module or 'its module'}, or load a file with "
            "pretrained_cfg_overlay=dict(file='model.safetensors')"
        )


def module_of(architecture: str) -> str:
    """The module that registered it with timm, '' if none did."""
    return timm.model_entrypoint(architecture).__module__ if timm.is_model(architecture) else ''


@contextmanager
def bounded_hub() -> Iterator[None]:
    """In it, no answer names a file outside of huggingface_hub's cache, or has it wait for more than a minute.

    huggingface_hub takes names from ETag and X-Repo-Commit as they come, and waits for as long as Retry-After says.
    It lets us see each answer of its client, but not how long one takes in small drips.
    """
    hooks = getattr(get_session(), 'event_hooks', {}).get('response', [])  # before version 1 it had no such hooks
    hooks.append(_check_answer)
    try:
        yield
    finally:
        hooks.remove(_check_answer)


def _check_answer(response: Any) -> None:
    for name in ('etag', 'x-linked-etag', 'x-repo-commit', 'x-xet-hash'):
        value = response.headers.get(name, '').removeprefix('W/').strip('"')
        if value in ('.', '..') or any(c in value for c in '/\\\0'):
            raise ValueError(f'the server names a file outside of the cache, {name}: {printable(value, 100)}')
    retry_after = response.headers.get('retry-after', '').strip()
    if retry_after.isdigit() and int(retry_after[:9]) > LONGEST_WAIT:
        response.headers['retry-after'] = str(LONGEST_WAIT)
    response.headers.pop('ratelimit', None)  # another way to say the same


def hub_error(error: Exception, variant: str, cfg: Mapping[str, Any]) -> Exception:
    """An error of the same type and with the same attributes, that says in one line what failed and what to do."""
    revision = cfg['hf_hub_id'].partition('@')[2]
    filename = cfg.get('hf_hub_filename')
    reason = str(error)
    if isinstance(error, GatedRepoError):
        reason = 'access to it is restricted: ask for access on its page and log in with `hf auth login`'
    elif isinstance(error, RepositoryNotFoundError):
        reason = 'there is no such repository, or it is private: log in with `hf auth login`'
    elif isinstance(error, RevisionNotFoundError):
        reason = f'it has no revision {revision!r}'
    elif isinstance(error, EntryNotFoundError) and isinstance(error, HfHubHTTPError):
        reason = 'it has no such file; pretrained_cfg_overlay=dict(hf_hub_filename=...) names another one to load'
    elif isinstance(error, EntryNotFoundError):  # not in the cache, and the Hub does not answer
        cause = error.__cause__ or error
        offline = isinstance(cause, OfflineModeIsEnabled)
        why = 'HF_HUB_OFFLINE is set' if offline else f'the Hub cannot be reached, {first_line(cause)}'
        reason = f'it is not in the cache and {why}'
    elif isinstance(error, HTTPError):
        reason = f'the download failed, {first_line(error)}'
    message = (
        f'cannot load weights for {variant} from the Hugging Face Hub, repository {cfg["hf_hub_id"]}, file {filename}: '
        f'{" ".join(reason.split())}; pretrained_cfg_overlay=dict(file=...) loads a local file'
    )
    return reworded(error, message)


def first_line(error: BaseException) -> str:
    """For a message: an error may quote a file of a stranger."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return printable(line, 400)


def reworded(error: Exception, message: str) -> Exception:
    """A copy with another message; the constructors of huggingface_hub's errors want a response, or may not."""
    copy = type(error).__new__(type(error), message)
    copy.__dict__.update(error.__dict__)
    copy.args = (message,)
    return copy
