"""The command `timm-snn`, which is also `python -m timm_snn`: one word, then the arguments of what it names."""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from .version import __version__

__all__ = ['COMMANDS', 'main']

# Of each command, the module whose main(argv) it is, imported when it is called, and what it does.
COMMANDS = {
    'predict': (
        'timm_snn.recipes.predict',
        'classify pictures or recordings: timm-snn predict --model MODEL photo.png',
    ),
    'demo': ('timm_snn.demo.app', 'show models at work on a page in the browser, on this computer'),
    'models': ('timm_snn.training.list_models', 'list the models, and those that have weights: timm-snn models'),
    'report': (
        'timm_snn.recipes.report',
        'accuracy, firing rates and energy of a model, as a page: timm-snn report MODEL',
    ),
    'train': ('timm_snn.recipes.train', 'train or fine-tune: timm-snn train --config msvit/digits'),
    'segment': ('timm_snn.recipes.segment', 'train a class for every pixel: timm-snn segment --config dense/camvid'),
    'detect': ('timm_snn.recipes.detect', 'train boxes around objects: timm-snn detect --config dense/bccd'),
    'validate': ('timm_snn.recipes.validate', 'accuracy on a data set: timm-snn validate --model MODEL --dataset DATA'),
    'energy': ('timm_snn.recipes.energy', 'the report of a model on data of yours: timm-snn energy --model MODEL ...'),
    'pictures': (
        'timm_snn.recipes.pictures',
        'spikes, attention and membranes as PNG: timm-snn pictures --model MODEL',
    ),
    'tradeoff': ('timm_snn.recipes.tradeoff', 'accuracy against T, energy and time: timm-snn tradeoff MODEL'),
    'view': ('timm_snn.recipes.view_events', 'look at a recording of an event camera: timm-snn view FILE'),
    'live': (
        'timm_snn.training.live',
        'classify a recording as a camera gives it: timm-snn live --source FILE --model MODEL',
    ),
    'convert': ('timm_snn.recipes.ann_to_snn', 'make a trained network spike: timm-snn convert --model resnet18 ...'),
    'quantize': ('timm_snn.recipes.quantize', 'make whole numbers of a model: timm-snn quantize --model MODEL ...'),
    'export': (
        'timm_snn.training.export',
        'write a model for ONNX Runtime and others, checked: timm-snn export MODEL --format onnx',
    ),
    'new': ('timm_snn.scaffold', 'write a package with a family or a neuron of your own: timm-snn new family NAME'),
}


def main(argv: Sequence[str] | None = None) -> None:
    command, *arguments = (sys.argv[1:] if argv is None else list(argv)) or ['--help']
    if command in ('-h', '--help'):
        print('usage: timm-snn COMMAND ..., where COMMAND --help says more\n')
        print('\n'.join(f'  {name:<12}{what}' for name, (_, what) in COMMANDS.items()))
    elif command == '--version':
        print(__version__)
    elif command in COMMANDS:
        called, sys.argv = (
            sys.argv,
            [f'timm-snn {command}', *arguments],
        )  # by which the command is named in its messages
        try:
            _main_of(command)(arguments)
        finally:
            sys.argv = called
    else:
        raise SystemExit(f'error: there is no command {command!r}: use one of {", ".join(COMMANDS)}')


def _main_of(command: str) -> Callable[[Sequence[str]], None]:
    try:
        return import_module(COMMANDS[command][0]).main
    except ModuleNotFoundError as error:
        if (error.name or '').startswith(__package__):
            raise
        extra = 'dense' if error.name in ('torchmetrics', 'segmentation_models_pytorch') else 'train'
        raise SystemExit(f"error: {command} needs {error.name}: pip install 'timm-snn[{extra}]'") from error
