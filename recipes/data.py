"""The data of train.py by name: scikit-learn's digits, event recordings, or what timm's `create_dataset` opens."""

import argparse
import bisect
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from options import EVENT_DATASETS, one_line_errors
from PIL import Image
from sklearn.model_selection import StratifiedKFold, train_test_split
from timm.data import ImageDataset, create_dataset, create_transform
from torch.utils.data import ConcatDataset, Dataset
from torchvision.transforms import Normalize

from timm_snn.data import CIFAR10DVS, NMNIST, DVS128Gesture, EventRows

__all__ = [
    'EVENT_DATASETS',
    'Samples',
    'UnreadableSample',
    'choose_samples',
    'class_names',
    'make_transform',
    'open_datasets',
]

# Those of EVENT_DATASETS that are read from recordings, in two parts.
RECORDINGS: dict[str, Any] = {'nmnist': NMNIST, 'cifar10_dvs': CIFAR10DVS, 'dvs128_gesture': DVS128Gesture}
# Splits of the data sets that have two parts; the second is to validate on.
PARTS = {'train': True, 'training': True, 'validation': False, 'val': False, 'test': False}


class Digits(Dataset):
    """scikit-learn's bundled 1,797 handwritten digits, 8x8; 360 of them, a fixed fifth per class, are for validation.

    The split does not depend on the run's seed, so that accuracies of several seeds are of the same samples.
    """

    classes = tuple('0123456789')

    def __init__(self, train: bool, mode: str = 'L') -> None:
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        halves = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0)
        self.images, self.labels = (halves[0], halves[2]) if train else (halves[1], halves[3])
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
        index = int(self.indices[number])
        if not isinstance(self.source, ConcatDataset):
            return self.source, index
        part = bisect.bisect_right(self.source.cumulative_sizes, index)
        dataset: Any = self.source.datasets[part]
        return dataset, index - self.source.cumulative_sizes[part] + len(dataset)

    def name(self, number: int) -> str:
        """The file where there is one, otherwise the index in the data set."""
        dataset, index = self.locate(number)
        return (dataset.filename(index) if isinstance(dataset, ImageDataset) else None) or str(index)

    def read(self, number: int) -> tuple[Any, Any]:
        dataset, index = self.locate(number)
        if not isinstance(dataset, ImageDataset):
            return dataset[index]
        file, label = dataset.reader[index]
        return Image.open(file).convert(dataset.input_img_mode), -1 if label is None else label

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        try:
            image, label = self.read(number)
        except Exception as error:  # decoders stumble in their own ways over broken files
            reason = ' '.join(f'{type(error).__name__}: {error}'.split())
            raise UnreadableSample(f'sample {self.name(number)} is unreadable, {reason}') from error
        return self.transform(image) if self.transform else image, label


class TrainingSamples(Samples):
    """What the transform draws depends on seed, epoch and sample alone: not on the number of processes and workers, nor
    on the samples before. So a run that goes on in the middle of an epoch repeats what it would have done.

    An unreadable image is replaced by the next one, with a warning, as timm does.
    """

    def __init__(self, source: Any, indices: Sequence[int], seed: int) -> None:
        super().__init__(source, indices)
        self.seed = seed
        self.epoch = 0

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        index = int(self.indices[number])
        image, label = self.source[index]
        with randomness_of(self.seed, self.epoch, index):
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
    args: argparse.Namespace, train_set: Any, val_set: Any
) -> tuple[TrainingSamples, Samples, Samples | None]:
    """The samples to train on, to validate on after every epoch, and with --val-fraction to test on in the end.

    Splits are per class and the same for every seed of the run, so that accuracies are of the same samples.
    """
    source: Any = ConcatDataset([train_set, val_set])
    train: Any = range(len(train_set))
    val: Any = range(len(train_set), len(source))
    test = None
    with one_line_errors('split the data'):
        if args.fold:
            number, count = map(int, args.fold.split('/'))
            labels = np.concatenate([labels_of(train_set), labels_of(val_set)])
            folds = StratifiedKFold(count, shuffle=True, random_state=0).split(labels, labels)
            train, val = list(folds)[number - 1]
        if args.val_fraction:
            test = val
            labels = np.concatenate([labels_of(train_set), labels_of(val_set)])[list(train)]
            train, val = train_test_split(train, test_size=args.val_fraction, stratify=labels, random_state=0)
    train, val = evenly(train, args.max_train_samples), evenly(val, args.max_val_samples)
    held_out = None if test is None else Samples(source, evenly(test, args.max_val_samples))
    return TrainingSamples(source, train, args.seed), Samples(source, val), held_out


def evenly(indices: Sequence[int], number: int | None) -> Sequence[int]:
    """At most `number` of them, spread over all since many data sets are sorted by class."""
    if number is None or number >= len(indices):
        return indices
    return [indices[i * len(indices) // number] for i in range(number)]


def labels_of(dataset: Any) -> np.ndarray:
    """Of every sample, without reading the images where the data set knows them."""
    reader: Any = getattr(dataset, 'reader', None)
    for labels in (getattr(dataset, 'labels', None), getattr(dataset, 'targets', None)):
        if labels is not None:
            return np.asarray(labels)
    if hasattr(reader, 'iter_targets'):  # timm's of Hugging Face data sets
        return np.asarray(list(reader.iter_targets()))
    if hasattr(reader, 'samples'):  # and of folders
        return np.asarray([label for _, label in reader.samples])
    return np.asarray([label for _, label in dataset])


def make_transform(data_config: dict[str, Any], is_events: bool, **training: Any) -> Callable:
    """Of one sample, for evaluation or with the arguments of timm's training transform for that.

    Event frames are only normalised: their augmentation acts on batches.
    """
    if is_events:
        return Normalize(data_config['mean'], data_config['std'])
    shared = {key: data_config[key] for key in ('input_size', 'mean', 'std', 'interpolation')}
    if training:
        return create_transform(is_training=True, **training, **shared)
    return create_transform(crop_pct=data_config['crop_pct'], **shared)


def open_datasets(args: argparse.Namespace, model: Any, size: tuple[int, int]) -> tuple[Any, Any]:
    """Training and validation data that fit the model; ends the program in one line where they do not.

    `size` is that of the model's input, which event frames are made in.
    """
    num_classes = model.num_classes
    open_split = partial(open_dataset, args, in_chans=model.in_chans, num_steps=steps_of(model), size=size)
    train_set, val_set = open_split(True), open_split(False)
    names, val_names = class_names(train_set), class_names(val_set)
    if names and len(names) != num_classes:
        raise SystemExit(
            f'error: data set {args.dataset!r} has {len(names)} classes and the model {num_classes}: '
            f'pass --num-classes {len(names)}'
        )
    if names != val_names:
        if args.dataset or not names or not val_names or set(val_names) - set(names):
            raise SystemExit(
                f'error: the splits of data set {args.dataset!r} have different classes, {summary(names)} in '
                f'{args.train_split!r} and {summary(val_names)} in {args.val_split!r}: labels would not agree'
            )
        # A folder of fewer classes, which timm would number anew.
        val_set = open_split(False, class_map=train_set.reader.class_to_idx)
    for split, data in ((args.train_split, train_set), (args.val_split, val_set)):
        advice = '--input-key and --target-key name the columns' if args.dataset.startswith('hfds/') else ''
        with one_line_errors(f'use split {split!r} of data set {args.dataset!r}', advice):
            sample, label = data[0]
            if args.dataset in EVENT_DATASETS:
                if len(sample) != steps_of(model):
                    raise ValueError(f'it has {len(sample)} steps: pass --model-kwargs num_steps={len(sample)}')
            elif (bands := len(sample.getbands())) != model.in_chans:
                raise ValueError(
                    f'its images have {bands} channels and the model {model.in_chans}: pass --in-chans {bands}'
                )
            reader: Any = getattr(data, 'reader', None)
            labels = {label} if names or not hasattr(reader, 'iter_targets') else set(reader.iter_targets())
            wrong = [label for label in labels if not isinstance(label, int) or not 0 <= label < num_classes]
            if wrong:
                raise ValueError(f'labels must be 0 to {num_classes - 1}, as --num-classes says, not {wrong[0]!r}')
    return train_set, val_set


def steps_of(model: Any) -> int:
    return getattr(model, 'num_steps', 1)


def open_dataset(
    args: argparse.Namespace,
    train: bool,
    in_chans: int,
    num_steps: int = 1,
    size: tuple[int, int] | None = None,
    class_map: dict[str, int] | None = None,
) -> Any:
    """One split by its name. `num_steps` and `size` are of event frames, `class_map` numbers a folder's classes."""
    split = args.train_split if train else args.val_split
    mode = 'L' if in_chans == 1 else 'RGB'
    if args.dataset == 'digits' or args.dataset in RECORDINGS:
        if split not in PARTS:
            raise SystemExit(
                f'error: data set {args.dataset!r} has no split {split!r}: use train, or validation, also called test'
            )
        train = PARTS[split]
    if args.dataset == 'digits':
        return Digits(train, mode)
    kind = args.dataset.removeprefix('torch/')
    is_folder, is_events = kind in ('', 'folder', 'image_folder'), args.dataset in EVENT_DATASETS
    if not (is_folder or is_events) and args.dataset.partition('/')[0] not in ('torch', 'hfds'):
        raise SystemExit(
            f"error: unknown data set {args.dataset!r}: 'digits', {', '.join(map(repr, EVENT_DATASETS))}, torch/..., "
            "hfds/..., or '' for a folder"
        )
    if (is_folder or is_events) and (args.data_dir is None or not args.data_dir.is_dir()):
        raise SystemExit(f'error: data folder {args.data_dir} does not exist; --data-dir names a folder with {split}/')
    with one_line_errors(
        f'open split {split!r} of data set {args.dataset!r} in {args.data_dir}',
        'check --dataset, --data-dir and the splits, or let torch/ data sets come with --dataset-download',
    ):
        if is_events:
            frames: dict[str, Any] = dict(channels=in_chans, size=size)
            if args.dataset == 'event_rows':
                return EventRows(args.data_dir, split, **frames)
            return RECORDINGS[args.dataset](args.data_dir, train, num_steps=num_steps, split_by=args.split_by, **frames)
        dataset = create_dataset(
            args.dataset,
            root=args.data_dir,
            split=split,
            is_training=train,
            class_map=class_map,  # type: ignore[arg-type]  # None is the default
            download=args.dataset_download,
            batch_size=args.batch_size,
            input_img_mode=mode,
            input_key=args.input_key,
            target_key=args.target_key,
        )
        if is_folder and Path(getattr(dataset, 'reader', dataset).root) == args.data_dir:
            raise FileNotFoundError('it has no such folder')  # timm then takes all images there are
    return dataset


def class_names(dataset: Any) -> list[str] | None:
    """Label names, where the data set knows them: torchvision's and our `classes`, or timm's readers."""
    if hasattr(dataset, 'classes'):
        return list(dataset.classes)
    mapping = getattr(getattr(dataset, 'reader', None), 'class_to_idx', None)
    return sorted(mapping, key=mapping.get) if mapping else None


def summary(names: list[str] | None) -> str:
    return f'{len(names)} ({", ".join(names[:3])} ...)' if names else 'none with names'
