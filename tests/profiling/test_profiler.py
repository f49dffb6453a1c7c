"""Data and models in any form that users bring, and what is refused."""

import gc

import pytest
import timm
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from tests.conftest import lively
from tests.support.profiling import profile, same_counts


@pytest.mark.parametrize('kind', ['list', 'loader', 'labels', 'dicts', 'set', 'one pair'])
def test_data_in_any_form_gives_the_same_report(small, kind):
    images, labels = torch.rand(5, 1, 20, 28), torch.arange(5)
    samples = TensorDataset(images, labels)
    data = {
        'list': [images[:2], images[2:]],
        'loader': DataLoader(images, batch_size=2),
        'labels': DataLoader(samples, batch_size=4),
        'dicts': [{'image': images[:4], 'label': labels[:4]}, {'image': images[4:], 'label': labels[4:]}],
        'set': samples,
        'one pair': (images, labels),
    }[kind]
    report, whole = profile(small, data, batch_size=3), profile(small, images)
    same_counts(whole, report)
    assert report.num_samples == 5
    assert (report.top1 is None) == (kind in ('list', 'loader'))
    assert report.energy['A'].ci95 == pytest.approx(whole.energy['A'].ci95)


def test_num_samples_cuts_the_last_batch(small):
    images = torch.rand(5, 1, 20, 28)
    same_counts(profile(small, images[:3]), profile(small, DataLoader(images, batch_size=2), num_samples=3))


def test_no_tensor_of_a_batch_stays(small):
    """Small ones that stay split the memory that large ones gave back, and a process grew to 24 GB in 7,000 samples."""

    def tensors():
        gc.collect()
        return [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]

    def counted_batches():
        for images in torch.rand(4, 2, 1, 20, 28):
            alive.append(sum(id(tensor) not in known for tensor in tensors()))
            yield images

    before = tensors()  # held, so that a tensor of another test that is let go meanwhile changes no count
    known, alive = set(map(id, before)), []
    profile(small, counted_batches())
    assert alive[1] == alive[2] == alive[3]


def test_a_timm_data_set_gets_the_models_own_transform(small):
    from PIL import Image

    class Pictures(Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return Image.new('L', (40, 30), 60 * index), index

    report = profile(small, Pictures())
    assert report.num_samples == 3 and report.input_shape == (1, 28, 28) and report.top1 is not None


def test_images_at_one_step_and_frames():
    model = lively(timm.create_model('msvit_2_256', num_steps=2))
    frames = torch.rand(2, 2, 2, 32, 48).round()
    report = profile(model, frames)
    assert (report.num_steps, report.static, report.input_shape) == (2, False, (2, 2, 32, 48))
    model.num_steps = 1
    one = profile(model, frames[:, 0])
    assert (one.num_steps, one.static) == (1, True)
    assert one.total.dense_macs_per_step == report.total.dense_macs_per_step == one.total.dense_macs


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    model = lively(timm.create_model('msvit_4_96')).to(dtype)
    images = torch.rand(2, 1, 28, 28)
    report, reference = profile(model, images), profile(model.float(), images)
    assert report.total.dense_macs == reference.total.dense_macs
    assert report.state_bytes == reference.state_bytes  # membranes are float32 in all of them
    assert report.total.firing_rate == pytest.approx(reference.total.firing_rate, rel=0.05)
    assert report.energy['C'].mj == pytest.approx(reference.energy['C'].mj, rel=0.05)
    assert 2 * report.footprint_bytes < 1.01 * reference.footprint_bytes


class TestRefusals:
    @pytest.mark.parametrize(
        ('data', 'message'),
        [
            ([], 'no samples'),
            (torch.rand(0, 1, 28, 28), 'no samples'),
            (3, 'expected images, batches of them or a data set, got int'),
            ('cifar10', 'got str'),
            ([torch.rand(3, 28)], r'got shape \(3, 28\)'),
            ([{'pixels': 1}], 'got NoneType'),
            ([torch.rand(1, 1, 28, 28), torch.rand(1, 4, 1, 28, 28)], r'T=4.* got shape \(1, 4, 1, 28, 28\)'),
        ],
    )
    def test_data(self, small, data, message):
        with pytest.raises(ValueError, match=message):
            profile(small, data)

    @pytest.mark.parametrize(
        ('kwargs', 'message'),
        [({'num_samples': 0}, 'num_samples must be at least 1'), ({'mac_pj': -1}, 'at least 0 pJ')],
    )
    def test_arguments(self, small, kwargs, message):
        with pytest.raises(ValueError, match=message):
            profile(small, torch.rand(1, 1, 28, 28), **kwargs)

    def test_models(self):
        with pytest.raises(ValueError, match='scripted or traced'):
            profile(torch.jit.script(nn.Sequential(nn.Conv2d(1, 1, 1))), torch.rand(1, 1, 2, 2))
        with pytest.raises(ValueError, match='expected a model'):
            profile('msvit_4_96', torch.rand(1, 1, 2, 2))
