"""Pictures with boxes around objects, from data sets as people have them, checked.

Rows of Hugging Face's library have an image and its objects, lists of `bbox` and `category`. Folders are those of COCO,
with one JSON file for each split, where it usually is:

    DATA/annotations/instances_SPLIT.json and DATA/SPLIT/    (COCO's own, with or without its year)
    DATA/SPLIT/_annotations.coco.json beside the images
    DATA/SPLIT.json and DATA/SPLIT/, DATA/images/ or DATA/
"""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2
from torchvision.tv_tensors import BoundingBoxes

from ..files import check_regular_file, printable
from ..folders import SYNONYMS
from ..progress import waiting
from .dense_data import file_of, open_table
from .errors import one_line_errors
from .fingerprint import hash_of, hash_of_pictures
from .pictures import open_picture

__all__ = ['FORMATS', 'BoxedPictures', 'open_boxes']

_logger = logging.getLogger(__name__)
FORMATS = ('xywh', 'xyxy')
_HOW_WRITTEN = f'--box-format says how boxes are written, {" or ".join(FORMATS)}'
LEAST = 1.0  # pixels of a box on either side, below which it is none


class Found(NamedTuple):
    """What a data set says of its pictures, not yet checked. A list has an entry for each of them."""

    open_it: Callable[[int], Image.Image]
    name_of: Callable[[int], str]
    classes: Sequence[str]
    objects: Sequence[tuple[list, list, list]]  # boxes, categories, marks of crowds
    sizes: Sequence[tuple[int, int] | None]  # width and height, None where nobody says them
    facts: dict[str, str]  # of the pictures


class BoxedPictures(Dataset):
    """Pictures and the boxes in them: `data[i]` is (picture, target), as torchvision's transforms take them together.

    The picture is uint8 [C, H, W]. The target has `boxes` [N, 4] float32, left, top, right and bottom in pixels, cut at
    the borders of the picture, `labels` [N] int64, which are numbers of `classes`, and `iscrowd` [N] bool, of boxes
    around many objects, which are neither trained on nor counted. N may be 0.
    """

    def __init__(
        self, found: Found, boxes: Sequence[np.ndarray], labels: Sequence[np.ndarray], crowds: Sequence[np.ndarray]
    ) -> None:
        self.found, self.boxes, self.labels, self.crowds = found, boxes, labels, crowds
        self.classes, self.name_of, self.sizes = list(found.classes), found.name_of, found.sizes

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        picture: Any = v2.functional.to_image(self.found.open_it(index))
        height, width = picture.shape[-2:]
        boxes = np.clip(self.boxes[index], 0, np.array((width, height, width, height), dtype=np.float32))
        inside = (boxes[:, 2:] - boxes[:, :2] >= LEAST).all(1)
        return picture, {
            'boxes': BoundingBoxes(boxes[inside], format='XYXY', canvas_size=(height, width)),
            'labels': torch.from_numpy(self.labels[index][inside]),
            'iscrowd': torch.from_numpy(self.crowds[index][inside]),
        }

    def facts(self) -> dict[str, str]:
        """Hashes that tell these pictures from others, see `fingerprint`."""
        return self.found.facts | {
            'boxes': hash_of(str(boxes.tolist()) for boxes in self.boxes),
            'labels': hash_of(str(labels.tolist()) for labels in self.labels),
        }


def open_boxes(
    dataset: str,
    folder: Path | None,
    split: str,
    keys: tuple[str, str] = ('image', 'objects'),
    *,
    box_format: str = 'xywh',
    grey: bool = False,
    class_names: Sequence[str] | None = None,
    num_classes: int | None = None,
) -> BoxedPictures:
    """A split of 'hfds/NAME' by the columns `keys`, or of a folder in COCO's format.

    `class_names` stand in for those of the data, and numbers up to `num_classes` where it has none. Boxes are
    [x, y, width, height] in pixels, or with the format 'xyxy' [left, top, right, bottom]. Those without area are left
    out and those that reach beyond their picture are cut there, both with a note.
    Raises: UserError for a data set that cannot be opened, boxes that are not finite or not in this format, and
    categories that are no numbers of classes.
    """
    what = f'open split {split!r} of {dataset or folder}'
    with one_line_errors(what), waiting(what):
        if dataset:
            found = _rows(dataset.removeprefix('hfds/'), folder, split, keys, 'L' if grey else 'RGB')
        else:
            found = _coco(folder, split, 'L' if grey else 'RGB')
        classes = class_names or found.classes or [str(number) for number in range(num_classes or 0)]
        if num_classes and len(classes) != num_classes:
            raise ValueError(f'it has {len(classes)} classes, and --num-classes says {num_classes}')
        return _checked(found._replace(classes=classes), split, box_format)


def _rows(name: str, cache: Path | None, split: str, keys: tuple[str, str], mode: str) -> Found:
    image_key, objects_key = keys
    table = open_table(name, split, str(cache) if cache else None, image_key, objects_key)
    objects = [_lists_of(row, i) for i, row in enumerate(table.select_columns([objects_key])[:][objects_key])]
    sizes: list[Any] = [None] * len(table)
    if {'width', 'height'} <= set(table.column_names):
        columns = table.select_columns(['width', 'height'])[:]
        sizes = list(zip(columns['width'], columns['height'], strict=True))
    pictures = table.select_columns([image_key])
    return Found(
        lambda index: open_picture(file_of(pictures[index][image_key]), mode),
        'row {}'.format,
        _names_in(table.features[objects_key]),
        objects,
        sizes,
        {f'{image_key} sizes': hash_of_pictures(table, image_key)},
    )


def _names_in(feature: Any) -> list[str]:
    """The names of the categories in the feature of a column of objects; none if it has none."""
    while feature is not None and not hasattr(feature, 'names'):
        if isinstance(feature, list):
            feature = feature[0]
        else:
            feature = feature.get('category') if isinstance(feature, dict) else getattr(feature, 'feature', None)
    return list(feature.names) if feature is not None else []


def _lists_of(objects: Any, row: int) -> tuple[list, list, list]:
    """The objects of a row, which are a mapping of lists, a list of mappings, or None where there are none."""
    objects = objects or {'bbox': [], 'category': []}
    if isinstance(objects, list):
        objects = {key: [one[key] for one in objects] for key in objects[0]}
    if not isinstance(objects, dict) or objects.get('bbox') is None or objects.get('category') is None:
        keys = ', '.join(objects) if isinstance(objects, dict) else repr(objects)
        raise ValueError(
            f"row {row} has objects of {printable(keys, 80)}: expected the lists 'bbox' and 'category', or a list of "
            'mappings with both'
        )
    boxes = objects['bbox']
    return boxes, objects['category'], objects.get('iscrowd') or [False] * len(boxes)


def _coco(root: Path | None, split: str, mode: str) -> Found:
    if root is None or not root.is_dir():
        raise FileNotFoundError(f'there is no folder {root}: --data-dir names it')
    file, folders = _file_of_split(root, split)
    check_regular_file(file)
    document = json.loads(file.read_text(encoding='utf-8'))
    try:
        categories = {entry['id']: entry['name'] for entry in document['categories']}
        numbers = {id: number for number, id in enumerate(sorted(categories))}
        pictures = {entry['id']: entry for entry in document['images']}
        names = [entry['file_name'] for entry in pictures.values()]
        objects: dict[Any, tuple[list, list, list]] = {id: ([], [], []) for id in pictures}
        for entry in document['annotations']:
            boxes, labels, crowds = objects[entry['image_id']]
            boxes.append(entry['bbox'])
            labels.append(numbers[entry['category_id']])
            crowds.append(entry.get('iscrowd', 0))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is not in COCO's format: {error!r} is missing in it, or wrong") from error
    folder = next((folder for folder in folders if names and (folder / names[0]).is_file()), None)
    if names and folder is None:
        looked = ', '.join(map(str, folders))
        raise ValueError(f'{printable(names[0])}, a picture that {file} names, is in none of {looked}')
    sizes = [
        (entry['width'], entry['height']) if entry.get('width') and entry.get('height') else None
        for entry in pictures.values()
    ]
    return Found(
        lambda index: open_picture(folder / names[index], mode),
        lambda index: printable(names[index]),
        [categories[id] for id in numbers],
        list(objects.values()),
        sizes,
        {'file names': hash_of(names)},
    )


def _file_of_split(root: Path, split: str) -> tuple[Path, list[Path]]:
    """The JSON file of a split, by this or another usual name of it, and the folders that its pictures may be in."""
    for name in dict.fromkeys((split, *next((same for same in SYNONYMS if split in same), ()))):
        for file in (
            root / 'annotations' / f'instances_{name}.json',
            *sorted(root.glob(f'annotations/instances_{name}[0-9][0-9][0-9][0-9].json')),
            root / name / '_annotations.coco.json',
            root / f'{name}.json',
        ):
            if file.is_file():
                same = file.stem.removeprefix('instances_')
                return file, [root / same, root / name, root / 'images', root / 'images' / same, root]
    raise ValueError(
        f'{root} has no annotations/instances_{split}.json, {split}/_annotations.coco.json or {split}.json'
    )


def _checked(found: Found, split: str, box_format: str) -> BoxedPictures:
    """The data set, with what is wrong with some of its boxes said once. Raises: ValueError."""
    every = []
    without_area = beyond = relative = total = 0
    for index, (raw, categories, crowds) in enumerate(found.objects):
        name = found.name_of(index)
        if not len(raw) == len(categories) == len(crowds):
            raise ValueError(f'{name} has {len(raw)} boxes and {len(categories)} categories: expected one for each')
        boxes, labels = _numbers(raw, name), _labels(categories, found.classes, name)
        if box_format == 'xywh':
            boxes[:, 2:] += boxes[:, :2]
        if (wrong := (boxes[:, 2:] < boxes[:, :2]).any(1)).any():
            raise ValueError(
                f'{name} has the box {raw[int(wrong.argmax())]}, which ends before it begins: {_HOW_WRITTEN}'
            )
        if (size := found.sizes[index]) is not None:
            beyond += int(((boxes[:, :2] < -1) | (boxes[:, 2:] > np.add(size, 1))).any(1).sum())
        relative += int((boxes <= 1).all(1).sum())
        total += len(boxes)
        has_area = (boxes[:, 2:] > boxes[:, :2]).all(1)
        without_area += int((~has_area).sum())
        every.append((boxes[has_area], labels[has_area], np.asarray(crowds, dtype=bool)[has_area]))
    if not total:
        raise ValueError('none of its pictures has a box')
    if relative == total:
        raise ValueError('all boxes are within the first pixel: they must be in pixels, not in parts of the picture')
    if 2 * beyond > total:
        raise ValueError(f'{beyond} of {total} boxes reach beyond their picture: {_HOW_WRITTEN}')
    for count, what in ((without_area, 'have no area and are left out'), (beyond, 'are cut at the border')):
        if count:
            _logger.warning('note: of the %d boxes of split %r, %d %s', total, split, count, what)
    boxes, labels, crowds = zip(*every, strict=True)
    return BoxedPictures(found, boxes, labels, crowds)


def _numbers(raw: list, name: str) -> np.ndarray:
    """Boxes [N, 4] float32. Raises: ValueError unless each is four finite numbers."""
    try:
        boxes = np.array(raw, dtype=np.float32).reshape(len(raw), 4)
    except (ValueError, TypeError) as error:
        raise ValueError(f'{name} has the boxes {printable(repr(raw), 80)}: expected four numbers each') from error
    if not (finite := np.isfinite(boxes).all(1)).all():
        raise ValueError(f'{name} has the box {boxes[~finite][0].tolist()}: expected finite numbers')
    return boxes


def _labels(categories: list, classes: Sequence[str], name: str) -> np.ndarray:
    """Raises: ValueError unless all are numbers of classes."""
    for category in categories:
        if isinstance(category, bool) or not isinstance(category, int) or not 0 <= category < len(classes):
            if not classes:
                raise ValueError(
                    'its categories have no names: pass --class-names NAME ... in their order, or --num-classes N'
                )
            raise ValueError(
                f'{name} has the category {printable(repr(category), 60)}: expected the number of a class, 0 to '
                f'{len(classes) - 1}'
            )
    return np.asarray(categories, dtype=np.int64)
