"""Files that are written whole, files that are safe to open, and what a message may show of a stranger's text."""

import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ['check_regular_file', 'flush', 'printable', 'write_whole', 'write_whole_text']


@contextmanager
def write_whole(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A path beside `path` to write to; afterwards `path` is the whole new file, else the old one, even after a kill.

    The new file is on the disk before it takes the name, unless it need not be `durable`: a power cut may then tear it.
    It gets the permissions that a new file has. Nothing is left of it if the block raises. Raises: OSError from the
    disk.
    """
    # hidden, and without the suffix of `path`: a reader that lists a folder must not take it for data
    unfinished = path.with_name(f'.{path.name[:100]}.{uuid.uuid4().hex}.unfinished')
    try:
        yield unfinished
        if durable:
            flush(unfinished)
        unfinished.replace(path)
        if durable:
            flush(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def write_whole_text(path: Path, text: str) -> None:
    """`write_whole` of a text in UTF-8; what UTF-8 cannot hold, as in file names that are not UTF-8, is escaped."""
    with write_whole(path) as unfinished:
        unfinished.write_text(text, encoding='utf-8', errors='backslashreplace')


def flush(path: Path) -> None:
    """To the disk; of a folder, the names in it."""
    if os.name == 'nt':
        return  # which cannot open a folder, nor flush what is open for reading
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_regular_file(path: Path) -> None:
    """Before a file is opened: a FIFO would wait for ever, a device may never end.

    Raises: OSError if it is not there, or is neither a file nor a link to one.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: 'a folder', stat.S_IFIFO: 'a FIFO', stat.S_IFSOCK: 'a socket'}
        raise OSError(f'{printable(str(path))} is {kinds.get(stat.S_IFMT(mode), "a device")}, expected a file')


def printable(text: object, limit: int = 200) -> str:
    """`text` for a message: no control characters, no second line, at most `limit` characters and the number left out.

    What a file of a stranger says may hold escapes that change a terminal, or megabytes.
    """
    text = str(text)
    shown = ''.join(c if c.isprintable() else c.encode('unicode_escape').decode('ascii') for c in text[: limit + 1])
    return shown if len(text) <= limit and len(shown) <= 2 * limit else f'{shown[:limit]}... ({len(text)} characters)'
