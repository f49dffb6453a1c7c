"""Artificial twins, `act='relu'`, of every family, and the artificial networks that are registered by name."""

import pytest
import timm
import torch

import timm_snn
from tests.support.families import ARTIFICIAL, SMALLEST, shallow
from timm_snn.layers import LIF, ReluNeuron
from timm_snn.models import save_for_hf


@pytest.fixture(scope='module', params=[*SMALLEST, *ARTIFICIAL])
def twin(request):
    torch.manual_seed(0)
    return timm.create_model(request.param, act='relu', num_classes=10)


@pytest.mark.parametrize('name', SMALLEST)
def test_a_twin_has_the_layers_of_its_network_with_relu_for_neurons(name):
    spiking, twin = (timm.create_model(name, device='meta', **kwargs) for kwargs in ({}, {'act': 'relu'}))
    learned = {k for k in spiking.state_dict() if not k.endswith('lif.w')}
    assert set(twin.state_dict()) == learned
    assert not any(isinstance(module, LIF) for module in twin.modules())
    assert any(isinstance(module, ReluNeuron) for module in twin.modules())
    assert (twin.act, twin.num_steps, spiking.act) == ('relu', 1, None)


def test_a_twin_answers_and_every_part_of_it_learns(twin):
    images = torch.rand(2, twin.in_chans, 32, 32)
    model = shallow(twin).train()
    logits = model(images)
    assert logits.shape == (2, 10) and logits.isfinite().all()
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.zero_grad()
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(images.unsqueeze(1)), model(images))


@pytest.mark.parametrize('name', [*SMALLEST, *ARTIFICIAL])
def test_saved_twins_load(name, tmp_path):
    model = timm.create_model(name, act='relu', num_classes=3).eval()
    save_for_hf(model, tmp_path, safe_serialization=True)
    loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    x = torch.rand(1, model.in_chans, 32, 32)
    with torch.no_grad():
        assert loaded.act == 'relu' and torch.equal(loaded(x), model(x))


@pytest.mark.parametrize('name', [SMALLEST[0], 'resnet19'])
def test_other_steps_are_refused(name):
    with pytest.raises(ValueError, match='expected num_steps=1, got 4'):
        timm.create_model(name, act='relu', num_steps=4, device='meta')
    with pytest.raises(ValueError, match='expected num_steps=1, got 2'):
        timm.create_model(name, act='relu', device='meta').num_steps = 2


def test_choices_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"act must be 'relu', .* got 'gelu'"):
        timm.create_model('msvit_4_96', act='gelu')
    with pytest.raises(ValueError, match="leave out lif_layer='plif'"):
        timm.create_model('msvit_4_96', act='relu', lif_layer='plif')
    with pytest.raises(ValueError, match='expected num_steps=1, got 4'):
        timm.create_model('msvit_4_96', lif_layer='relu')


@pytest.mark.parametrize(
    ('name', 'parameters'), [('transformer_4_384.cifar10', 9_324_730), ('resnet19.cifar10', 12_630_858)]
)
def test_the_artificial_rows_of_the_cifar_table_have_its_counts(name, parameters):
    """9.32 and 12.63 M."""
    model = timm.create_model(name, device='meta')
    assert sum(p.numel() for p in model.parameters()) == parameters and model.num_steps == 1


def test_the_energy_of_a_twin_is_that_of_multiplications(small):
    """What is charged for the artificial twin of a spiking network is what a real one takes."""
    torch.manual_seed(0)
    twin = timm.create_model('msvit_4_96', act='relu').double().eval()
    images = torch.rand(2, 1, 28, 28, dtype=torch.float64)
    report, expected = timm_snn.profile(twin, images), timm_snn.profile(small, images)
    assert report.total.effective_acs == 0 and report.total.effective_macs > 0
    assert report.energy['ANN twin'].macs == expected.energy['ANN twin'].macs
    assert report.energy['B'].acs == 0 and report.energy['B'].macs >= report.energy['ANN twin'].macs
