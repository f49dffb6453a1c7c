"""recipes/tradeoff.py as users run it."""

import csv
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models import save_for_hf

from tests.conftest import lively
from tests.support.scripts import load, run
from timm_snn.models import save_for_hf as save


@pytest.fixture
def models(tmp_path) -> list[str]:
    """A model whose neurons fire, and an artificial twin."""
    torch.manual_seed(0)
    save_for_hf(lively(timm.create_model('msvit_4_96')), tmp_path / 'spiking', safe_serialization=True)
    save(timm.create_model('msvit_4_96', act='relu'), tmp_path / 'twin')
    return [f'local-dir:{tmp_path / name}' for name in ('spiking', 'twin')]


def rows_in(output: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((output / 'tradeoff.csv').open()))


def test_a_table_and_a_picture_of_a_model_and_its_twin_go_on_where_they_stopped(models, tmp_path, capsys):
    spiking, twin = models
    always = [spiking, '--dataset', 'digits', '--max-val-samples', 6, '--num-threads', 1, '--output', tmp_path / 'out']
    run('recipes/tradeoff.py', *always, '--steps', 2)
    (first,) = rows_in(tmp_path / 'out')
    assert (first['network'], first['T'], first['data']) == (
        'spiking',
        '2',
        'digits, validation split, 6 of 360, evenly spread',
    )
    run('recipes/tradeoff.py', *always, '--steps', 1, 2, '--twin', twin)
    assert 'spiking, T = 2: top-1' in capsys.readouterr().out
    rows = {(row['network'], row['T']): row for row in rows_in(tmp_path / 'out')}
    assert list(rows) == [('spiking', '2'), ('spiking', '1'), ('twin', '1')] and rows['spiking', '2'] == first
    assert float(rows['spiking', '2']['mj_a']) > float(rows['spiking', '1']['mj_a']) > 0
    assert rows['twin', '1']['mj_a'] == '' and rows['twin', '1']['mj_dense'] == first['mj_dense']
    assert (tmp_path / 'out' / 'tradeoff.png').stat().st_size > 1000

    run('recipes/tradeoff.py', *always, '--steps', 1, '--batch-size', 2, '--time')
    timed = {(row['network'], row['T']): row for row in rows_in(tmp_path / 'out')}
    assert float(timed['spiking', '1']['images_per_s']) > 0 and timed['spiking', '2'] == first
    assert timed['spiking', '1']['hardware'].startswith('1 thread of ')


@pytest.fixture
def copy_of_cifar10(tmp_path) -> list:
    """Options of two images with the columns and a split that the config of msvit_3_192.cifar10 names."""
    datasets = pytest.importorskip('datasets')
    images = [Image.fromarray(np.full((32, 32, 3), value, np.uint8)) for value in (0, 200)]
    datasets.Dataset.from_dict({'img': images, 'label': [3, 7]}).to_parquet(tmp_path / 'copy' / 'test-0.parquet')
    return ['--dataset', f'hfds/{tmp_path / "copy"}', '--data-dir', tmp_path / 'cache', '--num-threads', 1]


def test_a_copy_of_the_data_of_a_tag_has_its_columns_and_its_split(copy_of_cifar10, tmp_path):
    run('recipes/tradeoff.py', 'msvit_3_192.cifar10', *copy_of_cifar10, '--steps', 1, '--output', tmp_path / 'out')
    (row,) = rows_in(tmp_path / 'out')
    assert row['data'].endswith('copy, test split, all 2')
    run('recipes/report.py', 'msvit_3_192.cifar10', *copy_of_cifar10, '--output', tmp_path / 'report')
    assert 'test split, all 2' in (tmp_path / 'report' / 'report.json').read_text()


def test_columns_that_are_named_are_looked_for(copy_of_cifar10, tmp_path):
    for script in ('recipes/tradeoff.py', 'recipes/report.py'):
        with pytest.raises(SystemExit, match="no column 'picture' but img, label"):
            run(script, 'msvit_3_192.cifar10', *copy_of_cifar10, '--input-key', 'picture', '--output', tmp_path / 'out')
        with pytest.raises(SystemExit, match='--input-key: it needs a data set of Hugging Face'):
            run(script, 'msvit_4_96.digits', '--input-key', 'img', '--output', tmp_path / 'out')


def test_a_row_of_other_samples_is_measured_again(models, tmp_path):
    always = [models[0], '--dataset', 'digits', '--steps', 1, '--output', tmp_path]
    for number in (3, 4):
        run('recipes/tradeoff.py', *always, '--max-val-samples', number)
        (row,) = rows_in(tmp_path)
        assert f' {number} of 360' in row['data']


def test_frames_of_recordings_are_made_anew_for_every_t(tmp_path):
    always = ['--max-val-samples', 2, '--steps', 2, 3, '--output', tmp_path]
    run('recipes/tradeoff.py', 'msvit_4_96.event_digits', *always)
    assert [row['T'] for row in rows_in(tmp_path)] == ['2', '3']
    assert float(rows_in(tmp_path)[1]['mj_a']) > float(rows_in(tmp_path)[0]['mj_a'])


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['local-dir:nowhere'], 'local-dir:nowhere has no tag that names a config: pass --dataset'),
        (['msvit_4_96.digits', '--twin', 'a', 'b'], 'argument --twin: 2 for 1 models'),
        (['msvit_4_96.digits', '--steps', '1', '--time'], 'has no row in .*: measure its accuracy first'),
        (['msvit_4_96.digits', '--steps', '1', '--max-val-samples', '1', '--twin', 'msvit_4_96.digits'], 'is no twin'),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        run('recipes/tradeoff.py', *arguments, '--output', tmp_path)


def test_the_columns_are_those_of_the_table_in_the_documentation():
    with open(Path(__file__).parents[2] / 'hub' / 'tradeoff' / 'tradeoff.csv', newline='') as file:
        assert tuple(csv.DictReader(file).fieldnames or ()) == load('recipes/tradeoff.py').COLUMNS
