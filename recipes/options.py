"""The options of train.py, from a YAML config and the command line, and how mistakes in options are reported."""

import argparse
import difflib
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import yaml
from safetensors import SafetensorError
from timm.utils import ParseKwargs

__all__ = ['ArgumentParser', 'as_config', 'one_line_errors', 'parse_args', 'positive_int']


@contextmanager
def one_line_errors(doing: str, advice: str = '') -> Iterator[None]:
    """What a user can get wrong ends the run in one line, `error: cannot DOING: REASON; ADVICE`, with the cause."""
    try:
        yield
    except (
        *(RuntimeError, OSError, ValueError, TypeError, LookupError, AssertionError, EOFError),
        *(pickle.UnpicklingError, SafetensorError, yaml.YAMLError),
    ) as error:
        reason = ' '.join(str(error).split()[:60]) or type(error).__name__
        raise SystemExit(f'error: cannot {doing}: {reason}' + (f'; {advice}' if advice else '')) from error


class ArgumentParser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise SystemExit(f'error: {message}; see recipes/{self.prog} --help')


def make_parser(description: str) -> ArgumentParser:
    flag = argparse.BooleanOptionalAction
    parser = ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument('--config', '-c', type=Path, help='YAML file with any of the options below')
    add = parser.add_argument_group('model').add_argument
    add('--model', default='msvit_4_96', help='any timm model, with or without a tag')
    add(
        '--model-kwargs',
        nargs='*',
        default={},
        action=ParseKwargs,
        help="name=value ..., e.g. num_steps=6 attn=ssa; replaces the config's",
    )
    add('--pretrained', action=flag, default=False, help='start from the pretrained weights of the model')
    add('--num-classes', type=int, help="default: the model's")
    add('--in-chans', type=int, help="default: the model's")
    add('--drop-path', type=float, help='stochastic depth of the last block')
    add = parser.add_argument_group('data').add_argument
    add(
        '--dataset',
        default='digits',
        help="'digits' (part of scikit-learn) or as timm says: torch/..., hfds/..., '' for a folder",
    )
    add('--data-dir', type=Path, help='root folder of the data set')
    add('--dataset-download', action=flag, default=False, help='let torch/... data sets download themselves')
    add('--train-split', default='train')
    add('--val-split', default='validation')
    add('--input-key', help='column of the images of an hfds/ data set')
    add('--target-key', help='column of its labels')
    add('--img-size', type=int, help='image size; default: that of the model')
    add('--mean', type=float, nargs='+', help='of the normalisation; default: that of the model')
    add('--std', type=float, nargs='+')
    add('--crop-pct', type=float)
    add('--interpolation')
    add('--batch-size', '-b', type=positive_int, default=64, help='of one process')
    add('--workers', '-j', type=int, default=2, help='processes that load data; 0 loads in the main one')
    add = parser.add_argument_group('augmentation and regularisation').add_argument
    add('--scale', type=float, nargs=2, default=(0.08, 1.0), help='area of random resized crops')
    add('--ratio', type=float, nargs=2, default=(3 / 4, 4 / 3), help='and their aspect ratio')
    add('--hflip', type=float, default=0.5)
    add('--color-jitter', type=float, default=0.4)
    add('--aa', help="auto-augment policy, e.g. 'rand-m9-mstd0.5-inc1'")
    add('--reprob', type=float, default=0.0, help='random erasing')
    add('--remode', default='pixel')
    add('--mixup', type=float, default=0.0)
    add('--cutmix', type=float, default=0.0)
    add('--smoothing', type=float, default=0.1, help='label smoothing')
    add = parser.add_argument_group('optimisation').add_argument
    add('--epochs', type=positive_int, default=100)
    add('--opt', default='adamw')
    add('--lr', type=float, default=1e-3)
    add('--weight-decay', type=float, default=0.05, help='not applied to 1-D parameters')
    add('--clip-grad', type=float, help='largest norm of the gradient')
    add('--sched', default='cosine', help='stepped every update')
    add('--warmup-epochs', type=int, default=5)
    add('--warmup-lr', type=float, default=1e-6)
    add('--min-lr', type=float, default=1e-6)
    add = parser.add_argument_group('run').add_argument
    add('--output', type=Path, default=Path('output/train'))
    add('--resume', help="'auto' for the newest checkpoint of --output, if there is one, or a checkpoint folder")
    add('--overwrite', action=flag, default=False, help='start anew although --output holds another run')
    add('--seed', type=int, default=42)
    add('--num-threads', type=positive_int, help='on a CPU; default: all cores, shared by the processes')
    return parser


def positive_int(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f'{number} is less than 1')
    return number


def parse_args(description: str) -> argparse.Namespace:
    """The command line over the config over the defaults; ends the program in one line if any of it is wrong."""
    parser = make_parser(description)
    args = argparse.Namespace()
    with one_line_errors('read the command line', '--model-kwargs takes name=value ...'):
        config = parser.parse_known_args()[0].config
    if config is not None:
        try:
            args = parser.parse_args(config_arguments(config, parser))
        except SystemExit as error:
            raise SystemExit(f'{error} (in {config})') from error
    args = parser.parse_args(namespace=args)
    if args.batch_size % 2 and (args.mixup or args.cutmix):
        parser.error(f'argument --batch-size: mixup and cutmix need an even number, not {args.batch_size}')
    return args


def config_arguments(path: Path, parser: ArgumentParser) -> list[str]:
    """A config as the command line that says the same, so that both are checked alike. A null leaves the default."""
    if not path.is_file():
        parser.error('there is no such config')
    with one_line_errors('read the config', 'it must be a YAML file'):
        config = yaml.safe_load(path.read_text(encoding='utf-8'))
    if not isinstance(config, dict):
        parser.error('a config is a YAML mapping of option names to values')
    options = {action.dest: action for action in parser._actions if action.dest not in ('config', 'help')}
    arguments: list[str] = []
    for key, value in config.items():
        if key not in options:
            close = difflib.get_close_matches(str(key), list(options), n=1)
            parser.error(f'unknown key {key!r}' + (f': did you mean {close[0]!r}?' if close else ''))
        if value is None:
            continue
        option, flag = options[key], f'--{key.replace("_", "-")}'
        if isinstance(option, argparse.BooleanOptionalAction):
            expected, right = 'true or false', isinstance(value, bool)
            words = [flag if value else f'--no-{flag[2:]}']
        elif isinstance(option, ParseKwargs):
            expected, right = 'a mapping', isinstance(value, dict)
            words = [flag, *(f'{name}={setting}' for name, setting in value.items())] if right else []
        elif option.nargs:
            expected, right = 'a list', isinstance(value, list)
            words = [flag, *map(str, value)] if right else []
        else:
            expected, right = 'one value', not isinstance(value, (bool, dict, list))
            words = [f'{flag}={value}']
        if not right:
            parser.error(f'key {key!r}: expected {expected}, got {value!r}')
        arguments += words
    return arguments


def as_config(args: argparse.Namespace) -> dict[str, Any]:
    """The options in the types of YAML, as a config that says the same."""
    return {key: plain(value) for key, value in vars(args).items() if key != 'config'}


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: plain(setting) for name, setting in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
