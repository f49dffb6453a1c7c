"""Images with boxes around objects: data sets as people have them, checked, and prepared for a detector.

Rows of Hugging Face's library have an image and its objects, lists of `bbox` and `category`. Folders are those of COCO,
with one JSON file for each split, where it usually is:

    DATA/annotations/instances_SPLIT.json and DATA/SPLIT/    (COCO's own, with or without its year)
    DATA/SPLIT/_annotations.coco.json beside the images
    DATA/SPLIT.json and DATA/SPLIT/, DATA/images/ or DATA/
"""

import json
import logging
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..data.rows import import_datasets
from ..files import check_regular_file, printable
from ..folders import SYNONYMS
from ..progress import waiting
from .columns import check_column_names
from .data import DataSource
from .errors import UserError, one_line_errors
from .pictures import open_picture

__all__ = ['FORMATS', 'BoxedImages', 'open_boxes']

_logger = logging.getLogger(__name__)
FORMATS = ('xywh', 'xyxy')
EXPECTED = "a mapping of the lists 'bbox' and 'category', or a list of mappings with both"
LEAST = 1.0  # pixels of a box on either side, below which it is none


class BoxedImages(Dataset):
    """Images and the boxes in them: `data[i]` is ((image, target), i).

    The image is PIL's. The target has `boxes` [N, 4] float32, left, top, right and bottom in pixels, cut at the borders
    of the image, `labels` [N] int64, which are numbers of `classes`, and `iscrowd` [N] bool, of boxes around many
    objects, which are neither trained on nor counted. N may be 0.
    """

    def __init__(
        self,
        open_image: Callable[[int], Image.Image],
        boxes: Sequence[np.ndarray],
        labels: Sequence[np.ndarray],
        crowds: Sequence[np.ndarray],
        classes: Sequence[str],
        sizes: Sequence[tuple[int, int] | None],
    ) -> None:
        self.open_image, self.classes = open_image, list(classes)
        self.boxes, self.labels, self.crowds, self.sizes = boxes, labels, crowds, sizes

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: int) -> tuple[tuple[Image.Image, dict[str, Tensor]], int]:
        image = self.open_image(index)
        boxes = np.clip(self.boxes[index], 0, np.float32((*image.size, *image.size)))
        inside = (boxes[:, 2:] - boxes[:, :2] >= LEAST).all(1)
        target = {
            'boxes': torch.from_numpy(boxes[inside]),
            'labels': torch.from_numpy(self.labels[index][inside]),
            'iscrowd': torch.from_numpy(self.crowds[index][inside]),
        }
        return (image, target), index


def open_boxes(
    source: DataSource, split: str, *, box_format: str = 'xywh', mode: str = 'RGB', class_names: Sequence[str] = ()
) -> BoxedImages:
    """One split of a data set. `class_names` replaces, or gives, the names of the classes; `mode` is that of the images.

    Boxes are [x, y, width, height] in pixels, or with the format 'xyxy' [left, top, right, bottom]. Those without area
    are left out and those that reach beyond their image are cut there, both with a note.
    Raises: UserError for a data set that cannot be opened, boxes that are not finite or not in this format, and
    categories that are no numbers of classes.
    """
    what = f'open split {split!r} of data set {source.name!r}' + (f' in {source.folder}' if source.folder else '')
    if not (source.is_table or source.name == ''):
        raise UserError(
            f'unknown data set {source.name!r}: boxes come from hfds/NAME, or with --data-dir from a folder in COCO format'
        )
    with one_line_errors(what), waiting(what):
        if source.is_table:
            data = _open_rows(source, split, box_format, mode, class_names)
        else:
            data = _open_coco(source, split, box_format, mode, class_names)
        if not len(data):
            raise ValueError('it has no images')
        return data


def _open_rows(source: DataSource, split: str, box_format: str, mode: str, class_names: Sequence[str]) -> BoxedImages:
    name, folder = source.name.partition('/')[2], str(source.folder) if source.folder else None
    image_key, objects_key = source.input_key or 'image', source.target_key or 'objects'
    check_column_names(name, split, folder, (image_key, objects_key))
    datasets = import_datasets()
    table = datasets.load_dataset(name, split=split, cache_dir=folder)
    classes = list(class_names) or _names_in(table.features[objects_key])
    parsed = [_of_objects(row, f'row {i}') for i, row in enumerate(table.select_columns([objects_key])[:][objects_key])]
    sizes: list[Any] = [None] * len(table)
    if {'width', 'height'} <= set(table.column_names):
        columns = table.select_columns(['width', 'height'])[:]
        sizes = list(zip(columns['width'], columns['height'], strict=True))
    images = table.select_columns([image_key]).cast_column(image_key, datasets.Image(decode=False))

    def open_image(index: int) -> Image.Image:
        row = images[index][image_key] or {}
        if row.get('bytes') is None and row.get('path') is None:
            raise ValueError('it has no image')
        return open_picture(BytesIO(row['bytes']) if row['bytes'] is not None else row['path'], mode)

    return _checked(source, split, box_format, open_image, parsed, classes, sizes, 'row {}'.format)


def _names_in(feature: Any) -> list[str]:
    """The names of the categories in the feature of the objects; none if it has none."""
    while feature is not None and not hasattr(feature, 'names'):
        if isinstance(feature, dict):
            feature = feature.get('category')
        elif isinstance(feature, list):
            feature = feature[0]
        else:
            feature = getattr(feature, 'feature', None)
    return list(feature.names) if feature is not None else []


def _of_objects(objects: Any, where: str) -> tuple[list, list, list]:
    """Boxes, categories and marks of crowds of a row of Hugging Face's library."""
    if isinstance(objects, list):
        missing = next((sorted({'bbox', 'category'} - set(one)) for one in objects if isinstance(one, dict)), None)
        if not all(isinstance(one, dict) for one in objects) or missing:
            raise ValueError(f'{where} has {printable(repr(objects), 80)} as objects: expected {EXPECTED}')
        objects = {key: [one.get(key) for one in objects] for key in ('bbox', 'category', 'iscrowd')}
    objects = objects or {'bbox': [], 'category': []}
    if not isinstance(objects, dict) or objects.get('bbox') is None or objects.get('category') is None:
        keys = ', '.join(objects) if isinstance(objects, dict) else repr(objects)
        raise ValueError(f'{where} has {printable(keys, 80)} as objects: expected {EXPECTED}')
    boxes, categories = objects['bbox'], objects['category']
    crowds = [bool(crowd) for crowd in objects.get('iscrowd') or [False] * len(boxes)]
    if not len(boxes) == len(categories) == len(crowds):
        raise ValueError(f'{where} has {len(boxes)} boxes and {len(categories)} categories: expected one for each')
    return boxes, categories, crowds


def _open_coco(source: DataSource, split: str, box_format: str, mode: str, class_names: Sequence[str]) -> BoxedImages:
    if source.folder is None or not source.folder.is_dir():
        raise ValueError(f'there is no folder {source.folder}: --data-dir names one with images and a JSON file of boxes')
    file, folders = _find_coco(source.folder, split)
    check_regular_file(file)
    try:
        document = json.loads(file.read_text(encoding='utf-8'))
        categories = {entry['id']: entry['name'] for entry in document['categories']}
        pictures = {entry['id']: entry for entry in document['images']}
        paths = {id: entry['file_name'] for id, entry in pictures.items()}
        annotations = [(entry['image_id'], entry) for entry in document['annotations']]
        objects: dict[Any, tuple[list, list, list]] = {id: ([], [], []) for id in pictures}
        numbers = {id: number for number, id in enumerate(sorted(categories))}
        for id, entry in annotations:
            for values, value in zip(objects[id], _of_coco(entry, numbers), strict=True):
                values.append(value)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f'{file} is not in COCO format, of images, annotations and categories: {error!r} is missing or wrong'
        ) from error
    names = [categories[id] for id in sorted(categories)]
    ids = list(pictures)
    folder = next((folder for folder in folders if ids and (folder / paths[ids[0]]).is_file()), None)
    if ids and folder is None:
        looked = ', '.join(str(folder) for folder in folders)
        raise ValueError(f'{printable(paths[ids[0]])}, which {file} names, is in none of {looked}')

    def open_image(index: int) -> Image.Image:
        assert folder is not None
        return open_picture(folder / paths[ids[index]], mode)

    sizes = [
        (entry['width'], entry['height']) if entry.get('width') and entry.get('height') else None
        for entry in pictures.values()
    ]
    where = [printable(paths[id]) for id in ids]
    parsed = [objects[id] for id in ids]
    return _checked(
        source, split, box_format, open_image, parsed, list(class_names) or names, sizes, where.__getitem__
    )


def _of_coco(entry: dict[str, Any], numbers: dict[Any, int]) -> tuple[Any, int, bool]:
    return entry['bbox'], numbers[entry['category_id']], bool(entry.get('iscrowd', 0))


def _find_coco(root: Path, split: str) -> tuple[Path, list[Path]]:
    """The file of a split, under this or another usual name of it, and the folders that its images may be in."""
    names = next((same for same in SYNONYMS if split in same), (split,))
    for name in dict.fromkeys((split, *names)):
        year = sorted(root.glob(f'annotations/instances_{name}[0-9][0-9][0-9][0-9].json'))
        for file in (
            root / 'annotations' / f'instances_{name}.json',
            *year,
            root / name / '_annotations.coco.json',
            root / 'annotations' / f'{name}.json',
            root / f'{name}.json',
        ):
            if file.is_file():
                of_split = root / file.stem.removeprefix('instances_')
                return file, [of_split, root / name, root / 'images', root / 'images' / of_split.name, root]
    raise ValueError(
        f'{root} has no annotations/instances_{split}.json, {split}/_annotations.coco.json or {split}.json'
    )


def _checked(
    source: DataSource,
    split: str,
    box_format: str,
    open_image: Callable[[int], Image.Image],
    parsed: Sequence[tuple[list, list, list]],
    classes: Sequence[str],
    sizes: Sequence[tuple[int, int] | None],
    where: Callable[[int], str],
) -> BoxedImages:
    """The data set, with what its boxes are said once."""
    every = []
    without_area = beyond = relative = total = 0
    for index, (raw, categories, crowds) in enumerate(parsed):
        boxes = _numbers(raw, where(index))
        labels = _labels(categories, classes, where(index))
        if box_format == 'xywh':
            boxes[:, 2:] += boxes[:, :2]
        if (wrong := (boxes[:, 2:] < boxes[:, :2]).any(1)).any():
            found = np.asarray(raw[int(wrong.argmax())]).tolist()
            raise ValueError(
                f'{where(index)} has the box {found}, which ends before it begins: --box-format says how boxes are '
                f'written, {" or ".join(FORMATS)}'
            )
        has_area = (boxes[:, 2:] > boxes[:, :2]).all(1)
        if (size := sizes[index]) is not None:
            beyond += int(((boxes[:, :2] < -1) | (boxes[:, 2:] > np.add(size, 1))).any(1).sum())
        relative += int((boxes <= 1).all(1).sum())
        total += len(boxes)
        without_area += int((~has_area).sum())
        every.append((boxes[has_area], labels[has_area], np.asarray(crowds, dtype=bool)[has_area]))
    if not total:
        raise ValueError('none of its images has a box')
    if relative == total:
        raise ValueError('all boxes are within the first pixel: they must be in pixels, not parts of the image')
    if 2 * beyond > total:
        raise ValueError(
            f'{beyond} of {total} boxes reach beyond their image: --box-format says how boxes are written, '
            f'{" or ".join(FORMATS)}'
        )
    for count, what in ((without_area, 'without area are left out'), (beyond, 'beyond their image are cut there')):
        if count:
            _logger.warning('note: %d of the %d boxes of split %r %s', count, total, split, what)
    boxes_, labels_, crowds_ = zip(*every, strict=True)
    return BoxedImages(open_image, boxes_, labels_, crowds_, classes, sizes)


def _numbers(raw: list, where: str) -> np.ndarray:
    """Boxes [N, 4] float32. Raises: ValueError unless each is four finite numbers."""
    try:
        boxes = np.array(raw, dtype=np.float32).reshape(len(raw), 4)
    except (ValueError, TypeError) as error:
        raise ValueError(f'{where} has the boxes {printable(repr(raw), 80)}: expected four numbers each') from error
    if not (finite := np.isfinite(boxes).all(1)).all():
        raise ValueError(f'{where} has the box {boxes[~finite][0].tolist()}: expected finite numbers')
    return boxes


def _labels(categories: list, classes: Sequence[str], where: str) -> np.ndarray:
    """Raises: ValueError unless all are numbers of classes."""
    for category in categories:
        if isinstance(category, bool) or not isinstance(category, int) or not 0 <= category < len(classes):
            if not classes:
                raise ValueError('its categories have no names: --class-names NAME ... gives them, in their order')
            raise ValueError(
                f'{where} has the category {printable(repr(category), 60)}: expected the number of a class, 0 to '
                f'{len(classes) - 1}'
            )
    return np.asarray(categories, dtype=np.int64)
