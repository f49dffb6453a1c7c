"""The cache of built libraries, torn, planted and killed: the next process loads the right one or says what to set."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from tests.data.test_fuzz import damaged
from tests.support.kills import kill_at_change
from timm_snn.ops.native import build

SOURCE = 'extern "C" int answer() { return 42; }\n'
RIGHT, REFUSED, WRONG = 0, 3, 4  # exit codes


@contextmanager
def trials(folder: Path) -> Iterator[Callable[[Random], str]]:
    base = folder / 'base'
    cache, source = base / 'timm_snn', folder / 'answer.cpp'
    source.write_text(SOURCE)
    os.environ['XDG_CACHE_HOME'] = str(base)
    assert _in_a_process(lambda: _load(source)) == RIGHT, build.why_not_here()
    (library,) = cache.glob('*.so')
    whole = library.read_bytes()

    def killed_build(random: Random) -> None:
        if random.random() < 0.7:
            kill_at_change(str(cache), random.randint(1, 12))
        else:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(0.001, 0.5))  # its signal ends the process
        _load(source)

    def trial(random: Random) -> str:
        for path in (base, folder / 'elsewhere'):
            shutil.rmtree(path, ignore_errors=True)
        cache.mkdir(parents=True, mode=0o700)
        for _ in range(random.randint(0, 2)):
            _plant(cache, library.name, whole, random)
        for _ in range(random.randint(0, 2)):
            _in_a_process(lambda: killed_build(random))
        if random.random() < 0.1:
            _replace_folder(cache, folder / 'elsewhere', random)
        code = _in_a_process(lambda: _load(source))
        if code == REFUSED:
            return 'refused'
        assert code == RIGHT, f'loading it ended with {code}'
        return 'loaded'

    yield trial


def _load(source: Path) -> int:
    try:
        return RIGHT if build.load_cpp(source).answer() == 42 else WRONG
    except build.CannotBuild as error:
        return REFUSED if 'Set XDG_CACHE_HOME' in str(error) else WRONG


def _in_a_process(function: Callable[[], int | None]) -> int:
    """Its exit code; a signal is negative. Forked, since a library stays loaded for as long as a process lives."""
    child = os.fork()
    if child == 0:
        code = WRONG
        try:
            os.setpgid(0, 0)
            code = function() or RIGHT
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _plant(cache: Path, name: str, whole: bytes, random: Random) -> None:
    """Something by the name of the library, of the lock or of a part."""
    stem = name.rpartition('-')[0]
    path = cache / random.choice([name, name, f'{stem}-{"0" * 64}.so', f'{stem}.so', 'lock', 'unfinished-1'])
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    match random.choice(['torn', 'damaged', 'zeros', 'whole', 'FIFO', 'folder', 'link', 'dangling link', 'open']):
        case 'torn':
            path.write_bytes(whole[: random.randrange(len(whole))])
        case 'damaged':
            path.write_bytes(damaged(whole, random))
        case 'zeros':
            path.write_bytes(bytes(len(whole)))
        case 'whole':
            path.write_bytes(whole)
        case 'FIFO':
            os.mkfifo(path)
        case 'folder':
            (path / 'a').mkdir(parents=True)
        case 'link':
            (cache.parent / 'other').write_bytes(whole[:5000])
            path.symlink_to(cache.parent / 'other')
        case 'dangling link':
            path.symlink_to('nowhere')
        case 'open':
            path.write_bytes(whole)
            path.chmod(0o666)


def _replace_folder(cache: Path, elsewhere: Path, random: Random) -> None:
    shutil.rmtree(cache)
    match random.choice(['link', 'file', 'FIFO', 'open']):
        case 'link':
            elsewhere.mkdir()
            cache.symlink_to(elsewhere)
        case 'file':
            cache.write_text('')
        case 'FIFO':
            os.mkfifo(cache)
        case 'open':
            cache.mkdir()
            cache.chmod(0o777)
