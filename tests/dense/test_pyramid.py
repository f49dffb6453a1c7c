"""Feature pyramids for torchvision, and their anchors."""

import torch
from torchvision.models.detection import RetinaNet

from timm_snn import dense


def test_levels_have_the_strides_that_they_say():
    body = dense.fpn_backbone('msvit_4_96', out_channels=8, num_steps=1)
    levels = body(torch.rand(1, 3, 64, 96))
    assert list(levels) == ['0', '1', '2', 'pool'] and body.strides == [4, 8, 16, 32]
    assert [list(level.shape) for level in levels.values()] == [[1, 8, 64 // s, 96 // s] for s in body.strides]


def test_levels_of_small_strides_are_left_out():
    body = dense.fpn_backbone('sew_resnet18', out_channels=8, num_steps=1, min_stride=8, pool=False)
    assert body.strides == [8, 16, 32] and len(body(torch.rand(2, 3, 64, 64))) == 3


def test_anchors_follow_the_strides():
    body = dense.fpn_backbone('msvit_4_96', out_channels=8, num_steps=1)
    assert dense.anchor_generator(body).sizes == ((16, 20, 25), (32, 40, 51), (64, 81, 102), (128, 161, 203))
    assert dense.anchor_generator(body, [8, 16, 32, 64]).sizes == ((8,), (16,), (32,), (64,))


def test_the_example_of_the_docstring():
    body = dense.fpn_backbone('msvit_4_96', out_channels=8, num_steps=1)
    detector = RetinaNet(body, 3, anchor_generator=dense.anchor_generator(body), min_size=64, max_size=64).eval()
    assert set(detector([torch.rand(3, 64, 64)])[0]) == {'boxes', 'scores', 'labels'}
