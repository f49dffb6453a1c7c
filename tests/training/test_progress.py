"""What a run has done, across epochs, stops and versions."""

import math

from timm_snn.training.progress import Progress, write_summary
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
