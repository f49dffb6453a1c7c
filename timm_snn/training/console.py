"""What a command prints: on stdout its result and what it says on its way, on stderr notes, bars and errors.

With --quiet all but results and errors is left out. With --json the result is one JSON document, which is all of
stdout; what is said on the way goes to stderr then.
"""

import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import Any, TextIO

from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from ..progress import is_main_process, is_quiet, on_terminal, quietly, write_line

__all__ = ['give', 'note', 'output_as_asked', 'say']

_DATASETS = 'HF_DATASETS_DISABLE_PROGRESS_BARS'

_document: TextIO | None = None  # where --json puts it


@contextmanager
def output_as_asked(quiet: bool, as_json: bool) -> Iterator[None]:
    """What is printed inside is as these options ask for."""
    global _document
    before = _document
    with ExitStack() as stack:
        handler = _Notes()
        package = logging.getLogger('timm_snn')
        package.addHandler(handler)
        stack.callback(package.removeHandler, handler)
        if quiet:
            stack.enter_context(quietly())
            stack.callback(logging.disable, logging.root.manager.disable)
            logging.disable(logging.WARNING)  # that of libraries too
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter('ignore')
        if quiet or not on_terminal():
            stack.enter_context(_no_bars_of_others())
        if as_json:
            _document = sys.stdout
            stack.enter_context(redirect_stdout(sys.stderr))
        try:
            yield
        finally:
            _document = before


class _Notes(logging.Handler):
    """Notes of this package on stderr, as they are."""

    def emit(self, record: logging.LogRecord) -> None:
        write_line(record.getMessage(), sys.stderr)


@contextmanager
def _no_bars_of_others() -> Iterator[None]:
    """Those of huggingface_hub, which shows none in a log, and of datasets, which does and asks once, when imported."""
    were_shown, before = not are_progress_bars_disabled(), os.environ.get(_DATASETS)
    os.environ[_DATASETS] = '1'
    disable_progress_bars()
    try:
        yield
    finally:
        if were_shown:
            enable_progress_bars()
        os.environ.pop(_DATASETS)
        if before is not None:
            os.environ[_DATASETS] = before


def say(text: str) -> None:
    """A line on the way to the result."""
    if is_main_process() and not is_quiet():
        write_line(text, sys.stdout)


def note(text: str) -> None:
    """A line on stderr that the user should see."""
    if is_main_process() and not is_quiet():
        write_line(text, sys.stderr)


def give(document: Any, *shown: Any) -> None:
    """The result of a command: `document` where JSON is asked for, else what people read: lines, and tables of rich.

    JSON has neither NaN nor infinity, which become null, nor paths, which become strings.
    """
    if not is_main_process():
        return
    if _document is not None:
        _document.write(json.dumps(_plain(document), indent=2) + '\n')
        return
    for part in shown:
        if isinstance(part, str):
            write_line(part, sys.stdout)
        else:
            from .tables import wide_console  # of rich, which who prints lines alone need not have

            wide_console().print(part)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
