"""What a full disk or a torn cable does to a file."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# What may have the name of a file and is none.
NO_FILES: dict[str, Callable[[Path], Any]] = {
    'folder': Path.mkdir,
    'FIFO': lambda path: os.mkfifo(path),
    'device': lambda path: path.symlink_to('/dev/zero'),
    'dangling link': lambda path: path.symlink_to('nowhere'),
}


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
