"""Mistakes of users, and Ctrl-C, end a script in one line. Everything else keeps its traceback."""

import functools
import io
import os
import pickle
import shlex
import signal
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.errors import HTTPError
from safetensors import SafetensorError

from ..progress import is_main_process, write_line
from .console import output_as_asked

__all__ = ['UserError', 'came_through_user_code', 'one_line_errors', 'script']

# How libraries answer to wrong arguments and broken files.
EXPECTED = (
    *(RuntimeError, OSError, ValueError, TypeError, LookupError, AssertionError, EOFError),
    *(pickle.UnpicklingError, SafetensorError, yaml.YAMLError, HTTPError),
)
PACKAGE = Path(__file__).parents[1]
STDLIB = Path(sysconfig.get_path('stdlib'))

Main = Callable[[Sequence[str] | None], None]


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


def script(main: Main | None = None, *, kept: str = 'what was written is whole', to_go_on: Sequence[str] = ()) -> Any:
    """Decorator of a script's `main(argv)`: UserError ends it with 'error: MESSAGE' on stderr and status 1.

    Ctrl-C ends it with status 130 and a line that says what is kept, which `KeyboardInterrupt(KEPT)` may know better,
    and the command to go on: the same one, with the options `to_go_on`. --quiet and --json are as in `console`.

    `--traceback` or TIMM_SNN_TRACEBACK=1 shows the whole traceback of an error before its line, with its causes. A
    character that the terminal or a log cannot hold is escaped: it must not end a run after its training.
    """
    if main is None:
        return functools.partial(script, kept=kept, to_go_on=to_go_on)

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> None:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # not what a notebook or a test puts there
                stream.reconfigure(errors='backslashreplace')
        arguments = list(sys.argv[1:] if argv is None else argv)
        options = arguments[: arguments.index('--')] if '--' in arguments else arguments
        try:
            with output_as_asked('--quiet' in options, '--json' in options):
                main(argv)
        except UserError as error:
            if '--traceback' in options or os.environ.get('TIMM_SNN_TRACEBACK', '0') not in ('', '0'):
                traceback.print_exception(error)
            raise SystemExit(f'error: {error}') from error
        except KeyboardInterrupt as stop:
            if is_main_process():
                command = _command(main, arguments, to_go_on)
                write_line(f'stopped: {str(stop) or kept}; go on with: {command}', sys.stderr)
            raise SystemExit(128 + signal.SIGINT) from stop

    return run


def _command(main: Main, arguments: Sequence[object], more: Sequence[str]) -> str:
    """What a user types to run this script again, with more options unless they are there already."""
    words = [*map(str, arguments)]
    program = sys.argv[0] if sys.argv[1:] == words else main.__code__.co_filename  # called by another program
    if not program.endswith('.py'):
        start = Path(program).name  # 'timm-snn COMMAND', as cli.py says
    elif any(name.startswith('ACCELERATE_') for name in os.environ):
        start = f'accelerate launch ... {shlex.quote(program)}'
    else:
        start = f'python {shlex.quote(program)}'
    is_there = words[len(words) - len(more) :] == list(more)
    return ' '.join([start, shlex.join([*words, *(() if is_there else more)])])
