"""Every augmentation of the configs runs at every magnitude, with any version of Pillow."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment, create_transform

from tests.support.scripts import ROOT
from timm_snn.training.augmentation import Cutout, PaddedCrop, mend_posterize, posterize
from timm_snn.training.data import make_transform
from timm_snn.training.options import data_source, training_options, transform_options

CONFIGS = [file for file in sorted((ROOT / 'recipes' / 'configs').rglob('*.yaml')) if file.parent.name != 'dense']
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))


def ops_of(policy: str, channels: int) -> list[auto_augment.AugmentOp]:
    look = dict(mean=(0.5,) * channels, std=(0.5,) * channels)
    transform = create_transform(32, is_training=True, auto_augment=policy, **look)
    mend_posterize(transform)
    found = []
    for part in transform.transforms:
        for ops in getattr(part, 'ops', getattr(part, 'policy', ())):
            found += ops if isinstance(ops, list) else [ops]
    return found


@pytest.mark.parametrize(
    'policy', ['rand-m10-inc1', 'rand-m10', 'rand-m9-mstd0.5-inc1', 'augmix-m10', 'original', 'v0']
)
@pytest.mark.parametrize('mode', ['L', 'RGB'])
def test_every_op_of_a_policy_runs_at_every_magnitude(policy, mode):
    ops = ops_of(policy, len(mode))
    assert any('Posterize' in op.name for op in ops)
    for op in ops:
        op.prob, op.magnitude_std = 1.0, 0
        for magnitude in range(11):
            op.magnitude = magnitude
            assert op(PICTURE.convert(mode)).size == PICTURE.size


def test_no_bits_are_a_black_picture_and_others_are_timms():
    assert np.asarray(posterize(PICTURE, 0)).max() == 0
    for bits in range(1, 9):
        assert np.array_equal(posterize(PICTURE, bits), auto_augment.posterize(PICTURE, bits))


def test_padded_crops_are_shifted_pictures_with_reflected_borders():
    crop, pixels = PaddedCrop((40, 40), 1, 'bicubic'), np.asarray(PICTURE)
    padded = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), mode='reflect')
    shifts = {padded[i : i + 40, j : j + 40].tobytes() for i in range(3) for j in range(3)}
    random.seed(0)
    assert {np.asarray(crop(PICTURE)).tobytes() for _ in range(100)} == shifts
    assert PaddedCrop((24, 32), 4, 'random')(PICTURE).size == (32, 24)


def test_the_transform_crops_the_padded_picture_and_cuts_out():
    look = dict(input_size=(3, 40, 40), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation='bicubic', crop_pct=1.0)
    transform = make_transform(look, False, pad_crop=4, cutout=12, color_jitter=0.0)
    assert isinstance(transform.transforms[0], PaddedCrop) and isinstance(transform.transforms[-1], Cutout)
    random.seed(0)
    assert max(int((transform(PICTURE) == 0).sum()) for _ in range(20)) == 3 * 12 * 12  # others reach the border


@pytest.mark.parametrize('config', CONFIGS, ids=lambda path: f'{path.parent.name}/{path.stem}')
def test_every_config_augments_as_many_pictures_as_it_takes_to_meet_every_op(config):
    args = training_options(['--config', str(config)])
    if data_source(args).is_events:
        pytest.skip('event frames are augmented in batches')
    look = dict(input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation='bicubic', crop_pct=1.0)
    transform = make_transform(look, False, **transform_options(args))
    random.seed(0)
    torch.manual_seed(0)
    for _ in range(300 if args.aa else 5):
        assert transform(PICTURE).shape == (3, 32, 32)
