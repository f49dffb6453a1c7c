"""A model and what is known about its weights, from where training left them, as a folder in the Hub's format.

model.safetensors   the weights, and nothing that could run code
config.json         what timm.create_model('hf-hub:USER/NAME', pretrained=True) makes the model from
README.md           the model card, see card.py
LICENSE             where the weights are under that of this project
training.yaml       of a training run: its options, for recipes/train.py --config
summary.csv         of a training run: loss and accuracy after every epoch
results.csv         the rows of hub/results.csv about the same recipe
energy.json         what recipes/energy.py measured
"""

import copy
import json
import shutil
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
import yaml
from torch import Tensor

from timm_snn.files import printable, write_whole, write_whole_text
from timm_snn.hub.card import OURS, Source
from timm_snn.hub.push import check_report, check_same, pinned_args
from timm_snn.models import save_for_hf
from timm_snn.profiling import Report
from timm_snn.training.console import note
from timm_snn.training.errors import UserError, one_line_errors
from timm_snn.training.models import key_map, open_model
from timm_snn.training.options import ArgumentParser, tag_of
from timm_snn.training.tables import read_csv, write_csv

__all__ = [
    'FILES',
    'LOCAL',
    'ROOT',
    'FolderOptions',
    'add_folder_options',
    'apply_options',
    'folder_options',
    'name_training',
    'open_source',
    'read_report',
    'shorten',
    'write_folder',
]

ROOT = Path(__file__).parents[1]
FILES = (
    *('model.safetensors', 'config.json', 'README.md', 'LICENSE'),
    *('training.yaml', 'summary.csv', 'results.csv', 'energy.json'),
)
# Options of a run that belong to the machine it ran on.
LOCAL = (
    *('output', 'resume', 'overwrite', 'data_dir', 'dataset_download', 'workers', 'num_threads', 'log_with'),
    *('push_to_hub', 'checkpoint_steps', 'checkpoint_hist'),
)


@dataclass(frozen=True)
class FolderOptions:
    """Choices about a folder that the source does not make."""

    dtype: str = 'float32'
    labels: Path | None = None
    license: str | None = None
    energy: Path | None = None


def add_folder_options(parser: ArgumentParser) -> None:
    """Options that `folder_options` reads."""
    add = parser.add_argument
    add(
        '--dtype',
        choices=('float32', 'float16'),
        default='float32',
        help='of the stored weights; float16 halves the file and leaves norms and biases as they are',
    )
    add('--labels', type=Path, help="names of the classes, one in each line; default: the model's, if it knows them")
    add(
        '--license',
        help="of the weights, as the Hub writes it; default: the model's, and of a converted file 'unknown'",
    )
    add('--energy', type=Path, help='report.json of recipes/energy.py on these weights, for the card')


def folder_options(args: Namespace) -> FolderOptions:
    return FolderOptions(args.dtype, args.labels, args.license, args.energy)


def open_source(source: str) -> Source:
    """A training run, one of its checkpoints, a folder in the Hub's format, or the name of a registered model.

    A name has no weights here. Raises: UserError if it is none of them, or cannot be read.
    """
    found = find_source(source)
    if key_map(found.model) is None:
        raise UserError(f'{source} is no model of timm_snn; timm.models.push_to_hf_hub publishes others')
    return found


def find_source(source: str) -> Source:
    path = Path(source)
    if path.name == 'model' and (path.parent / 'config.yaml').is_file():
        path = path.parent
    if (path / 'config.json').is_file():
        return open_folder(path)
    if (path / 'config.yaml').is_file() and (path / 'model' / 'config.json').is_file():
        run = read_run(path)
        test = path / 'test.json'
        with one_line_errors(f'read {test}'):
            tested = json.loads(test.read_text(encoding='utf-8')) if test.is_file() else {}
        model = open_model(f'local-dir:{path / "model"}')
        return Source(model, run=run, history=read_csv(path / 'summary.csv'), tested=tested)
    if (path / 'model.safetensors').is_file():
        return open_checkpoint(path)
    if path.is_dir():
        raise UserError(
            f'{path} is no training run that has ended, no checkpoint and no model: expected OUTPUT, '
            'OUTPUT/checkpoints/epoch_N, or a folder with config.json and model.safetensors'
        )
    if path.is_file():
        raise UserError(f'{path} is a file: hub/convert.py makes a model folder of it')
    if timm.is_model(source.partition('.')[0]):
        with one_line_errors(f'create model {source!r}'):
            return Source(timm.create_model(source).eval(), has_weights=False)
    raise UserError(
        f'there is no {source}: expected a training run, a checkpoint, a model folder, or a name that timm knows'
    )


def open_folder(path: Path) -> Source:
    if not (path / 'model.safetensors').is_file():
        raise UserError(f'{path} has no model.safetensors: hub/convert.py makes a model folder of other files')
    if others := sorted(entry.name for entry in path.iterdir() if entry.name not in FILES):
        note(f'note: left out, as it is no part of a model: {printable(", ".join(others))}')
    model = open_model(f'local-dir:{path}')
    with one_line_errors(f'read {path / "config.json"}'):
        config = json.loads((path / 'config.json').read_text(encoding='utf-8'))
        origin = config.get('converted_from', {})
        if origin and not (isinstance(origin, dict) and {'file', 'sha256'} <= origin.keys()):
            raise ValueError(f'converted_from is {printable(repr(origin))}, expected the file and its sha256')
    return Source(model, origin=origin, folder=path if (path / 'README.md').is_file() else None)


def open_checkpoint(path: Path) -> Source:
    output = path.resolve().parent.parent
    if not (output / 'config.yaml').is_file():
        raise UserError(f'{path} is no checkpoint of a run: there is no {output / "config.yaml"}')
    run = read_run(output)
    with one_line_errors(f'read checkpoint {path}'):
        # the rows of the epochs that had ended; in the middle of one there is no accuracy
        epoch, *step = path.name.removeprefix('epoch_').split('_step_')
        history = [] if step else read_csv(output / 'summary.csv')[: int(epoch)]
    model = open_model(run['model'], checkpoint=path)
    model.pretrained_cfg['tag'] = tag_of(run['model'])
    return Source(model, run=run, history=history)


def name_training(model: Any, name: str) -> None:
    """Keep the tag of a name that weights were made from, which names the training. timm's default tag does not."""
    cfg = model.pretrained_cfg
    cfg['tag'] = tag_of(name)
    if not cfg['tag'] or len(cfg.get('label_names') or ()) != model.num_classes:
        cfg['label_names'] = cfg['label_descriptions'] = None


def read_run(output: Path) -> dict[str, Any]:
    with one_line_errors(f'read the options of the run {output}', 'OUTPUT of recipes/train.py has a config.yaml'):
        run = yaml.safe_load((output / 'config.yaml').read_text(encoding='utf-8'))
        if not isinstance(run, dict) or not {'model', 'dataset', 'val_split', 'seed'} <= run.keys():
            raise ValueError('config.yaml holds no options of recipes/train.py')
        return run


def read_report(path: Path | None, model: Any) -> Report | None:
    """A report of recipes/energy.py on this model. Raises: UserError if it is about another."""
    if path is None:
        return None
    with one_line_errors(f'read the report {path}', 'recipes/energy.py writes report.json'):
        report = Report.from_json(path.read_text(encoding='utf-8'))
        check_report(report, model)
        return report


def apply_options(source: Source, options: FolderOptions) -> None:
    """Give the model the names of its classes and its licence, where there are such options.

    Raises: UserError for options that would change the files of a model with a card.
    """
    if source.folder and options != FolderOptions():
        raise UserError(
            f'{source.folder} has a card, so its files are taken as they are: leave out --dtype, --labels, '
            '--license and --energy, or remove its README.md to have them written anew'
        )
    cfg = source.model.pretrained_cfg
    if options.license:
        cfg['license'] = options.license
    if options.labels:
        advice = '--labels takes a file with a name in each line, in the order of classes'
        with one_line_errors('name the classes', advice):
            names = options.labels.read_text(encoding='utf-8-sig').splitlines()
            if len(names) != source.model.num_classes:
                raise ValueError(f'{options.labels} has {len(names)} names for {source.model.num_classes} classes')
        cfg['label_names'] = names


def write_folder(source: Source, folder: Path, card: str, results: list[dict[str, str]], options: FolderOptions) -> Any:
    """Write all FILES that apply, in one go. Returns the model as it loads from there.

    The same source always gives the same bytes, so that what is on the Hub already is not uploaded again. Files of a
    source that has a card are copied instead, so that nothing written by hand is lost.
    Raises: UserError if the folder is not empty, and if what was written does not load as the same model.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f'{folder} is not empty: pass another, or remove it')
    stored = in_dtype(source.model, options.dtype)
    with one_line_errors(f'write {folder}'):
        folder = folder.resolve()
        unfinished = folder.with_name(f'.{folder.name}.unfinished')
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        try:
            fill_folder(source, stored, unfinished, card, results, options)
            expected = copy.deepcopy(source.model)
            expected.load_state_dict(stored)
            model = open_model(f'local-dir:{unfinished}')
            check_same(model, expected, 'the folder')
            if folder.exists():
                folder.rmdir()
            unfinished.rename(folder)
            return model
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def fill_folder(
    source: Source,
    stored: dict[str, Tensor],
    folder: Path,
    card: str,
    results: list[dict[str, str]],
    options: FolderOptions,
) -> None:
    if source.folder:
        for name in FILES:
            if (source.folder / name).is_file():
                shutil.copyfile(source.folder / name, folder / name)
    else:
        cfg = source.model.pretrained_cfg
        labels = {key: cfg.get(key) for key in ('label_names', 'label_descriptions')}
        # at the top of config.json, as timm writes them, and not a second time in its pretrained_cfg
        once = {'license': source.license, **dict.fromkeys(labels)}
        model_config: dict[str, Any] = {**labels, 'pretrained_cfg': once}
        if source.origin:
            model_config['converted_from'] = source.origin
        save_for_hf(source.model, folder, model_config=model_config, model_args=pinned_args(source.model))
        with write_whole(folder / 'model.safetensors') as unfinished:
            safetensors.torch.save_file(stored, unfinished, metadata={'format': 'pt'})
        write_whole_text(folder / 'README.md', card)
        if source.license == OURS:
            shutil.copyfile(ROOT / 'LICENSE', folder / 'LICENSE')
        if source.run:
            write_whole_text(folder / 'training.yaml', training_config(source.run))
        for name, rows in (('summary.csv', source.history), ('results.csv', results)):
            if rows:
                write_csv(folder / name, rows, lineterminator='\n')
        if options.energy:
            shutil.copyfile(options.energy, folder / 'energy.json')


def in_dtype(model: Any, dtype: str) -> dict[str, Tensor]:
    """The state dict to store. In float16 norms and biases stay as they are: they are small, and sensitive.

    Raises: UserError if weights leave the range of float16. Others are finite, or the model would not have loaded.
    """
    stored = {
        key: value.to(torch.float16 if dtype == 'float16' and value.ndim > 1 else value.dtype).contiguous()
        for key, value in model.state_dict().items()
    }
    if wrong := [key for key, value in stored.items() if not value.isfinite().all()]:
        raise UserError(f'weights are too large for float16 in {len(wrong)} tensors (first: {wrong[0]})')
    return stored


def training_config(run: dict[str, Any]) -> str:
    """The options of a run that do not belong to its machine, as a config; of local paths only the last part."""
    options = {key: shorten(value) for key, value in run.items() if key not in LOCAL and value is not None}
    header = '# Options of the run that made these weights: python recipes/train.py --config training.yaml\n'
    return header + yaml.safe_dump(options, sort_keys=False)


def shorten(value: Any) -> Any:
    """'local-dir:/home/me/model' -> 'local-dir:model', 'hfds//home/me/data' -> 'hfds/data'; inside lists too."""
    if isinstance(value, dict):
        return {key: shorten(setting) for key, setting in value.items()}
    if isinstance(value, list):
        return [shorten(item) for item in value]
    if isinstance(value, str):
        for prefix in ('', 'local-dir:', 'hfds/'):
            path = value.removeprefix(prefix)
            if value.startswith(prefix) and (Path(path).is_absolute() or path.startswith(('~', '.'))):
                return prefix + Path(path).name
    return value
