"""Images with boxes, from rows of Hugging Face data sets and from folders in COCO's format."""

import json
import logging
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from timm_snn.training.detection_data import open_boxes
from timm_snn.training.errors import UserError

BOX = [2.0, 3.0, 10.0, 5.0]
CLASSES = ['cell', 'platelet']


def picture(width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(np.full((height, width, 3), 90, dtype=np.uint8))


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """Write images with these objects as the split 'train', and return where they are."""
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path / 'cache')

    def write(objects: list[Any], category: Any = None, **columns: list[Any]) -> tuple[str, Path | None]:
        category = category or datasets.ClassLabel(names=CLASSES)
        features = {
            'image': datasets.Image(),
            'objects': {
                'bbox': datasets.Sequence(datasets.Sequence(datasets.Value('float32'))),
                'category': datasets.Sequence(category),
            },
            **{name: datasets.Value('int64') for name in columns},
        }
        table = {'image': [picture() for _ in objects], 'objects': objects, **columns}
        folder = tmp_path / 'rows'
        folder.mkdir()
        datasets.Dataset.from_dict(table, datasets.Features(features)).to_parquet(
            folder / 'train-00000-of-00001.parquet'
        )
        return f'hfds/{folder}', None

    return write


@pytest.fixture
def coco(tmp_path):
    """Write images with these annotations in COCO's layout, and return where they are."""

    def write(
        annotations: list[dict], file: str = 'annotations/instances_train.json', images: str = 'train'
    ) -> tuple[str, Path | None]:
        root = tmp_path / 'coco'
        (root / file).parent.mkdir(parents=True)
        (root / images).mkdir(parents=True, exist_ok=True)
        entries = []
        for number in (1, 2):
            picture().save(root / images / f'{number}.png')
            entries.append({'id': number, 'file_name': f'{number}.png', 'width': 40, 'height': 30})
        document = {
            'images': entries,
            'annotations': annotations,
            'categories': [{'id': 9, 'name': 'platelet'}, {'id': 4, 'name': 'cell'}],  # ids with holes, unsorted
        }
        (root / file).write_text(json.dumps(document))
        return '', root

    return write


def test_rows_give_corners_and_numbers_of_classes(rows):
    data = open_boxes(
        *rows([{'bbox': [BOX, [0, 0, 40, 30]], 'category': [1, 0]}, {'bbox': [], 'category': []}]), 'train'
    )
    assert data.classes == CLASSES and len(data) == 2
    image, target = data[0]
    assert image.shape == (3, 30, 40) and image.dtype == torch.uint8
    assert target['boxes'].tolist() == [[2, 3, 12, 8], [0, 0, 40, 30]]
    assert target['labels'].tolist() == [1, 0] and not target['iscrowd'].any()
    assert data[1][1]['boxes'].shape == (0, 4)  # an image without boxes is one


def test_corners_are_taken_as_they_are_where_the_format_says_so(rows):
    source = rows([{'bbox': [[2, 3, 12, 8]], 'category': [0]}])
    assert open_boxes(*source, 'train', box_format='xyxy')[0][1]['boxes'].tolist() == [[2, 3, 12, 8]]


def test_boxes_are_cut_at_the_border_and_left_out_without_area(rows, caplog):
    objects = [{'bbox': [[35, 25, 10, 10], [4, 4, 0, 5], BOX, BOX], 'category': [0, 1, 1, 1]}]
    with caplog.at_level(logging.WARNING):
        data = open_boxes(*rows(objects, width=[40], height=[30]), 'train')
    target = data[0][1]
    assert target['boxes'][0].tolist() == [35, 25, 40, 30] and target['labels'].tolist() == [0, 1, 1]
    assert "of the 4 boxes of split 'train', 1 have no area and are left out" in caplog.text
    assert "of the 4 boxes of split 'train', 1 are cut at the border" in caplog.text


@pytest.mark.parametrize(
    ('objects', 'message'),
    [
        ({'bbox': [[1, 2, float('nan'), 3]], 'category': [0]}, 'row 0 has the box .*finite'),
        ({'bbox': [[1, 2, 3]], 'category': [0]}, 'row 0 has the boxes .*expected four numbers'),
        ({'bbox': [[20, 20, 9, 9], [30, 9, -4, 9]], 'category': [0, 1]}, 'row 0 has the box .*ends before it begins'),
        ({'bbox': [BOX], 'category': []}, 'row 0 has 1 boxes and 0 categories'),
        ({'bbox': [[20, 20, 35, 28]], 'category': [0]}, '1 of 1 boxes reach beyond their picture: --box-format'),
        ({'bbox': [[0.1, 0.1, 0.5, 0.5]], 'category': [0]}, 'must be in pixels'),
        ({'bbox': [], 'category': []}, 'none of its pictures has a box'),
    ],
)
def test_wrong_boxes_are_refused_with_their_row(rows, objects, message):
    with pytest.raises(UserError, match=message):
        open_boxes(*rows([objects], width=[40], height=[30]), 'train')


def test_categories_need_names_and_be_numbers_of_them(rows):
    source = rows([{'bbox': [BOX], 'category': [2]}], category=datasets.Value('int64'))
    with pytest.raises(UserError, match='--class-names NAME'):
        open_boxes(*source, 'train')
    with pytest.raises(UserError, match='row 0 has the category 2: expected the number of a class, 0 to 1'):
        open_boxes(*source, 'train', class_names=['a', 'b'])
    assert open_boxes(*source, 'train', class_names=['a', 'b', 'c']).classes == ['a', 'b', 'c']


def test_another_column_of_objects_is_named(rows):
    source = rows([{'bbox': [BOX], 'category': [1]}])
    with pytest.raises(UserError, match="no column 'boxes' but image, objects"):
        open_boxes(*source, 'train', ('image', 'boxes'))


@pytest.mark.parametrize(
    ('file', 'images'),
    [
        ('annotations/instances_train.json', 'train'),
        ('annotations/instances_train2017.json', 'train2017'),
        ('train/_annotations.coco.json', 'train'),
        ('train.json', 'images'),
    ],
)
def test_layouts_of_coco_are_found(coco, file, images):
    source = coco([{'image_id': 2, 'bbox': BOX, 'category_id': 9}], file, images)
    data = open_boxes(*source, 'train')
    assert data.classes == ['cell', 'platelet']  # in the order of their ids
    assert [len(data[i][1]['labels']) for i in range(2)] == [0, 1]
    assert data[1][1]['labels'].tolist() == [1]


def test_crowds_of_coco_are_marked(coco):
    source = coco([{'image_id': 1, 'bbox': BOX, 'category_id': 4, 'iscrowd': crowd} for crowd in (0, 1)])
    assert open_boxes(*source, 'train')[0][1]['iscrowd'].tolist() == [False, True]


def test_what_is_no_coco_folder_is_refused(coco, tmp_path):
    source = coco([{'image_id': 1, 'bbox': BOX}])
    with pytest.raises(UserError, match=r'not in COCO.s format: KeyError.*category_id'):
        open_boxes(*source, 'train')
    with pytest.raises(UserError, match=r'has no annotations/instances_test.json'):
        open_boxes(*source, 'test')
    with pytest.raises(UserError, match=r'there is no folder .*none: --data-dir'):
        open_boxes('', tmp_path / 'none', 'train')
