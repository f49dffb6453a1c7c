"""recipes/detect.py on pictures of bright and dark squares."""

import csv
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.scripts import run
from tests.support.training import assert_same_weights
from timm_snn import dense

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


def test_squares_are_found(rows, tmp_path, capsys):
    """The whole way: learn, save, and find the squares with the saved model."""
    output = tmp_path / 'out'
    run('recipes/detect.py', *TINY, '--dataset', rows, '--epochs', 60, '--lr', '3e-3', '--scale', 1, 1, '--output', output)
    printed = capsys.readouterr().out
    assert 'anchors in pixels: 12' in printed and 'mAP50 on 4 samples of validation' in printed
    (row,) = csv.DictReader((output / 'results_row.csv').open())
    *_, last = csv.DictReader((output / 'summary.csv').open())
    assert float(row['map50']) == pytest.approx(float(last['eval_map50']), abs=0.01)
    assert float(row['map50']) > 60, printed
    by_class = list(csv.DictReader((output / 'per_class.csv').open()))
    assert [entry['name'] for entry in by_class] == CLASSES
    with Image.open(output / 'predictions.png') as picture:
        assert picture.format == 'PNG'
    model = dense.load(output / 'model')
    assert model.label_names == CLASSES
    image, boxes, labels = squares(0)
    with torch.inference_mode():
        found = model([torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255])[0]
    best = found['boxes'][found['labels'] == labels[0]][0]
    x, y, width, height = boxes[0] if len(set(labels)) == 2 else best.tolist()
    assert (best - torch.tensor([x, y, x + width, y + height])).abs().max() < 6
