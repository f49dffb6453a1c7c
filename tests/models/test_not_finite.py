"""A picture that is not finite gets no class: NaN goes through every neuron, in every family and backend."""

import pytest
import timm
import torch

import timm_snn
from tests.support.families import MEMBERS, shallow
from timm_snn.ops import sparse_spikes


@pytest.mark.parametrize('backend', ['torch', 'cpp'])
@pytest.mark.parametrize('name', MEMBERS)
@torch.no_grad()
def test_one_nan_pixel_reaches_the_logits_of_its_picture_alone(name, backend):
    torch.manual_seed(0)
    model = shallow(timm.create_model(name, num_classes=3, num_steps=2))
    x = torch.rand(2, *model.default_cfg['input_size'])
    model.train()(x)  # running statistics
    model.eval()
    x[0, 0, 9, 9] = float('nan')
    for network in (model, timm_snn.fuse(model)):
        with timm_snn.use_backend(backend):
            logits = network(x)
        assert logits[0].isnan().all() and logits[1].isfinite().all()


@torch.no_grad()
def test_a_weight_that_is_nan_reaches_the_logits_where_zeros_are_skipped():
    """Where a weight meets a zero, too: 0 times NaN is NaN."""
    model = timm.create_model('msvit_4_96.fashion_mnist', pretrained=True).eval()
    x = torch.rand(2, 1, 28, 28)
    weight = model.stages[0].blocks[0].mlp.fc1.conv.weight
    weight[0, 0] = float('nan')
    with sparse_spikes(max_density=1.0):
        assert model(x).isnan().all()
