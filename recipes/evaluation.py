"""What energy.py and pictures.py share: a trained model and real data by name."""

import argparse
import sys
from pathlib import Path
from typing import Any

import timm
from data import open_dataset
from options import ArgumentParser, one_line_errors, positive_int
from timm.data import create_transform, resolve_input_data_config
from timm.utils import ParseKwargs
from torch.utils.data import Dataset, Subset

import timm_snn  # noqa: F401  registers the models

__all__ = ['is_trained', 'make_parser', 'open_model', 'open_samples']


def make_parser(description: str, num_samples: int) -> ArgumentParser:
    parser = ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument_group('model').add_argument
    add('--model', required=True, help="'local-dir:FOLDER', 'hf-hub:USER/NAME', or a name that timm knows")
    add('--checkpoint', type=Path, help='weights for a model by name, .safetensors or .pth')
    add('--pretrained', action='store_true', help='load the published weights of a model by name')
    add('--model-kwargs', nargs='*', default={}, action=ParseKwargs, help='name=value ..., e.g. num_steps=2')
    add('--num-steps', type=positive_int, help="T; default: the model's")
    add('--device', default='cpu', help="'cuda' for a GPU")
    add('--num-threads', type=positive_int, help='on a CPU; default: all cores')
    add = parser.add_argument_group('data').add_argument
    add(
        '--dataset',
        default='digits',
        help="'digits' (part of scikit-learn) or as timm says: torch/..., hfds/..., '' for a folder",
    )
    add('--data-dir', type=Path, help='root folder of the data set')
    add('--dataset-download', action='store_true', help='let torch/... data sets download themselves')
    add('--split', dest='val_split', default='validation')
    add('--input-key', help='column of the images of an hfds/ data set')
    add('--target-key', help='column of its labels')
    add('--img-size', type=positive_int, help='image size; default: that of the model')
    add('--num-samples', '-n', type=positive_int, default=num_samples, help='so many, evenly spread over the split')
    add('--batch-size', '-b', type=positive_int, default=32)
    add('--workers', '-j', type=int, default=0, help='processes that load data')
    return parser


def open_model(args: argparse.Namespace, name: str, **kwargs: Any) -> Any:
    """By name or folder, in eval mode on the device; ends the program in one line if it cannot be made."""
    is_saved = name.startswith(('local-dir:', 'hf-hub:'))
    with one_line_errors(f'create model {name!r}', "'local-dir:FOLDER' is what a training run saved in OUTPUT/model"):
        if is_saved and args.checkpoint:
            raise ValueError('it has its own weights: leave out --checkpoint')
        if args.checkpoint and not args.checkpoint.is_file():
            raise FileNotFoundError(f'there is no file {args.checkpoint}')
        model: Any = timm.create_model(
            name,
            pretrained=is_saved or args.pretrained,
            checkpoint_path=str(args.checkpoint or ''),
            **kwargs,
        )
        if args.num_steps and hasattr(model, 'num_steps'):
            model.num_steps = args.num_steps
        if not is_trained(args, name):
            print(f'note: {name} has random weights: its spikes and all that follows say nothing', file=sys.stderr)
        return model.eval().to(args.device)


def is_trained(args: argparse.Namespace, name: str) -> bool:
    return name.startswith(('local-dir:', 'hf-hub:')) or args.pretrained or bool(args.checkpoint)


class Samples(Dataset):
    """The chosen samples of a split, with a model's own evaluation transform."""

    def __init__(self, dataset: Any, indices: list[int], transform: Any, description: str) -> None:
        self.samples = Subset(dataset, indices)
        self.transform = transform
        self.description = description

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        image, label = self.samples[index]
        return self.transform(image), label


def open_samples(args: argparse.Namespace, model: Any) -> Samples:
    """`--num-samples` of the split, evenly spread over it since many are sorted by class; always the same ones."""
    in_chans = getattr(model, 'in_chans', None) or resolve_input_data_config(model)['input_size'][0]
    dataset = open_dataset(args, False, in_chans)
    if not len(dataset):
        raise SystemExit(f'error: split {args.val_split!r} of data set {args.dataset!r} has no samples')
    number = min(args.num_samples, len(dataset))
    indices = [i * len(dataset) // number for i in range(number)]
    options = {'img_size': args.img_size} if args.img_size else {}
    with one_line_errors('set up the transform of the images'):
        transform = create_transform(**resolve_input_data_config(model, args=options))
    name = args.dataset.rpartition('/')[2] or str(args.data_dir)
    which = f'all {number:,}' if number == len(dataset) else f'{number:,} of {len(dataset):,}, evenly spread'
    return Samples(dataset, indices, transform, f'{name}, {args.val_split} split, {which}')
