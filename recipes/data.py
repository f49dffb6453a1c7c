"""The data of train.py by name: scikit-learn's digits, or what timm's `create_dataset` opens."""

import argparse
from pathlib import Path
from typing import Any

from options import one_line_errors
from PIL import Image
from timm.data import create_dataset
from torch.utils.data import Dataset

__all__ = ['class_names', 'open_datasets']


class Digits(Dataset):
    """scikit-learn's bundled 1,797 handwritten digits, 8x8; 360 of them, a fixed fifth per class, are for validation.

    The split does not depend on the run's seed, so that accuracies of several seeds are of the same samples.
    """

    classes = tuple('0123456789')

    def __init__(self, train: bool, mode: str = 'L') -> None:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

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


def open_datasets(args: argparse.Namespace, in_chans: int, num_classes: int) -> tuple[Any, Any]:
    """Training and validation data that fit the model; ends the program in one line where they do not."""
    train_set = open_dataset(args, True, in_chans)
    val_set = open_dataset(args, False, in_chans)
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
        val_set = open_dataset(args, False, in_chans, class_map=train_set.reader.class_to_idx)
    for split, data in ((args.train_split, train_set), (args.val_split, val_set)):
        advice = '--input-key and --target-key name the columns' if args.dataset.startswith('hfds/') else ''
        with one_line_errors(f'use split {split!r} of data set {args.dataset!r}', advice):
            image, label = data[0]
            bands = len(image.getbands())
            if bands != in_chans:
                raise ValueError(f'its images have {bands} channels and the model {in_chans}: pass --in-chans {bands}')
            reader: Any = getattr(data, 'reader', None)
            labels = {label} if names or not hasattr(reader, 'iter_targets') else set(reader.iter_targets())
            wrong = [label for label in labels if not isinstance(label, int) or not 0 <= label < num_classes]
            if wrong:
                raise ValueError(f'labels must be 0 to {num_classes - 1}, as --num-classes says, not {wrong[0]!r}')
    return train_set, val_set


def open_dataset(args: argparse.Namespace, train: bool, in_chans: int, class_map: dict[str, int] | None = None) -> Any:
    """One split by its name; `class_map` numbers the classes of a folder."""
    split = args.train_split if train else args.val_split
    mode = 'L' if in_chans == 1 else 'RGB'
    if args.dataset == 'digits':
        return Digits(train, mode)
    kind = args.dataset.removeprefix('torch/')
    is_folder = kind in ('', 'folder', 'image_folder')
    if not is_folder and args.dataset.partition('/')[0] not in ('torch', 'hfds'):
        raise SystemExit(f"error: unknown data set {args.dataset!r}: 'digits', torch/..., hfds/..., or '' for a folder")
    if is_folder and (args.data_dir is None or not args.data_dir.is_dir()):
        raise SystemExit(f'error: data folder {args.data_dir} does not exist; --data-dir names a folder with {split}/')
    with one_line_errors(
        f'open split {split!r} of data set {args.dataset!r} in {args.data_dir}',
        'check --dataset, --data-dir and the splits, or let torch/ data sets come with --dataset-download',
    ):
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
