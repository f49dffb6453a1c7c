"""What a run has done, across epochs, stops and versions."""

import math
import signal

import pytest

from timm_snn.training import progress as run_progress
from timm_snn.training.progress import Progress, StopSignal, write_summary
from timm_snn.training.tables import read_csv


def test_totals_go_on_from_the_epoch_before():
    progress = Progress()
    for images, seconds, flop in ((100, 2.0, 1e9), (100, 8.0, 4e9)):
        progress.seen, progress.seconds = images, seconds
        progress.finish_epoch(progress.totals(flop))
    assert progress.history[1] == {'images_seen': 200, 'train_seconds': 10.0, 'train_flop': 5e11}
    assert progress.totals(4e9) == progress.history[1]


def test_a_run_of_an_earlier_version_has_no_totals_and_keeps_its_table(tmp_path):
    rows = {'epoch': 0, 'train_loss': 2.0, 'train_top1': 10.0, 'eval_loss': 2.0, 'eval_top1': 11.0}
    progress = Progress(history=[rows], seen=100, seconds=2.0)
    totals = progress.totals(1e9)
    assert all(map(math.isnan, totals.values()))
    progress.finish_epoch({**rows, 'epoch': 1, **totals})
    write_summary(progress.history, tmp_path)
    first, second = read_csv(tmp_path / 'summary.csv')
    assert first['images_seen'] == '' and second['images_seen'] == 'nan' and second['epoch'] == '1'


@pytest.fixture
def stop():
    """Signals and their handlers are those of this test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield StopSignal()
    for number, handler in before.items():
        signal.signal(number, handler)


def test_ctrl_c_is_noted_once_where_it_is_asked_for(stop, capfd):
    seen = []

    def train():
        with stop.noting_ctrl_c():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)  # the same keystroke, passed on by a launcher
            seen.append(stop.came)

    with pytest.raises(KeyboardInterrupt):  # since nobody asked for it
        train()
    assert seen == [True] and capfd.readouterr().err.count('stops after this update') == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_does_not_wait(stop, monkeypatch):
    monkeypatch.setattr(run_progress, '_ONE_KEYSTROKE', 0)
    after = []

    def train():
        with stop.noting_ctrl_c():
            for which in ('the first', 'the second'):
                signal.raise_signal(signal.SIGINT)
                after.append(which)

    with pytest.raises(KeyboardInterrupt):
        train()
    assert after == ['the first']


def test_ctrl_c_that_a_shell_keeps_from_what_runs_in_its_background_stays_so(stop):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stop.noting_ctrl_c():
        signal.raise_signal(signal.SIGINT)
    assert not stop.came
