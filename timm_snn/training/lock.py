"""One run at a time in an output."""

import errno
import logging
import os
import socket
import sys
from pathlib import Path

from ..files import printable
from .errors import UserError

if sys.platform != 'win32':
    import fcntl

__all__ = ['lock_output']

_logger = logging.getLogger(__name__)

_held: list[int] = []  # descriptors: a process gives its lock up when it closes any descriptor of the file


def lock_output(output: Path) -> None:
    """Keep other processes' runs out of the folder until this process ends, however it does, or locks another.

    A lock of POSIX, which the processes that load data do not inherit: they may live a little longer than a run that
    is killed. Where the disk has no locks a warning says so. Raises: UserError that names the process that has it.
    """
    if sys.platform == 'win32':
        return
    while _held:  # by an earlier run of this process, which has ended
        os.close(_held.pop())
    descriptor = os.open(output / '.lock', os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = printable(os.read(descriptor, 200).decode('utf-8', 'replace'))
        os.close(descriptor)
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            _logger.warning(
                'note: --output %s cannot be locked (%s): let no other run write to it', output, error.strerror
            )
            return
        raise UserError(
            f'{output} is in use by another run, {owner or "which has just begun"}: wait until it has ended, or pass '
            'another --output'
        ) from error
    _held.append(descriptor)
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f'process {os.getpid()} on {socket.gethostname()}'.encode())
