"""The progress of a run, its results so far, and the signal to stop."""

import math
import os
import signal
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..files import write_whole
from ..profiling.style import CLASSES, label_ends, new_figure, styled
from ..progress import is_main_process
from .data import UnreadableSample
from .tables import write_csv

__all__ = ['Progress', 'StopSignal', 'write_summary']

_ONE_KEYSTROKE = 1.0  # seconds within which launchers pass on what the terminal has sent to all processes already


@dataclass
class Progress:
    """Finished epochs with a row of results each, and sums over the updates of the epoch that has begun."""

    history: list[dict[str, float]] = field(default_factory=list)
    updates: int = 0
    loss_sum: float = 0.0  # over samples, of all processes
    hits: float = 0.0
    seen: float = 0.0
    seconds: float = 0.0  # of training, that of runs before this one too

    @property
    def epoch(self) -> int:
        return len(self.history)

    @property
    def name(self) -> str:
        return f'epoch_{self.epoch:04d}' + (f'_step_{self.updates:06d}' if self.updates else '')

    def add_update(self, loss_sum: float, hits: float, seen: float) -> None:
        self.updates += 1
        self.loss_sum += loss_sum
        self.hits += hits
        self.seen += seen

    def finish_epoch(self, row: dict[str, float]) -> None:
        self.history.append(row)
        self.updates, self.loss_sum, self.hits, self.seen, self.seconds = 0, 0.0, 0.0, 0.0, 0.0

    def totals(self, flop: float) -> dict[str, float]:
        """Images, seconds and FLOP of training since the run began, with `flop` for each image of this epoch.

        They are NaN in a run that an earlier version began, which did not count them.
        """
        counted = {'images_seen': self.seen, 'train_seconds': self.seconds, 'train_flop': flop * self.seen}
        before = self.history[-1] if self.history else dict.fromkeys(counted, 0.0)
        return {name: before.get(name, math.nan) + number for name, number in counted.items()}

    def best_epoch(self, metric: str) -> int:
        """The number of epochs finished when `metric` was highest, for the first time."""
        values = [row[metric] for row in self.history]
        return values.index(max(values)) + 1


class StopSignal:
    """Notes SIGTERM, which schedulers send some time before they kill, and a sample that cannot be evaluated.

    Inside `noting_ctrl_c` it notes Ctrl-C too.
    """

    def __init__(self) -> None:
        self.came = False
        self.ctrl_c: float | None = None  # when it came
        self.unreadable: UnreadableSample | None = None
        signal.signal(signal.SIGTERM, self._note)

    def _note(self, *_: Any) -> None:
        self.came = True

    @contextmanager
    def noting_ctrl_c(self) -> Iterator[None]:
        """Ctrl-C does not interrupt what is inside, which asks `came_to` and saves. A second one does.

        Raises: KeyboardInterrupt in the end for one that came too late to be asked for.
        """
        before = signal.getsignal(signal.SIGINT)
        if before is signal.SIG_IGN:  # as in a shell's background
            yield
            return
        signal.signal(signal.SIGINT, self._note_ctrl_c)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
        if self.ctrl_c is not None:
            raise KeyboardInterrupt

    def _note_ctrl_c(self, *_: Any) -> None:
        now = time.monotonic()
        if self.ctrl_c is None:
            self.came, self.ctrl_c = True, now
            if is_main_process():  # not by sys.stderr, which may be in the middle of a line
                os.write(2, b'\nCtrl-C: stops after this update and saves it; once more, and it stops at once\n')
        elif now - self.ctrl_c > _ONE_KEYSTROKE:
            raise KeyboardInterrupt

    def came_to(self, accelerator: Accelerator) -> bool:
        """True if it came to any process. All of them ask together and get the same answer."""
        has_come = float(self.came or self.unreadable is not None)
        return bool(accelerator.reduce(torch.tensor([has_come], device=accelerator.device)).item())

    def readable(self, loader: Iterable[Any]) -> Generator[Any, None, None]:
        """The batches up to one with a sample that cannot be read: other processes wait, so it must not just raise."""
        try:
            yield from loader
        except UnreadableSample as error:
            self.unreadable = error.with_traceback(None)  # which would keep the processes that load data


def write_summary(
    history: list[dict[str, float]],
    output: Path,
    metric: str = 'top1',
    unit: str = 'top-1 (%)',
    title: str = 'Accuracy',
) -> None:
    """Write summary.csv and curve.png of the epochs so far: of the loss, and of the columns that end in `metric`."""
    write_csv(output / 'summary.csv', history)
    epochs = [row['epoch'] + 1 for row in history]
    curves = {'train': 'training', 'eval': 'validation', 'ema': 'averaged weights'}
    with styled():
        figure = new_figure(9.4, 3.6)
        drawn = [('loss', 'loss', 'Loss'), (metric, unit, title)]
        for axes, (column, ylabel, what) in zip(figure.subplots(1, 2), drawn, strict=True):
            ends = []
            for (split, name), color in zip(curves.items(), CLASSES, strict=False):
                if f'{split}_{column}' in history[0]:
                    values = [row[f'{split}_{column}'] for row in history]
                    axes.plot(epochs, values, color=color, marker='o' if len(epochs) == 1 else None)
                    if math.isfinite(values[-1]):
                        ends.append((epochs[-1], values[-1], name, color))
            axes.set(xlabel='epoch', ylabel=ylabel)
            axes.set_title(f'{what} after every epoch')
            label_ends(axes, ends)
    with write_whole(output / 'curve.png') as unfinished:
        figure.savefig(unfinished, format='png')
