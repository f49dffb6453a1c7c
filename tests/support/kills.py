"""Kills at the disk: a process that ends by SIGKILL at the Nth call by which it changes a folder.

Such a moment can be repeated, and lies where a kill hurts, which one by a clock seldom does: before a rename, between
a file that is opened and what is written to it.
"""

import builtins
import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ['kill_at_change', 'killed_at_change']

# Python's own calls, by their audit events, which come before the call; all begin with a path.
CHANGES = ('os.rename', 'os.remove', 'os.mkdir', 'os.rmdir', 'os.truncate')


def killed_at_change(folder: Path, number: int) -> str:
    """The code to run before a script that is to be killed; see `kill_at_change`."""
    return f'from tests.support import kills\nkills.kill_at_change({str(folder)!r}, {number})'


def kill_at_change(folder: str, number: int) -> None:
    """Have this process and its group killed at the change of `folder` with this number, from 1 on.

    A file that is written counts twice: before it is opened, and when it is open and empty. What C++ and Rust write
    does not count, and neither do other processes.
    """
    changes, process, folder = 0, os.getpid(), os.path.realpath(folder)

    def change(path: Any, directory: int = -1) -> None:
        nonlocal changes
        if isinstance(path, int) or directory != -1:  # shutil.rmtree names what it removes by the folder it is in
            path = os.readlink(f'/proc/self/fd/{path if isinstance(path, int) else directory}')
        within = os.path.realpath(os.path.dirname(os.path.abspath(os.fsdecode(path))))
        if os.getpid() == process and f'{within}/{os.path.basename(path)}'.startswith(folder):
            changes += 1
            if changes == number:
                os.killpg(0, signal.SIGKILL)

    def audited(event: str, arguments: tuple[Any, ...]) -> None:
        if event in CHANGES:
            change(arguments[0], arguments[-1] if event in ('os.remove', 'os.rmdir') else -1)

    def opened(file: Any, mode: str = 'r', *args: Any, open: Callable[..., Any] = open, **kwargs: Any) -> Any:
        if {*'wax+'}.isdisjoint(mode):
            return open(file, mode, *args, **kwargs)
        change(file)
        result = open(file, mode, *args, **kwargs)
        change(file)
        return result

    def synced(descriptor: Any, fsync: Callable[..., None] = os.fsync) -> None:
        change(descriptor)
        fsync(descriptor)

    sys.addaudithook(audited)
    io.open = builtins.open = opened  # type: ignore[assignment]
    os.fsync = synced
