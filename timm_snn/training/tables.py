"""Tables for files and for the terminal."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..files import printable, write_whole

__all__ = ['make_table', 'read_csv', 'wide_console', 'write_csv']


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], lineterminator: str = '\r\n') -> None:
    """The columns are the keys of all rows, empty where one has none. Names of files that are not UTF-8 are escaped."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with (
        write_whole(path) as unfinished,
        open(unfinished, 'w', newline='', encoding='utf-8', errors='backslashreplace') as file,
    ):
        writer = csv.DictWriter(file, fieldnames=columns, lineterminator=lineterminator)
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> list[dict[str, str]]:
    """A row each; none if there is no such file."""
    if not path.is_file():
        return []
    with open(path, newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))


def make_table(columns: Iterable[str], rows: Iterable[Iterable[object]], title: str | None = None) -> Table:
    """Cells are shown as they are: brackets in the name of a file or a class are no markup, and escapes no commands."""
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*(escape(printable(cell, 1000)) for cell in row))
    return table


def wide_console() -> Console:
    """A console that is as wide as any table where a file or a pipe has no width of its own."""
    console = Console()
    return Console(width=console.width if console.is_terminal else 220)
