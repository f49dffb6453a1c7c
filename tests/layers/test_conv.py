import pytest
import timm
import torch
from timm.layers import freeze_batch_norm_2d
from torch import nn
from transformers.models.detr.modeling_detr import replace_batch_norm

from tests.conftest import lively
from tests.families import SMALLEST, shallow


@pytest.mark.parametrize('library', ['timm', 'transformers'])
@pytest.mark.parametrize('name', SMALLEST)
def test_libraries_that_freeze_batch_norms_see_all_of_ours(name, library):
    """They replace BatchNorm2d: a BatchNorm1d of tokens would go on training without a word."""
    model = lively(shallow(timm.create_model(name, num_steps=2)).eval()).double()
    chans, height, width = model.pretrained_cfg['input_size']
    x = torch.rand(2, chans, min(height, 64), min(width, 64), dtype=torch.float64)
    expected = model(x)
    if library == 'timm':
        model = freeze_batch_norm_2d(model)
    else:
        replace_batch_norm(model)
    assert not [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    # transformers keeps statistics in float32, a flipped spike would be larger by far
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-6)
    buffers = {key: value.clone() for key, value in model.state_dict().items() if 'bn' in key}
    model.train()(x)
    assert all(torch.equal(value, buffers[key]) for key, value in model.state_dict().items() if key in buffers)
