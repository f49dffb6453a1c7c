"""Pictures with their masks: what is read, refused, and changed together."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.streets import IGNORED, street, write_street
from timm_snn.training.data import WrongSample
from timm_snn.training.dense_data import JointTrainingSamples
from timm_snn.training.segmentation_data import (
    FilesOfMasks,
    collate,
    labels_in,
    open_masks,
    pairs_below,
    transform_to_evaluate,
    transform_to_train,
)

CLASSES = ['ground', 'box']
STATISTICS = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


@pytest.fixture
def streets(tmp_path) -> FilesOfMasks:
    write_street(tmp_path / 'train', range(6), 'images', 'masks')
    return FilesOfMasks(pairs_below(tmp_path, 'train'), CLASSES, IGNORED)


def augmentation(**changes):
    options = dict(crop_size=(20, 20), scale=(0.5, 2.0), hflip=0.5, color_jitter=0.2, ignore_index=IGNORED)
    return transform_to_train(*STATISTICS, **options | changes)


@pytest.mark.parametrize('mode', ['1', 'L', 'P', 'I;16'])
def test_labels_are_the_numbers_in_a_png(tmp_path, mode):
    """Of a palette, not its colours; of 16 bits, all of them."""
    labels = np.arange(12).reshape(3, 4) % 2 if mode == '1' else np.arange(12).reshape(3, 4)
    labels = labels * 1000 if mode == 'I;16' else labels
    picture = Image.fromarray(labels.astype({'1': bool, 'I;16': np.uint16}.get(mode, np.uint8)))
    if mode == 'P':
        picture.putpalette([7, 7, 7] * 256)
    assert picture.mode == mode
    picture.save(tmp_path / 'mask.png')
    assert (labels_in(tmp_path / 'mask.png') == labels).all()


def test_a_mask_that_cannot_be_right_is_named(streets, tmp_path):
    streets.ignore_index = 255
    with pytest.raises(WrongSample, match=r'label 2 in the mask of .*0.jpg: expected 0 to 1, of the 2 classes, or 255'):
        streets[0]
    samples = JointTrainingSamples(streets, range(6), 0, None)
    with pytest.raises(WrongSample, match=r'label 2 in the mask of .*4.jpg'):
        samples[4]  # which is not replaced by the next one, as one that is torn
    street(0)[1].resize((5, 5)).save(streets.files[1][1])
    with pytest.raises(ValueError, match='the picture is 32 x 24 and its mask 5 x 5'):
        streets[1]


@pytest.mark.parametrize('masks', ['train/masks', 'train/annotations', 'labels/train'])
def test_a_mask_has_the_name_of_its_picture_in_every_layout(tmp_path, masks):
    images = 'train/images' if masks.startswith('train') else 'images/train'
    write_street(tmp_path, range(3), f'{images}/town', f'{masks}/town')
    found = open_masks('', tmp_path, 'training', ('image', 'annotation'), classes=CLASSES, ignore_index=IGNORED)
    for index, (picture, mask) in enumerate(found.files):
        assert picture.stem == mask.stem == str(index) and (found[index][1].numpy() == np.array(street(index)[1])).all()
    facts = found.facts()
    found.files[0][1].write_bytes(b'other')
    assert found.facts()['file names'] == facts['file names'] and found.facts()['file sizes'] != facts['file sizes']


def test_a_mask_is_resized_by_the_nearest_label_or_kept(streets):
    streets.size = (12, 16)
    image, mask = streets[0]
    assert image.shape == (3, 12, 16) and mask.shape == (12, 16) and set(mask.unique().tolist()) <= {0, 1, 2}
    streets.resize_masks = False
    image, mask = streets[0]
    assert image.shape == (3, 12, 16) and (mask.numpy() == np.array(street(0)[1])).all()


def test_picture_and_mask_are_changed_together(streets):
    """Boxes are bright, the ground is dark, and what is beyond the border does not count."""
    transform = augmentation()
    agree, counted = 0, 0
    for seed in range(40):
        torch.manual_seed(seed)
        image, mask = transform(*streets[seed % 6])
        assert image.shape == (3, 20, 20) and image.dtype == torch.float32 and mask.dtype == torch.int64
        is_bright = image.mean(0) > 0
        agree += int((is_bright == (mask == 1))[mask != IGNORED].sum())
        counted += int((mask != IGNORED).sum())
    assert agree > 0.93 * counted > 0.8 * 40 * 400
    _, mask = augmentation(scale=(0.5, 0.5))(*streets[0])
    assert (mask == IGNORED).sum() >= 20 * 20 - 12 * 16


def test_without_a_crop_only_sides_and_colours_change(streets):
    image, mask = streets[0]
    flipped = augmentation(crop_size=None, hflip=1.0, color_jitter=0.0)(image, mask)
    plain = transform_to_evaluate(*STATISTICS)(image, mask)
    assert torch.equal(flipped[0], plain[0].flip(2)) and torch.equal(flipped[1], plain[1].flip(1))
    assert torch.allclose(plain[0], (image / 255 - 0.5) / 0.25, atol=1e-5)


def test_what_is_drawn_for_a_sample_is_of_seed_and_epoch_alone(streets):
    samples = JointTrainingSamples(streets, range(6), 3, augmentation())
    first = samples[2]
    torch.manual_seed(9)
    again = samples[2]
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    samples.epoch = 1
    assert not torch.equal(first[0], samples[2][0])


def test_samples_of_several_sizes_stay_apart():
    small, large = (torch.zeros(3, size, 8) for size in (4, 8))
    images, masks = collate([(small, small[0]), (small, large[0])])
    assert images.shape == (2, 3, 4, 8) and [tuple(mask.shape) for mask in masks] == [(4, 8), (8, 8)]
