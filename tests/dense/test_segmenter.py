"""Segmenters: shapes of any input, and what they are made of."""

import sys

import pytest
import timm
import torch
from torch import nn

from tests.conftest import lively
from timm_snn import dense

SPIKING = ('spiking_unet', 'spiking_fpn')


@pytest.mark.parametrize('decoder', SPIKING)
def test_images_and_frames_of_any_size(decoder):
    model = dense.create_segmenter('msvit_4_96', 5, decoder=decoder, num_steps=2)
    assert model(torch.rand(1, 3, 37, 50)).shape == (1, 5, 37, 50)
    assert model(torch.rand(1, 2, 3, 32, 32)).shape == (1, 5, 32, 32)


@pytest.mark.parametrize('decoder', ['unet', 'unetplusplus', 'fpn', 'deeplabv3', 'deeplabv3plus'])
def test_decoders_of_the_library_on_both_kinds_of_backbones(decoder):
    pytest.importorskip('segmentation_models_pytorch')
    spiking = dense.create_segmenter('sew_resnet18', 5, decoder=decoder, num_steps=2)
    assert spiking(torch.rand(2, 3, 37, 50)).shape == (2, 5, 37, 50)
    assert spiking(torch.rand(2, 2, 3, 32, 32)).shape == (2, 5, 32, 32)
    ordinary = dense.create_segmenter('resnet18', 5, decoder=decoder)
    assert ordinary(torch.rand(2, 3, 37, 50)).shape == (2, 5, 37, 50)
    with pytest.raises(ValueError, match='has no time'):
        ordinary(torch.rand(2, 2, 3, 32, 32))


@pytest.mark.parametrize(
    ('backbone', 'arguments', 'message'),
    [
        ('resnet18', {}, 'takes the spikes of every step'),
        ('resnet18', {'decoder': 'unet', 'num_steps': 2}, 'leave out num_steps'),
        ('msvit_4_96', {'decoder': 'unett'}, 'unknown decoder'),
        ('msvit_4_96', {'decoder_channels': 64}, 'a number for each block'),
        ('msvit_4_96', {'decoder_channels': (64,)}, 'expected so many decoder_channels'),
        ('msvit_4_96', {'decoder': 'spiking_fpn', 'decoder_channels': (64, 32)}, 'one number'),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(backbone, arguments, message):
    with pytest.raises(ValueError, match=message) as refused:
        dense.create_segmenter(backbone, 5, **arguments)
    assert '\n' not in str(refused.value)


def test_weights_of_a_tag_are_the_backbone_s():
    tagged = dense.create_segmenter('msvit_4_96.fashion_mnist', 5, pretrained=True, in_chans=1)
    trained = timm.create_model('msvit_4_96.fashion_mnist', pretrained=True)
    assert torch.equal(tagged.backbone.model.stem.units[0].conv.weight, trained.stem.units[0].conv.weight)
    assert tagged.pretrained_cfg['mean'] == (0.2860,)


def test_four_levels_for_the_pyramid_of_the_library():
    pytest.importorskip('segmentation_models_pytorch')
    for backbone, decoder in (('msvit_4_96', 'fpn'), ('sdt_2_256', 'deeplabv3plus')):
        with pytest.raises(ValueError, match='extra_levels=1'):
            dense.create_segmenter(backbone, 5, decoder=decoder)
    model = dense.create_segmenter('msvit_4_96', 5, decoder='fpn', extra_levels=1, num_steps=1)
    assert model(torch.rand(2, 3, 40, 33)).shape == (2, 5, 40, 33)


def test_dilated_levels_are_decoded_by_spikes_too():
    model = dense.create_segmenter('msvit_4_96', 5, output_stride=8, num_steps=1)
    assert model(torch.rand(2, 3, 40, 33)).shape == (2, 5, 40, 33)
    assert dense.create_segmenter(**model.arguments).features.feature_info.reduction() == [4, 8, 8]


def test_padding_changes_no_pixel_inside():
    """A smaller image is the same as a larger one that is zero beyond."""
    model = lively(dense.create_segmenter('msvit_4_96', 5, num_steps=2).double().eval())
    image = torch.rand(1, 3, 37, 50, dtype=torch.float64)
    whole = model(nn.functional.pad(image, (0, 14, 0, 11)))
    torch.testing.assert_close(model(image), whole[..., :37, :50])


def test_steps_may_be_changed():
    model = dense.create_segmenter('msvit_4_96', 5, num_steps=2)
    model.num_steps = 3
    assert model.arguments['num_steps'] == 3 and model(torch.rand(1, 3, 3, 32, 32)).shape == (1, 5, 32, 32)
    assert not hasattr(dense.create_segmenter('resnet18', 5, decoder='unet'), 'num_steps')


def test_importing_it_needs_no_library_of_decoders(monkeypatch):
    monkeypatch.setitem(sys.modules, 'segmentation_models_pytorch', None)
    dense.create_segmenter('msvit_4_96', 5)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'timm-snn\[dense\]'"):
        dense.create_segmenter('msvit_4_96', 5, decoder='unet')


def test_a_pyramid_of_the_library_refuses_levels_of_one_size():
    with pytest.raises(ValueError, match=r"'fpn' doubles the size.*output_stride=8"):
        dense.create_segmenter('msvit_4_96', 3, decoder='fpn', extra_levels=1, output_stride=8)
