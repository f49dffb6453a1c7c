"""Pictures as people have them, read the same way by every script: one file, and folders of files."""

import os
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps
from timm.data.readers.reader import Reader
from timm.utils.misc import natural_key

from ..files import check_regular_file
from ..folders import Found, as_text, find_below

__all__ = ['FolderReader', 'find_pictures', 'open_picture']

# Formats that Pillow hands to other programs or cannot decode by itself, and pages for a printer.
NOT_PICTURES = {'BUFR', 'EPS', 'FITS', 'GRIB', 'HDF5', 'IPTC', 'MPEG', 'WMF'}


def open_picture(source: str | Path | BinaryIO, mode: str) -> Image.Image:
    """The picture upright, in mode 'L' or 'RGB': its first frame, without regard to transparency.

    Cameras store which way is up instead of turning the picture (EXIF). 16 bits become 8 by their upper byte; Pillow
    would cut them off at 255. Raises: OSError for what is no regular file and what Pillow cannot read; ValueError for
    32-bit pixels, whose range nobody knows, and for what cannot become that mode.
    """
    if isinstance(source, (str, Path)):
        check_regular_file(Path(source))
    with Image.open(source) as image:
        image.load()
        if image.mode in ('I', 'F') and not (image.mode == 'I' and image.format == 'PNG'):  # PNG has at most 16 bits
            raise ValueError(f'it has 32-bit pixels (mode {image.mode}) of unknown range: save it with 8 or 16 bits')
        upright = ImageOps.exif_transpose(image)
        if image.mode == 'I' or image.mode.startswith('I;16'):
            upright = Image.fromarray((np.asarray(upright) // 256).astype(np.uint8))
        return upright.convert(mode)


def find_pictures(folder: Path) -> Found:
    """Files named like pictures, see `folders.find_below`."""
    suffixes = picture_suffixes()
    return find_below([folder], lambda file: file.suffix.lower() in suffixes)


def picture_suffixes() -> set[str]:
    """Of what Pillow opens."""
    Image.init()  # Pillow knows only a few formats before
    kinds = set(Image.OPEN) - NOT_PICTURES
    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in kinds}


class FolderReader(Reader):
    """Pictures in folders with the names of their classes, as a reader of timm's: `reader[i]` is (file, label).

    The class is the innermost folder. Classes are numbered by the order of their names, 2 before 10 as in timm or
    after it as in torchvision (`natural`), unless `class_to_idx` numbers them. `left_out` says what is no picture of
    a class, None if nothing is.
    Raises: ValueError for layouts whose classes cannot be told, and where there are no pictures in folders.
    """

    def __init__(self, root: Path, class_to_idx: dict[str, int] | None = None, natural: bool = True) -> None:
        super().__init__()
        self.root = str(root)
        found = find_pictures(root)
        inside = [(file, file.relative_to(root).parts[:-1]) for file in found.files]
        if classless := sum(not folders for _, folders in inside):
            found.left_out['in no folder of a class'] = classless
        self.left_out = found.note()
        folders = {folders for _, folders in inside if folders}
        _check_layout(folders)
        classes = sorted({as_text(names[-1]) for names in folders}, key=natural_key if natural else str)
        self.class_to_idx = class_to_idx or {name: number for number, name in enumerate(classes)}
        self.samples = [
            (str(file), self.class_to_idx[as_text(names[-1])])
            for file, names in inside
            if names and as_text(names[-1]) in self.class_to_idx
        ]
        if not self.samples:
            there = f'; there are {self.left_out}' if self.left_out else ''
            raise ValueError(f'{root} has no pictures in CLASS/{there}')

    def __getitem__(self, index: int) -> tuple[BytesIO, int]:
        path, label = self.samples[index]
        check_regular_file(Path(path))
        return BytesIO(Path(path).read_bytes()), label

    def __len__(self) -> int:
        return len(self.samples)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        path = self.samples[index][0]
        return os.path.basename(path) if basename else path if absolute else os.path.relpath(path, self.root)


def _check_layout(folders: set[tuple[str, ...]]) -> None:
    """Raises ValueError where the innermost folder is not the class."""
    by_class: dict[str, tuple[str, ...]] = {}
    for names in sorted(folders):
        for depth in range(1, len(names)):
            if names[:depth] in folders:
                outer, inner = '/'.join(names[:depth]), '/'.join(names)
                raise ValueError(
                    f'folder {outer!r} has pictures and so has {inner!r} in it: is the class the outer or the inner '
                    'one? Put all pictures in CLASS/'
                )
        other = by_class.setdefault(names[-1], names)
        if other != names:
            raise ValueError(
                f'folders {"/".join(other)!r} and {"/".join(names)!r} have the same name: is the class the outer or '
                'the inner one? Put all pictures in CLASS/'
            )
