"""Mistakes of users end a script in one line. Everything else keeps its traceback."""

import functools
import io
import logging
import os
import pickle
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml
from huggingface_hub.errors import HTTPError
from safetensors import SafetensorError

__all__ = ['UserError', 'came_through_user_code', 'one_line_errors', 'script']

# How libraries answer to wrong arguments and broken files.
EXPECTED = (
    *(RuntimeError, OSError, ValueError, TypeError, LookupError, AssertionError, EOFError),
    *(pickle.UnpicklingError, SafetensorError, yaml.YAMLError, HTTPError),
)
PACKAGE = Path(__file__).parents[1]
STDLIB = Path(sysconfig.get_path('stdlib'))


class UserError(Exception):
    """A mistake of the user's. The message is one line that says what was expected, what came and what to do."""


@contextmanager
def one_line_errors(doing: str, advice: str = '') -> Iterator[None]:
    """Raise UserError('cannot DOING: REASON; ADVICE') for what a library says of wrong arguments and broken files.

    An exception that came through the user's own code, such as a registered layer, is a bug there and passes as it is.
    """
    try:
        yield
    except EXPECTED as error:
        if came_through_user_code(error):
            raise
        reason = ' '.join(str(error).split()[:60]) or type(error).__name__
        raise UserError(f'cannot {doing}: {reason}' + (f'; {advice}' if advice else '')) from error


def came_through_user_code(error: BaseException) -> bool:
    """True if its traceback has a file that is neither ours, nor a library's, nor beside the script that asked.

    An OSError is about a file, whoever opened it, and always False.
    """
    files = [Path(frame.f_code.co_filename) for frame, _ in traceback.walk_tb(error.__traceback__)]
    others = [file for file in files if not _is_installed(file)]
    asking = files[1].parent if files[0] == Path(__file__) and len(files) > 1 else files[0].parent
    return not isinstance(error, OSError) and any(file.parent != asking for file in others)


def _is_installed(file: Path) -> bool:
    is_generated = file.name.startswith('<')  # by dataclasses and torch.fx, for example
    is_library = not {'site-packages', 'dist-packages'}.isdisjoint(file.parts) or file.is_relative_to(STDLIB)
    return is_generated or is_library or file.is_relative_to(PACKAGE)


class _Notes(logging.Handler):
    """Notes of this package on stderr, as they are."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f'{record.getMessage()}\n')


_notes = _Notes()


def script(main: Callable[[Sequence[str] | None], None]) -> Callable[..., None]:
    """Decorator of a script's `main(argv)`: UserError ends it with 'error: MESSAGE' on stderr and status 1.

    `--traceback` or TIMM_SNN_TRACEBACK=1 shows the whole traceback before that line, with its causes. A character that
    the terminal or a log cannot hold is escaped: it must not end a run after its training.
    """

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> None:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # not what a notebook or a test puts there
                stream.reconfigure(errors='backslashreplace')
        logging.getLogger(__package__).addHandler(_notes)
        try:
            main(argv)
        except UserError as error:
            arguments = sys.argv if argv is None else argv
            if '--traceback' in arguments or os.environ.get('TIMM_SNN_TRACEBACK', '0') not in ('', '0'):
                traceback.print_exception(error)
            raise SystemExit(f'error: {error}') from error

    return run
