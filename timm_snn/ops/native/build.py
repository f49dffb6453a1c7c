"""C++ next to this file, built for the machine that runs it, when it is first needed."""

import ctypes
import functools
import hashlib
import os
import platform
import subprocess
import uuid
from pathlib import Path

__all__ = ['load_cpp', 'why_no_compiler']

_OPTIONS = ('-O3', '-std=c++17', '-march=native', '-fopenmp', '-shared', '-fPIC')


@functools.cache
def load_cpp(source: Path, *options: str) -> ctypes.CDLL:
    """The library built from `source`, from the cache if it was built on such a machine with such a compiler before.

    The source may include the headers of its folder. The compiler gets `options` beside our own.

    The compiler is $CXX, else c++. The cache is $XDG_CACHE_HOME/timm_snn, else ~/.cache/timm_snn. A library appears
    there whole, by a rename, so any number of processes may build it at once.

    Raises: RuntimeError with the compiler's own message if it fails; OSError if there is none, or no place to write.
    """
    options = (*_OPTIONS, *options)
    # every header of the folder, included or not: to rebuild too often is cheaper than to read what a source includes
    texts = [path.read_bytes() for path in (source, *sorted(source.parent.glob('*.hpp')))]
    # The compiler's macros name its version and everything that -march=native has found.
    key = hashlib.sha256(b'\0'.join([*texts, ' '.join(options).encode(), _macros(_compiler())])).hexdigest()[:16]
    library = _cache() / f'{source.stem}-{key}.so'
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        unfinished = library.with_name(f'{library.name}.{uuid.uuid4().hex}')
        try:
            _run([_compiler(), *options, str(source), '-o', str(unfinished)])
            unfinished.replace(library)
        finally:
            unfinished.unlink(missing_ok=True)
    return ctypes.CDLL(str(library))


@functools.cache
def why_no_compiler() -> str | None:
    """Why nothing can be built here, or None."""
    if platform.system() != 'Linux':
        return f'it is written for Linux, this is {platform.system()}'
    try:
        _macros(_compiler())
    except (OSError, RuntimeError) as error:
        return f'it needs g++, or a compiler that takes its options, as c++ or as $CXX: {error}'
    return None


def _compiler() -> str:
    return os.environ.get('CXX') or 'c++'


def _cache() -> Path:
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'timm_snn'


def _macros(compiler: str) -> bytes:
    return _run([compiler, *_OPTIONS, '-dM', '-E', '-x', 'c++', os.devnull])


def _run(command: list[str]) -> bytes:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode:
        raise RuntimeError(f'{" ".join(command)} failed:\n{done.stderr.decode(errors="replace")}')
    return done.stdout
