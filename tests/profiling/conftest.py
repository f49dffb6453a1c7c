"""Reports that the tests of what is made of them share."""

import pytest
import timm
import torch

import timm_snn
from tests.conftest import lively
from timm_snn.profiling import Report


@pytest.fixture(scope='session')
def reports() -> list[Report]:
    torch.manual_seed(0)
    images = (torch.rand(3, 1, 28, 28), torch.arange(3))
    models = {
        'msvit & <friends>': lively(timm.create_model('msvit_4_96')),
        'resnet18': timm.create_model('resnet18', in_chans=1),
    }
    return [
        timm_snn.profile(model, images, progress=False, model_name=name, data_name='noise')
        for name, model in models.items()
    ]
