"""Timing side by side, and tables of what was measured. For the scripts in this folder.

clock = Clock('cuda', threads=1, rounds=9)
times = clock.compare({'ours': run_ours, 'theirs': run_theirs})   # name -> Timing
table = Table('lif', clock.environment(), columns=['variant', 'ms'])
table.add(variant='ours', ms=1e3 * times['ours'].median)
table.save(directory)                                             # terminal, lif.csv, lif.png
"""

import csv
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch
from ratios import draw
from rich.console import Console
from rich.table import Table as RichTable

from timm_snn.progress import track

__all__ = ['Clock', 'Table', 'Timing']

Value = str | int | float | None


@dataclass(frozen=True)
class Timing:
    """Seconds per call, over the rounds."""

    median: float
    fastest: float
    slowest: float

    @property
    def spread(self) -> float:
        """(slowest - fastest) / median: how far two medians must be apart to differ."""
        return (self.slowest - self.fastest) / self.median


class Clock:
    """Times callables that take turns, so that a change in the machine's speed meets all of them.

    Args:
        device: Where the callables work; on CUDA the time is that between two events on the current stream.
        threads: For torch on the CPU, set for the whole process; None leaves torch's choice.
        rounds: Turns of each callable.
        turn: A turn repeats a callable until it takes about this many seconds, and counts the mean.
    """

    def __init__(self, device: str, threads: int | None = None, rounds: int = 9, turn: float = 0.02):
        self.device, self.rounds, self.turn = torch.device(device), rounds, turn
        if threads is not None:
            torch.set_num_threads(threads)

    def compare(self, runs: Mapping[str, Callable[[], object]]) -> dict[str, Timing]:
        """Warm every callable up, then give each a turn in every round."""
        repeats = {}
        for name, run in track(runs.items(), 'warm up', unit='runs'):
            self._seconds(run, 2)  # compiles what compiles
            repeats[name] = max(1, min(1000, round(self.turn / max(self._seconds(run, 1), 1e-9))))
        turns: dict[str, list[float]] = {name: [] for name in runs}
        for name, run in track([*runs.items()] * self.rounds, 'time', unit='turns'):
            turns[name].append(self._seconds(run, repeats[name]))
        return {name: Timing(statistics.median(t), min(t), max(t)) for name, t in turns.items()}

    def _seconds(self, run: Callable[[], object], repeats: int) -> float:
        """Mean over `repeats` calls, with nothing else on the device."""
        if self.device.type == 'cuda':
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize(self.device)
            start.record()
            for _ in range(repeats):
                run()
            end.record()
            end.synchronize()
            return start.elapsed_time(end) / 1e3 / repeats
        begin = time.perf_counter()
        for _ in range(repeats):
            run()
        return (time.perf_counter() - begin) / repeats

    def copier(self, num_bytes: int) -> Callable[[], object]:
        """A callable that moves num_bytes, half of them read and half written: the memory's speed, when timed."""
        source = torch.ones(max(1, num_bytes // 8), device=self.device)
        target = torch.empty_like(source)
        return lambda: target.copy_(source)

    def environment(self) -> dict[str, str]:
        """What the numbers depend on, for the head of a table."""
        load = os.getloadavg()[0] if hasattr(os, 'getloadavg') else float('nan')
        return {
            'date': datetime.now(timezone.utc).strftime('%Y-%m-%d %H:%M UTC'),
            'command': ' '.join([*_settings(), shlex.join(['python', *sys.argv])]),
            'device': torch.cuda.get_device_name(self.device) if self.device.type == 'cuda' else _cpu_name(),
            'threads': f'{torch.get_num_threads()} of {os.cpu_count()}',
            'load average': f'{load:.2f}',
            'versions': f'torch {torch.__version__}, Python {platform.python_version()}',
            'times': f'median of {self.rounds} interleaved rounds, spread (max - min) / median',
        }


def _settings() -> list[str]:
    """Of the memory allocator, which decides whether large tensors cost page faults every time."""
    names = ('MALLOC_', 'GLIBC_TUNABLES', 'LD_PRELOAD', 'THP_MEM', 'PYTORCH_CUDA_ALLOC')
    return sorted(f'{name}={value}' for name, value in os.environ.items() if name.startswith(names))


def _cpu_name() -> str:
    cpuinfo = Path('/proc/cpuinfo')
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()


class Table:
    """Rows of measurements under a head that says where they come from."""

    def __init__(self, name: str, head: Mapping[str, str], columns: list[str]):
        self.name, self.head, self.columns = name, dict(head), columns
        self.rows: list[dict[str, Value]] = []

    def add(self, **row: Value) -> None:
        """One row; a column may be missing."""
        if unknown := set(row) - set(self.columns):
            raise ValueError(f'table {self.name!r} has no columns {sorted(unknown)}: it has {self.columns}')
        self.rows.append(row)

    def save(self, directory: Path) -> None:
        """Print it, and write <directory>/<name>.csv, and .png as `ratios.PICTURES` says."""
        rich = RichTable(title=self.name)
        for column in self.columns:
            rich.add_column(column, justify='left' if isinstance(self.rows[0].get(column), str) else 'right')
        for row in self.rows:
            rich.add_row(*(_text(row.get(column)) for column in self.columns))
        console = Console()
        console.width = max(console.width, 160)  # a file or a pipe has no width, and 80 would cut columns
        for key, value in self.head.items():
            print(f'{key}: {value}')
        console.print(rich)

        directory.mkdir(parents=True, exist_ok=True)
        with open(directory / f'{self.name}.csv', 'w', newline='') as file:
            file.writelines(f'# {key}: {value}\n' for key, value in self.head.items())
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(self.rows)
        draw(self.name, self.head, self.rows).savefig(directory / f'{self.name}.png')


def _text(value: Value) -> str:
    return '-' if value is None else f'{value:.3g}' if isinstance(value, float) else str(value)
