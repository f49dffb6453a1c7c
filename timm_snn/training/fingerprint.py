"""What tells the data of a run from other data, without reading it."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..files import printable
from ..folders import as_text
from .data import class_names, evenly

__all__ = ['Difference', 'difference', 'fingerprint', 'hash_of', 'hash_of_pictures']

MOST_FILES = 10_000  # whose sizes are asked for, which takes seconds on a slow disk
MOST_ROWS = 1_000  # whose pictures are read to the memory
MOST_NAMES = 20  # of classes in an error


def fingerprint(dataset: Any) -> dict[str, Any]:
    """The names of the classes, the number of samples, and hashes of what a split of a data set holds, for JSON.

    Hashed are the labels where they are known without reading samples, the names of files below their folder, which may
    move, and the sizes of files, or of pictures in a table, spread evenly over the data.
    """
    source = getattr(dataset, 'reader', dataset)
    found: dict[str, Any] = {'classes': class_names(dataset), 'samples': len(dataset)}
    if hasattr(dataset, 'facts'):  # of masks and boxes, which know theirs
        return found | dataset.facts()
    files = getattr(source, 'samples', None)
    if files and isinstance(files[0][0], str):
        names, labels = zip(*files, strict=True)
        root = str(getattr(source, 'root', ''))
        paths = [os.path.join(root, names[i]) for i in evenly(range(len(names)), MOST_FILES)]
        found['labels'] = hash_of(map(str, labels))
        found['file names'] = hash_of(as_text(name.removeprefix(root + os.sep)) for name in names)
        found['file sizes'] = hash_of(str(_size(path)) for path in paths)
    elif hasattr(source, 'label_key'):  # timm's reader of a table
        table, key = source.dataset, source.label_key
        found['labels'] = hash_of(map(str, table.select_columns([key]).with_format('arrow')[:][key].to_pylist()))
        found['picture sizes'] = hash_of_pictures(table, source.image_key)
    else:
        labels = getattr(dataset, 'labels', getattr(dataset, 'targets', ()))
        found['labels'] = hash_of(map(str, np.asarray(labels).tolist()))
    return found


def hash_of_pictures(table: Any, key: str) -> str:
    """Of the sizes of encoded pictures, spread evenly over a column of a table of Hugging Face's library."""
    rows = table.select_columns([key]).with_format('arrow')[evenly(range(len(table)), MOST_ROWS)]
    return hash_of(str(len(picture['bytes'] or b'')) for picture in rows[key].to_pylist())


def hash_of(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode('utf-8', 'surrogateescape') + b'\n')
    return digest.hexdigest()[:32]


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # some samples are parts of a file, with names of their own
        return -1


class Difference(NamedTuple):
    """What data is not the same, in words; whether it is other samples, or only other content of the same ones."""

    text: str
    is_of_classes: bool
    is_of_samples: bool


def difference(before: dict[str, Any], now: dict[str, Any]) -> Difference | None:
    """What differs between the fingerprints of a split, None if nothing does."""
    if before['classes'] != now['classes']:
        text = f'has the classes {_listed(now["classes"])} and had {_listed(before["classes"])}'
        return Difference(text, True, True)
    if before['samples'] != now['samples']:
        return Difference(f'has {now["samples"]} samples and had {before["samples"]}', False, True)
    others = sorted(key for key in before.keys() & now.keys() if before[key] != now[key])
    is_of_samples = not all(key.endswith('sizes') for key in others)
    return Difference(f'has other {" and ".join(others)} than it had', False, is_of_samples) if others else None


def _listed(names: Sequence[str] | None) -> str:
    if names is None:
        return 'not named'
    more = f' and {len(names) - MOST_NAMES} more' if len(names) > MOST_NAMES else ''
    return printable(', '.join(names[:MOST_NAMES])) + more
