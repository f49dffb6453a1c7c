"""Trials in a process that may die, hang or want too much, and what came of them."""

import multiprocessing
import os
import signal
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random

from timm_snn.files import printable

__all__ = ['Outcomes', 'check_message', 'try_part']

SECONDS = 120  # by the clock, after which a trial hangs; one of kills trains up to five times
CPU_SECONDS = 30  # of a trial in its own process
BYTES = 2**30  # the memory that a trial may want beside what its process had before
PREPARATION = 600  # seconds to make what trials damage


@dataclass
class Outcomes:
    """How the trials of a part ended: the words of those that held, and failures by their place, with their numbers."""

    held: Counter[str] = field(default_factory=Counter)
    failed: dict[str, list[int]] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)  # of the first failure of a place

    @property
    def tried(self) -> int:
        return self.held.total() + sum(map(len, self.failed.values()))

    def add(self, number: int, outcome: 'Outcome') -> None:
        if outcome.has_held:
            self.held[outcome.word] += 1
        else:
            self.failed.setdefault(outcome.word, []).append(number)
            self.messages.setdefault(outcome.word, outcome.message)


@dataclass
class Outcome:
    word: str  # or the place of a failure
    has_held: bool = True
    message: str = ''


def try_part(module: str, seed: int, numbers: Iterable[int], minutes: float, seconds: float = SECONDS) -> Outcomes:
    """Make the trials with these numbers, until the time is over but at least one. `module` has the part."""
    outcomes, worker = Outcomes(), None
    end = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory(prefix='campaign-', ignore_cleanup_errors=True) as folder:
        try:
            for number in numbers:
                if outcomes.tried and time.monotonic() > end:
                    break
                worker = worker or _Worker(module, seed, Path(tempfile.mkdtemp(dir=folder)))
                outcome = worker.attempt(number, seconds)
                outcomes.add(number, outcome)
                if not worker.is_alive:
                    worker = None
        finally:
            if worker:
                worker.stop()
    return outcomes


class _Worker:
    """A process with what the trials of a part share."""

    def __init__(self, module: str, seed: int, folder: Path) -> None:
        context = multiprocessing.get_context('spawn')  # a process that has no threads yet
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(module, seed, folder, theirs))
        self.process.start()
        theirs.close()
        self.is_alive = True
        prepared = self._answer(PREPARATION)
        if not prepared.has_held:
            raise RuntimeError(f'{module} cannot be prepared: {prepared.word}: {prepared.message}')

    def attempt(self, number: int, seconds: float) -> Outcome:
        self.connection.send(number)
        return self._answer(seconds)

    def _answer(self, seconds: float) -> Outcome:
        if not self.connection.poll(seconds):
            self.kill()
            return Outcome('it hangs', False)
        try:
            return self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.kill()
            return Outcome(f'its process ended with exit code {self.process.exitcode}', False)

    def stop(self) -> None:
        with suppress(OSError):
            self.connection.send(None)
        self.process.join(SECONDS)
        self.kill()

    def kill(self) -> None:
        self.is_alive = False
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid or 0, signal.SIGKILL)
        self.process.join()
        self.connection.close()


def _work(module: str, seed: int, folder: Path, connection: Connection) -> None:
    os.setpgid(0, 0)
    for stream in (1, 2):  # scripts print, and libraries log
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    warnings.simplefilter('ignore')
    try:
        with import_module(module).trials(folder) as trial:
            connection.send(Outcome('prepared'))
            while (number := connection.recv()) is not None:
                connection.send(_attempt(trial, Random(f'{seed} {module} {number}')))
    except BaseException as error:
        connection.send(_failure(error))
        raise


def _attempt(trial: Callable[[Random], str], random: Random) -> Outcome:
    with suppress(OSError):
        Path('/proc/self/clear_refs').write_text('5')  # the peak begins anew
    bytes_before, start = _peak(), time.process_time()
    try:
        word = trial(random)
    except (Exception, SystemExit) as error:
        return _failure(error)
    if (wanted := _peak() - bytes_before) > BYTES:
        return Outcome(f'{word}, with more than {wanted >> 30} GB of memory', False)
    if (took := time.process_time() - start) > CPU_SECONDS:
        return Outcome(f'{word}, in more than {took // 10 * 10:.0f} s', False)
    return Outcome(word)


def _failure(error: BaseException) -> Outcome:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f'{"/".join(Path(frame.filename).parts[-3:])}:{frame.lineno}'
    return Outcome(f'{type(error).__name__} at {place}', False, printable(error, 400))


def _peak() -> int:
    """Bytes of memory that this process has had since its peak was reset."""
    (line,) = [line for line in Path('/proc/self/status').read_text().splitlines() if line.startswith('VmHWM')]
    return int(line.split()[1]) * 1024


def check_message(error: BaseException, most: int = 1200) -> None:
    """An error that a terminal can show: one line, without control characters, not pages of a stranger's file."""
    message = str(error)
    assert message.isprintable(), f'not one printable line: {type(error).__name__}: {message!r}'
    assert message and len(message) <= most, f'a message of {len(message)} characters: {message[:200]}'
