"""The options of train.py, from a YAML config and the command line, and how mistakes in options are reported."""

import argparse
import difflib
import math
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import yaml
from huggingface_hub.errors import HTTPError
from safetensors import SafetensorError
from timm.models import split_model_name_tag
from timm.utils import ParseKwargs

__all__ = [
    'EVENT_DATASETS',
    'ArgumentParser',
    'as_config',
    'natural_int',
    'one_line_errors',
    'parse_args',
    'positive_int',
    'tag_of',
]


# Data sets of event cameras by name; data.py opens them.
EVENT_DATASETS = ('nmnist', 'cifar10_dvs', 'dvs128_gesture', 'event_rows')

# Options that would be ignored without others, and are refused rather.
FOR_IMAGES = ('scale', 'ratio', 'hflip', 'color_jitter', 'aa', 'reprob', 'remode', 'crop_pct', 'interpolation')
FOR_EVENTS = ('event_aug', 'split_by')
FOR_COLUMNS = ('input_key', 'target_key')
FOR_A_TEACHER = ('kd_checkpoint', 'kd_temperature', 'kd_task_weight')
FOR_THE_AVERAGE = ('model_ema_decay', 'model_ema_warmup')


@contextmanager
def one_line_errors(doing: str, advice: str = '') -> Iterator[None]:
    """What a user can get wrong ends the run in one line, `error: cannot DOING: REASON; ADVICE`, with the cause."""
    try:
        yield
    except (
        *(RuntimeError, OSError, ValueError, TypeError, LookupError, AssertionError, EOFError),
        *(pickle.UnpicklingError, SafetensorError, yaml.YAMLError, HTTPError),
    ) as error:
        reason = ' '.join(str(error).split()[:60]) or type(error).__name__
        raise SystemExit(f'error: cannot {doing}: {reason}' + (f'; {advice}' if advice else '')) from error


def tag_of(model: str) -> str | None:
    """What names the training in NAME.TAG; training on from a folder or a repository has no name yet."""
    return None if ':' in model else split_model_name_tag(model)[1] or None


class ArgumentParser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise SystemExit(f'error: {message}; see recipes/{self.prog} --help')


def make_parser(description: str) -> ArgumentParser:
    flag = argparse.BooleanOptionalAction
    parser = ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        '--config', '-c', type=Path, help='YAML file with any of the options below; its key config names a parent'
    )
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
    add('--checkpoint', type=Path, help='start from these weights, .safetensors or .pth, but not where they stopped')
    add('--num-classes', type=int, help="default: the model's")
    add('--in-chans', type=int, help="default: the model's")
    add('--drop-path', type=between(0, 1), help='stochastic depth of the last block')
    add('--freeze', nargs='*', default=[], metavar='MODULE', help='not trained, e.g. stem stages.0')
    add('--backend', help="of the neurons, e.g. 'triton'; default: timm_snn's choice")
    add('--compile', action=flag, default=False, help='torch.compile with Inductor')
    add('--channels-last', action=flag, default=False, help='memory format of weights and images')
    add('--grad-checkpointing', action=flag, default=False, help='compute activations twice to save memory')
    add = parser.add_argument_group('data').add_argument
    add(
        '--dataset',
        default='digits',
        help=f"'digits' (of scikit-learn); of event cameras {', '.join(map(repr, EVENT_DATASETS))}; "
        "or as timm says: torch/..., hfds/..., '' for a folder",
    )
    add('--data-dir', type=Path, help='root folder of the data set')
    add('--dataset-download', action=flag, default=False, help='let torch/... data sets download themselves')
    add('--train-split', default='train')
    add('--val-split', default='validation')
    add(
        '--val-fraction',
        type=float,
        help='hold out that part of the training split, pick the epoch by it, and report that epoch on --val-split; '
        'default: report the last epoch',
    )
    add('--fold', type=fold, metavar='K/N', help='validate on the Kth of N folds of both splits, train on the others')
    add('--max-train-samples', type=positive_int, help='evenly spread over the split')
    add('--max-val-samples', type=positive_int, help='and of those to validate on, to test on in the end')
    add('--input-key', help='column of the images of an hfds/ data set')
    add('--target-key', help='column of its labels')
    add('--img-size', type=positive_int, help='image size; default: that of the model')
    add('--mean', type=float, nargs='+', help='of the normalisation; default: that of the model')
    add('--std', type=float, nargs='+')
    add('--crop-pct', type=float)
    add('--interpolation')
    add('--split-by', choices=('number', 'time'), default='number', help='how event recordings become frames')
    add('--batch-size', '-b', type=positive_int, default=64, help='of one process and step')
    add('--grad-accum-steps', type=positive_int, help='batches per update; default: what accelerate launch says, or 1')
    add(
        '--find-batch-size',
        action=flag,
        default=False,
        help='halve the batch until it fits into memory, and accumulate as many more; tried without --compile',
    )
    add('--workers', '-j', type=natural_int, default=2, help='processes that load data; 0 loads in the main one')
    add = parser.add_argument_group('augmentation and regularisation').add_argument
    add('--scale', type=float, nargs=2, default=(0.08, 1.0), help='area of random resized crops')
    add('--ratio', type=float, nargs=2, default=(3 / 4, 4 / 3), help='and their aspect ratio')
    add('--hflip', type=between(0, 1), default=0.5)
    add('--color-jitter', type=between(0), default=0.4)
    add('--aa', help="auto-augment policy, e.g. 'rand-m9-mstd0.5-inc1'")
    add('--reprob', type=between(0, 1), default=0.0, help='random erasing')
    add('--remode', choices=('const', 'rand', 'pixel'), default='pixel', help='what is put there')
    add('--mixup', type=between(0), default=0.0)
    add('--cutmix', type=between(0), default=0.0)
    add('--mixup-prob', type=between(0, 1), default=1.0, help='share of the batches that are mixed')
    add('--mixup-switch-prob', type=between(0, 1), default=0.5, help='share of CutMix where both are on')
    add('--mixup-off-epoch', type=natural_int, default=0, help='no mixing from this epoch on; 0 never stops')
    add('--smoothing', type=between(0, 1), default=0.1, help='label smoothing')
    add(
        '--event-aug',
        nargs='*',
        action=ParseKwargs,
        metavar='NAME=VALUE',
        help="augment event frames: arguments of timm_snn.data.EventAugment, none for the paper's policy",
    )
    add = parser.add_argument_group('loss').add_argument
    add(
        '--tet',
        type=between(0, 1),
        metavar='WEIGHT',
        help='loss at every time step (TET, arXiv 2202.11946), and the weight of its pull of the logits to 1',
    )
    add('--kd-model-name', help='distil the logits of this timm model, pretrained')
    add('--kd-checkpoint', type=Path, help="the teacher's weights, where they are not the pretrained ones")
    add('--kd-temperature', type=positive, default=1.0)
    add('--kd-task-weight', type=between(0, 1), default=0.5, help="of the labels' loss; the teacher's has the rest")
    add = parser.add_argument_group('optimisation').add_argument
    add('--epochs', type=positive_int, default=100)
    add('--cooldown-epochs', type=natural_int, default=0, help='after those, at the lowest learning rate')
    add('--opt', default='adamw')
    add('--lr', type=between(0), default=1e-3)
    add(
        '--lr-base',
        type=between(0),
        help='learning rate per --lr-base-size samples of the effective batch; replaces --lr',
    )
    add('--lr-base-size', type=positive_int, default=256)
    add('--weight-decay', type=between(0), default=0.05, help='not applied to 1-D parameters')
    add('--layer-decay', type=between(0, 1), help='factor of the learning rate from each layer to the one before')
    add('--clip-grad', type=positive, help='largest norm of the gradient')
    add('--sched', default='cosine', help='stepped every update')
    add('--warmup-epochs', type=natural_int, default=5)
    add('--warmup-lr', type=between(0), default=1e-6)
    add('--min-lr', type=between(0), default=1e-6)
    add(
        '--model-ema', action=flag, default=False, help='average the weights; what is reported and saved is the average'
    )
    add('--model-ema-decay', type=between(0, 1), default=0.9998)
    add('--model-ema-warmup', action=flag, default=False, help='let the decay grow to that')
    add('--sync-bn', action=flag, default=True, help='batch statistics of all GPUs; without GPUs of each process')
    add = parser.add_argument_group('run').add_argument
    add('--output', type=Path, default=Path('output/train'))
    add('--resume', help="'auto' for the newest good checkpoint of --output, if there is one, or a checkpoint folder")
    add('--overwrite', action=flag, default=False, help='start anew although --output holds another run')
    add('--checkpoint-steps', type=positive_int, help='a checkpoint every so many updates, besides every epoch')
    add('--checkpoint-hist', type=positive_int, default=2, help='how many to keep, besides the best epoch')
    add('--max-steps', type=positive_int, help='stop after so many updates, then evaluate and save as usual')
    add('--log-with', default='tensorboard', help="a tracker of Accelerate's: wandb, trackio, ...; 'none' for none")
    add('--push-to-hub', metavar='USER/NAME', help='upload the model in the end')
    add('--seed', type=seed, default=42)
    add('--deterministic', action=flag, default=False, help='repeatable on a GPU too, and slower')
    add('--num-threads', type=positive_int, help='on a CPU; default: all cores, shared by the processes')
    return parser


def fold(text: str) -> str:
    """'2/5' is the second of five folds."""
    number, _, count = text.partition('/')
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count) >= 2):
        raise argparse.ArgumentTypeError(f'{text!r} is not like 2/5, the second of five folds')
    return text


def positive_int(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f'{number} is less than 1')
    return number


def positive(text: str) -> float:
    if not 0 < (number := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f'{text} is not a finite number above 0')
    return number


def natural_int(text: str) -> int:
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError(f'{number} is less than 0')
    return number


def seed(text: str) -> int:
    """One that Python, NumPy and torch all take, with room for a number of processes above it."""
    if not 0 <= (number := int(text)) < 2**31:
        raise argparse.ArgumentTypeError(f'{number} is not between 0 and {2**31 - 1}')
    return number


def between(low: float, high: float = math.inf) -> Callable[[str], float]:
    def number(text: str) -> float:
        if not low <= (value := float(text)) <= high or math.isinf(value):
            limits = f'between {low:g} and {high:g}' if high < math.inf else f'a finite number of at least {low:g}'
            raise argparse.ArgumentTypeError(f'{text} is not {limits}')
        return value

    return number


def parse_args(description: str) -> argparse.Namespace:
    """The command line over the config over its parents over the defaults; ends the program in one line if wrong."""
    parser = make_parser(description)
    args = argparse.Namespace()
    with one_line_errors('read the command line', '--model-kwargs takes name=value ...'):
        config = parser.parse_known_args()[0].config
    for path in config_and_parents(config):
        try:
            args = parser.parse_args(config_arguments(path, parser), args)
        except SystemExit as error:
            raise SystemExit(f'{error} (in {path})') from error
    args = parser.parse_args(namespace=args)
    if args.batch_size % 2 and (args.mixup or args.cutmix):
        parser.error(f'argument --batch-size: mixup and cutmix need an even number, not {args.batch_size}')
    if args.val_fraction is not None and not 0 < args.val_fraction < 1:
        parser.error(f'argument --val-fraction: {args.val_fraction:g} is not between 0 and 1')
    if args.tet is not None and args.kd_model_name:
        parser.error('arguments --tet and --kd-model-name: one of them, there is no loss that is both')
    if args.pretrained and args.checkpoint:
        parser.error('arguments --pretrained and --checkpoint: start from one of them')
    for names, works, needed in (
        (FOR_IMAGES, args.dataset not in EVENT_DATASETS, 'a data set of images; --event-aug augments event frames'),
        (FOR_EVENTS, args.dataset in EVENT_DATASETS, f'event recordings, --dataset {", ".join(EVENT_DATASETS)}'),
        (FOR_COLUMNS, args.dataset.startswith('hfds/'), 'a data set of Hugging Face, --dataset hfds/...'),
        (FOR_A_TEACHER, args.kd_model_name, '--kd-model-name'),
        (FOR_THE_AVERAGE, args.model_ema, '--model-ema'),
    ):
        for name in () if works else names:
            if plain(getattr(args, name)) != plain(parser.get_default(name)):
                parser.error(f'argument --{name.replace("_", "-")}: it needs {needed}')
    return args


def config_and_parents(config: Path | None) -> list[Path]:
    """The config and those it inherits from by its key `config`, a path relative to itself; oldest first."""
    paths: list[Path] = []
    while config is not None:
        if config in paths:
            raise SystemExit(f'error: config {config} is its own parent')
        paths.insert(0, config)
        parent = read_config(config).get('config')
        if parent is not None and not isinstance(parent, str):
            raise SystemExit(f"error: key 'config': expected the path of a parent, got {parent!r} (in {config})")
        config = config.parent / parent if parent else None
    return paths


def read_config(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file():
            raise SystemExit('error: there is no such config')
        with one_line_errors('read the config', 'it must be a YAML file'):
            config = yaml.safe_load(path.read_text(encoding='utf-8'))
        if not isinstance(config, dict):
            raise SystemExit('error: a config is a YAML mapping of option names to values')
    except SystemExit as error:
        raise SystemExit(f'{error} (in {path})') from error
    return config


def config_arguments(path: Path, parser: ArgumentParser) -> list[str]:
    """A config as the command line that says the same, so that both are checked alike. A null leaves the default."""
    options = {action.dest: action for action in parser._actions if action.dest not in ('config', 'help')}
    arguments: list[str] = []
    for key, value in read_config(path).items():
        if key == 'config':
            continue  # its parent
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
