"""Pictures of boxes."""

import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor, nn

from timm_snn.profiling.style import CLASSES, styled
from timm_snn.training.box_pictures import draw_samples, figure_of_boxes, painted_boxes

PICTURE = torch.zeros(3, 24, 32)
TRUTH = {'boxes': torch.tensor([[2.0, 3.0, 12.0, 9.0]]), 'labels': torch.tensor([1])}
FOUND = {
    'boxes': torch.tensor([[2.0, 4.0, 12.0, 8.0], [20.0, 20.0, 24.0, 24.0]]),
    'labels': torch.tensor([1, 0]),
    'scores': torch.tensor([0.75, 0.1]),
}
EMPTY = {'boxes': torch.zeros(0, 4), 'labels': torch.zeros(0, dtype=torch.long), 'scores': torch.zeros(0)}


def rectangles(axes) -> list[Rectangle]:
    return [patch for patch in axes.patches if isinstance(patch, Rectangle)]


@styled()
def test_likely_boxes_are_drawn_over_the_dashed_true_ones():
    axes = figure_of_boxes([PICTURE], [FOUND], [TRUTH], ['a', 'b']).axes[0]
    truth, found = rectangles(axes)  # the one of a low score is none
    assert truth.get_linestyle() != found.get_linestyle() == 'solid'
    assert (*found.get_xy(), found.get_width(), found.get_height()) == (2, 4, 10, 4)
    assert to_hex(found.get_edgecolor()) == CLASSES[1]
    assert [text.get_text() for text in axes.texts] == ['0.75']


@styled()
def test_many_classes_are_named_in_their_boxes():
    names = [f'class{i}' for i in range(100)]
    figure = figure_of_boxes([PICTURE, PICTURE], [FOUND, EMPTY], None, names)
    assert [text.get_text() for text in figure.axes[0].texts] == ['class1 0.75']
    assert not figure.legends and not rectangles(figure.axes[1])


@pytest.mark.parametrize('number', [1, 11])
def test_samples_of_any_number_become_one_png(tmp_path, number):
    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, pictures: list[Tensor]) -> list[dict[str, Tensor]]:
            return [FOUND] * len(pictures)

    samples = [(PICTURE[:, : 10 + i], TRUTH) for i in range(number)]
    draw_samples(Detector(), samples, tmp_path / 'predictions.png', ['a', 'b'])
    with Image.open(tmp_path / 'predictions.png') as image:
        assert image.format == 'PNG' and image.width > 400


def test_a_picture_keeps_its_size_with_its_likely_boxes():
    picture = Image.new('L', (40, 30), 90)
    boxes = torch.tensor([[5.0, 6.0, 20.0, 25.0], [30.0, 1.0, 39.0, 9.0]])
    painted = painted_boxes(picture, boxes, [1, 0], [0.9, 0.1], ['a', 'b'])
    assert painted.size == (40, 30)
    assert '#{:02x}{:02x}{:02x}'.format(*painted.getpixel((5, 25))) == CLASSES[1]  # below the words
    assert painted.getpixel((30, 5)) == (90, 90, 90)
    assert painted_boxes(picture, torch.zeros(0, 4), [], [], ['a']).getpixel((0, 0)) == (90, 90, 90)
