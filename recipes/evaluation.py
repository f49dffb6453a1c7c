"""What the commands that look at a trained model share: the model and real data by name."""

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from data import EVENT_DATASETS, Samples, make_transform, open_dataset
from options import ArgumentParser, one_line_errors, positive_int
from rich.console import Console
from timm.data import resolve_input_data_config
from timm.models import load_checkpoint
from timm.utils import ParseKwargs

import timm_snn  # noqa: F401  registers the models

__all__ = [
    'Samples',
    'channels',
    'image_options',
    'is_trained',
    'make_model_parser',
    'make_parser',
    'open_model',
    'open_samples',
    'parse_args',
    'print_tables',
    'write_csv',
]


def make_model_parser(description: str) -> ArgumentParser:
    parser = ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument_group('model').add_argument
    add('--model', required=True, help="'local-dir:FOLDER', 'hf-hub:USER/NAME', or a name that timm knows")
    add(
        '--checkpoint',
        type=Path,
        help='weights for a model by name: .safetensors, .pth (the EMA weights where it has some), or a folder in '
        "OUTPUT/checkpoints, which brings its run's options of the model and of the images with it",
    )
    add('--pretrained', action='store_true', help='load the published weights of a model by name')
    add('--model-kwargs', nargs='*', default={}, action=ParseKwargs, help='name=value ..., e.g. num_steps=2')
    add('--num-steps', type=positive_int, help="T; default: the model's")
    add('--device', default='cpu', help="'cuda' for a GPU")
    add('--num-threads', type=positive_int, help='on a CPU; default: all cores')
    add('--img-size', type=positive_int, help='image size; default: that of the model')
    add('--mean', type=float, nargs='+', help='of the normalisation; default: that of the model')
    add('--std', type=float, nargs='+')
    add('--crop-pct', type=float)
    add('--interpolation')
    add('--batch-size', '-b', type=positive_int, default=32)
    add('--workers', '-j', type=int, default=0, help='processes that load data')
    return parser


def make_parser(description: str, num_samples: int | None) -> ArgumentParser:
    """Options for a model and a data set, of which `num_samples` are used by default, all if it is None."""
    parser = make_model_parser(description)
    add = parser.add_argument_group('data').add_argument
    add(
        '--dataset',
        default='digits',
        help="'digits' (of scikit-learn); of event cameras 'nmnist', 'cifar10_dvs', 'dvs128_gesture', 'event_rows'; "
        "or as timm says: torch/..., hfds/..., '' for a folder",
    )
    add('--data-dir', type=Path, help='root folder of the data set')
    add('--dataset-download', action='store_true', help='let torch/... data sets download themselves')
    add('--split', dest='val_split', default='validation')
    add('--input-key', help='column of the images of an hfds/ data set')
    add('--target-key', help='column of its labels')
    add('--labels', type=Path, help="names of the classes as the data has them, one in each line, in the model's order")
    add('--split-by', choices=('number', 'time'), default='number', help='how event recordings become frames')
    add(
        '--num-samples',
        '-n',
        type=positive_int,
        default=num_samples,
        help=f'so many, evenly spread over the split; default: {num_samples or "all"}',
    )
    return parser


def parse_args(parser: ArgumentParser) -> argparse.Namespace:
    """The command line, whose --num-threads are set; ends the program in one line if it is wrong."""
    with one_line_errors('read the command line', "--model-kwargs takes name=value ..., and '--' ends them"):
        args = parser.parse_args()
    if args.num_threads:
        torch.set_num_threads(args.num_threads)
    return args


def open_model(args: argparse.Namespace, name: str, **kwargs: Any) -> Any:
    """By name or folder, in eval mode on the device; ends the program in one line if it cannot be made."""
    is_saved = name.startswith(('local-dir:', 'hf-hub:'))
    with one_line_errors(f'create model {name!r}', "'local-dir:FOLDER' is what a training run saved in OUTPUT/model"):
        file, run = args.checkpoint, {}
        if file and file.is_dir():
            run = run_options(file, name)
            kwargs = (
                {k: run[k] for k in ('num_classes', 'in_chans') if run.get(k)} | run.get('model_kwargs', {}) | kwargs
            )
            averaged = file / 'ema.safetensors'
            file = averaged if averaged.is_file() else file / 'model.safetensors'  # as Accelerate names it
        if is_saved and file and not run:
            raise ValueError(
                'it has its own weights: leave out --checkpoint, but for one of a run that began with them'
            )
        if file and not file.is_file():
            raise FileNotFoundError(f'there is no file {file}')
        model: Any = timm.create_model(name, pretrained=args.pretrained or (is_saved and not file), **kwargs)
        if run:
            model.pretrained_cfg.update(resolve_input_data_config(model, args=given(run)))
            # not those of the tag or of the model it began with: the run may have had other data
            model.pretrained_cfg.update(label_names=run_labels(args.checkpoint), label_descriptions=None)
        if file:
            # Strict, unlike pretrained=True, which would draw a new classifier where the classes differ.
            load_checkpoint(model, str(file), filter_fn=key_map(model))
        if args.num_steps and hasattr(model, 'num_steps'):
            model.num_steps = args.num_steps
        elif args.num_steps and name == args.model:
            raise ValueError('it has no time steps: leave out --num-steps')
        if not is_trained(args, name):
            print(f'note: {name} has random weights: its spikes and all that follows say nothing', file=sys.stderr)
        return model.eval().to(args.device)


def run_options(checkpoint: Path, name: str) -> dict[str, Any]:
    """The options of the training run that left OUTPUT/checkpoints/epoch_N, none for a folder without its config.

    Raises: ValueError if it trained another model.
    """
    config = checkpoint.resolve().parent.parent / 'config.yaml'
    if not config.is_file():
        return {}
    run = yaml.safe_load(config.read_text(encoding='utf-8'))
    if run['model'] != name:
        raise ValueError(f'{checkpoint} is of a run that trained {run["model"]!r}: pass --model {run["model"]}')
    return run


def run_labels(checkpoint: Path) -> Any:
    """The names of the classes of the data of the run that left OUTPUT/checkpoints/epoch_N, None until it has ended."""
    saved = checkpoint.resolve().parent.parent / 'model' / 'config.json'
    return json.loads(saved.read_text(encoding='utf-8')).get('label_names') if saved.is_file() else None


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Those about the images, without what was left to the model."""
    names = ('img_size', 'mean', 'std', 'crop_pct', 'interpolation')
    return {name: options[name] for name in names if options.get(name) is not None}


def key_map(model: Any) -> Any:
    """What makes the authors' layouts ours, for the families of this package."""
    module = type(model).__module__
    return getattr(sys.modules[module], 'checkpoint_filter_fn', None) if module.startswith('timm_snn.') else None


def channels(model: Any) -> int:
    return getattr(model, 'in_chans', None) or resolve_input_data_config(model)['input_size'][0]


def is_trained(args: argparse.Namespace, name: str) -> bool:
    return name.startswith(('local-dir:', 'hf-hub:')) or args.pretrained or bool(args.checkpoint)


def image_options(args: argparse.Namespace, model: Any) -> dict[str, Any]:
    """How the model's input is prepared: in its own way, but for what the command line says."""
    with one_line_errors('set up the transform of the images'):
        return resolve_input_data_config(model, args=given(vars(args)))


def open_samples(args: argparse.Namespace, model: Any) -> Samples:
    """`--num-samples` of the split, evenly spread over it since many are sorted by class; always the same ones."""
    data_config = image_options(args, model)
    size, num_steps = data_config['input_size'][1:], getattr(model, 'num_steps', 1)
    dataset = open_dataset(args, False, channels(model), num_steps, size)
    if not len(dataset):
        raise SystemExit(f'error: split {args.val_split!r} of data set {args.dataset!r} has no samples')
    number = min(args.num_samples or len(dataset), len(dataset))
    indices = [i * len(dataset) // number for i in range(number)]
    name = args.dataset.rpartition('/')[2] or str(args.data_dir)
    which = f'all {number:,}' if number == len(dataset) else f'{number:,} of {len(dataset):,}, evenly spread'
    with one_line_errors('set up the transform of the images'):
        transform = make_transform(data_config, args.dataset in EVENT_DATASETS)
    return Samples(dataset, indices, transform, f'{name}, {args.val_split} split, {which}')


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with open(path, 'w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def print_tables(*tables: Any) -> None:
    """As wide as they are, where a file or a pipe has no width of its own."""
    console = Console()
    Console(width=console.width if console.is_terminal else 220).print(*tables)
