"""recipes/detect.py on pictures of bright and dark squares."""

import csv
import json
import re

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.dense_configs import DENSE_CONFIGS, assert_header_says
from tests.support.scripts import run
from tests.support.training import assert_same_weights
from timm_snn import dense
from timm_snn.training.options import detection_options, detector_options

TINY = ['--backbone', 'msvit_4_96', '--num-steps', '1', '--out-channels', '16', '--img-size', '32', '48']
TINY += ['--batch-size', '4', '--workers', '0', '--num-threads', '1', '--log-with', 'none', '--warmup-epochs', '0']
CLASSES = ['dark', 'bright']


def squares(seed: int) -> tuple[Image.Image, list[list[float]], list[int]]:
    """A grey picture of 48 x 32 with two squares of 12 pixels, one on either half, and their boxes and classes."""
    random = np.random.default_rng(seed)
    pixels = random.integers(110, 140, (32, 48, 3), dtype=np.uint8)
    boxes, labels = [], []
    for left in (0, 24):
        x, y, label = left + random.integers(12), random.integers(20), int(random.integers(2))
        pixels[y : y + 12, x : x + 12] = 255 * label
        boxes.append([float(x), float(y), 12.0, 12.0])
        labels.append(label)
    return Image.fromarray(pixels), boxes, labels


@pytest.fixture(scope='module')
def rows(tmp_path_factory) -> str:
    """Squares as rows with their boxes, 8 to train on and 4 to validate on, of which the last has no boxes."""
    folder = tmp_path_factory.mktemp('rows')
    features = datasets.Features(
        image=datasets.Image(),
        width=datasets.Value('int64'),
        height=datasets.Value('int64'),
        objects=datasets.Sequence(
            {
                'bbox': datasets.Sequence(datasets.Value('float32'), length=4),
                'category': datasets.ClassLabel(names=CLASSES),
            }
        ),
    )
    for split, seeds in (('train', range(8)), ('validation', range(4))):
        table = []
        for seed in seeds:
            image, boxes, labels = squares(seed)
            if split == 'validation' and seed == 3:
                image, boxes, labels = Image.new('RGB', (48, 32), (125, 125, 125)), [], []
            table.append({'image': image, 'width': 48, 'height': 32, 'objects': {'bbox': boxes, 'category': labels}})
        datasets.Dataset.from_list(table, features).to_parquet(folder / f'{split}-00000-of-00001.parquet')
    return f'hfds/{folder}'


def test_a_run_leaves_what_it_says(rows, tmp_path, capsys):
    output = tmp_path / 'out'
    run('recipes/detect.py', *TINY, '--dataset', rows, '--epochs', 1, '--model-ema', '--output', output)
    printed = capsys.readouterr().out
    assert 'msvit_4_96 + fpn + retinanet' in printed and '8 training, 4 validation samples' in printed
    assert 'anchors in pixels: 12 15.1 19 at stride 4, 24 30.2 38.1 at stride 8' in printed
    assert 'mAP50 on 4 samples of validation' in printed
    (row,) = csv.DictReader((output / 'summary.csv').open())
    assert {f'{whose}_{name}' for whose in ('eval', 'ema') for name in ('map', 'map50', 'map75')} <= set(row)
    (result,) = csv.DictReader((output / 'results_row.csv').open())
    assert float(result['map50']) == pytest.approx(float(row['ema_map50']), abs=0.01)
    assert [entry['name'] for entry in csv.DictReader((output / 'per_class.csv').open())] == CLASSES
    with Image.open(output / 'predictions.png') as picture:
        assert picture.format == 'PNG'
    model = dense.load(output / 'model')
    assert (model.label_names, model.num_classes) == (CLASSES, 2)
    with torch.inference_mode():
        found = model([torch.rand(3, 60, 90)])[0]
    assert set(found) == {'boxes', 'labels', 'scores'} and set(found['labels'].tolist()) <= {0, 1}


def test_a_run_of_faster_rcnn_goes_on_exactly(rows, tmp_path):
    """Its choice of boxes to learn from is drawn anew at every update, by torch's random numbers."""
    common = [*TINY, '--dataset', rows, '--detector', 'faster_rcnn', '--epochs', 1, '--max-val-samples', 1]
    run('recipes/detect.py', *common, '--output', tmp_path / 'whole')
    run('recipes/detect.py', *common, '--max-steps', 1, '--output', tmp_path / 'parts')
    run('recipes/detect.py', *common, '--resume', 'auto', '--output', tmp_path / 'parts')
    assert_same_weights(tmp_path / 'whole', tmp_path / 'parts')


def test_anchors_are_as_asked_for(rows, tmp_path, capsys):
    common = [*TINY, '--dataset', rows, '--max-steps', 1, '--epochs', 1, '--output', tmp_path / 'out']
    run('recipes/detect.py', *common, '--anchor-sizes', 10, 12, 20, 24, 40, 48, 80, 96)
    assert (
        'anchors in pixels: 10 12 at stride 4, 20 24 at stride 8, 40 48 at stride 16, 80 96 at stride 32'
        in capsys.readouterr().out
    )
    with pytest.raises(SystemExit, match='6 --anchor-sizes cannot be spread over 4 levels'):
        run('recipes/detect.py', *common, '--anchor-sizes', 10, 12, 20, 24, 40, 48)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--img-size', 48, 32], 'the shorter side first'),
        (['--scale', 1.2, 0.8], 'the smaller factor first'),
        (['--num-classes', 3], '2 classes, and --num-classes says 3'),
        (['--backbone', 'test_resnet'], 'has no neurons and no time: leave out num_steps'),
        (['--detector', 'yolo'], "unknown detector 'yolo'"),
        (['--dataset', 'digits'], "expected hfds/... or ''"),
        (['--data-dir', 'nowhere', '--dataset', ''], 'there is no folder nowhere'),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(rows, tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=re.escape(message)):
        run('recipes/detect.py', *TINY, '--dataset', rows, '--output', tmp_path / 'out', *arguments)


def test_a_saved_detector_draws_and_writes_boxes_in_pixels_of_the_picture(tmp_path, capsys):
    """Its scores are made high, so that there is something to draw."""
    model = dense.create_detector('test_resnet', 2, out_channels=8, min_size=32, max_size=48)
    torch.nn.init.constant_(model.network.head.classification_head.cls_logits.bias, 2.0)
    dense.save(model, tmp_path / 'model', class_names=CLASSES)
    squares(0)[0].resize((480, 320)).save(tmp_path / 'large.png')
    squares(1)[0].save(tmp_path / 'small.png')
    (tmp_path / 'broken.png').write_bytes(b'none')
    files = [tmp_path / name for name in ('large.png', 'small.png', 'broken.png')]
    common = ['--model', f'local-dir:{tmp_path / "model"}', *files, '--output', tmp_path / 'found']
    with pytest.raises(SystemExit, match='1 of 3 pictures cannot be read'):
        run('recipes/predict.py', *common)
    assert 'boxes with a score of at least 0.3' in capsys.readouterr().out
    large, small, broken = json.loads((tmp_path / 'found' / 'predictions.json').read_text())
    assert 'error' in broken
    for record, size in ((large, (480, 320)), (small, (48, 32))):
        corners = torch.tensor([found['box'] for found in record['objects']])
        assert (corners >= 0).all() and corners.reshape(-1, 2).amax(0).tolist() == pytest.approx(size, rel=0.05)
        assert {found['name'] for found in record['objects']} <= set(CLASSES)
        with Image.open(record['boxes']) as drawn:
            assert drawn.size == size
    with pytest.raises(SystemExit, match='leave out --img-size'):
        run('recipes/predict.py', *common, '--img-size', 64)


@pytest.mark.parametrize('name', [path.stem for path in DENSE_CONFIGS.glob('bccd*.yaml')])
def test_a_config_is_what_its_header_says(name):
    args = detection_options(['--config', str(DENSE_CONFIGS / f'{name}.yaml')])
    model = dense.create_detector(args.backbone, 3, **detector_options(args) | {'pretrained': False})
    assert_header_says(name, args.output, model)
