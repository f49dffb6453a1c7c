"""How far long work is, on stderr: a bar with an estimate on a terminal, and a line now and then in a log.

A log gets no line in the first ten seconds, then one for each tenth of the work, or each minute of work that cannot be
counted. Of the processes of a distributed run the main one shows its work.
"""

import os
import sys
import threading
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, TextIO, TypeVar

from tqdm import tqdm  # which huggingface-hub needs

__all__ = ['bar', 'is_main_process', 'is_quiet', 'on_terminal', 'quietly', 'track', 'waiting', 'write_line']

T = TypeVar('T')

_LOG_AFTER = 10  # seconds
_LOG_EVERY = 60  # of work that cannot be counted
_SHOW_AFTER = 1  # on a terminal, where shorter waits would flash
_SHOW_EVERY = 0.5
_COUNTED = '{desc}: {percentage:.0f} % ({n_fmt} of {total_fmt} {unit}), {elapsed} passed, {remaining} left{postfix}'
_UNCOUNTED = '{desc}: {n_fmt} {unit}, {elapsed} passed{postfix}'

_quiet = False
_with_bars: int | None = None  # the process that has made bars; those it forks have copies, which are not theirs


class _Log:
    """A stream for tqdm, which writes a line over and over: a log gets each time a new one."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        if line := text.strip('\r\n '):
            self.stream.write(f'{line}\n')

    def flush(self) -> None:
        self.stream.flush()


def bar(
    what: str, total: float | None = None, *, unit: str = 'steps', initial: int = 0, shown: bool = True, **options: Any
) -> tqdm:
    """A bar to update by hand, in a `with`; it is gone afterwards. `total` is None where nobody knows.

    `options` are those of tqdm.
    """
    global _with_bars
    shown = shown and not _quiet and is_main_process() and sys.stderr is not None
    if shown:
        _with_bars = os.getpid()
    if not on_terminal():
        options = {
            'file': _Log(sys.stderr),
            'position': 0,  # beside others, a terminal's cursor would be moved
            'bar_format': _UNCOUNTED if total is None else _COUNTED,
            'delay': _LOG_AFTER,
            'mininterval': _LOG_EVERY if total is None else _LOG_AFTER,
            'maxinterval': float('inf'),
            'miniters': 1 if total is None else total / 10,
        } | options
    return tqdm(desc=what, total=total, unit=unit, initial=initial, disable=not shown, leave=False, **options)


def on_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def track(
    items: Iterable[T], what: str, total: float | None = None, *, unit: str = 'steps', shown: bool = True
) -> Iterator[T]:
    """The items, and a bar of how many have been worked on. `total` is by default their number, where it is known."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with bar(what, total, unit=unit, shown=shown) as shows:
        for item in items:
            yield item
            shows.update()


@contextmanager
def waiting(what: str, usual: float | None = None) -> Iterator[None]:
    """Around work whose parts cannot be counted: the time that has passed, and the seconds that it usually takes."""
    line = f'{{desc}}: {{elapsed}}{"" if usual is None else f" of usually about {usual:.0f} s"}'
    # the thread below decides when it is shown
    with bar(what, bar_format=line, delay=sys.maxsize) as shows:
        if shows.disable:
            yield
            return
        after, every = (_SHOW_AFTER, _SHOW_EVERY) if on_terminal() else (_LOG_AFTER, _LOG_EVERY)
        done = threading.Event()
        thread = threading.Thread(target=_renew, args=(shows, done, after, every), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            shows.clear()


def _renew(shows: tqdm, done: threading.Event, after: float, every: float) -> None:
    pause = after
    while not done.wait(pause):
        shows.refresh()
        pause = every


def write_line(text: str, stream: TextIO) -> None:
    """Print at once, to stdout or stderr, with the bars that are on the same terminal out of the way."""
    if _with_bars == os.getpid():
        tqdm.write(text, file=stream)
    else:
        stream.write(f'{text}\n')  # at once: processes may share the stream
    stream.flush()


@contextmanager
def quietly(on: bool = True) -> Iterator[None]:
    """No bar is shown inside."""
    global _quiet
    before, _quiet = _quiet, on or _quiet
    try:
        yield
    finally:
        _quiet = before


def is_quiet() -> bool:
    return _quiet


def is_main_process() -> bool:
    """True in the first process of what torchrun or `accelerate launch` started, and where there is one only."""
    return os.environ.get('RANK', '0') == '0'
