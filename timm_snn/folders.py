"""Folders of samples as people have them: DATA/SPLIT/CLASS/..., walked without what is hidden."""

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from timm.utils.misc import natural_key

from .files import printable

__all__ = ['Found', 'as_text', 'find_below', 'folder_of_split', 'in_words', 'is_hidden']

# What a split may be called, as timm has it; the first that is there is taken.
SYNONYMS = (('train', 'training'), ('validation', 'val', 'valid', 'eval', 'evaluation'))


class Found(NamedTuple):
    """Files below folders, in the order of their names, and how many of what else."""

    files: list[Path]
    left_out: Counter[str]

    def note(self) -> str | None:
        """What was left out, as in '2 hidden, 1 .txt'; None if nothing was."""
        return in_words(self.left_out) or None


def in_words(counts: Counter[str]) -> str:
    """As in '2 hidden, 1 .txt'."""
    return ', '.join(f'{count} {printable(kind, 40)}' for kind, count in sorted(counts.items()))


def find_below(folders: Iterable[Path], is_wanted: Callable[[Path], bool]) -> Found:
    """The wanted files, by their names, at any depth and in linked folders too.

    Left out are hidden files and folders, such as .ipynb_checkpoints and macOS's ._ files, __MACOSX, names that are
    not wanted, links to nothing and what is no regular file.
    """
    found = Found([], Counter())
    for entry in (entry for folder in folders for entry in _walk(folder, (), found.left_out)):
        file = Path(entry.path)
        # which the listing of the folder says, but for links: a million files cost no look each
        if not entry.is_file():
            found.left_out['links to nothing' if entry.is_symlink() and not file.exists() else 'no files'] += 1
        elif is_wanted(file):
            found.files.append(file)
        else:
            found.left_out[file.suffix.lower() or 'without a suffix'] += 1
    found.files.sort(key=lambda file: natural_key(str(file)))
    return found


def _walk(folder: Path, above: tuple[tuple[int, int], ...], left_out: Counter[str]) -> Iterator[os.DirEntry[str]]:
    """All that is no folder; what is hidden is counted in `left_out`."""
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
