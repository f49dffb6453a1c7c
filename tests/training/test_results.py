"""Rows for hub/results.csv."""

import csv
import math
import subprocess
from pathlib import Path

import pytest
import torch

from timm_snn.training.options import as_config, training_options
from timm_snn.training.results import COLUMNS, commit_of, dataset_name, results_row

ROOT = Path(__file__).parents[2]


def row_of(argv: list[str], flop: float = 3e9, precision: str = 'no') -> dict[str, str]:
    summary = {'epoch': 2, 'train_seconds': 90.0, 'train_flop': flop}
    facts = dict(score=98.765, summary=summary, processes=2, clone=Path('nowhere'), device=torch.device('cpu'))
    facts |= dict(is_tested=False, precision=precision)
    return results_row(as_config(training_options(argv)), argv, **facts)


def test_a_row_has_the_columns_of_the_file_and_says_how_it_was_made():
    with open(ROOT / 'hub' / 'results.csv', newline='') as file:
        assert tuple(csv.DictReader(file).fieldnames or ()) == COLUMNS
    row = row_of(['--dataset', 'digits', '--fold', '2/5', '--seed', '7', '--output', '/home/me/run', '--epochs', '3'])
    assert tuple(row) == COLUMNS
    assert (row['split'], row['split_kind'], row['top1']) == ('fold 2/5 of all samples', 'folds', '98.77')
    assert row['command'] == 'accelerate launch recipes/train.py --dataset digits --fold 2/5 --seed 7 --epochs 3'
    assert (
        (row['minutes'], row['epochs'], float(row['flop'])) == ('1.5', '3', 3e9)
        and row['hardware'].endswith('CPU cores')
        and row['commit'] == ''
    )


def test_the_hardware_names_another_precision_which_a_config_may_leave_to_the_machine():
    assert row_of([], precision='bf16')['hardware'].endswith('CPU cores, bf16')


def test_what_an_earlier_version_did_not_count_is_left_empty():
    assert row_of([], flop=math.nan)['flop'] == ''


def test_the_commit_is_that_of_a_clone(tmp_path):
    assert commit_of(tmp_path) == ''
    git = ['git', '-C', str(tmp_path), '-c', 'user.name=a', '-c', 'user.email=a@b']
    (tmp_path / 'file').write_text('a')
    for command in (['init', '-q'], ['add', 'file'], ['commit', '-qm', 'first']):
        subprocess.run([*git, *command], check=True)
    commit = commit_of(tmp_path)
    assert len(commit) >= 7 and int(commit, 16) >= 0
    (tmp_path / 'file').write_text('b')
    assert commit_of(tmp_path) == f'{commit}-dirty'


@pytest.mark.parametrize(
    ('dataset', 'folder', 'name'),
    [
        ('torch/fashion_mnist', None, 'fashion_mnist'),
        ('hfds/uoft-cs/cifar10', None, 'uoft-cs/cifar10'),
        ('hfds//home/me/cifar10_jpeg', None, 'cifar10_jpeg'),
        ('', '/home/me/flowers', 'flowers'),
        ('event_folder', '/home/me/gestures', 'gestures'),
    ],
)
def test_data_are_named_without_the_folders_above_them(dataset, folder, name):
    assert dataset_name({'dataset': dataset, 'data_dir': folder}) == name
