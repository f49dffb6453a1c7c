"""Trainings that are killed and resumed, which end with the weights and results of one that was not, bit for bit."""

import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from tests.support.kills import killed_at_change
from tests.support.processes import run_script
from tests.support.training import QUICK, TRAIN, assert_same_run

# 2 epochs of 6 updates, with all that has a state, and a checkpoint every other update. 2 epochs change the folder some
# 150 times; half of the kills come before the 40th.
COMMAND = [
    *(TRAIN, *QUICK, '--max-train-samples', '48', '--max-val-samples', '10', '--batch-size', '8', '--workers', '0'),
    *('--checkpoint-steps', '2', '--mixup', '0.2', '--reprob', '0.2', '--drop-path', '0.1', '--model-ema'),
    *('--model-ema-decay', '0.9', '--log-with', 'none', '--resume', 'auto', '--output'),
]
KILLED = (-signal.SIGKILL, -signal.SIGALRM)


@contextmanager
def trials(folder: Path) -> Iterator[Callable[[Random], str]]:
    whole, output = folder / 'whole', folder / 'run'
    run_script([*COMMAND, whole], folder, check=True)

    def trial(random: Random) -> str:
        shutil.rmtree(output, ignore_errors=True)
        kills = 0
        for _ in range(random.randint(1, 4)):
            kills += run(_kill(output, random)) in KILLED
        code = run('')
        assert code == 0, (folder / 'stderr').read_text()[-400:]
        assert_same_run(whole, output)
        return f'resumed after {kills} kills'

    def run(before: str) -> int:
        # a script that hangs ends by itself: nobody would, once this process has been ended for it
        code = run_script([*COMMAND, output], folder, before=f'import signal; signal.alarm(100)\n{before}').returncode
        assert code in (0, *KILLED), f'exit code {code}: {(folder / "stderr").read_text()[-400:]}'
        return code

    yield trial


def _kill(output: Path, random: Random) -> str:
    if random.random() < 0.7:
        return killed_at_change(output, int(10 ** random.uniform(0, 2.2)))
    # Also while C++ or Rust writes. The signal ends the process as SIGKILL does.
    return f'signal.setitimer(signal.ITIMER_REAL, {random.uniform(0.2, 6)})'
