"""Detectors of torchvision over spiking and ordinary backbones."""

import pytest
import torch
from torch import nn

from tests.conftest import lively
from timm_snn import dense

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = [torch.rand(3, *size, generator=GENERATOR) for size in ((50, 70), (64, 40))]
BOXES = torch.tensor([[3.0, 4.0, 30.0, 40.0]])
NONE = {'boxes': torch.zeros(0, 4), 'labels': torch.zeros(0, dtype=torch.long)}
SMALL = dict(min_size=64, max_size=96, out_channels=8)


@pytest.mark.parametrize('detector', ['retinanet', 'faster_rcnn'])
@pytest.mark.parametrize(
    ('backbone', 'neck'), [('msvit_4_96', 'fpn'), ('msvit_4_96', 'spiking_fpn'), ('resnet18', 'fpn')]
)
def test_every_parameter_learns_from_boxes_and_from_none(backbone, neck, detector):
    model = dense.create_detector(backbone, 3, detector=detector, neck=neck, **SMALL)
    losses = model(IMAGES, [{'boxes': BOXES, 'labels': torch.tensor([2])}, NONE])
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    losses = model(IMAGES, [NONE, NONE])
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize(('detector', 'first'), [('retinanet', 0), ('faster_rcnn', 1)])
def test_labels_count_from_zero_in_and_out(detector, first):
    model = dense.create_detector('msvit_4_96', 3, detector=detector, num_steps=1, **SMALL)
    seen = []
    model.network.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    targets = [{'boxes': BOXES, 'labels': torch.tensor([label])} for label in (0, 2)]
    assert all(loss.isfinite() for loss in model(IMAGES, targets).values())
    assert [target['labels'].tolist() for target in seen[0]] == [[first], [2 + first]]
    assert [target['labels'].tolist() for target in targets] == [[0], [2]]
    heads = {'retinanet': 'head.classification_head.cls_logits', 'faster_rcnn': 'roi_heads.box_predictor.cls_score'}
    scores = model.network.get_submodule(heads[detector])
    nn.init.zeros_(scores.weight)
    nn.init.zeros_(scores.bias)
    scores.bias.data.view(-1, 3 + first)[:, first] = 5.0  # of the first class, after the background if there is one
    assert [found['labels'][0].item() for found in model.eval()(IMAGES)] == [0, 0]


def test_boxes_are_in_pixels_of_the_image_that_came_in():
    model = dense.create_detector('msvit_4_96', 1, detector='faster_rcnn', num_steps=1, **SMALL).eval()
    (found,) = model([torch.rand(3, 200, 300)])
    assert found['boxes'][:, 0::2].max() > 96 and found['boxes'][:, 1::2].max() <= 200


def test_frames_are_seen_step_by_step():
    model = dense.create_detector('msvit_4_96', 2, detector='faster_rcnn', in_chans=2, num_steps=3, **SMALL)
    lively(model.eval())
    image = torch.rand(2, 50, 70)
    alike = model([image.expand(3, -1, -1, -1)])
    torch.testing.assert_close(alike, model([image]), rtol=0, atol=1e-4)
    others = model([torch.stack([image, 0 * image, 0 * image])])
    assert not torch.equal(others[0]['scores'], alike[0]['scores'])
    with pytest.raises(ValueError, match=r'frames \[T=3, C, H, W\], got one of \[2, 2, 50, 70\]'):
        model([image.expand(2, -1, -1, -1)])


def test_an_ordinary_backbone_has_no_frames():
    model = dense.create_detector('resnet18', 2, **SMALL).eval()
    with pytest.raises(ValueError, match=r'images \[C=3, H, W\], got one of'):
        model([torch.rand(3, 3, 50, 70)])


def test_images_are_normalised_as_the_backbone_wants_them():
    model = dense.create_detector('msvit_4_96', 2, num_steps=1, min_size=48, max_size=64, out_channels=8).eval()
    seen = []
    model.network.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    image = torch.rand(3, 48, 48)
    model([image])
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ('mean', 'std'))
    torch.testing.assert_close(seen[0][0, :, :48, :48], (image - mean) / std)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'detector': 'yolo'}, 'unknown detector'),
        ({'neck': 'bifpn'}, 'unknown neck'),
        ({'anchor_sizes': (16, 32)}, 'each of 4 levels'),
        ({'min_stride': 64}, 'none of at least 64'),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        dense.create_detector('msvit_4_96', 2, **arguments)


def test_a_spiking_neck_needs_spikes():
    with pytest.raises(ValueError, match='or a spiking backbone'):
        dense.create_detector('resnet18', 2, neck='spiking_fpn')
