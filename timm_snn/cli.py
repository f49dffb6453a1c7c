"""The command `timm-snn`, which is also `python -m timm_snn`: one word, then the arguments of what it names."""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from .version import __version__

__all__ = ['COMMANDS', 'main']

# Of each command, the module whose main(argv) it is, imported when it is called, and what it does.
COMMANDS = {
    'demo': ('timm_snn.demo.app', 'show models at work on a page in the browser, on this computer'),
    'export': (
        'timm_snn.training.export',
        'write a model for ONNX Runtime and others, checked: timm-snn export MODEL --format onnx',
    ),
    'live': (
        'timm_snn.training.live',
        'classify a recording as a camera gives it: timm-snn live --source FILE --model MODEL',
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
        run: Callable[[Sequence[str]], None] = import_module(COMMANDS[command][0]).main
        run(arguments)
    else:
        raise SystemExit(f'error: there is no command {command!r}: use one of {", ".join(COMMANDS)}')
