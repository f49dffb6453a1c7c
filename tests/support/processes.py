"""Scripts in processes of their own, without the seconds that their imports take.

A server imports the heavy libraries once for the test session and forks a process for every script. That process has
a pid, a session, signals, an environment and an exit code of its own, like one of `subprocess`. Only what is read from
the environment by an import is that of the tests.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ['Script', 'run_script']

# What the scripts of recipes/, hub/ and benchmarks/ import; pytest is the main module, which a child looks up.
HEAVY = ['pytest', 'torch', 'timm', 'accelerate', 'datasets', 'matplotlib.pyplot', 'sklearn.datasets', 'timm_snn']
HEAVY += ['sklearn.model_selection', 'torch.utils.tensorboard']

_server = multiprocessing.get_context('forkserver')
_server.set_forkserver_preload(HEAVY)


class Script:
    """A running script; `argv` is its path and its arguments, `before` is code to run first.

    What it prints goes to the files `stdout` and `stderr` in `folder`.
    """

    def __init__(
        self, argv: Sequence[object], folder: Path, *, before: str = '', env: Mapping[str, str] | None = None
    ) -> None:
        self.argv = [str(argument) for argument in argv]
        self._printed = [folder / 'stdout', folder / 'stderr']
        for path in self._printed:
            path.write_text('')
        environment = dict(os.environ if env is None else env)
        self._process: Any = _server.Process(target=_main, args=(self.argv, before, environment, *self._printed))
        self._process.start()
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def communicate(self) -> tuple[str, str]:
        """What it has printed when it ends."""
        self._process.join()
        stdout, stderr = (path.read_text() for path in self._printed)
        return stdout, stderr


def run_script(
    argv: Sequence[object],
    folder: Path,
    *,
    before: str = '',
    env: Mapping[str, str] | None = None,
    check: bool = False,
) -> subprocess.CompletedProcess[str]:
    """`subprocess.run` of a script, with captured output; `check` raises CalledProcessError where it fails."""
    script = Script(argv, folder, before=before, env=env)
    stdout, stderr = script.communicate()
    result = subprocess.CompletedProcess(script.argv, script.returncode or 0, stdout, stderr)
    if check and result.returncode:
        sys.stderr.write(stderr)
        result.check_returncode()
    return result


def _main(argv: list[str], before: str, environment: dict[str, str], *printed: Path) -> None:
    os.setsid()
    for path, stream in zip(printed, (1, 2), strict=True):
        os.dup2(os.open(path, os.O_WRONLY), stream)
    os.environ.clear()
    os.environ.update(environment)
    multiprocessing.set_start_method(None, force=True)  # the system's own, for workers that load data
    sys.argv = argv
    sys.path.insert(0, str(Path(argv[0]).parent))
    exec(before, {'__name__': '__main__'})
    runpy.run_path(argv[0], run_name='__main__')
