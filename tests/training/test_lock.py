"""Two runs in one output."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from timm_snn.training import lock
from timm_snn.training.errors import UserError
from timm_snn.training.lock import lock_output

pytestmark = pytest.mark.skipif(sys.platform == 'win32', reason='Windows has no locks of POSIX')


def test_a_second_run_is_refused_until_the_first_is_killed(tmp_path):
    code = (
        'import sys; from pathlib import Path; from timm_snn.training.lock import lock_output; '
        'lock_output(Path(sys.argv[1])); print(flush=True); sys.stdin.read()'
    )
    command = [sys.executable, '-c', code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == '\n'
        with pytest.raises(UserError, match=f'in use by another run, process {first.pid} on {socket.gethostname()}: '):
            lock_output(tmp_path)
        first.send_signal(signal.SIGKILL)
        first.wait()
    lock_output(tmp_path)


def test_a_process_may_make_one_run_after_another(tmp_path):
    lock_output(tmp_path)
    lock_output(tmp_path)
    assert (tmp_path / '.lock').read_text() == f'process {os.getpid()} on {socket.gethostname()}'


def test_a_disk_without_locks_is_said(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(38, 'Function not implemented')

    monkeypatch.setattr(lock.fcntl, 'lockf', refuse)
    lock_output(tmp_path)
    assert 'cannot be locked (Function not implemented)' in caplog.text
