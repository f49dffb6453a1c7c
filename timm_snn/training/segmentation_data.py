"""Pictures and their masks: rows of a table or files, and how both are augmented and put into batches."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from ..files import check_regular_file, printable
from ..folders import SYNONYMS, as_text
from ..progress import waiting
from .data import WrongSample
from .dense_data import file_of, open_table
from .errors import UserError, one_line_errors
from .fingerprint import hash_of, hash_of_pictures
from .pictures import find_pictures, open_picture

__all__ = ['Masks', 'collate', 'open_masks', 'transform_to_evaluate', 'transform_to_train']

MASK_FOLDERS = ('masks', 'annotations', 'labels')  # beside images/
FILL = (124, 116, 104)  # beyond the border of a picture: ImageNet's mean colour


class Masks(Dataset):
    """Pictures with a mask each: uint8 [C, H, W], and labels [H, W] of classes or `ignore_index`.

    Args:
        classes: Names, in the order of their labels; others are refused.
        grey: Whether pictures have one channel, otherwise three.
        size: Height and width that pictures are resized to; None keeps their own.
        resize_masks: Whether masks are as well, by the nearest label.

    Raises: WrongSample for a label that is no class; ValueError for a mask of colours, or of another size than its
    picture.
    """

    def __init__(
        self,
        classes: Sequence[str],
        ignore_index: int,
        *,
        grey: bool = False,
        size: tuple[int, int] | None = None,
        resize_masks: bool = True,
    ) -> None:
        self.classes, self.ignore_index, self.grey = list(classes), ignore_index, grey
        self.size, self.resize_masks = size, resize_masks

    def __len__(self) -> int:
        raise NotImplementedError

    def open(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """The picture, in the mode that was asked for, and its labels."""
        raise NotImplementedError

    def name_of(self, index: int) -> str:
        raise NotImplementedError

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        picture, labels = self.open(index)
        if (picture.height, picture.width) != labels.shape:
            height, width = labels.shape
            raise ValueError(f'the picture is {picture.width} x {picture.height} and its mask {width} x {height}')
        found = np.unique(labels)
        wrong = found[(found >= len(self.classes)) & (found != self.ignore_index)]
        if len(wrong):
            raise WrongSample(
                f'label {wrong[0]} in the mask of {printable(self.name_of(index), 500)}: expected 0 to '
                f'{len(self.classes) - 1}, of the {len(self.classes)} classes, or {self.ignore_index} for pixels that '
                'do not count; --num-classes, --class-names and --ignore-index say what labels mean'
            )
        image, mask = v2.functional.pil_to_tensor(picture), torch.from_numpy(labels)
        if self.size:
            image = v2.functional.resize(image, list(self.size), antialias=True)
            if self.resize_masks:
                mask = v2.functional.resize(tv_tensors.Mask(mask), list(self.size)).as_subclass(Tensor)
        return image, mask

    def _picture(self, source: Any) -> Image.Image:
        return open_picture(source, 'L' if self.grey else 'RGB')


class TableOfMasks(Masks):
    """Rows of a table of `open_table`."""

    def __init__(self, table: Any, image_key: str, mask_key: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.table, self.keys = table, (image_key, mask_key)

    def __len__(self) -> int:
        return len(self.table)

    def open(self, index: int) -> tuple[Image.Image, np.ndarray]:
        row = self.table[index]
        picture, mask = (file_of(row[key]) for key in self.keys)
        return self._picture(picture), labels_in(mask)

    def name_of(self, index: int) -> str:
        path = self.table[index][self.keys[0]]['path']
        return f'row {index}' + (f' ({path})' if path else '')

    def facts(self) -> dict[str, str]:
        return {f'{key} sizes': hash_of_pictures(self.table, key) for key in self.keys}


class FilesOfMasks(Masks):
    """Pairs of files."""

    def __init__(self, files: Sequence[tuple[Path, Path]], *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def open(self, index: int) -> tuple[Image.Image, np.ndarray]:
        picture, mask = self.files[index]
        check_regular_file(mask)
        return self._picture(picture), labels_in(mask)

    def name_of(self, index: int) -> str:
        return str(self.files[index][0])

    def facts(self) -> dict[str, str]:
        return {
            'file names': hash_of(as_text(picture.name) for picture, _ in self.files),
            'file sizes': hash_of(f'{picture.stat().st_size} {mask.stat().st_size}' for picture, mask in self.files),
        }


def labels_in(mask: Any) -> np.ndarray:
    """The labels in a PNG: its grey values, or the numbers of its colours where it has a palette.

    Raises: ValueError for a picture of colours, whose classes nobody knows.
    """
    with Image.open(mask) as opened:
        opened.load()
        if opened.mode not in ('1', 'L', 'P') and not opened.mode.startswith('I'):
            raise ValueError(
                f'its mask has colours (mode {opened.mode}), expected one number a pixel: save it as a grey or palette '
                'PNG of labels'
            )
        labels = np.array(opened)
    return labels.astype(np.uint8 if labels.dtype == bool or labels.max(initial=0) < 256 else np.int32)


def open_masks(dataset: str, folder: Path | None, split: str, keys: tuple[str, str], **masks: Any) -> Masks:
    """A split of 'hfds/NAME' by the columns `keys`, or of files below a folder. `masks` are arguments of `Masks`.

    Files are FOLDER/SPLIT/images/... and FOLDER/SPLIT/masks/..., or FOLDER/images/SPLIT/... and FOLDER/masks/SPLIT/...,
    a mask by the name of its picture; masks may be called annotations or labels. Raises: UserError.
    """
    what = f'open split {split!r} of {dataset or folder}'
    with one_line_errors(what), waiting(what):
        if dataset:
            table = open_table(dataset.removeprefix('hfds/'), split, str(folder) if folder else None, *keys)
            if not hasattr(table.features[keys[1]], 'decode_example'):
                held = table.features[keys[1]]
                raise ValueError(f'column {keys[1]!r} holds {held}, no masks: --target-key names them')
            found: Masks = TableOfMasks(table, *keys, **masks)
        else:
            found = FilesOfMasks(pairs_below(folder, split), **masks)
    if not len(found):
        raise UserError(f'split {split!r} of {dataset or folder} has no samples')
    return found


def pairs_below(folder: Path | None, split: str) -> list[tuple[Path, Path]]:
    """Pictures and masks of the same names. Raises: OSError or ValueError that says which there are not."""
    if folder is None or not folder.is_dir():
        raise FileNotFoundError(f'there is no folder {folder}: --data-dir names it')
    images, masks = folders_of(folder, split)
    pictures = {key_of(file, images): file for file in find_pictures(images).files}
    labels = {key_of(file, masks): file for file in find_pictures(masks).files}
    if missing := sorted(pictures.keys() - labels.keys()):
        raise ValueError(
            f'{len(missing)} of {len(pictures)} pictures in {images} have no mask of the same name in {masks}, such as '
            f'{printable(missing[0])}'
        )
    return [(file, labels[name]) for name, file in pictures.items()]


def key_of(file: Path, folder: Path) -> str:
    return file.relative_to(folder).with_suffix('').as_posix()


def folders_of(folder: Path, split: str) -> tuple[Path, Path]:
    names = (split, *next((names for names in SYNONYMS if split in names), ()))
    for name in names:
        for place in (lambda kind: folder / name / kind, lambda kind: folder / kind / name):  # noqa: B023  called at once
            found = [place(kind) for kind in MASK_FOLDERS if place(kind).is_dir()]
            if place('images').is_dir() and found:
                return place('images'), found[0]
    raise FileNotFoundError(
        f'expected {split}/images/ and {split}/masks/ in it, or images/{split}/ and masks/{split}/, where masks may be '
        f'called {" or ".join(MASK_FOLDERS[1:])}'
    )


class RandomScale(v2.Transform):
    """Picture and mask resized by a factor, whose logarithm is uniform between those of two limits."""

    def __init__(self, limits: Sequence[float]) -> None:
        super().__init__()
        self.limits = limits

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = flat_inputs[0].shape[-2:]
        factor = math.exp(torch.empty(()).uniform_(*map(math.log, self.limits)).item())
        return {'size': [max(1, round(height * factor)), max(1, round(width * factor))]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self._call_kernel(v2.functional.resize, inpt, params['size'], antialias=True)


class Prepared:
    """Transforms of torchvision's v2 for a picture and its mask, which become float [C, H, W] and labels [H, W]."""

    def __init__(self, transforms: Sequence[v2.Transform], mean: Sequence[float], std: Sequence[float]) -> None:
        types = {tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64}
        normalize = [v2.ToDtype(types, scale=True), v2.Normalize(list(mean), list(std))]
        self.transform = v2.Compose([*transforms, *normalize, v2.ToPureTensor()])

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.transform(tv_tensors.Image(image), tv_tensors.Mask(mask))


def transform_to_train(
    mean: Sequence[float],
    std: Sequence[float],
    *,
    crop_size: Sequence[int] | None,
    scale: Sequence[float],
    hflip: float,
    color_jitter: float,
    ignore_index: int,
) -> Prepared:
    """Crops of scaled pictures, mirrored, with other colours. Without a `crop_size` whole pictures stay as large."""
    transforms: list[v2.Transform] = []
    if crop_size:
        grey = round(sum(FILL) / 3)
        fill = {tv_tensors.Image: FILL if len(mean) == 3 else grey, tv_tensors.Mask: ignore_index}
        transforms += [RandomScale(scale), v2.RandomCrop(list(crop_size), pad_if_needed=True, fill=fill)]
    if hflip:
        transforms.append(v2.RandomHorizontalFlip(hflip))
    if color_jitter:
        transforms.append(v2.ColorJitter(color_jitter, color_jitter, color_jitter))
    return Prepared(transforms, mean, std)


def transform_to_evaluate(mean: Sequence[float], std: Sequence[float]) -> Prepared:
    return Prepared([], mean, std)


def collate(samples: list[tuple[Tensor, Tensor]]) -> tuple[Any, Any]:
    """Stacked where all samples are as large, otherwise lists; a mask may be larger than its picture."""
    images, masks = zip(*samples, strict=True)
    return stacked(images), stacked(masks)


def stacked(tensors: Sequence[Tensor]) -> Any:
    return torch.stack(list(tensors)) if len({tensor.shape for tensor in tensors}) == 1 else list(tensors)
