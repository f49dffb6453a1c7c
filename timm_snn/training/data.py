"""Data sets by name, the samples of them that a run uses, and how each sample is prepared."""

import functools
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.datasets.utils
from PIL import Image
from sklearn.model_selection import StratifiedKFold, train_test_split
from timm.data import ImageDataset, create_dataset, create_transform
from torch.utils.data import ConcatDataset, Dataset
from torchvision.transforms import Normalize

from ..data import (
    CIFAR10DVS,
    NMNIST,
    DVS128Gesture,
    EventDataset,
    EventDigits,
    EventFolder,
    EventRows,
    FrameSettings,
    SensorSizeError,
    frame_settings,
    has_frame_settings,
    set_frame_settings,
)
from ..data.cache import CacheFolderError
from ..data.event_digits import split_digits
from ..data.rows import find_shards, locate
from ..data.settings import difference
from ..files import printable
from ..folders import folder_of_split
from ..labels import DIGITS
from ..progress import bar, waiting
from .augmentation import Cutout, PaddedCrop, mend_posterize
from .columns import check_column_names, leave_out_unusable
from .errors import UserError, came_through_user_code, one_line_errors
from .models import channels, input_config, steps_of
from .pictures import FolderReader, open_picture

__all__ = [
    'BUNDLED',
    'EVENT_DATASETS',
    'DataSource',
    'Samples',
    'TrainingSamples',
    'UnreadableSample',
    'WrongSample',
    'WrongSensor',
    'choose_samples',
    'class_names',
    'evenly',
    'frames_of',
    'make_transform',
    'note_on_frames',
    'note_on_pictures',
    'open_datasets',
    'open_fold',
    'open_samples',
    'open_split',
    'summary',
]

_logger = logging.getLogger(__name__)
_MOST_UNREADABLE = 50  # samples in a row, as in timm

# Event recordings in two parts.
RECORDINGS: dict[str, Any] = {'nmnist': NMNIST, 'cifar10_dvs': CIFAR10DVS, 'dvs128_gesture': DVS128Gesture}
EVENT_DATASETS = (*RECORDINGS, 'event_folder', 'event_rows', 'event_digits')
MANY_RECORDINGS = 100  # to be read for the first time, which takes long enough to say so
BUNDLED = ('digits', 'event_digits')  # which need no folder
# Splits of the data sets that have two parts; the second is to validate on.
PARTS = {'train': True, 'training': True, 'validation': False, 'val': False, 'test': False}


@dataclass(frozen=True)
class DataSource:
    """A data set by name: one of BUNDLED, one of EVENT_DATASETS, or a name of timm's `create_dataset`."""

    name: str
    folder: Path | None = None
    download: bool = False  # of torchvision
    input_key: str | None = None  # columns of a Hugging Face data set
    target_key: str | None = None
    split_by: str | None = None  # how event recordings become frames; if all three are None, as the model says
    bin_us: int | None = None
    events_per_bin: int | None = None
    sensor_size: tuple[int, int] | None = None  # of the camera of an 'event_folder'; None is the model's
    reading: dict[str, Any] | None = None  # arguments of `read_events` for its files

    @property
    def is_events(self) -> bool:
        return self.name in EVENT_DATASETS

    @property
    def is_table(self) -> bool:
        """A data set of Hugging Face's library."""
        return self.name.startswith('hfds/')

    @property
    def is_folder(self) -> bool:
        """Classes of a folder are numbered by the order of their names."""
        return self.name.removeprefix('torch/') in ('', 'folder', 'image_folder')

    @property
    def bins(self) -> dict[str, Any]:
        """Arguments of event data sets, by number if nothing else is said."""
        bins = {'bin_us': self.bin_us, 'events_per_bin': self.events_per_bin}
        # which say themselves what they are by; 'number' may be no more than a default
        split_by = None if any(bins.values()) and self.split_by == 'number' else self.split_by
        return {'split_by': split_by, **bins}

    def for_model(self, model: Any) -> 'DataSource':
        """The same data, with what is left open about frames as the model says. Raises: UserError if it is wrong."""
        if not self.is_events or not has_frame_settings(model):
            return self
        with one_line_errors('make frames for the model'):
            own = frame_settings(model)
        filled = replace(self, sensor_size=self.sensor_size or own.sensor_size)
        if any(self.bins.values()):
            return filled
        return replace(filled, split_by=own.split_by, bin_us=own.bin_us, events_per_bin=own.events_per_bin)


class Digits(Dataset):
    """scikit-learn's bundled 1,797 handwritten digits, 8x8, in the two parts of `split_digits`."""

    classes = DIGITS

    def __init__(self, train: bool, mode: str = 'L') -> None:
        self.images, self.labels = split_digits(train)
        self.mode = mode
        self.transform: Any = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        pixels = (self.images[index].reshape(8, 8) * (255 / 16)).astype('uint8')  # values are 0 to 16
        image = Image.fromarray(pixels).convert(self.mode)
        return self.transform(image) if self.transform else image, int(self.labels[index])


class UnreadableSample(RuntimeError):
    """A loading process hands errors on as tracebacks, whose last line is the message."""

    def __str__(self) -> str:
        return super().__str__().strip().splitlines()[-1].removeprefix(f'{__name__}.{type(self).__name__}: ')


class WrongSample(UnreadableSample):
    """A sample that was not meant so: it is an option that is wrong, and other samples are not better."""


class WrongSensor(WrongSample):
    """One with events outside of the sensor."""


class Samples(Dataset):
    """Some samples of a data set that gives images without a transform, or of several in a row, with a transform.

    Raises: UnreadableSample rather than take the next one, as timm's data sets do.
    """

    def __init__(
        self, source: Any, indices: Sequence[int], transform: Callable | None = None, description: str = ''
    ) -> None:
        self.source = source
        self.indices = indices
        self.transform = transform
        self.description = description

    def __len__(self) -> int:
        return len(self.indices)

    def locate(self, number: int) -> tuple[Any, int]:
        """The data set that a sample is in, and its index there."""
        return locate(self.source, int(self.indices[number]))

    def name(self, number: int) -> str:
        """The file where there is one, otherwise the index in the data set."""
        dataset, index = self.locate(number)
        if isinstance(dataset, EventDataset):
            return dataset.samples[index][0]
        return (dataset.filename(index) if isinstance(dataset, ImageDataset) else None) or str(index)

    def read(self, number: int) -> tuple[Any, Any]:
        dataset, index = self.locate(number)
        if not isinstance(dataset, ImageDataset):
            return dataset[index]
        file, label = dataset.reader[index]
        return open_picture(file, dataset.input_img_mode), -1 if label is None else int(label)

    def _read_or_say(self, number: int) -> tuple[Any, Any]:
        try:
            return self.read(number)
        except WrongSample:
            raise
        except Exception as error:  # decoders stumble in their own ways over broken files
            if came_through_user_code(error):
                raise
            if isinstance(error, SensorSizeError):
                raise WrongSensor(f'{printable(error, 1000)}, in --sensor-size H W') from error
            name, reason = printable(self.name(number), 500), printable(f'{type(error).__name__}: {error}', 500)
            raise UnreadableSample(f'sample {name} is unreadable, {reason}') from error

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        image, label = self._read_or_say(number)
        return self.transform(image) if self.transform else image, label


class TrainingSamples(Samples):
    """Samples to train on, each augmented by random numbers of its own.

    What the transform draws depends on seed, epoch and sample alone: not on the number of processes and workers, nor on
    the samples before. So a run that goes on in the middle of an epoch repeats what it would have done. An unreadable
    picture or recording is replaced by the next one of the run, with a warning.

    Raises: UnreadableSample if so many in a row cannot be read that it is no accident.
    """

    def __init__(self, source: Any, indices: Sequence[int], seed: int, transform: Callable | None = None) -> None:
        super().__init__(source, indices, transform)
        self.seed = seed
        self.epoch = 0

    def read_or_next(self, number: int) -> tuple[Any, Any]:
        """The image without a transform, and its label."""
        last = min(_MOST_UNREADABLE, len(self)) - 1
        for tried in range(last):
            try:
                return self._read_or_say((number + tried) % len(self))
            except WrongSample:
                raise
            except UnreadableSample as error:
                _logger.warning('%s; the next one is taken', error)
        return self._read_or_say((number + last) % len(self))

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        image, label = self.read_or_next(number)
        with randomness_of(self.seed, self.epoch, int(self.indices[number])):
            return self.transform(image) if self.transform else image, label


@contextmanager
def randomness_of(*key: int) -> Iterator[None]:
    """Python's, NumPy's and torch's random numbers are those of the key inside, and go on as before outside."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed = np.random.SeedSequence(key).generate_state(3)
    random.seed(int(seed[0]))
    np.random.seed(seed[1])
    torch.default_generator.manual_seed(int(seed[2]))  # torch.manual_seed would reach for the GPUs
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def choose_samples(
    train_set: Any,
    val_set: Any,
    *,
    seed: int,
    training_transform: Callable | None = None,
    transform: Callable | None = None,
    fold: str | None = None,
    val_fraction: float | None = None,
    max_train_samples: int | None = None,
    max_val_samples: int | None = None,
) -> tuple[TrainingSamples, Samples, Samples | None]:
    """The samples to train on, to validate on after every epoch, and with `val_fraction` to test on in the end.

    `fold`, as in '2/5', validates on one of the folds of all samples. Splits are per class and the same for every seed
    of the run, so that accuracies are of the same samples.
    """
    source: Any = ConcatDataset([train_set, val_set])
    train: Any = range(len(train_set))
    val: Any = range(len(train_set), len(source))
    test = None
    with one_line_errors('split the data'):
        if fold:
            number, count = map(int, fold.split('/'))
            labels = np.concatenate([labels_of(train_set), labels_of(val_set)])
            folds = StratifiedKFold(count, shuffle=True, random_state=0).split(labels, labels)
            train, val = list(folds)[number - 1]
        if val_fraction:
            test = val
            labels = np.concatenate([labels_of(train_set), labels_of(val_set)])[list(train)]
            train, val = train_test_split(train, test_size=val_fraction, stratify=labels, random_state=0)
    train, val = evenly(train, max_train_samples), evenly(val, max_val_samples)
    held_out = None if test is None else Samples(source, evenly(test, max_val_samples), transform)
    return TrainingSamples(source, train, seed, training_transform), Samples(source, val, transform), held_out


def evenly(indices: Sequence[int], number: int | None) -> Sequence[int]:
    """`number` of them or all, spread evenly because many data sets are sorted by class."""
    if number is None or number >= len(indices):
        return indices
    return [indices[i * len(indices) // number] for i in range(number)]


def labels_of(dataset: Any) -> np.ndarray:
    """The label of every sample, without reading the images where the data set knows them."""
    reader: Any = getattr(dataset, 'reader', None)
    for labels in (getattr(dataset, 'labels', None), getattr(dataset, 'targets', None)):
        if labels is not None:
            return np.asarray(labels)
    if hasattr(reader, 'iter_targets'):  # timm's of Hugging Face data sets
        return np.asarray(list(reader.iter_targets()))
    if hasattr(reader, 'samples'):  # and of folders
        return np.asarray([label for _, label in reader.samples])
    return np.asarray([label for _, label in dataset])


def make_transform(
    data_config: dict[str, Any], is_events: bool, *, pad_crop: int = 0, cutout: int = 0, **training: Any
) -> Callable:
    """The transform of one sample: for evaluation, or with the arguments of timm's training transform for that.

    In training, `pad_crop` is the padding in pixels of crops that replace the resized ones, and `cutout` the side of a
    square that is erased; 0 is off. Event frames are only normalised, because their augmentation acts on batches.
    """
    if is_events:
        return Normalize(data_config['mean'], data_config['std'])
    shared = {key: data_config[key] for key in ('input_size', 'mean', 'std', 'interpolation')}
    if training:
        with one_line_errors('set up the augmentation'):
            transform = create_transform(is_training=True, **training, **shared)
            mend_posterize(transform)
            if pad_crop:
                size, interpolation = data_config['input_size'][1:], data_config['interpolation']
                transform.transforms[0] = PaddedCrop(size, pad_crop, interpolation)
            if cutout:
                transform.transforms.append(Cutout(cutout))
            return transform
    return create_transform(crop_pct=data_config['crop_pct'], **shared)


def open_datasets(
    source: DataSource, train_split: str, val_split: str, model: Any, size: tuple[int, int]
) -> tuple[Any, Any]:
    """Training and validation data that fit the model, event frames in that size. Raises: UserError if they do not."""
    num_classes, in_chans, num_steps = model.num_classes, model.in_chans, steps_of(model)
    show_images(source, model)
    source = source.for_model(model)
    open_it = functools.partial(open_split, in_chans=in_chans, num_steps=num_steps, size=size)
    train_set = open_it(source, train_split)
    if source.name == 'event_folder':
        source = replace(source, sensor_size=train_set.sensor_size)
    val_set = open_it(source, val_split)
    names, val_names = class_names(train_set), class_names(val_set)
    if names and len(names) != num_classes:
        raise UserError(
            f'data set {source.name!r} has {len(names)} classes and the model {num_classes}: '
            f'pass --num-classes {len(names)}'
        )
    if names != val_names:
        is_numbered_by_name = source.name in ('', 'event_folder')
        if not (is_numbered_by_name and names and val_names) or set(val_names) - set(names):
            raise UserError(
                f'the splits of data set {source.name!r} have different classes, {summary(names)} in '
                f'{train_split!r} and {summary(val_names)} in {val_split!r}: labels would not agree'
            )
        val_set = open_it(source, val_split, classes=names)  # a folder of fewer classes, which would be numbered anew
    for split, dataset in ((train_split, train_set), (val_split, val_set)):
        advice = '--input-key and --target-key name the columns' if source.is_table else ''
        with one_line_errors(f'use split {split!r} of data set {source.name!r}', advice):
            check_fit(dataset, num_classes, in_chans, num_steps if source.is_events else None)
    return train_set, val_set


def show_images(source: DataSource, model: Any) -> None:
    """Let a model of events take images: it refuses a batch of as many as it has steps, which may be a recording."""
    if has_frame_settings(model) and not source.is_events:
        _logger.warning('note: the model was trained on frames of events, and is shown images')
        set_frame_settings(model, None)


def check_fit(dataset: Any, num_classes: int, in_chans: int, num_steps: int | None) -> None:
    """Raises: ValueError if the first sample does not fit a model: its steps if it has some, its channels, its label.

    Of a data set whose classes have no names all labels are looked at, where that needs no images.
    """
    sample, label = TrainingSamples(dataset, range(len(dataset)), seed=0)[0]
    if num_steps is not None:
        if len(sample) != num_steps:
            raise ValueError(f'it has {len(sample)} steps: pass --model-kwargs num_steps={len(sample)}')
    elif (bands := len(sample.getbands())) != in_chans:
        raise ValueError(f'its images have {bands} channels and the model {in_chans}: pass --in-chans {bands}')
    reader: Any = getattr(dataset, 'reader', None)
    searched = not class_names(dataset) and hasattr(reader, 'iter_targets')
    labels = set(reader.iter_targets()) if searched else {label}
    wrong = [label for label in labels if not isinstance(label, int) or not 0 <= label < num_classes]
    if wrong:
        raise ValueError(f'labels must be 0 to {num_classes - 1}, as --num-classes says, not {wrong[0]!r}')


def open_split(
    source: DataSource,
    split: str,
    *,
    in_chans: int,
    num_steps: int = 1,
    size: tuple[int, int] | None = None,
    classes: Sequence[str] | None = None,
) -> Any:
    """One split of a data set. Raises: UserError if it cannot be opened.

    `num_steps` and `size` are those of event frames; `classes` are those of a folder in the order of their numbers.
    """
    mode = 'L' if in_chans == 1 else 'RGB'
    if source.name in BUNDLED or source.name in RECORDINGS:
        if split not in PARTS:
            raise UserError(
                f'data set {source.name!r} has no split {split!r}: use train, or validation, also called test'
            )
        if source.name == 'digits':
            return Digits(PARTS[split], mode)
    if not (source.is_folder or source.is_events) and source.name.partition('/')[0] not in ('torch', 'hfds'):
        raise UserError(
            f"unknown data set {source.name!r}: 'digits', {', '.join(map(repr, EVENT_DATASETS))}, torch/..., "
            "hfds/..., or '' for a folder"
        )
    needs_folder = (source.is_folder or source.is_events) and source.name not in BUNDLED
    if needs_folder and (source.folder is None or not source.folder.is_dir()):
        raise UserError(f'data folder {source.folder} does not exist; --data-dir names a folder with {split}/')
    if source.is_events and in_chans not in (2, 3):
        raise UserError(
            f'event frames have 2 channels, or 3 with their sum, and the model {in_chans}: pass --in-chans 2'
        )
    advice = 'check --data-dir and the splits; --dataset event_folder takes recordings of event cameras'
    if not source.is_folder:
        advice = 'check --dataset, --data-dir and the splits, or let torch/ data sets come with --dataset-download'
    what = f'open split {split!r} of data set {source.name!r} in {source.folder}'
    with one_line_errors(what, '' if source.is_events else advice), waiting(what):
        if source.name == 'event_rows':
            return EventRows(source.folder, _split_of_rows(source.folder, split), channels=in_chans, size=size)
        if source.is_events:
            options = dict(num_steps=num_steps, channels=in_chans, size=size, **source.bins)
            return _open_recordings(source, split, classes, **options)
        if source.is_folder:
            assert source.folder  # which was looked at above
            reader = FolderReader(
                folder_of_split(source.folder, split, 'pictures'),
                {name: number for number, name in enumerate(classes)} if classes else None,
                natural=not source.name.startswith('torch/'),
            )
            _say_left_out(reader.left_out, split, source)
            return ImageDataset(str(source.folder), reader, input_img_mode=mode)
        return _open_by_timm(source, split, mode)


def _open_recordings(source: DataSource, split: str, classes: Sequence[str] | None, **options: Any) -> EventDataset:
    """Recordings, whose frames are kept on disk where that is possible."""
    open_it: Callable[..., EventDataset]
    if source.name == 'event_digits':
        open_it = functools.partial(EventDigits, PARTS[split], **options)
    elif source.name == 'event_folder':
        assert source.folder  # which was looked at
        open_it = functools.partial(
            EventFolder,
            source.folder,
            split,
            sensor_size=source.sensor_size,
            classes=classes,
            reading=source.reading,
            **options,
        )
    else:
        open_it = functools.partial(RECORDINGS[source.name], source.folder, PARTS[split], **options)
    try:
        dataset = open_it()
    except CacheFolderError as error:
        _logger.warning('note: every epoch reads all recordings anew: %s', error.__cause__)
        dataset = open_it(cache=None)
    except SensorSizeError as error:
        raise UserError(f'{error}, on the command line --sensor-size H W') from error
    _say_left_out(getattr(dataset, 'left_out', None), split, source)
    if dataset.cache and (number := dataset.uncached()) >= MANY_RECORDINGS:
        _logger.warning(
            'note: %d of the %d samples of split %r are read for the first time, which is slower than later: their '
            'frames are kept in %s, from where a run that is stopped goes on',
            *(number, len(dataset), split, dataset.cache.folder),
        )
    return dataset


def _open_by_timm(source: DataSource, split: str, mode: str) -> Any:
    """What torchvision and Hugging Face's library have."""
    folder = str(source.folder) if source.folder else None
    if source.is_table:  # timm stumbles over a missing column in ways that do not name it
        keys = source.input_key or 'image', source.target_key or 'label'
        check_column_names(source.name.partition('/')[2], split, folder, keys)
    with _our_bar_of_downloads():
        dataset = create_dataset(
            source.name,
            root=folder,
            split=split,
            download=source.download,
            input_img_mode=mode,
            input_key=source.input_key,
            target_key=source.target_key,
        )
    if source.is_table:
        _say_left_out(leave_out_unusable(dataset.reader), split, source)
    return dataset


@contextmanager
def _our_bar_of_downloads() -> Iterator[None]:
    """In place of torchvision's, which would fill a log, and does not know of --quiet."""
    before = torchvision.datasets.utils.tqdm
    torchvision.datasets.utils.tqdm = functools.partial(bar, 'download')
    try:
        yield
    finally:
        torchvision.datasets.utils.tqdm = before


def _say_left_out(note: str | None, split: str, source: DataSource) -> None:
    if note:
        _logger.warning('note: left out of split %r of data set %r: %s', split, source.name, note)


def _split_of_rows(folder: Path | None, split: str) -> str:
    """The split, or the other name of the part: rows of recordings are called 'test' where others are 'validation'."""
    same = [split, *(name for name in PARTS if split in PARTS and PARTS[name] == PARTS[split])]
    return next((name for name in same if folder and find_shards(folder, name)), split)


def frames_of(dataset: Any, source: DataSource, config: dict[str, Any]) -> FrameSettings:
    """How the frames of an event data set are made into the model's input, of `models.input_config`.

    Raises: UserError for settings that no model can have.
    """
    channels, *size = config['input_size']
    with one_line_errors('make frames'):
        return FrameSettings(
            dataset.num_steps,
            dataset.sensor_size,
            **source.bins,
            channels=channels,
            size=tuple(size),
            mean=config['mean'],
            std=config['std'],
        )


def note_on_frames(model: Any, frames: FrameSettings) -> str | None:
    """What differs from how a model says that its frames are made. Raises: UserError for a sensor of another shape."""
    if not has_frame_settings(model):
        return None
    with one_line_errors('show these recordings to the model'):
        differs = difference(model, frames)
    return f'note: frames are made otherwise than those that the model was trained on: {differs}' if differs else None


def note_on_pictures(dataset: Any, config: dict[str, Any]) -> str | None:
    """What a model does not see of the first picture of a folder or table: its colours, or most of its pixels.

    config: The preparation of the model's input, of `models.input_config`.
    """
    if not isinstance(dataset, ImageDataset):
        return None
    try:
        with Image.open(dataset.reader[0][0]) as image:
            (width, height), has_colour = image.size, Image.getmodebase(image.mode) != 'L'
    except (OSError, ValueError):  # which is said where it is read
        return None
    channels, *size = config['input_size']
    if (channels > 1 or not has_colour) and min(width, height) < 2 * min(size):
        return None
    kind = 'colour' if has_colour else 'grey'
    return (
        f'note: the first picture is {width} x {height} in {kind}, and the model sees {size[1]} x {size[0]} in '
        f'{"grey" if channels == 1 else "colour"}, normalised by mean {_short(config["mean"])} and std '
        f'{_short(config["std"])}: --in-chans, --img-size, --mean and --std set what it sees'
    )


def _short(numbers: Sequence[float]) -> str:
    return ', '.join(f'{number:.3g}' for number in numbers)


def open_samples(source: DataSource, split: str, model: Any, number: int | None, **image: Any) -> Samples:
    """A number of samples of a split for the model to look at, or all, always the same ones.

    `image` says how images are prepared, see `models.input_config`. Raises: UserError if they cannot be opened.
    """
    show_images(source, model)
    source = source.for_model(model)
    config = config_to_evaluate(source, model, **image)
    dataset = open_split(
        source, split, in_chans=channels(model), num_steps=steps_of(model), size=config['input_size'][1:]
    )
    if not len(dataset):
        raise UserError(f'split {split!r} of data set {source.name!r} has no samples')
    _compare_frames(model, dataset, source, config)
    return _described(source, dataset, range(len(dataset)), number, f'{split} split', config)


def open_fold(
    source: DataSource, fold: str, splits: tuple[str, str], model: Any, number: int | None, **image: Any
) -> Samples:
    """`open_samples` of what a training run with this `fold` of both splits has held out."""
    source = source.for_model(model)
    config = config_to_evaluate(source, model, **image)
    train_set, val_set = open_datasets(source, *splits, model, config['input_size'][1:])
    _compare_frames(model, train_set, source, config)
    held_out = choose_samples(train_set, val_set, seed=0, fold=fold)[1]
    which = f'fold {fold} of {" and ".join(splits)}'
    return _described(source, held_out.source, held_out.indices, number, which, config)


def config_to_evaluate(source: DataSource, model: Any, **image: Any) -> dict[str, Any]:
    """`models.input_config` of a trained model; one of an earlier version keeps the mean that it was trained with."""
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    if not source.is_events or has_frame_settings(model) or not cfg.get('source'):
        return input_config(model, source.is_events, **image)
    config = input_config(model, **image)
    if any(config['mean']) and 'mean' not in image:
        _logger.warning(
            'note: the model does not say how frames of events are made, as those of earlier versions and those of '
            'images; counts are normalised by its mean %s and std %s: --mean 0 --std 1 leaves them as they are',
            _short(config['mean']),
            _short(config['std']),
        )
    return config


def _compare_frames(model: Any, dataset: Any, source: DataSource, config: dict[str, Any]) -> None:
    if source.is_events and (note := note_on_frames(model, frames_of(dataset, source, config))):
        _logger.warning(note)


def _described(
    source: DataSource, dataset: Any, every: Sequence[int], number: int | None, which: str, config: dict[str, Any]
) -> Samples:
    indices = evenly(every, number)
    name = str(source.folder) if source.name == 'event_folder' else source.name.rpartition('/')[2] or str(source.folder)
    total = f'{len(every):,}'
    some = f'all {total}' if len(indices) == len(every) else f'{len(indices):,} of {total}, evenly spread'
    with one_line_errors('set up the transform of the images'):
        transform = make_transform(config, source.is_events)
    return Samples(dataset, indices, transform, f'{name}, {which}, {some}')


def class_names(dataset: Any) -> list[str] | None:
    """Names of the classes, where the data set knows them: torchvision's and our `classes`, or timm's readers."""
    if isinstance(dataset, ConcatDataset):
        return class_names(dataset.datasets[0])
    if hasattr(dataset, 'classes'):
        return list(dataset.classes)
    mapping = getattr(getattr(dataset, 'reader', None), 'class_to_idx', None)
    return sorted(mapping, key=mapping.get) if mapping else None


def summary(names: list[str] | None) -> str:
    return f'{len(names)} ({", ".join(names[:3])} ...)' if names else 'none with names'
