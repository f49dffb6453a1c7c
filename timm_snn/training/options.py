"""The command lines and YAML configs of the scripts, read into the values that the rest of this package takes."""

import argparse
import difflib
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from timm.models import split_model_name_tag
from timm.utils import ParseKwargs

from .. import recipes as shipped
from ..cli import COMMANDS
from .data import EVENT_DATASETS, DataSource
from .errors import UserError, one_line_errors
from .imports import import_own

__all__ = [
    'ArgumentParser',
    'Flag',
    'Namespace',
    'accelerator_options',
    'add_camera_options',
    'add_pretrained',
    'add_recording_options',
    'add_source_options',
    'as_config',
    'at_least_one',
    'batch_options',
    'box_augmentation_options',
    'data_source',
    'dense_optimizer_options',
    'dense_options',
    'dense_parser',
    'detection_options',
    'detector_options',
    'evaluation_parser',
    'graph_options',
    'image_options',
    'mask_augmentation_options',
    'model_options',
    'model_parser',
    'natural_int',
    'not_negative',
    'optimizer_options',
    'phase_options',
    'positive',
    'positive_int',
    'pyramid_options',
    'recordings',
    'sample_options',
    'schedule_options',
    'segmentation_options',
    'segmenter_options',
    'tag_of',
    'task_options',
    'trainable_options',
    'trained_part_options',
    'training_options',
    'transform_options',
]

Namespace = argparse.Namespace  # what commands hand on
Flag = argparse.BooleanOptionalAction  # --name and --no-name

# Options that would be ignored without others, and are refused rather.
FOR_IMAGES = (
    *('scale', 'ratio', 'pad_crop', 'hflip', 'color_jitter', 'aa', 'reprob', 'remode', 'cutout', 'crop_pct'),
    *('interpolation', 'data_on_device', 'num_steps_schedule', 'img_size_schedule'),
)
FOR_RESIZED_CROPS = ('scale', 'ratio')
FOR_CROPS = ('scale',)
FOR_EVENTS = ('event_aug', 'split_by', 'bin_ms', 'events_per_bin')
FOR_STEPWISE_SCHEDULES = ('decay_rate',)
FOR_SCHEDULES_THAT_DECAY = ('decay_epochs',)
FOR_STABLE_SCHEDULES = ('lr_decay_fn',)
FOR_AN_EVENT_FOLDER = ('sensor_size', 'read_events')
FOR_COLUMNS = ('input_key', 'target_key')
FOR_A_TEACHER = ('kd_checkpoint', 'kd_temperature', 'kd_task_weight')
FOR_OWN_TASKS = ('task_kwargs',)
FOR_FIRING_RATES = ('rate_target',)
FOR_THE_AVERAGE = ('model_ema_decay', 'model_ema_warmup')
# What a config cannot say.
NOT_IN_CONFIGS = ('config', 'help', 'quiet', 'json', 'traceback')


class ArgumentParser(argparse.ArgumentParser):
    """The options of a script, which is named as users call it: by its path, or as a command of `timm-snn`.

    Mistakes are one line, without the usage.
    """

    def __init__(self, script: str, description: str | None) -> None:
        if sys.argv[0].startswith('timm-snn '):
            script = sys.argv[0]
        super().__init__(
            prog=script if ' ' in script else Path(script).name,
            description=as_commands(description or '') if ' ' in script else description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.script = script
        self.add_argument('--quiet', action='store_true', help='print the result and errors, and nothing else')
        self.add_argument(
            '--json', action='store_true', help='print the result as one JSON document, the rest on stderr'
        )
        self.add_argument(
            '--traceback', action='store_true', help='show where an error came from, as TIMM_SNN_TRACEBACK=1 does'
        )
        self.add_argument(
            '--import',
            nargs='+',
            action='extend',
            metavar='MODULE|FILE.py',
            help='what registers families, neurons or losses of your own, imported before anything else',
        )

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        with one_line_errors('read the command line', "--model-kwargs takes name=value ..., and '--' ends them"):
            parsed = super().parse_known_args(*args, **kwargs)
        for name in getattr(parsed[0], 'import') or ():
            import_own(name)
        return parsed

    def error(self, message: str) -> NoReturn:
        raise UserError(f'{message}; see {self.script} --help')


def as_commands(text: str) -> str:
    """A text about scripts of `recipes/`, of which a wheel has no paths, as one about `timm-snn`."""
    words = {module.removeprefix('timm_snn.recipes.'): word for word, (module, _) in COMMANDS.items()}
    text = re.sub(
        r'(?:(?:python|accelerate launch) )?recipes/(\w+)\.py',
        lambda found: f'timm-snn {words[found[1]]}' if found[1] in words else found[0],
        text,
    )
    return re.sub(r'recipes/configs/([\w/]+)\.yaml', r'\1', text)


class NumberOrKwargs(ParseKwargs):
    """A rate, or rates as NAME=RATE ...; in a config, a number or a mapping."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        pairs = [value.rpartition('=') for value in values]
        is_one = len(pairs) == 1 and not pairs[0][1]
        try:
            rates = {name: float(rate) for name, _, rate in pairs}
        except ValueError:
            rates = {}
        if len(rates) < len(pairs) or not (is_one or all(rates)) or not all(0 <= x <= 1 for x in rates.values()):
            found = ' '.join(values)
            raise argparse.ArgumentError(self, f'expected a rate from 0 to 1, or NAME=RATE ..., got {found!r}')
        setattr(namespace, self.dest, rates[''] if is_one else rates)


class EpochNumbers(ParseKwargs):
    """Numbers by the epoch from which on they hold, EPOCH=NUMBER ...; in a config a mapping.

    Epochs count from 0, and a key between 0 and 1 is a share of all epochs.
    """

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        numbers = {}
        for value in values:
            start, _, number = value.partition('=')
            try:
                epoch = float(start)
                numbers[int(epoch) if epoch == int(epoch) else epoch] = int(number)
                is_right = 0 <= epoch < 1 or epoch == int(epoch) > 0
            except (ValueError, OverflowError):
                is_right = False
            if not is_right or int(number) < 1:
                raise argparse.ArgumentError(
                    self, f'expected EPOCH=NUMBER ..., with epochs from 0 or shares of all below 1, got {value!r}'
                )
        setattr(namespace, self.dest, dict(sorted(numbers.items())))


def add_source_options(add: Callable[..., Any]) -> None:
    """Options of the data of a model by its tag, for `sources.source_of`."""
    add('--dataset', help="default: that of the tag's config; as of recipes/train.py")
    add('--data-dir', type=Path, help="default: that of the tag's config")
    add('--input-key', help="column of the images of an hfds/ data set; default: that of the tag's config")
    add('--target-key', help="column of its labels; default: that of the tag's config")
    add('--split', help="default: what the tag's config validates on; torchvision's test split is 'validation'")


def tag_of(model: str) -> str | None:
    """The tag in NAME.TAG, which names the training. One that goes on from a folder or a repository has no name yet."""
    return None if ':' in model else split_model_name_tag(model)[1] or None


def data_source(args: argparse.Namespace) -> DataSource:
    """The data set that the options name."""
    return DataSource(
        args.dataset,
        folder=args.data_dir,
        download=args.dataset_download,
        input_key=args.input_key,
        target_key=args.target_key,
        **_recording_options(args),
    )


def recordings(args: argparse.Namespace) -> DataSource:
    """Recordings of one's own, and how they are read and made into frames."""
    return DataSource('event_folder', **_recording_options(args))


def _recording_options(args: argparse.Namespace) -> dict[str, Any]:
    return dict(
        split_by=getattr(args, 'split_by', None),
        bin_us=args.bin_ms and max(1, round(1000 * args.bin_ms)),
        events_per_bin=getattr(args, 'events_per_bin', None),
        reading=args.read_events,
        sensor_size=tuple(args.sensor_size) if args.sensor_size else None,
    )


def image_options(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `models.input_config`, without those that are left to the model."""
    names = ('img_size', 'mean', 'std', 'crop_pct', 'interpolation', 'in_chans')  # the last in training alone
    return {name: value for name in names if (value := getattr(args, name, None)) is not None}


def model_options(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `models.open_model` beside the name."""
    return _chosen(args, 'checkpoint', 'pretrained', 'num_steps', 'device', 'model_kwargs')


def accelerator_options(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `hardware.make_accelerator`."""
    return _chosen(args, 'output', 'log_with', 'seed', 'grad_accum_steps', 'num_threads', 'mixed_precision')


def trainable_options(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `models.open_to_train` beside the name."""
    weights = ('pretrained', 'checkpoint', 'freeze', 'grad_checkpointing', 'channels_last')
    # torch.compile, which sees them as a whole, has fast dense convolutions of its own
    sparse_spikes = False if args.compile and args.sparse_spikes is None else args.sparse_spikes
    options = _chosen(args, *weights, 'num_classes', 'in_chans', 'drop_path', 'model_kwargs')
    return options | {'sparse_spikes': sparse_spikes}


def sample_options(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `data.choose_samples` beside the data."""
    return _chosen(args, 'seed', 'fold', 'val_fraction', 'max_train_samples', 'max_val_samples')


def transform_options(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `data.make_transform` for training."""
    same = ('scale', 'ratio', 'pad_crop', 'hflip', 'color_jitter', 'cutout')
    return _chosen(args, *same, auto_augment='aa', re_prob='reprob', re_mode='remode')


def batch_options(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `batches.BatchTransform` that an option gives."""
    same = ('channels_last', 'event_aug', 'mixup', 'cutmix')
    renamed = dict(prob='mixup_prob', switch_prob='mixup_switch_prob', off_epoch='mixup_off_epoch')
    return _chosen(args, *same, **renamed, label_smoothing='smoothing')


def task_options(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `tasks.make_task` that an option gives."""
    renamed = dict(teacher='kd_model_name', teacher_checkpoint='kd_checkpoint', teacher_temperature='kd_temperature')
    same = ('loss', 'tet', 'task', 'task_kwargs', 'rate_weight', 'rate_target')
    return _chosen(args, *same, **renamed, task_weight='kd_task_weight')


def optimizer_options(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of timm's `create_optimizer_v2` beside the model and the learning rate."""
    return _chosen(args, 'opt', 'momentum', 'weight_decay', 'layer_decay') | args.opt_kwargs


def graph_options(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `graph.check_graph` that an option gives."""
    return _chosen(args, 'opt', 'compile', 'grad_checkpointing', 'packed_spikes')


def schedule_options(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of timm's `create_scheduler_v2` beside the optimizer and its steps."""
    same = ('sched', 'cooldown_epochs', 'warmup_epochs', 'warmup_lr', 'min_lr', 'decay_epochs', 'decay_rate')
    return _chosen(args, *same, num_epochs='epochs', decay_fn='lr_decay_fn')


def phase_options(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `schedules.Phases` that an option gives."""
    epochs = args.epochs + args.cooldown_epochs
    return dict(epochs=epochs, num_steps=args.num_steps_schedule, heights=args.img_size_schedule)


def _chosen(args: argparse.Namespace, *same: str, **renamed: str) -> dict[str, Any]:
    """Options by their own names, and by those of a function's arguments."""
    options = {name: name for name in same} | renamed
    return {name: getattr(args, option) for name, option in options.items()}


def model_parser(script: str, description: str | None, batches: bool = True) -> ArgumentParser:
    """Options of a trained model and of how it is run, on batches or on one sample at a time."""
    parser = ArgumentParser(script, description)
    add = parser.add_argument_group('model').add_argument
    add('--model', required=True, help="'local-dir:FOLDER', 'hf-hub:USER/NAME', or a name that timm knows")
    add(
        '--checkpoint',
        type=Path,
        help='weights for a model by name: .safetensors, .pth (the EMA weights where it has some), or a folder in '
        "OUTPUT/checkpoints, which brings its run's options of the model and of the images with it",
    )
    add_pretrained(add)
    add('--model-kwargs', nargs='*', default={}, action=ParseKwargs, help='name=value ..., e.g. num_steps=2')
    add('--num-steps', type=positive_int, help="T; default: the model's")
    add('--device', default='cpu', help="'cuda' for a GPU")
    add('--num-threads', type=positive_int, help='on a CPU; default: all cores')
    _add_image_options(add)
    if batches:
        add('--batch-size', '-b', type=positive_int, default=32)
        add('--workers', '-j', type=int, default=0, help='processes that load data')
    return parser


def evaluation_parser(script: str, description: str | None, num_samples: int | None) -> ArgumentParser:
    """Options of a model and a data set, of which `num_samples` are used by default, all if it is None."""
    parser = model_parser(script, description)
    add = parser.add_argument_group('data').add_argument
    _add_data_options(add, 'store_true', split_by=None)
    add('--split', default='validation')
    add('--labels', type=Path, help="names of the classes as the data has them, one in each line, in the model's order")
    add(
        '--num-samples',
        '-n',
        type=positive_int,
        default=num_samples,
        help=f'so many, evenly spread over the split; default: {num_samples or "all"}',
    )
    return parser


def _add_image_options(add: Callable[..., Any]) -> None:
    add('--img-size', type=positive_int, help='image size; default: that of the model')
    add('--mean', type=float, nargs='+', help='of the normalisation; default: that of the model')
    add('--std', type=float, nargs='+')
    add('--crop-pct', type=float)
    add('--interpolation')


def _add_data_options(add: Callable[..., Any], flag: Any, split_by: str | None) -> None:
    add(
        '--dataset',
        default='digits',
        help=f"'digits' (of scikit-learn); of event cameras {', '.join(map(repr, EVENT_DATASETS))}; "
        "or as timm says: torch/..., hfds/..., '' for a folder",
    )
    add('--data-dir', type=Path, help='root folder of the data set')
    add('--dataset-download', action=flag, default=False, help='let torch/... data sets download themselves')
    add('--input-key', help='column of the images of an hfds/ data set')
    add('--target-key', help='column of its labels')
    add_recording_options(add, split_by)


def add_recording_options(add: Callable[..., Any], split_by: str | None = None) -> None:
    """Options of `recordings`."""
    add(
        '--split-by',
        choices=('number', 'time'),
        default=split_by,
        help=f'how event recordings become frames; default: {split_by or "as those that the model was trained on"}',
    )
    add('--bin-ms', type=positive, metavar='MS', help='frames of so many milliseconds, T of them from the first event')
    add('--events-per-bin', type=positive_int, metavar='N', help='frames of so many events, T of them')
    add_camera_options(add)


def add_pretrained(add: Callable[..., Any]) -> None:
    add('--pretrained', action=Flag, help='the published weights of a model by name; default: of a tag that has some')


def add_camera_options(add: Callable[..., Any]) -> None:
    """Options of `recordings` without those of the bins."""
    add(
        '--sensor-size',
        type=positive_int,
        nargs=2,
        metavar=('H', 'W'),
        help="height and width of the camera of one's own recordings in pixels; default: those of a model of events",
    )
    add(
        '--read-events',
        nargs='+',
        action=ParseKwargs,
        metavar='NAME=VALUE',
        help="arguments of timm_snn.data.read_events for one's own recordings, e.g. kind=nmnist",
    )


def training_parser(description: str | None = None) -> ArgumentParser:
    flag = Flag
    parser = ArgumentParser('recipes/train.py', description)
    _add_config(parser, 'msvit/digits')
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
    add('--compile', action=flag, default=False, help='torch.compile of the blocks')
    add(
        '--cuda-graph',
        action=flag,
        default=False,
        help='record an update as a CUDA graph and replay it: the host starts it with one call',
    )
    add(
        '--packed-spikes',
        action=flag,
        default=False,
        help='keep spikes for the backward pass in one bit each: less memory, the same gradients, slower',
    )
    add('--channels-last', action=flag, help='memory format; default: of all models of this package')
    add(
        '--sparse-spikes',
        action=flag,
        help='convolutions skip zeros on a CPU, where a sample of their input says that it pays; default: those of 128 '
        'channels and more, where that is possible, without --compile',
    )
    add('--grad-checkpointing', action=flag, default=False, help='compute activations twice to save memory')
    add = parser.add_argument_group('data').add_argument
    _add_data_options(add, flag, split_by='number')
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
    _add_image_options(add)
    add('--batch-size', '-b', type=positive_int, default=64, help='of one process and step')
    add('--grad-accum-steps', type=positive_int, help='batches per update; default: what accelerate launch says, or 1')
    add(
        '--find-batch-size',
        action=flag,
        default=False,
        help='halve the batch until it fits into memory, and accumulate as many more; tried without --compile',
    )
    add('--workers', '-j', type=natural_int, default=2, help='processes that load data; 0 loads in the main one')
    add(
        '--data-on-device',
        action=flag,
        default=False,
        help='keep all images in the memory of the device, in that of each process, and augment whole batches there',
    )
    add = parser.add_argument_group('augmentation and regularisation').add_argument
    add('--scale', type=float, nargs=2, default=(0.08, 1.0), help='area of random resized crops')
    add('--ratio', type=float, nargs=2, default=(3 / 4, 4 / 3), help='and their aspect ratio')
    add(
        '--pad-crop',
        type=natural_int,
        default=0,
        metavar='PX',
        help='in place of those, crops of the whole size from images padded by so many reflected pixels; 0 is off',
    )
    add('--hflip', type=between(0, 1), default=0.5)
    add('--color-jitter', type=between(0), default=0.4)
    add('--aa', help="auto-augment policy, e.g. 'rand-m9-mstd0.5-inc1'")
    add('--reprob', type=between(0, 1), default=0.0, help='random erasing')
    add('--remode', choices=('const', 'rand', 'pixel'), default='pixel', help='what is put there')
    add('--cutout', type=natural_int, default=0, metavar='PX', help='side of a square of mean colour in every image')
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
    add('--loss', metavar='NAME', help='of a table in timm_snn/training/tasks.py; default: cross-entropy')
    add('--kd-model-name', help='distil the logits of this timm model, pretrained')
    add('--kd-checkpoint', type=Path, help="the teacher's weights, where they are not the pretrained ones")
    add('--kd-temperature', type=positive, default=1.0)
    add('--kd-task-weight', type=between(0, 1), default=0.5, help="of the labels' loss; the teacher's has the rest")
    add(
        '--task',
        metavar='PACKAGE:NAME',
        help='a loss of your own in place of these, as timm_snn/training/tasks.py describes',
    )
    add('--task-kwargs', nargs='*', default={}, action=ParseKwargs, metavar='NAME=VALUE', help='its arguments')
    add(
        '--rate-weight',
        type=between(0),
        default=0.0,
        help='add that times the squared distance of firing rates to --rate-target, averaged over layers',
    )
    add(
        '--rate-target',
        nargs='+',
        action=NumberOrKwargs,
        default=0.0,
        metavar='RATE',
        help="0 to 1, or by names of neurons, 'stem.*=0.2' '*=0.05': the first pattern that matches",
    )
    add = parser.add_argument_group('optimisation').add_argument
    _add_optimisation_options(add)
    add('--layer-decay', type=between(0, 1), help='factor of the learning rate from each layer to the one before')
    add(
        '--num-steps-schedule',
        nargs='*',
        default={},
        action=EpochNumbers,
        metavar='EPOCH=T',
        help='T in training from that epoch on, counted from 0, or from that share of all epochs, e.g. 0=1 0.8=4; the '
        "model's own T, the largest, before the first and in validation",
    )
    add(
        '--img-size-schedule',
        nargs='*',
        default={},
        action=EpochNumbers,
        metavar='EPOCH=PX',
        help='the same for the height of the images, to which they are resized after their augmentation',
    )
    add = parser.add_argument_group('run').add_argument
    _add_run_options(add, Path('output/train'))
    add('--push-to-hub', metavar='USER/NAME', help='upload the model in the end')
    return parser


def _add_config(parser: ArgumentParser, example: str) -> None:
    parser.add_argument(
        *('--config', '-c'),
        type=Path,
        help='YAML file with any of the options below, whose key config names a parent, or the name of one of ours, as '
        f'{example!r}',
    )


def _add_optimisation_options(add: Callable[..., Any]) -> None:
    add('--epochs', type=positive_int, default=100)
    add('--cooldown-epochs', type=natural_int, default=0, help='after those, at the lowest learning rate')
    add('--opt', default='adamw')
    add('--momentum', type=between(0, 1), default=0.9, help='of sgd, muon and others that have it')
    add(
        '--opt-kwargs',
        nargs='*',
        default={},
        action=ParseKwargs,
        metavar='NAME=VALUE',
        help="arguments of timm's create_optimizer_v2, e.g. betas=0.9,0.95",
    )
    add('--lr', type=between(0), default=1e-3)
    add(
        '--lr-base',
        type=between(0),
        help='learning rate per --lr-base-size samples of the effective batch; replaces --lr',
    )
    add('--lr-base-size', type=positive_int, default=256)
    add('--weight-decay', type=between(0), default=0.05, help='not applied to 1-D parameters')
    add('--clip-grad', type=positive, help='largest norm of the gradient')
    add('--sched', default='cosine', help='stepped every update')
    add(
        '--decay-epochs',
        type=positive,
        help='of wsd, the epochs in which the learning rate falls, or below 1 their share after the warm-up, by '
        'default 0.2; of step, from step to step',
    )
    add('--decay-rate', type=positive, default=0.1, help='of step and multistep; the power of poly')
    add('--lr-decay-fn', choices=('1-sqrt', 'linear', 'cosine', 'exp'), help='how it falls, of wsd')
    add('--warmup-epochs', type=natural_int, default=5)
    add('--warmup-lr', type=between(0), default=1e-6)
    add('--min-lr', type=between(0), default=1e-6)
    add(
        '--model-ema', action=Flag, default=False, help='average the weights; what is reported and saved is the average'
    )
    add('--model-ema-decay', type=between(0, 1), default=0.9998)
    add('--model-ema-warmup', action=Flag, default=False, help='let the decay grow to that')
    add('--sync-bn', action=Flag, default=True, help='batch statistics of all GPUs; without GPUs of each process')


def _add_run_options(add: Callable[..., Any], output: Path) -> None:
    add('--output', type=Path, default=output)
    add('--resume', help="'auto' for the newest good checkpoint of --output, if there is one, or a checkpoint folder")
    add('--overwrite', action=Flag, default=False, help='start anew although --output holds another run')
    add('--checkpoint-steps', type=positive_int, help='a checkpoint every so many updates, besides every epoch')
    add('--checkpoint-hist', type=positive_int, default=2, help='how many to keep, besides the best epoch')
    add('--max-steps', type=positive_int, help='stop after so many updates, then evaluate and save as usual')
    add('--log-with', default='tensorboard', help="a tracker of Accelerate's: wandb, trackio, ...; 'none' for none")
    add('--seed', type=seed, default=42)
    add('--deterministic', action=Flag, default=False, help='repeatable on a GPU too, and slower')
    add('--num-threads', type=positive_int, help='on a CPU; default: all cores, shared by the processes')
    add(
        '--mixed-precision',
        choices=('auto', 'no', 'bf16', 'fp16'),
        help="'auto' is bf16 where the GPU or the CPU multiplies it; default: what accelerate was launched with",
    )


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


def not_negative(text: str) -> float:
    if not 0 <= (number := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f'{text} is not 0 or more')
    return number


def at_least_one(text: str) -> float:
    if not (number := float(text)) >= 1:
        raise argparse.ArgumentTypeError(f'{text} is less than 1')
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


def training_options(
    argv: Sequence[str] | None = None, description: str | None = None, folder: Path = Path()
) -> argparse.Namespace:
    """The command line over the config over its parents over the defaults, checked.

    `folder` is what the path of a config on the command line starts from.
    """
    parser = training_parser(description)
    args = _over_config(parser, argv, folder)
    if args.batch_size % 2 and (args.mixup or args.cutmix):
        parser.error(f'argument --batch-size: mixup and cutmix need an even number, not {args.batch_size}')
    if args.val_fraction is not None and not 0 < args.val_fraction < 1:
        parser.error(f'argument --val-fraction: {args.val_fraction:g} is not between 0 and 1')
    if args.loss and args.tet is not None:
        parser.error('arguments --loss and --tet: one of them, both are the loss of the labels')
    if args.task and (args.loss or args.tet is not None or args.kd_model_name):
        parser.error('arguments --task and --loss, --tet or --kd-model-name: a task of your own is the whole loss')
    if args.rate_weight and args.compile:
        parser.error('arguments --rate-weight and --compile: one of them, compiled blocks do not show their spikes')
    if args.packed_spikes and args.compile:
        parser.error('arguments --packed-spikes and --compile: one of them, compiled layers save spikes by themselves')
    if args.pretrained and args.checkpoint:
        parser.error('arguments --pretrained and --checkpoint: start from one of them')
    _refuse_ignored(
        parser,
        args,
        (FOR_IMAGES, args.dataset not in EVENT_DATASETS, 'a data set of images; --event-aug augments event frames'),
        (FOR_RESIZED_CROPS, not args.pad_crop, 'random resized crops, which --pad-crop replaces'),
        (FOR_EVENTS, args.dataset in EVENT_DATASETS, f'event recordings, --dataset {", ".join(EVENT_DATASETS)}'),
        *_rules_of_schedules(args.sched),
        (FOR_AN_EVENT_FOLDER, args.dataset == 'event_folder', '--dataset event_folder'),
        (FOR_COLUMNS, args.dataset.startswith('hfds/'), 'a data set of Hugging Face, --dataset hfds/...'),
        (FOR_A_TEACHER, args.kd_model_name, '--kd-model-name'),
        (FOR_OWN_TASKS, args.task, '--task'),
        (FOR_FIRING_RATES, args.rate_weight, '--rate-weight'),
        (FOR_THE_AVERAGE, args.model_ema, '--model-ema'),
    )
    return args


def dense_parser(script: str, description: str | None, *, target_key: str, output: Path) -> ArgumentParser:
    """Options that recipes of pictures with masks and with boxes share; `target_key` is the usual column of these."""
    parser = ArgumentParser(script, description)
    _add_config(parser, 'dense/camvid')
    add = parser.add_argument_group('model').add_argument
    add('--backbone', default='msvit_3_192.cifar10', help='any timm model, spiking or not, with or without a tag')
    add(
        '--model-kwargs',
        nargs='*',
        default={},
        action=ParseKwargs,
        help="name=value ... of the backbone, e.g. num_steps=2 extra_levels=1; replaces the config's",
    )
    add('--pretrained', action=Flag, default=False, help='start from the pretrained weights of the backbone')
    add('--checkpoint', type=Path, help='start from the weights of a whole model, .safetensors: OUTPUT/model has one')
    add('--num-classes', type=positive_int, help='default: as many as have names')
    add('--class-names', nargs='+', metavar='NAME', help='in the order of their numbers; default: those of the data')
    add('--in-chans', type=positive_int, choices=(1, 3), default=3, help='1 for grey pictures')
    add('--num-steps', type=positive_int, help="T; default: the backbone's")
    add('--freeze', nargs='*', default=[], metavar='MODULE', help='not trained, e.g. backbone')
    add('--backend', help="of the neurons, e.g. 'triton'; default: timm_snn's choice")
    add('--channels-last', action=Flag, help='memory format; default: of all models with layers of this package')
    add(
        '--sparse-spikes', action=Flag, help='convolutions skip zeros on a CPU; default: those of 128 channels and more'
    )
    add = parser.add_argument_group('data').add_argument
    add(
        '--dataset',
        default='',
        help="'hfds/NAME' or 'hfds/FOLDER', a data set of Hugging Face's library; '' for files below --data-dir",
    )
    add('--data-dir', type=Path, help='root folder of the files; of a data set of the library its cache')
    add('--input-key', default='image', help='column of the pictures')
    add('--target-key', default=target_key, help='column of what is to be found in them')
    add('--train-split', default='train')
    add('--val-split', default='validation', help='measured after every epoch')
    add('--test-split', help='measured once, after the last epoch, and reported; default: --val-split is reported')
    add('--max-train-samples', type=positive_int, help='evenly spread over the split')
    add('--max-val-samples', type=positive_int, help='and of those to validate on; the test is always on all')
    add('--mean', type=float, nargs='+', help='of the normalisation; default: that of the backbone')
    add('--std', type=float, nargs='+')
    add('--batch-size', '-b', type=positive_int, default=8, help='of one process and step')
    add('--grad-accum-steps', type=positive_int, help='batches per update; default: what accelerate launch says, or 1')
    add('--workers', '-j', type=natural_int, default=2, help='processes that load data; 0 loads in the main one')
    add(
        '--data-in-memory',
        action=Flag,
        help='decode and resize all pictures once; default: where they take less than 1 GiB',
    )
    add = parser.add_argument_group('augmentation').add_argument
    add('--hflip', type=between(0, 1), default=0.5)
    add('--color-jitter', type=between(0), default=0.4, help='of brightness, contrast and saturation')
    _add_optimisation_options(parser.add_argument_group('optimisation').add_argument)
    _add_run_options(parser.add_argument_group('run').add_argument, output)
    return parser


def dense_options(parser: ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line over the config over its parents over the defaults of a `dense_parser`, checked."""
    args = _over_config(parser, argv, Path())
    if args.pretrained and args.checkpoint:
        parser.error('arguments --pretrained and --checkpoint: start from one of them')
    if not args.dataset.startswith('hfds/') and args.dataset:
        parser.error(f"argument --dataset: expected hfds/... or '' for files below --data-dir, got {args.dataset!r}")
    if args.num_classes and args.class_names and args.num_classes != len(args.class_names):
        parser.error(f'arguments --num-classes and --class-names: {args.num_classes} and {len(args.class_names)} names')
    _refuse_ignored(
        parser,
        args,
        *_rules_of_schedules(args.sched),
        (FOR_COLUMNS, args.dataset.startswith('hfds/'), 'a data set of Hugging Face, --dataset hfds/...'),
        (FOR_THE_AVERAGE, args.model_ema, '--model-ema'),
    )
    return args


def segmentation_options(argv: Sequence[str] | None = None, description: str | None = None) -> argparse.Namespace:
    """The options of recipes/segment.py."""
    parser = dense_parser('recipes/segment.py', description, target_key='annotation', output=Path('output/segment'))
    add = parser.add_argument_group('segmentation').add_argument
    add(
        '--decoder',
        default='spiking_unet',
        help='spiking_unet or spiking_fpn; or of segmentation_models_pytorch unet, unetplusplus, fpn, deeplabv3, '
        'deeplabv3plus',
    )
    add('--decoder-channels', type=positive_int, nargs='+', help='of its levels; default: those of the decoder')
    add('--img-size', type=positive_int, nargs=2, metavar=('H', 'W'), help='pictures and masks; default: their own')
    add('--crop-size', type=positive_int, nargs=2, metavar=('H', 'W'), help='trained on; default: whole pictures')
    add('--scale', type=positive, nargs=2, default=(0.5, 2.0), help='factor of the picture before it is cropped')
    add('--ignore-index', type=natural_int, default=255, help='label of pixels that do not count')
    add(
        '--balance',
        type=between(0, 1),
        default=0.0,
        metavar='POWER',
        help='weigh classes by the median share of pixels over their own, to this power; 1 balances them wholly',
    )
    add('--dice', type=between(0), default=0.0, metavar='WEIGHT', help='add the Dice loss with this weight')
    args = dense_options(parser, argv)
    _refuse_ignored(parser, args, (FOR_CROPS, args.crop_size, '--crop-size'))
    return args


def segmenter_options(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `dense.create_segmenter` beside the backbone and the number of classes."""
    channels = args.decoder_channels
    if channels and 'unet' not in args.decoder and len(channels) == 1:  # U-Nets have one for each block
        (channels,) = channels
    same = _chosen(args, 'decoder', 'pretrained', 'in_chans', 'num_steps')
    return same | {'decoder_channels': channels} | args.model_kwargs


def mask_augmentation_options(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `segmentation_data.transform_to_train` beside the statistics."""
    return _chosen(args, 'crop_size', 'scale', 'hflip', 'color_jitter', 'ignore_index')


def dense_optimizer_options(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of timm's `create_optimizer_v2` beside the model and the learning rate."""
    return _chosen(args, 'opt', 'momentum', 'weight_decay') | args.opt_kwargs


def trained_part_options(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `models.made_ready` that an option gives."""
    return _chosen(args, 'freeze', 'channels_last', 'sparse_spikes')


def detection_options(argv: Sequence[str] | None = None, description: str | None = None) -> argparse.Namespace:
    """The options of recipes/detect.py."""
    parser = dense_parser('recipes/detect.py', description, target_key='objects', output=Path('output/detect'))
    add = parser.add_argument_group('detection').add_argument
    add('--detector', default='retinanet', help="'retinanet' or 'faster_rcnn', of torchvision")
    add('--neck', default='fpn', help="of the feature pyramid: 'fpn', of real values, or 'spiking_fpn'")
    add('--out-channels', type=positive_int, default=128, help='of all levels of the pyramid')
    add(
        '--img-size',
        type=positive_int,
        nargs=2,
        default=(480, 640),
        metavar=('SHORT', 'LONG'),
        help='sides in pixels that pictures are resized to fit into, without distortion',
    )
    add(
        '--anchor-sizes',
        type=positive,
        nargs='+',
        metavar='PX',
        help='sides of square anchors in resized pictures, as many for each level, from the finest on; default: three, '
        'from the smallest boxes of the training split on, and twice as large on the next level',
    )
    add('--freeze-norms', action=Flag, default=False, help='batch norms of the backbone keep their statistics')
    add('--box-format', choices=('xywh', 'xyxy'), default='xywh', help='left, top, and width, height or right, bottom')
    add('--scale', type=positive, nargs=2, default=(0.8, 1.25), help='factor of the picture before it is cropped')
    add('--vflip', type=between(0, 1), default=0.0)
    args = dense_options(parser, argv)
    if args.img_size[0] > args.img_size[1]:
        parser.error(f'argument --img-size: expected the shorter side first, got {args.img_size[0]} {args.img_size[1]}')
    if args.scale[0] > args.scale[1]:
        parser.error(f'argument --scale: expected the smaller factor first, got {args.scale[0]:g} {args.scale[1]:g}')
    return args


def pyramid_options(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `dense.fpn_backbone` beside the backbone and its weights."""
    return _chosen(args, 'neck', 'out_channels', 'in_chans', 'num_steps') | args.model_kwargs


def detector_options(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `dense.create_detector` beside the backbone, the number of classes and the anchors."""
    sides = dict(zip(('min_size', 'max_size'), args.img_size, strict=True))
    return _chosen(args, 'detector', 'pretrained', 'freeze_norms') | sides | pyramid_options(args)


def box_augmentation_options(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `detection.BoxTransform` in training beside the size and the mean."""
    return _chosen(args, 'scale', 'hflip', 'vflip', 'color_jitter')


def _over_config(parser: ArgumentParser, argv: Sequence[str] | None, folder: Path) -> argparse.Namespace:
    """The command line over the config over its parents over the defaults."""
    args = argparse.Namespace()
    config = parser.parse_known_args(argv)[0].config
    for path in config_and_parents(config and find_config(config, folder)):
        try:
            args = parser.parse_args(config_arguments(path, parser), args)
        except UserError as error:
            raise UserError(f'{error} (in {path})') from error
    return parser.parse_args(argv, args)


def _rules_of_schedules(sched: str) -> list[tuple[Sequence[str], Any, str]]:
    return [
        (FOR_STEPWISE_SCHEDULES, sched in ('step', 'multistep', 'poly'), '--sched step, multistep or poly'),
        (FOR_SCHEDULES_THAT_DECAY, sched in ('wsd', 'rsqrt', 'step'), '--sched wsd, rsqrt or step'),
        (FOR_STABLE_SCHEDULES, sched in ('wsd', 'rsqrt'), '--sched wsd or rsqrt'),
    ]


def _refuse_ignored(parser: ArgumentParser, args: argparse.Namespace, *rules: tuple[Sequence[str], Any, str]) -> None:
    """Raises: UserError for an option that would be ignored. A rule: options, whether they work, and what they need."""
    for names, works, needed in rules:
        for name in () if works else names:
            if plain(getattr(args, name)) != plain(parser.get_default(name)):
                parser.error(f'argument --{name.replace("_", "-")}: it needs {needed}')


def find_config(config: Path, folder: Path) -> Path:
    """The file of this path, from `folder`, or the config of this name that comes with the recipes.

    Raises: UserError with names that are close, for what is neither.
    """
    path, name, names = folder / config, config.as_posix(), shipped.configs()
    if path.is_file() or config.suffix:
        return path
    if name in names:
        return shipped.CONFIGS / f'{name}.yaml'
    by_last_part = {ours.rpartition('/')[2]: ours for ours in names}
    close = difflib.get_close_matches(name, names, n=3)
    close = close or [by_last_part[part] for part in difflib.get_close_matches(name, list(by_last_part), n=3)]
    raise UserError(
        f'there is no file {path}, and no config of ours is called {name!r}: '
        + (f'did you mean {" or ".join(map(repr, close))}?' if close else f'ours are {", ".join(names)}')
    )


def config_and_parents(config: Path | None) -> list[Path]:
    """The config and those it inherits from by its key `config`, a path relative to itself; oldest first."""
    paths: list[Path] = []
    while config is not None:
        if config in paths:
            raise UserError(f'config {config} is its own parent')
        paths.insert(0, config)
        parent = read_config(config).get('config')
        if parent is not None and not isinstance(parent, str):
            raise UserError(f"key 'config': expected the path of a parent, got {parent!r} (in {config})")
        config = config.parent / parent if parent else None
    return paths


def read_config(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file():
            raise UserError('there is no such config')
        with one_line_errors('read the config', 'it must be a YAML file'):
            config = yaml.safe_load(path.read_text(encoding='utf-8'))
        if not isinstance(config, dict):
            raise UserError('a config is a YAML mapping of option names to values')
    except UserError as error:
        raise UserError(f'{error} (in {path})') from error
    return config


def config_arguments(path: Path, parser: ArgumentParser) -> list[str]:
    """A config as the command line that says the same, so that both are checked alike. A null leaves the default."""
    options = {action.dest: action for action in parser._actions if action.dest not in NOT_IN_CONFIGS}
    arguments: list[str] = []
    for key, value in read_config(path).items():
        if key == 'config':
            continue  # its parent
        if key not in options:
            close = difflib.get_close_matches(str(key), list(options), n=1)
            parser.error(f'unknown key {key!r}' + (f': did you mean {close[0]!r}?' if close else ''))
        if value is None:
            continue
        if value is False and 'no' in (options[key].choices or ()):
            value = 'no'  # which YAML takes for false
        option, flag = options[key], f'--{key.replace("_", "-")}'
        if isinstance(option, Flag):
            expected, right = 'true or false', isinstance(value, bool)
            words = [flag if value else f'--no-{flag[2:]}']
        elif isinstance(option, NumberOrKwargs) and not isinstance(value, dict):
            expected, right = 'a number or a mapping', isinstance(value, (int, float)) and not isinstance(value, bool)
            words = [flag, str(value)]
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
    return {key: plain(value) for key, value in vars(args).items() if key not in NOT_IN_CONFIGS}


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: plain(setting) for name, setting in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
