"""recipes/segment.py as users run it: on tables and on folders, from training to masks that are predicted."""

import csv
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import timm_snn
from tests.support.dense_configs import DENSE_CONFIGS, assert_header_says
from tests.support.scripts import run
from tests.support.streets import street, write_street
from timm_snn import dense
from timm_snn.training.options import segmentation_options, segmenter_options

TINY = ['--backbone', 'msvit_4_96', '--num-steps', 1, '--class-names', 'ground', 'box', '--ignore-index', 2]
TINY += ['--model-kwargs', 'embed_dims=(8,16,16)', 'num_heads=2', '--decoder-channels', 8, 8]
TINY += ['--crop-size', 16, 16, '--batch-size', 4, '--workers', 0, '--num-threads', 1, '--log-with', 'none']


@pytest.fixture(scope='module')
def table(tmp_path_factory) -> Path:
    """Parquet files of three splits."""
    root = tmp_path_factory.mktemp('table')
    for split, numbers in (('train', range(8)), ('validation', range(8, 11)), ('test', range(11, 13))):
        rows = [dict(zip(('image', 'annotation'), street(number), strict=True)) for number in numbers]
        datasets.Dataset.from_list(rows).to_parquet(root / f'{split}-00000-of-00001.parquet')
    return root


@pytest.fixture
def segment(table, tmp_path, capsys):
    """Train on the table in this process; returns what was printed."""

    def run_it(*arguments: object) -> str:
        cache = table.with_name(f'{table.name}_cache')
        data = ['--dataset', f'hfds/{table}', '--data-dir', cache, '--output', tmp_path / 'out']
        run('recipes/segment.py', *TINY, *data, *arguments)
        return capsys.readouterr().out

    return run_it


def test_a_saved_model_has_the_mean_iou_that_was_reported(segment, table, tmp_path):
    """At the size of the masks, though the model sees pictures of half of it."""
    told = json.loads(
        segment('--epochs', 2, '--img-size', 12, 16, '--crop-size', 12, 12, '--test-split', 'test', '--json')
    )
    output = tmp_path / 'out'
    model = dense.load(output / 'model')
    assert model.label_names == ['ground', 'box'] and tuple(model.pretrained_cfg['input_size']) == (3, 12, 16)
    mean, std = (np.array(model.pretrained_cfg[key]) for key in ('mean', 'std'))
    crossed = np.zeros((2, 2))
    for number in (11, 12):
        picture, mask = street(number)
        small = torch.nn.functional.interpolate(
            torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float(),
            (12, 16),
            mode='bilinear',
            antialias=True,
        )
        image = (small.round() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        with torch.inference_mode():
            logits = torch.nn.functional.interpolate(model(image.float()), (24, 32), mode='bilinear')
        truth, found = np.array(mask), logits[0].argmax(0).numpy()
        np.add.at(crossed, (truth[truth < 2], found[truth < 2]), 1)
    with np.errstate(invalid='ignore'):
        ious = crossed.diagonal() / (crossed.sum(0) + crossed.sum(1) - crossed.diagonal())
    assert told['mean_iou'] == pytest.approx(100 * np.nanmean(ious), abs=0.5)
    assert json.loads((output / 'test.json').read_text())['samples'] == 2
    rows = list(csv.DictReader((output / 'per_class.csv').open()))
    assert [row['name'] for row in rows] == ['ground', 'box']
    with Image.open(output / 'predictions.png') as picture:
        assert picture.format == 'PNG' and min(picture.size) > 300
    (row,) = csv.DictReader((output / 'results_row.csv').open())
    assert row['model'] == 'msvit_4_96 + spiking_unet' and float(row['mean_iou']) == round(told['mean_iou'], 2)
    macs = timm_snn.profile(model, torch.zeros(1, 3, 12, 12), progress=False).total.dense_macs
    assert float(row['flop']) == pytest.approx(3 * 2 * macs * 2 * 8, rel=0.01)  # two epochs of 8 pictures


def test_a_run_on_files_starts_from_the_weights_of_another(tmp_path, capsys):
    for split, numbers in (('training', range(4)), ('val', range(4, 6))):
        write_street(tmp_path / split, numbers, 'images', 'masks')
    once = ['--data-dir', tmp_path, '--max-steps', 1, '--decoder', 'spiking_fpn', '--decoder-channels', 8]
    run('recipes/segment.py', *TINY, *once, '--output', tmp_path / 'one')
    assert '4 training, 2 validation samples' in capsys.readouterr().out
    file = tmp_path / 'one' / 'checkpoints' / 'epoch_0001' / 'model.safetensors'
    stay = ['--checkpoint', file, '--lr', 0, '--warmup-lr', 0, '--min-lr', 0, '--output', tmp_path / 'two']
    run('recipes/segment.py', *TINY, *once, *stay)
    before, after = (load_file(tmp_path / name / 'model' / 'model.safetensors') for name in ('one', 'two'))
    learned = [name for name in before if name.endswith('weight')]
    assert learned and all(torch.equal(before[name], after[name]) for name in learned)


def test_data_that_cannot_be_right_are_refused_in_one_line(segment, tmp_path):
    write_street(tmp_path / 'train', range(4), 'images', 'masks')
    write_street(tmp_path / 'validation', range(2), 'images', 'masks')
    folder = ['--dataset', '', '--data-dir', tmp_path, '--epochs', 1]

    def refused(*arguments, match):
        with pytest.raises(SystemExit, match=match) as stop:
            segment(*arguments)
        assert '\n' not in str(stop.value)

    refused(
        *folder, '--ignore-index', 255, match=r'label 2 in the mask of .*0.jpg: expected 0 to 1, of the 2 classes, or'
    )
    refused(
        *folder, '--ignore-index', 255, '--no-data-in-memory', '--max-val-samples', 1, match='label 2 in the mask of'
    )
    refused('--target-key', 'mask', match="no column 'mask' but image, annotation")
    refused(*folder, '--val-split', 'holiday', match='expected holiday/images/ and holiday/masks/')
    refused('--decoder', 'mask_former', match='unknown decoder')
    refused('--no-crop-size', match='unrecognized arguments')
    (tmp_path / 'train' / 'masks' / '3.png').unlink()
    refused(*folder, match='1 of 4 pictures in .* have no mask of the same name')
    street(0)[0].save(tmp_path / 'train' / 'masks' / '3.png')
    refused(*folder, match=r'3.jpg is unreadable, ValueError: its mask has colours \(mode RGB\)')
    with pytest.raises(SystemExit, match='masks have numbers and no names'):
        run('recipes/segment.py', *folder)
    with pytest.raises(SystemExit, match='argument --scale: it needs --crop-size'):
        run('recipes/segment.py', *folder, '--scale', 1, 2)


def test_pictures_of_several_sizes_need_a_size(tmp_path):
    write_street(tmp_path / 'train', range(4), 'images', 'masks')
    write_street(tmp_path / 'validation', range(2), 'images', 'masks')
    for split in ('train', 'validation'):
        for kind, suffix in (('images', 'jpg'), ('masks', 'png')):
            file = tmp_path / split / kind / f'1.{suffix}'
            with Image.open(file) as picture:
                picture.resize((20, 24), Image.Resampling.NEAREST).save(file)
    tiny = [word for word in TINY if word not in ('--crop-size', 16)]
    folder = ['--data-dir', tmp_path, '--epochs', 1, '--output', tmp_path / 'out', '--overwrite']
    with pytest.raises(SystemExit, match='of several sizes: pass --crop-size H W, or --img-size H W'):
        run('recipes/segment.py', *tiny, *folder)
    run('recipes/segment.py', *TINY, *folder)  # of which those to validate on are shown one by one


def test_predict_writes_masks_of_the_size_of_the_pictures(segment, tmp_path, capsys):
    segment('--max-steps', 1)
    for folder in ('one', 'two'):
        (tmp_path / folder).mkdir()
        street(20)[0].resize((64, 48)).save(tmp_path / folder / 'street.png')
    (tmp_path / 'two' / 'torn.png').write_bytes(b'torn')
    model = ['--model', f'local-dir:{tmp_path / "out" / "model"}']
    predict = [*model, tmp_path / 'one', tmp_path / 'two', '--output', tmp_path / 'masks']
    with pytest.raises(SystemExit, match='1 of 3 pictures cannot be read'):
        run('recipes/predict.py', *predict, '--json')
    first, second, torn = json.loads(capsys.readouterr().out)
    assert first['classes'] == second['classes'] and 'error' in torn
    assert [Path(record['mask']).name for record in (first, second)] == ['street_mask.png', 'street_2_mask.png']
    with Image.open(first['mask']) as mask, Image.open(first['overlay']) as overlay:
        assert mask.size == overlay.size == (64, 48) and mask.mode == 'P'
        shares = np.bincount(np.array(mask).ravel(), minlength=2) / (64 * 48)
    assert {found['name']: found['share'] for found in first['classes']} == {
        name: share for name, share in zip(('ground', 'box'), shares.tolist(), strict=True) if share
    }
    with pytest.raises(SystemExit, match='argument --output: expected a folder'):
        run('recipes/predict.py', *model, tmp_path / 'one')


@pytest.mark.parametrize('name', [path.stem for path in DENSE_CONFIGS.glob('camvid*.yaml')])
def test_a_config_is_what_its_header_says(name):
    args = segmentation_options(['--config', str(DENSE_CONFIGS / f'{name}.yaml')])
    model = dense.create_segmenter(
        args.backbone, len(args.class_names), **segmenter_options(args) | {'pretrained': False}
    )
    assert_header_says(name, args.output, model)
