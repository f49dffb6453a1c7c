"""Bars on a terminal, lines in a log, nothing where nobody looks."""

import io
import os
import sys
from contextlib import redirect_stderr

import pytest

from timm_snn import progress
from timm_snn.progress import bar, quietly, track, waiting, write_line


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def at_once(monkeypatch):
    """No test waits until a log shows something."""
    for name in ('_LOG_AFTER', '_LOG_EVERY', '_SHOW_AFTER'):
        monkeypatch.setattr(progress, name, 0)


def test_a_terminal_has_a_bar_that_is_gone_in_the_end():
    with redirect_stderr(Terminal()) as terminal:
        assert list(track('abc', 'reading', unit='letters')) == ['a', 'b', 'c']
    shown = terminal.getvalue()
    assert 'reading:   0%' in shown and '\n' not in shown
    assert shown.endswith('\r') and not shown.rstrip('\r').rpartition('\r')[2].strip()


def test_a_log_has_a_line_for_each_tenth(at_once):
    with redirect_stderr(io.StringIO()) as log:
        list(track(range(1000), 'reading', unit='files'))
    lines = log.getvalue().splitlines()
    assert 10 <= len(lines) <= 12 and '\r' not in log.getvalue()
    assert any(line.startswith('reading: 50 % (500 of 1000 files), ') and line.endswith(' left') for line in lines)


def test_a_log_has_no_line_of_what_is_done_in_ten_seconds():
    with redirect_stderr(io.StringIO()) as log:
        list(track(range(1000), 'reading'))
        with waiting('building', 15):
            pass
    assert log.getvalue() == ''


def test_what_cannot_be_counted_says_how_far_it_is(at_once):
    with redirect_stderr(io.StringIO()) as log:
        list(track(iter('abc'), 'reading', unit='letters'))
    assert any(line.startswith('reading: 3 letters, ') for line in log.getvalue().splitlines())


@pytest.mark.parametrize('stream', [Terminal, io.StringIO])
def test_waiting_says_what_for_and_how_long_it_usually_takes(stream, at_once, monkeypatch):
    shown = progress.threading.Event()
    refresh = progress.tqdm.refresh
    monkeypatch.setattr(progress.tqdm, 'refresh', lambda self, *a, **k: (refresh(self, *a, **k), shown.set())[0])
    with redirect_stderr(stream()) as stderr, waiting('building lif.cpp', 15):
        assert shown.wait(60)
    assert 'building lif.cpp: 00:00 of usually about 15 s' in stderr.getvalue()


@pytest.mark.parametrize('hide', ['quietly', 'not the main process', 'not shown'])
def test_nothing_is_shown_where_nobody_looks(hide, at_once, monkeypatch):
    if hide == 'not the main process':
        monkeypatch.setenv('RANK', '1')
    with redirect_stderr(Terminal()) as terminal, quietly(hide == 'quietly'):
        assert list(track('abc', 'reading', shown=hide != 'not shown')) == ['a', 'b', 'c']
        if hide != 'not shown':
            with waiting('building'):
                pass
    assert terminal.getvalue() == ''


def test_a_line_does_not_tear_a_bar():
    with redirect_stderr(Terminal()) as terminal, bar('reading', 3):
        write_line('note: look', sys.stderr)
    above, below = terminal.getvalue().split('\n')
    assert above.rpartition('\r')[2] == 'note: look'  # the bar is wiped before it
    assert 'reading' in below


def test_a_forked_process_leaves_the_bars_alone(monkeypatch):
    with redirect_stderr(Terminal()) as terminal, bar('reading', 3):
        shown = len(terminal.getvalue())
        monkeypatch.setattr(progress, '_with_bars', os.getpid() + 1)
        write_line('note: look', sys.stderr)
        assert terminal.getvalue()[shown:] == 'note: look\n'


def test_an_error_ends_the_bar():
    with redirect_stderr(Terminal()), pytest.raises(ValueError, match='torn'), bar('reading', 3) as shows:
        raise ValueError('torn')
    assert shows not in progress.tqdm._instances
