"""Frames on disk, so that a recording is read once."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..files import check_regular_file, printable, write_whole

__all__ = ['CacheFolderError', 'FrameCache']

VERSION = 1  # to be raised whenever readers or `count_events` give other counts: it makes every file stale


class CacheFolderError(OSError):
    """A folder to keep frames in that cannot be made or written; the message says what to pass instead."""


class FrameCache:
    """Arrays by name, each in a safetensors file that also says what it was made from.

    An array is used if its settings and its sources, by path, size and time of change, are what they were, and its
    checksum is right. Files appear whole, by a rename, so any number of processes may read and write at once; what two
    of them make at the same time is written twice. Paths are relative to the cache: a data set may be moved with it.

    It may be deleted at any time, and what cannot be written is warned of once and made anew each time.
    Raises CacheFolderError if the folder cannot be made.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self.settings = folder.absolute(), settings
        self.warned = False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.folder, error) from error

    def stamp(self, sources: Iterable[Path]) -> str:
        """What arrays are made from, as it is now; take it before reading, so that a change in between is noticed."""
        stats = [(os.path.relpath(path.absolute(), self.folder), path.stat()) for path in sources]
        made_from = [[path, stat.st_size, stat.st_mtime_ns] for path, stat in stats]
        return json.dumps({'version': VERSION, 'settings': self.settings, 'sources': made_from})

    def load(self, name: str, stamp: str) -> np.ndarray | None:
        """The array, or None if there is none of this stamp. What is damaged counts as none, with a warning."""
        path = self.path(name)
        try:
            check_regular_file(path)  # opening a FIFO would wait for ever
            with safe_open(path, 'numpy') as file:
                metadata = file.metadata() or {}
                if (metadata.get('name'), metadata.get('stamp')) != (name, stamp):
                    return None
                array = file.get_tensor('array')
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, TypeError) as error:  # TypeError: of a dtype that NumPy does not have
            warnings.warn(
                f'cached frames {printable(path)} cannot be read and are made anew: {printable(error)}', stacklevel=2
            )
            return None
        if metadata.get('crc32') != checksum(array):
            warnings.warn(f'cached frames {path} have a wrong checksum and are made anew', stacklevel=2)
            return None
        return array

    def store(self, name: str, stamp: str, array: np.ndarray) -> None:
        """If it cannot be written no part of it stays, and the first time this is warned of."""
        path = self.path(name)
        content = save({'array': array}, {'name': name, 'stamp': stamp, 'crc32': checksum(array)})
        try:
            with contextlib.suppress(FileNotFoundError):  # the folder was deleted in between
                return self._write(path, content)
            with contextlib.suppress(FileNotFoundError):  # and again: the next epoch may keep it
                self._write(path, content)
        except OSError as error:
            if not self.warned:
                self.warned = True
                warnings.warn(f'{cannot_write(path, error)}; the run goes on without', stacklevel=2)

    def _write(self, path: Path, content: bytes) -> None:
        """Without waiting for the disk, as `load` knows a torn file by its checksum."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_whole(path, durable=False) as unfinished:
            unfinished.write_bytes(content)

    def path(self, name: str) -> Path:
        return self.folder / f'{name}.safetensors'


def checksum(array: np.ndarray) -> str:
    # as bytes, since a buffer has no name for types that other packages give NumPy, such as ml_dtypes' bfloat16
    content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return f'{array.dtype}{list(array.shape)} {zlib.crc32(content.data):08x}'


def cannot_write(path: Path, error: OSError) -> CacheFolderError:
    return CacheFolderError(
        f'cannot write {path} to keep frames in ({error.strerror or error}): pass cache=FOLDER for one that can be '
        'written, or cache=None'
    )
