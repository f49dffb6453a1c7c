"""Batches of samples, and what becomes of the processes that load them."""

import functools
import multiprocessing
import multiprocessing.util
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader, RandomSampler

from .data import UnreadableSample, WrongSample
from .errors import UserError
from .on_device import DeviceImages, DeviceSamples, as_it_is

__all__ = ['loading_errors', 'make_loader', 'updates_of_epoch']


def make_loader(
    samples: Any,
    batch_size: int,
    *,
    workers: int,
    pin_memory: bool,
    number: int | None = None,
    collate: Callable[[list[Any]], Any] | None = None,
) -> DataLoader:
    """Batches of all samples in their order, or of so many random ones, which are others in every epoch.

    `collate` makes a batch of samples, by default torch's function. Of samples on the device no process loads anything,
    and those to evaluate on come as batches.
    """
    comes_in_batches = isinstance(samples, DeviceSamples)
    if isinstance(samples, (DeviceImages, DeviceSamples)):
        workers = 0
    if workers:
        _kill_loaders_at_exit()
    return DataLoader(
        samples,
        batch_size,
        sampler=None if number is None else RandomSampler(samples, num_samples=number),
        num_workers=workers,
        pin_memory=pin_memory and not comes_in_batches,
        collate_fn=as_it_is if comes_in_batches else collate,
        worker_init_fn=_ignore_signals,
        generator=torch.Generator(),  # not the global one, which must not see how often a run was stopped
    )


def _ignore_signals(_: int) -> None:
    """The main process needs those that load data when SIGTERM or Ctrl-C tells all to stop, and it has to save."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


@functools.cache
def _kill_loaders_at_exit() -> None:
    """Before Python waits for them, by a SIGTERM that they ignore: an exception on its way out keeps them alive."""
    multiprocessing.util.Finalize(None, _kill_loaders, args=(os.getpid(),), exitpriority=100)


def _kill_loaders(parent: int) -> None:
    if os.getpid() == parent:  # and not in a process that was forked from it
        for process in multiprocessing.active_children():
            if process.daemon:
                process.kill()


def updates_of_epoch(samples: int, batch_size: int, processes: int, accumulation: int) -> int:
    """The whole updates of an epoch; the samples left over change. Raises: UserError where there is none."""
    updates = samples // (batch_size * accumulation * processes)
    if updates == 0:
        raise UserError(
            f'{samples} training samples do not fill a batch of {batch_size} for each of {processes} processes and '
            f'{accumulation} steps of accumulation: pass a smaller --batch-size'
        )
    return updates


@contextmanager
def loading_errors(advice: str) -> Iterator[None]:
    """Raise UserError in one line where samples cannot be read, or a process that loads them was killed."""
    try:
        yield
    except WrongSample as error:
        raise UserError(str(error)) from error
    except UnreadableSample as error:
        raise UserError(f'{error}, and so are those after it; {advice}') from error
    except RuntimeError as error:
        if not str(error).startswith('DataLoader worker (pid'):
            raise
        reason = ' '.join(str(error).split())
        raise UserError(
            f'a process that loads data has ended: {reason}; it may have needed more memory than there is: pass a '
            f'smaller --workers; {advice}'
        ) from error
