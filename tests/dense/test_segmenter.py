"""Segmenters: shapes of any input, and what they are made of."""

import pytest
import torch

from timm_snn import dense

SPIKING = ('spiking_unet', 'spiking_fpn')


@pytest.mark.parametrize('decoder', SPIKING)
def test_images_and_frames_of_any_size(decoder):
    model = dense.create_segmenter('msvit_4_96', 5, decoder=decoder, num_steps=2)
    assert model(torch.rand(1, 3, 37, 50)).shape == (1, 5, 37, 50)
    assert model(torch.rand(1, 2, 3, 32, 32)).shape == (1, 5, 32, 32)


@pytest.mark.parametrize('decoder', ['unet', 'unetplusplus', 'fpn'])
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
