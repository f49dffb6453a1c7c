"""Labels as colours."""

import numpy as np
import pytest
import torch
from PIL import Image

from timm_snn.training.dense_pictures import IGNORED, class_colors, overlay, photo_of, save_label_map, write_masks


def test_classes_have_colours_of_their_own():
    assert len(set(class_colors(14)) | {IGNORED}) == 15 and len(class_colors(300)) == 300


@pytest.mark.parametrize(('number', 'mode'), [(5, 'P'), (256, 'P'), (300, 'I;16')])
def test_the_values_of_a_label_map_are_the_labels(tmp_path, number, mode):
    labels = np.arange(number)[None].repeat(2, axis=0)
    save_label_map(labels, number, tmp_path / 'mask.png')
    with Image.open(tmp_path / 'mask.png') as picture:
        assert picture.mode == mode and (np.array(picture) == labels).all()
        if mode == 'P':
            assert picture.convert('RGB').getpixel((1, 0)) == class_colors(2)[1]


def test_an_overlay_is_as_large_as_the_labels_and_shows_both():
    labels = np.array([[0, 1], [255, 1]])
    photo = np.full((4, 4, 3), 100, np.uint8)
    shown = overlay(photo, labels, 2, opacity=0.5)
    assert shown.shape == (2, 2, 3)
    assert (abs(shown[0, 1].astype(float) - (np.array(class_colors(2)[1]) + 100) / 2) <= 0.5).all()
    assert (abs(shown[1, 0].astype(float) - (np.array(IGNORED) + 100) / 2) <= 0.5).all()


@pytest.mark.parametrize('channels', [1, 3])
def test_a_photo_is_what_was_normalised(channels):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, channels), dtype=np.uint8)
    mean, std = (0.4, 0.5, 0.6)[:channels], (0.2, 0.3, 0.4)[:channels]
    image = (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(
        std
    ).view(-1, 1, 1)
    assert (photo_of(image, mean, std) == pixels).all()  # a grey one in all three colours


def test_one_png_shows_every_sample(tmp_path):
    rows = [(np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), int), np.full((4, 6), 1))] * 2
    write_masks(rows, ['[sky]', 'road'], tmp_path / 'a.png')
    write_masks(rows[:1], ['sky', 'road'], tmp_path / 'b.png')
    with Image.open(tmp_path / 'a.png') as two, Image.open(tmp_path / 'b.png') as one:
        assert two.format == 'PNG' and two.width == one.width and two.height > 1.4 * one.height
        colors = {color for _, color in one.convert('RGB').getcolors(100_000)}
    assert set(class_colors(2)) <= colors
