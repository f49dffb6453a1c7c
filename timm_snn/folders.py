"""Folders of samples as people have them: DATA/SPLIT/CLASS/..., walked without what is hidden."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from .files import printable

__all__ = ['as_text', 'folder_of_split', 'is_hidden', 'walk']

# What a split may be called, as timm has it; the first that is there is taken.
SYNONYMS = (('train', 'training'), ('validation', 'val', 'valid', 'eval', 'evaluation'))


def walk(folder: Path, left_out: Counter[str]) -> Iterator[os.DirEntry[str]]:
    """All that is no folder at any depth, in linked folders too; what is hidden is counted in `left_out`.

    Hidden are names with a dot, such as .ipynb_checkpoints and macOS's ._ files, and __MACOSX.
    """
    return _walk(folder, (), left_out)


def _walk(folder: Path, above: tuple[tuple[int, int], ...], left_out: Counter[str]) -> Iterator[os.DirEntry[str]]:
    status = folder.stat()
    identity = (status.st_dev, status.st_ino)
    if identity in above:  # a link to a folder that it is in
        left_out['links in a circle'] += 1
        return
    for entry in os.scandir(folder):
        if is_hidden(entry.name):
            left_out['hidden'] += 1
        elif entry.is_dir():
            yield from _walk(Path(entry.path), (*above, identity), left_out)
        else:
            yield entry


def is_hidden(name: str) -> bool:
    return name.startswith('.') or name == '__MACOSX'


def as_text(name: str) -> str:
    """The name of a file as text that can be written: composed, and escaped where it is not UTF-8.

    macOS takes letters and accents apart, so that one name may have two spellings.
    """
    return unicodedata.normalize('NFC', name.encode('utf-8', 'backslashreplace').decode())


def folder_of_split(root: Path, split: str, samples: str) -> Path:
    """`root`/`split`, or another usual name of it.

    Raises: FileNotFoundError that says which folders there are, and where to put the `samples`, as in 'pictures'.
    """
    names = next((names for names in SYNONYMS if split in names), ())
    for name in (split, *names):
        if (root / name).is_dir():
            return root / name
    there = sorted(as_text(entry.name) for entry in os.scandir(root) if entry.is_dir() and not is_hidden(entry.name))
    raise FileNotFoundError(
        f'it has no folder {split}/, but {printable(", ".join(there[:10])) or "none at all"}: put {samples} in '
        f'{split}/CLASS/'
    )
