"""C++ that is built when it is needed."""

import subprocess
import sys

import pytest

from timm_snn.ops.native import build

needs_compiler = pytest.mark.skipif(build.why_no_compiler() is not None, reason=str(build.why_no_compiler()))


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    build.load_cpp.cache_clear()
    yield tmp_path / 'answer.cpp'
    build.load_cpp.cache_clear()


@pytest.fixture
def commands(monkeypatch):
    run = build._run
    commands = []
    monkeypatch.setattr(build, '_run', lambda command: commands.append(command) or run(command))
    return commands


def write(source, answer):
    source.write_text(f'extern "C" int answer() {{ return {answer}; }}\n')
    build.load_cpp.cache_clear()  # as a new process


@needs_compiler
def test_a_library_is_built_once_and_again_when_its_source_changes(source, commands):
    for answer, builds in ((42, 1), (42, 1), (43, 2)):
        write(source, answer)
        assert build.load_cpp(source).answer() == answer
        assert sum('-o' in command for command in commands) == builds
    assert len(list((source.parent / 'cache' / 'timm_snn').iterdir())) == 2  # nothing unfinished is left


@needs_compiler
def test_errors_of_the_compiler_are_shown_and_leave_nothing(source):
    source.write_text('int answer() { return nothing; }')
    with pytest.raises(RuntimeError, match=r'(?s)answer\.cpp.*nothing'):
        build.load_cpp(source)
    assert not list((source.parent / 'cache' / 'timm_snn').iterdir())


@pytest.mark.parametrize('compiler', ['a-compiler-that-is-not-here', 'false'])
def test_a_compiler_that_does_not_work_is_a_reason(compiler, monkeypatch):
    monkeypatch.setenv('CXX', compiler)
    monkeypatch.setattr(build.platform, 'system', lambda: 'Linux')
    build.why_no_compiler.cache_clear()
    try:
        assert 'as c++ or as $CXX: ' in build.why_no_compiler() and compiler in build.why_no_compiler()
    finally:
        build.why_no_compiler.cache_clear()


@needs_compiler
def test_processes_may_build_it_at_once(source):
    write(source, 7)
    code = (
        'from pathlib import Path; from timm_snn.ops.native.build import load_cpp; '
        f'print(load_cpp(Path({str(source)!r})).answer())'
    )
    started = [subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in started] == ['7', '7']
