"""C++ next to this file, built for the machine that runs it and kept in the user's cache.

It is built when the package is installed, if that can be, else when it is first needed.

A library is code that this process will run, so nobody else may have written it, and it must be whole: a power cut or
a full disk leaves a torn file, and to map that ends a process by SIGBUS. Hence the folder and the library belong to
the user and can be written by nobody else, and the library's name has the hash of its content, which is read and
compared before it is loaded.

This file needs the standard library alone and imports nothing of ours: setup.py runs it where there is no torch yet.
What shows users how long a build takes comes from outside, `set_display`.
"""

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import re
import shlex
import shutil
import signal
import stat
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ['LIBRARIES', 'CannotBuild', 'build_ahead', 'load_cpp', 'set_display', 'why_not_built', 'why_not_here']

_logger = logging.getLogger(__name__)


class Library(NamedTuple):
    """What is to be known of a source beside this file before it is built."""

    options: tuple[str, ...]  # of the compiler
    without: str  # how a user goes without it
    seconds: int  # that a build usually takes


LIBRARIES = {
    'lif.cpp': Library(
        # no product is fused with a sum, which would move spikes; a choice between numbers may compute both
        ('-ffp-contract=off', '-fno-trapping-math'),
        "TIMM_SNN_BACKEND=torch, or timm_snn.set_backend('torch'), does without",
        15,
    ),
    'sparse_conv.cpp': Library(
        ('-ffp-contract=fast',),
        'TIMM_SNN_BACKEND=torch, or timm_snn.ops.sparse_spikes(enabled=False) around what runs, does without',
        5,
    ),
    'fixed.cpp': Library((), "TIMM_SNN_BACKEND=torch, or timm_snn.set_backend('torch'), does without", 10),
}

_OPTIONS = ('-O3', '-std=c++17', '-march=native', '-fopenmp', '-shared', '-fPIC')
_PROBE = Path(__file__).with_name('probe.cpp')
_SECONDS = {'-E': 60, '-o': 900}  # the longest that a compiler may take to name its macros, and to build


Display = Callable[[str, float], contextlib.AbstractContextManager[None]]


def _hide(what: str, seconds: float) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


_display: Display = _hide


class CannotBuild(RuntimeError):
    """A library cannot be built or loaded here; the message says why and what to do."""


@functools.cache
def load_cpp(source: Path, *options: str) -> ctypes.CDLL:
    """The library built from `source`, from the cache if it was built on such a machine with such a compiler before.

    The source may include the headers of its folder. The compiler is $CXX, else c++, and gets `options` beside our own.

    The cache is $XDG_CACHE_HOME/timm_snn, else ~/.cache/timm_snn; as the XDG specification asks, a relative
    $XDG_CACHE_HOME is passed over. One process builds at a time and the others wait for it; what a killed one has left
    is removed by the next. The one that builds a library of `LIBRARIES` says so, since that takes a while.

    Raises: CannotBuild. A failure is not remembered: the next call tries again.
    """
    if platform.system() != 'Linux':
        raise CannotBuild(f'it is written for Linux, this is {platform.system()}')
    compiler, options = _compiler(), (*_OPTIONS, *options)
    # every header of the folder, included or not: to rebuild too often is cheaper than to read what a source includes
    texts = [path.read_bytes() for path in (source, *sorted(source.parent.glob('*.hpp')))]
    # The compiler's macros name its version and everything that -march=native has found.
    key = hashlib.sha256(b'\0'.join([*texts, ' '.join(options).encode(), _macros(compiler)])).hexdigest()[:16]
    path = _cache()
    try:
        with _private_folder(path) as folder:
            stem = f'{source.stem}-{key}'
            library = _find(folder, stem)
            if library is None:
                with _alone(folder):
                    library = _find(folder, stem)
                    if library is None:
                        library = _build_known(source, [*compiler, *options, str(source)], path, folder, stem)
            # By the folder that was looked at, whatever has that name by now. glibc takes two libraries of one name
            # for one, but this name has the hash.
            return ctypes.CDLL(f'/proc/self/fd/{folder}/{library}')
    except OSError as error:
        raise CannotBuild(
            f'{path} cannot keep libraries that are built for this machine: {error.strerror or error}. '
            'Set XDG_CACHE_HOME to a folder of your own that can be written and from which libraries can be loaded'
        ) from error


def set_display(display: Display) -> None:
    """Let every build of `LIBRARIES` run inside display('building NAME', the seconds that it usually takes)."""
    global _display
    _display = display


def why_not_built(source: Path, *options: str) -> str | None:
    """Why `load_cpp` cannot load this library, or None; builds it if that is not done."""
    try:
        load_cpp(source, *options)
    except CannotBuild as error:
        return str(error)
    return None


def why_not_here() -> str | None:
    """Why no library can be built and loaded here, or None: tried on one of a few lines, in less than a second."""
    return why_not_built(_PROBE)


def build_ahead() -> None:
    """Builds all of `LIBRARIES`, or finds them built: what setup.py does for the user who installs the package.

    Raises: CannotBuild.
    """
    if platform.system() == 'Linux' and os.geteuid() == 0:
        home = next(folder for folder in _cache().parents if folder.exists())
        if owner := home.stat().st_uid:  # as by sudo: the folder would be closed to the user who has that home
            raise CannotBuild(f'{home} belongs to user {owner}, for whom root does not build')
    for name, library in LIBRARIES.items():
        load_cpp(Path(__file__).with_name(name), *library.options)


def _compiler() -> list[str]:
    """With its arguments, as in CXX='ccache g++'."""
    return shlex.split(os.environ.get('CXX', '')) or ['c++']


def _macros(compiler: list[str]) -> bytes:
    try:
        macros = _run([*compiler, *_OPTIONS, '-dM', '-E', '-x', 'c++', os.devnull], _SECONDS['-E'])
        reason = None if b'#define _OPENMP' in macros else 'it does not answer as one'
    except (OSError, CannotBuild) as error:
        reason = str(error)
    if reason:
        raise CannotBuild(
            f'it needs g++, or a compiler that takes its options, as c++ or as $CXX; {shlex.join(compiler)}: {reason}'
        )
    return macros


def _run(command: list[str], seconds: int, **environment: str) -> bytes:
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | environment,
        start_new_session=True,  # so that what a compiler starts ends with it
    ) as process:
        try:
            stdout, stderr = process.communicate(timeout=seconds)
        except BaseException as error:  # Ctrl-C among them
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise CannotBuild(f'{shlex.join(command)} did not end within {seconds} s') from error
            raise
    if process.returncode:
        raise CannotBuild(f'{shlex.join(command)} failed:\n{stderr.decode(errors="replace")}')
    return stdout


def _cache() -> Path:
    base = Path(os.environ.get('XDG_CACHE_HOME', ''))
    try:
        return (base if base.is_absolute() else Path.home() / '.cache') / 'timm_snn'
    except RuntimeError as error:
        raise CannotBuild(f'{error}: set XDG_CACHE_HOME to a folder of your own') from error


@contextlib.contextmanager
def _private_folder(path: Path) -> Iterator[int]:
    """A descriptor of the folder, which is made if it is not there. Raises OSError if it is not the user's own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        status = os.fstat(folder)
        if status.st_uid != os.geteuid():
            raise OSError(f'it belongs to user {status.st_uid}, not to you ({os.geteuid()})')
        if status.st_mode & 0o022:  # as made under umask 002
            os.fchmod(folder, 0o700)
        yield folder
    finally:
        os.close(folder)


def _find(folder: int, stem: str) -> str | None:
    """The name of the whole library of the user's own that begins with `stem`."""
    for name in os.listdir(folder):
        if re.fullmatch(rf'{re.escape(stem)}-[0-9a-f]{{64}}\.so', name) and _is_whole(folder, name):
            return name
    return None


def _is_whole(folder: int, name: str) -> bool:
    try:
        # without waiting, should it be a FIFO
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except OSError:  # a link, or gone
        return False
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
            return False
        with open(descriptor, 'rb', closefd=False) as file:
            return hashlib.sha256(file.read()).hexdigest() == Path(name).stem.rpartition('-')[2]
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _alone(folder: int) -> Iterator[None]:
    """Waits until no other process builds. Ends with the process, however that ends."""
    import fcntl  # which Windows lacks

    descriptor = os.open('lock', os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600, dir_fd=folder)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: both build, and each takes its own
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            _remove(folder, 'unfinished-')  # of a build that was killed
        yield
    finally:
        os.close(descriptor)


def _build_known(source: Path, command: list[str], path: Path, folder: int, stem: str) -> str:
    """`_build`, which says what it does where that takes a while."""
    known = LIBRARIES.get(source.name)
    if known is None:
        return _build(command, folder, stem)
    _logger.warning(
        'building %s for this machine, which takes about %d s and is kept in %s: %s',
        *(source.name, known.seconds, path, known.without),
    )
    with _display(f'building {source.name}', known.seconds):
        return _build(command, folder, stem)


def _build(command: list[str], folder: int, stem: str) -> str:
    """Builds the library and returns its name in the folder, where it appears whole by a rename."""
    here = Path(f'/proc/{os.getpid()}/fd/{folder}')  # for the compiler as well
    workplace = here / f'unfinished-{uuid.uuid4().hex}'
    workplace.mkdir(mode=0o700)
    try:
        unfinished = workplace / 'library.so'
        _run([*command, '-o', str(unfinished)], _SECONDS['-o'], TMPDIR=str(workplace))
        if not unfinished.is_file():
            raise CannotBuild(f'{shlex.join(command)} made no library')
        unfinished.chmod(0o600)
        with unfinished.open('rb') as file:
            os.fsync(file)
            name = f'{stem}-{hashlib.sha256(file.read()).hexdigest()}.so'
        _remove(folder, f'{stem}-')  # torn, or somebody else's
        unfinished.replace(here / name)
        os.fsync(folder)
        return name
    finally:
        shutil.rmtree(workplace, ignore_errors=True)


def _remove(folder: int, prefix: str) -> None:
    for name in os.listdir(folder):
        if name.startswith(prefix):
            path = Path(f'/proc/self/fd/{folder}/{name}')
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
