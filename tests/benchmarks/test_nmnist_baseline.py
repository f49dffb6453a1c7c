"""The baseline of N-MNIST-small tells digits apart where they can be, and no better than chance where they cannot."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest

from tests.support import writers
from timm_snn.data import Events

pytest.importorskip('sklearn')
SCRIPT = str(Path(__file__).parents[2] / 'benchmarks' / 'nmnist_baseline.py')


@pytest.fixture
def main():
    return runpy.run_path(SCRIPT)['main']


def write(root: Path, row_of_digit: dict[int, int], number: int = 12) -> list[str]:
    """`number` recordings of each digit, a third of them for testing, with events in one row."""
    rng = np.random.default_rng(0)
    for digit, row in row_of_digit.items():
        for i in range(number):
            file = root / ('Test' if i % 3 == 0 else 'Train') / str(digit) / f'{i:05d}.bin'
            file.parent.mkdir(parents=True, exist_ok=True)
            t, x, p = np.sort(rng.integers(0, 9000, 60)), rng.integers(0, 34, 60), rng.integers(0, 2, 60)
            writers.nmnist(file, Events(t, x.astype(np.int16), np.full(60, row, np.int16), p.astype(np.uint8)))
    return [str(root)]


def test_digits_that_differ_are_told_apart(main, tmp_path, capsys):
    main(write(tmp_path, {0: 3, 4: 9, 7: 30}))
    out = capsys.readouterr().out
    assert re.findall(r'fold \d: (\S+) % of (\d+) after training on (\d+)', out) == [
        ('100.00', *sizes) for sizes in (('8', '28'), *[('7', '29')] * 4)
    ]
    assert 'mean: 100.00 % over 36 recordings, 5 bins by time' in out


def test_digits_that_do_not_differ_are_guessed(main, tmp_path, capsys):
    main([*write(tmp_path, {1: 5, 2: 5}), '--num-steps', '2', '--split-by', 'number', '--folds', '3'])
    mean = re.search(r'mean: (\S+) % over 24 recordings, 2 bins by number', capsys.readouterr().out)
    assert mean and 20 < float(mean[1]) < 80


def test_folders_without_enough_recordings_are_refused(main, tmp_path):
    with pytest.raises(SystemExit, match='error: there are no Train'):
        main([str(tmp_path)])
    with pytest.raises(SystemExit, match='error: no digit has a recording for each of 5 folds'):
        main(write(tmp_path, {1: 5, 2: 5}, number=4))
