"""One run at a time in an output."""

import errno
import os
import socket
import sys
from pathlib import Path

from ..files import printable
from .errors import UserError

if sys.platform != 'win32':
    import fcntl

__all__ = ['lock_output']

_held: list[int] = []  # descriptors: a process gives its lock up when it closes any descriptor of the file


def lock_output(output: Path) -> str | None:
    """Keep other processes' runs out of the folder until this process ends, however it does, or locks another.

    A lock of POSIX, which the processes that load data do not inherit: they may live a little longer than a run that
    is killed. Returns a note where the disk has no locks. Raises: UserError that names the process that has it.
    """
    if sys.platform == 'win32':
        return None
    while _held:  # by an earlier run of this process, which has ended
        os.close(_held.pop())
    descriptor = os.open(output / '.lock', os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = printable(os.read(descriptor, 200).decode('utf-8', 'replace'))
        os.close(descriptor)
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            return f'note: --output {output} cannot be locked ({error.strerror}): let no other run write to it'
        raise UserError(
            f'{output} is in use by another run, {owner or "which has just begun"}: wait until it has ended, or pass '
            'another --output'
        ) from error
    _held.append(descriptor)
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f'process {os.getpid()} on {socket.gethostname()}'.encode())
    return None
