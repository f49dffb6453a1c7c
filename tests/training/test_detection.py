"""Images of one size with their boxes, anchors that fit them, and mean average precision."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.tv_tensors import BoundingBoxes, Image

from timm_snn.training import detection
from timm_snn.training.detection import BoxTransform, MeanAveragePrecision, anchor_sizes, collate, fitting_size
from timm_snn.training.detection_data import BoxedPictures, Found
from timm_snn.training.errors import UserError

SIZE = (24, 32)


def dots(*corners: tuple[int, int], width: int = 64, height: int = 48) -> tuple[Tensor, dict[str, Tensor]]:
    """A black image with a white square of 16 pixels at each corner, and the boxes of these."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    for x, y in corners:
        image[:, y : y + 16, x : x + 16] = 255
    boxes = torch.tensor([(x, y, x + 16, y + 16) for x, y in corners], dtype=torch.float32).reshape(-1, 4)
    return Image(image), {
        'boxes': BoundingBoxes(boxes, format='XYXY', canvas_size=(height, width)),
        'labels': torch.arange(len(boxes)),
        'iscrowd': torch.zeros(len(boxes), dtype=torch.bool),
    }


def brightness_of(image: Tensor, box: Tensor) -> float:
    left, top, right, bottom = box.round().int().tolist()
    return image[:, top:bottom, left:right].mean().item()


def test_images_fit_into_the_size_either_way_up():
    assert fitting_size(480, 640, (240, 320)) == (240, 320)
    assert fitting_size(640, 480, (240, 320)) == (320, 240)
    assert fitting_size(100, 1000, (240, 320)) == (32, 320)
    assert fitting_size(12, 12, (24, 32)) == (24, 24)


def test_boxes_follow_their_image():
    image, target = BoxTransform(SIZE)(*dots((8, 8), (40, 24)))
    assert image.shape == (3, *SIZE) and image.dtype == torch.float32 and type(image) is Tensor
    assert target['boxes'].tolist() == [[4, 4, 12, 12], [20, 12, 28, 20]] and type(target['boxes']) is Tensor
    assert all(brightness_of(image, box) > 0.9 for box in target['boxes'])


def test_augmented_boxes_are_still_around_their_objects():
    transform = BoxTransform(SIZE, (0.0, 0.0, 0.0), scale=(0.5, 1.5), hflip=0.5, vflip=0.5)
    corners = set()
    for seed in range(20):
        torch.manual_seed(seed)
        image, target = transform(*dots((8, 8), (40, 24)))
        assert image.shape == (3, *SIZE)
        assert len(target['boxes']) == len(target['labels'])
        for box in target['boxes']:
            assert (box >= 0).all() and (box[2:] <= torch.tensor(SIZE[::-1])).all()
            if (box[2:] - box[:2]).min() >= 4:
                assert brightness_of(image, box) > 0.6
        corners |= {tuple(box.tolist()) for box in target['boxes']}
    assert len(corners) > 20  # they differ


def test_training_at_a_scale_of_one_shows_what_evaluation_shows():
    picture, target = dots((8, 8), (40, 24))
    for size in (SIZE, (20, 20)):  # which the shape of the picture does not have
        image, boxes = BoxTransform(size, scale=(1.0, 1.0))(picture, target)
        evaluated = BoxTransform(size)(picture, target)
        assert torch.equal(image, evaluated[0]) and torch.equal(boxes['boxes'], evaluated[1]['boxes'])


def test_the_scale_is_that_of_the_boxes():
    torch.manual_seed(0)
    for scale in (0.5, 1.5):
        transform = BoxTransform(SIZE, scale=(scale, scale))
        boxes = torch.cat([transform(*dots((24, 16)))[1]['boxes'] for _ in range(10)])
        assert (boxes[:, 2:] - boxes[:, :2]).max() == 8 * scale  # 16 pixels at half the size


def test_boxes_around_many_objects_are_not_trained_on():
    image, target = dots((8, 8), (40, 24))
    target['iscrowd'][0] = True
    assert BoxTransform(SIZE)(image, target)[1]['iscrowd'].tolist() == [True, False]
    trained = BoxTransform(SIZE, scale=(1.0, 1.0))(image, target)[1]
    assert trained['labels'].tolist() == [1] and 'iscrowd' not in trained


def test_an_image_without_boxes_passes():
    for transform in (BoxTransform(SIZE), BoxTransform(SIZE, scale=(0.8, 1.2), hflip=0.5)):
        image, target = transform(*dots())
        assert image.shape == (3, *SIZE) and target['boxes'].shape == (0, 4) and len(target['labels']) == 0


def test_images_of_different_sizes_make_a_batch():
    transform = BoxTransform(SIZE)
    images, targets = collate([transform(*dots((0, 0))), transform(*dots((0, 0), width=48, height=64))])
    assert [image.shape[-2:] for image in images] == [(24, 32), (32, 24)]
    assert len(targets) == 2 and set(targets[0]) == {'boxes', 'labels', 'iscrowd'}


def boxed(sides: list[int], size: tuple[int, int] | None) -> BoxedPictures:
    boxes = np.array([[0, 0, side, side] for side in sides], dtype=np.float32)
    zeros = np.zeros(len(sides), dtype=np.int64)
    return BoxedPictures(Found(lambda index: None, str, ['a'], [], [size], {}), [boxes], [zeros], [zeros])


def test_anchors_begin_with_the_smallest_boxes_and_reach_the_largest():
    usual = anchor_sizes(boxed([8] * 50 + [16] * 50, (640, 480)), (240, 320), levels=2)
    assert usual == [(4.0, 5.0, 6.3), (8.0, 10.1, 12.7)]  # 8 pixels of 640 are 4 of 320
    wide = anchor_sizes(boxed([8] * 50 + [256] * 50, (640, 480)), (240, 320), levels=2)
    assert wide[0][0] == 4 and wide[1][2] == 128
    assert anchor_sizes(boxed([8], (480, 640)), (240, 320), levels=1)[0][0] == 4  # upright pictures too


def test_anchors_need_the_sizes_of_the_pictures():
    with pytest.raises(UserError, match='--anchor-sizes'):
        anchor_sizes(boxed([8], None), (240, 320), levels=1)


def prediction(boxes: list, labels: list[int], scores: list[float] | None = None) -> dict[str, Tensor]:
    made = {'boxes': torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), 'labels': torch.tensor(labels).long()}
    return made | ({'scores': torch.tensor(scores)} if scores is not None else {})


def test_average_precision_is_that_of_counting_by_hand():
    """Of class a one box of two is found with IoU 1, after a false one of a lower score; of b one with IoU 0.62."""
    metric = MeanAveragePrecision(['a', 'b', 'absent'])
    metric.update(
        [prediction([[0, 0, 10, 10], [50, 50, 60, 60], [20, 20, 30, 26.2]], [0, 0, 1], [0.9, 0.5, 0.8])],
        [prediction([[0, 0, 10, 10], [30, 0, 40, 10], [20, 20, 30, 30]], [0, 0, 1])],
    )
    metric.update([prediction([], [], [])], [prediction([], [])])  # an image without boxes
    values = metric.compute()
    # 51 of COCO's 101 recalls, 0 to 0.5, have precision 1 and the others 0
    assert values['map50'] == pytest.approx((100 * 51 / 101 + 100) / 2)
    assert values['map75'] == pytest.approx(100 * 51 / 101 / 2)  # an IoU of 0.62 is less
    a, b, absent = metric.by_class
    assert (a['name'], a['map50'], a['map75']) == ('a', pytest.approx(100 * 51 / 101), pytest.approx(100 * 51 / 101))
    assert (b['map50'], b['map75']) == (pytest.approx(100), 0)
    assert b['map'] == pytest.approx(30)  # three of the ten IoU, 0.5, 0.55 and 0.6, are reached
    assert absent['map50'] is None


def test_a_split_without_boxes_has_no_precision():
    metric = MeanAveragePrecision(['a'])
    metric.update([prediction([], [], [])], [prediction([], [])])
    assert math.isnan(metric.compute()['map50'])


def test_boxes_around_many_objects_are_not_counted():
    metric = MeanAveragePrecision(['a'])
    target = prediction([[0, 0, 10, 10], [20, 20, 60, 60]], [0, 0]) | {'iscrowd': torch.tensor([False, True])}
    metric.update([prediction([[0, 0, 10, 10], [22, 22, 40, 40]], [0, 0], [0.5, 0.9])], [target])
    assert metric.compute()['map50'] == pytest.approx(100)


def test_processes_may_have_seen_different_numbers_of_pictures(monkeypatch):
    """torchmetrics gathers picture by picture, and gloo aborts where one process has a picture more."""
    right, wrong, target = (
        prediction([[0, 0, 9, 9]], [0], [0.5]),
        prediction([], [], []),
        prediction([[0, 0, 9, 9]], [0]),
    )
    metrics = [MeanAveragePrecision(['a']) for _ in range(3)]
    whole, *parts = metrics
    whole.update([right, wrong, right], [target] * 3)
    parts[0].update([right, wrong], [target] * 2)
    parts[1].update([right], [target])
    alone = whole.compute()
    monkeypatch.setattr(detection, '_of_all_processes', lambda value: [part.seen for part in parts])
    assert parts[0].compute() == alone and parts[1].by_class == []
    assert parts[0].by_class == whole.by_class
