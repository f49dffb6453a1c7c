"""C++ that is built when it is needed, and a cache that loads only whole libraries of the user's own."""

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import timm_snn
from timm_snn.ops import backend
from timm_snn.ops.native import build

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='libraries are built on Linux alone')
needs_compiler = pytest.mark.skipif(build.why_not_here() is not None, reason=str(build.why_not_here()))
needs_root = pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() != 0, reason='only root can give files away')


@pytest.fixture
def new_process(monkeypatch):
    """Nothing is loaded, and 'auto' has not chosen."""
    for state in ('_choices', '_unprepared'):
        monkeypatch.setattr(backend, state, {})
    build.load_cpp.cache_clear()
    yield
    build.load_cpp.cache_clear()


@pytest.fixture
def source(new_process, tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    return tmp_path / 'answer.cpp'


@pytest.fixture
def cache(tmp_path):
    return tmp_path / 'cache' / 'timm_snn'


@pytest.fixture
def builds(monkeypatch):
    run, builds = build._run, []
    monkeypatch.setattr(
        build,
        '_run',
        lambda command, *args, **how: ('-o' in command and builds.append(1)) or run(command, *args, **how),
    )
    return builds


def write(source, answer):
    source.write_text(f'extern "C" int answer() {{ return {answer}; }}\n')
    build.load_cpp.cache_clear()  # as a new process


def libraries(cache):
    """What is in the cache; anything but libraries and the lock is a part that was left."""
    names = sorted(path.name for path in cache.iterdir())
    assert all(name == 'lock' or name.endswith('.so') for name in names), names
    return [cache / name for name in names if name != 'lock']


@needs_compiler
def test_a_library_is_built_once_and_again_when_its_source_changes(source, cache, builds):
    for answer, expected in ((42, 1), (42, 1), (43, 2)):
        write(source, answer)
        assert build.load_cpp(source).answer() == answer
        assert len(builds) == expected
    assert len(libraries(cache)) == 2
    assert cache.stat().st_mode & 0o077 == 0


@needs_compiler
def test_errors_of_the_compiler_are_shown_and_leave_nothing(source, cache):
    source.write_text('int answer() { return nothing; }')
    with pytest.raises(build.CannotBuild, match=r'(?s)answer\.cpp.*nothing'):
        build.load_cpp(source)
    assert libraries(cache) == []


DAMAGE = {
    'torn': lambda path: os.truncate(path, 5000),
    'empty': lambda path: os.truncate(path, 0),
    'zeros': lambda path: path.write_bytes(bytes(path.stat().st_size)),
    'a flipped bit': lambda path: path.write_bytes(bytes([*path.read_bytes()[:-1], path.read_bytes()[-1] ^ 1])),
    'writable by others': lambda path: path.chmod(0o666),
    'a link': lambda path: path.symlink_to(shutil.move(path, path.with_suffix('.other'))),
    'a FIFO': lambda path: (path.unlink(), os.mkfifo(path)),
    'a folder': lambda path: (path.unlink(), path.mkdir()),
}


@needs_compiler
@pytest.mark.parametrize('damage', DAMAGE)
def test_what_is_not_a_whole_library_of_ones_own_is_built_again(damage, source, cache, builds):
    write(source, 42)
    build.load_cpp(source)
    (library,) = libraries(cache)
    DAMAGE[damage](library)
    write(source, 42)
    assert build.load_cpp(source).answer() == 42 and len(builds) == 2
    assert [path for path in cache.iterdir() if path.name != 'lock'] == [library] and library.is_file()


@needs_compiler
@needs_root
def test_nothing_of_another_user_is_loaded(source, cache, builds):
    write(source, 42)
    build.load_cpp(source)
    os.chown(libraries(cache)[0], 12345, 12345)
    write(source, 42)
    assert build.load_cpp(source).answer() == 42 and len(builds) == 2
    os.chown(cache, 12345, 12345)
    write(source, 42)
    with pytest.raises(build.CannotBuild, match='belongs to user 12345, not to you'):
        build.load_cpp(source)


@needs_compiler
def test_a_folder_that_others_may_write_becomes_private(source, cache):
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    write(source, 42)
    assert build.load_cpp(source).answer() == 42
    assert cache.stat().st_mode & 0o777 == 0o700


def test_a_linked_folder_is_refused(source, cache, tmp_path):
    cache.parent.mkdir()
    cache.symlink_to(tmp_path)
    write(source, 42)
    with pytest.raises(build.CannotBuild, match='Set XDG_CACHE_HOME to a folder of your own'):
        build.load_cpp(source)


@needs_compiler
def test_parts_of_a_killed_build_are_removed(source, cache):
    part = cache / 'unfinished-1234'
    part.mkdir(parents=True, mode=0o700)
    (part / 'library.so').write_bytes(bytes(100))
    write(source, 42)
    build.load_cpp(source)
    assert not part.exists() and len(libraries(cache)) == 1


@needs_compiler
def test_a_full_disk_leaves_nothing_and_the_next_call_tries_again(source, cache, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, 'No space left on device')

    write(source, 42)
    with monkeypatch.context() as patch:
        patch.setattr(os, 'fsync', full)
        with pytest.raises(build.CannotBuild, match='No space left on device'):
            build.load_cpp(source)
    assert libraries(cache) == []
    assert build.load_cpp(source).answer() == 42


@needs_compiler
@pytest.mark.parametrize('base', ['', 'relative/cache', './cache'])
def test_a_relative_cache_is_passed_over(base, source, tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', base)
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    monkeypatch.chdir(tmp_path)
    write(source, 42)
    build.load_cpp(source)
    assert libraries(tmp_path / 'home' / '.cache' / 'timm_snn')
    assert not (tmp_path / 'relative').exists() and not (tmp_path / 'cache').exists()


SCRIPTS = {
    'makes nothing': 'case "$*" in *-E*) c++ "$@";; esac',
    'cannot link': 'case "$*" in *-E*) c++ "$@";; *) echo cannot find -lomp >&2; exit 1;; esac',
    'makes rubbish': 'case "$*" in *-E*) c++ "$@";; *) for last; do :; done; echo rubbish >"$last";; esac',
}


@pytest.mark.parametrize(
    ('compiler', 'reason'),
    [
        ('a-compiler-that-is-not-here', 'No such file'),
        ('false', 'failed'),
        ('true', 'does not answer as one'),
        ('echo', 'does not answer as one'),
        *[pytest.param(name, reason, marks=needs_compiler) for name, reason in (
            ('makes nothing', 'made no library'),
            ('cannot link', 'cannot find -lomp'),
            ('makes rubbish', 'cannot keep libraries'),
        )],
    ],
)  # fmt: skip
def test_a_compiler_that_does_not_work_is_a_reason(compiler, reason, source, tmp_path, monkeypatch):
    if compiler in SCRIPTS:
        script = tmp_path / 'compiler'
        script.write_text(f'#!/bin/sh\n{SCRIPTS[compiler]}\n')
        script.chmod(0o755)
        compiler = str(script)
    monkeypatch.setenv('CXX', compiler)
    assert reason in build.why_not_here()
    (line,) = [line for line in timm_snn.backend_report().splitlines() if line.startswith('cpp')]
    assert 'available' not in line
    with pytest.raises(timm_snn.BackendUnavailable, match="'cpp'"):
        timm_snn.lif(torch.ones(2, 3), backend='cpp')
    assert timm_snn.lif(torch.ones(2, 3)).shape == (2, 3)  # 'auto' goes on


def test_a_compiler_that_does_not_end_is_a_reason(source, monkeypatch):
    monkeypatch.setenv('CXX', f'tail -f {os.devnull} --')
    monkeypatch.setattr(build, '_SECONDS', {'-E': 0.01, '-o': 0.01})
    monkeypatch.setattr(build, '_OPTIONS', ())
    assert 'did not end within 0.01 s' in build.why_not_here()


@needs_compiler
def test_the_compiler_may_have_arguments(source, monkeypatch):
    monkeypatch.setenv('CXX', 'env LC_ALL=C c++')
    write(source, 42)
    assert build.load_cpp(source).answer() == 42


@pytest.mark.parametrize('base', ['/proc/nowhere', '/dev/null'])
def test_without_a_place_to_write_it_is_unavailable_and_says_what_to_set(base, new_process, monkeypatch, caplog):
    monkeypatch.setenv('XDG_CACHE_HOME', base)
    for what in (
        lambda: timm_snn.lif(torch.ones(2, 3), backend='cpp'),
        timm_snn.ops.sparse_spikes().__enter__,
    ):
        with pytest.raises(timm_snn.BackendUnavailable, match=f'{base}/timm_snn cannot keep.*Set XDG_CACHE_HOME'):
            what()
    assert timm_snn.backend_report().count('Set XDG_CACHE_HOME') == 2
    for _ in range(2):  # 'auto' goes on
        assert timm_snn.lif(torch.ones(2, 3)).shape == (2, 3)
    (record,) = caplog.records
    assert f'{base}/timm_snn cannot keep' in record.getMessage()


@needs_compiler
def test_who_builds_says_what_happens_and_how_to_go_without(source, cache, monkeypatch, caplog):
    monkeypatch.setitem(build.LIBRARIES, source.name, build.Library((), 'an abacus does without', 15))
    for _ in range(2):
        write(source, 42)
        build.load_cpp(source)
    (record,) = caplog.records
    assert record.levelname == 'WARNING' and '\n' not in record.getMessage()
    for part in (source.name, str(cache), 'about 15 s', 'an abacus does without'):
        assert part in record.getMessage()


@needs_compiler
def test_a_build_is_shown_with_the_time_that_it_usually_takes(source, cache, monkeypatch):
    shown = []

    @contextlib.contextmanager
    def display(what, seconds):
        shown.append((what, seconds))
        yield

    monkeypatch.setitem(build.LIBRARIES, source.name, build.Library((), 'an abacus does without', 15))
    monkeypatch.setattr(build, '_display', display)
    for _ in range(2):
        write(source, 42)
        build.load_cpp(source)
    assert shown == [('building answer.cpp', 15)]


COMPILER_AT_CTRL_C = """#!/bin/sh
case "$*" in
*-E*) echo '#define _OPENMP' ;;
*)
    sleep 600 &
    echo $! > {pid}
    head -c 1000000 /dev/zero  # more than a pipe holds, so that it is read from now on
    kill -INT $PPID
    wait ;;
esac
"""


def test_ctrl_c_ends_the_compiler_and_what_it_has_started_and_leaves_nothing(source, cache, tmp_path, monkeypatch):
    compiler = tmp_path / 'compiler'
    compiler.write_text(COMPILER_AT_CTRL_C.format(pid=tmp_path / 'pid'))
    compiler.chmod(0o700)
    monkeypatch.setenv('CXX', str(compiler))
    write(source, 42)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            build.load_cpp(source)
    finally:
        signal.signal(signal.SIGINT, before)
    assert libraries(cache) == []
    state = Path('/proc', (tmp_path / 'pid').read_text().strip(), 'stat')
    while state.exists() and ') Z ' not in state.read_text():  # killed, and not yet gone
        os.sched_yield()


@needs_compiler
def test_processes_may_build_it_at_once_and_one_does_and_says_so(source, cache):
    write(source, 7)
    code = (
        f'import pathlib, runpy; build = runpy.run_path({build.__file__!r}); '
        'build["LIBRARIES"]["answer.cpp"] = build["LIBRARIES"]["lif.cpp"]; '
        f'print(build["load_cpp"](pathlib.Path({str(source)!r})).answer())'
    )
    pipe = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    started = [subprocess.Popen([sys.executable, '-c', code], **pipe) for _ in range(3)]
    printed, said = zip(*(process.communicate() for process in started), strict=True)
    assert printed == ('7\n', '7\n', '7\n')
    (line,) = ''.join(said).splitlines()
    assert line.startswith('building answer.cpp for this machine')
    assert len(libraries(cache)) == 1


@needs_compiler
def test_paths_may_have_spaces(source, tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'a cache'))
    (tmp_path / 'a checkout').mkdir()
    source = tmp_path / 'a checkout' / 'an answer.cpp'
    (tmp_path / 'a checkout' / 'number.hpp').write_text('const int number = 42;\n')
    source.write_text('#include "number.hpp"\nextern "C" int answer() { return number; }\n')
    assert build.load_cpp(source).answer() == 42


@needs_compiler
def test_a_home_that_cannot_be_written_is_no_reason_not_to_load_what_is_there(source, cache, builds, monkeypatch):
    """As in a container, whose image was made with the libraries and runs read-only."""
    write(source, 42)
    build.load_cpp(source)

    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, 'Read-only file system')

    write(source, 42)
    with monkeypatch.context() as patch:
        for name in ('chmod', 'fchmod', 'unlink', 'rename', 'replace'):
            patch.setattr(os, name, refuse)
        assert build.load_cpp(source).answer() == 42
    assert builds == [1]


@needs_compiler
def test_all_libraries_are_built_ahead(source, cache, tmp_path, monkeypatch):
    write(source, 42)
    monkeypatch.setattr(build, 'LIBRARIES', {source.name: build.Library(('-DX=1',), '', 1)})
    monkeypatch.setattr(build, '__file__', str(tmp_path / 'build.py'))
    build.build_ahead()
    assert len(libraries(cache)) == 1
    monkeypatch.setattr(build, '_build', None)
    build.load_cpp.cache_clear()
    assert build.load_cpp(source, '-DX=1').answer() == 42  # by the name that the first use looks for


@needs_root
def test_root_does_not_build_into_the_home_of_another_user(source, cache):
    cache.parent.mkdir()
    os.chown(cache.parent, 12345, 12345)
    with pytest.raises(build.CannotBuild, match='belongs to user 12345'):
        build.build_ahead()
    assert not cache.exists()
