"""Facts about the Spike-driven Transformer alone; `test_families.py` and `test_golden_models.py` have the rest."""

import json

import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import nn

from timm_snn.models.sdt import checkpoint_filter_fn


@pytest.mark.parametrize(
    ('name', 'kwargs', 'released', 'unused'),
    [
        ('sdt_8_384', {}, 16_816_536, 512),
        ('sdt_8_512', {}, 29_689_896, 512),
        ('sdt_8_512', {'depth': 6}, 23_373_736, 384),
        ('sdt_8_512', {'depth': 10}, 36_006_056, 640),
        ('sdt_8_768', {}, 66_339_144, 512),
        ('sdt_2_512.cifar10', {}, 10_233_546, 128),
        ('sdt_2_512.cifar100', {}, 10_279_716, 128),
        ('sdt_2_512.cifar10', {'embed_dim': 256}, 2_567_082, 128),
        ('sdt_2_256.cifar10_dvs', {}, 2_566_794, 128),
        ('sdt_2_256_gesture', {}, 2_567_051, 128),
    ],
)
def test_parameters_are_the_released_ones_less_those_never_used(name, kwargs, released, unused):
    model = timm.create_model(name, device='meta', **kwargs)
    assert sum(p.numel() for p in model.parameters()) == released - unused


def network_of(model: nn.Module) -> tuple[list[int], list[bool]]:
    attention = [block.attn.erode for block in model.stages[2].blocks]
    return [info['reduction'] for info in model.feature_info], attention


CIFAR10_DVS = [1, 2, 4], [True, True]
GESTURE = [2, 4, 8], [False, False]


@pytest.mark.parametrize(
    ('name', 'network'),
    [
        ('sdt_2_256', CIFAR10_DVS),
        ('sdt_2_256.cifar10_dvs', CIFAR10_DVS),
        ('sdt_2_256_gesture', GESTURE),
        ('sdt_2_256_gesture.dvs128_gesture', GESTURE),
    ],
)
def test_the_name_chooses_the_event_model_also_after_saving(name, network, tmp_path):
    model = timm.create_model(name)
    assert network_of(model) == network
    save_for_hf(model, tmp_path, safe_serialization=True)
    assert network_of(timm.create_model(f'local-dir:{tmp_path}', pretrained=True)) == network
    assert network_of(timm.create_model(name, erode=False)) == (network[0], [False, False])
    config = json.loads((tmp_path / 'config.json').read_text())
    made_by_transformers = timm.create_model(config['architecture'], **config['model_args'])  # without the tag
    assert network_of(made_by_transformers) == network


def test_the_old_name_of_the_gesture_model_loads_with_a_warning(tmp_path):
    """Until it had an entrypoint of its own, the tag of sdt_2_256 chose it."""
    with pytest.warns(UserWarning, match='is now called sdt_2_256_gesture.dvs128_gesture: use that name'):
        model = timm.create_model('sdt_2_256.dvs128_gesture')
    assert network_of(model) == GESTURE and model.num_classes == 11
    assert model.pretrained_cfg['architecture'] == 'sdt_2_256_gesture'

    save_for_hf(model, tmp_path, safe_serialization=True)
    config = json.loads((tmp_path / 'config.json').read_text())
    old = {**config, 'architecture': 'sdt_2_256'}
    network = {'pools': [False, True, True, True], 'erode': False}
    for model_args in ({}, network):  # the network was written from some version on
        old['model_args'] = {**config['model_args'], **model_args}
        (tmp_path / 'config.json').write_text(json.dumps(old))
        with pytest.warns(UserWarning, match='sdt_2_256_gesture'):
            loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True)
        assert network_of(loaded) == GESTURE and loaded.pretrained_cfg['architecture'] == 'sdt_2_256_gesture'
        assert torch.equal(loaded.head.fc.weight, model.head.fc.weight)
    assert network_of(timm.create_model('sdt_2_256', **old['model_args'])) == GESTURE  # as transformers makes it


def test_the_last_pooling_acts_on_currents_and_the_others_on_spikes():
    model = timm.create_model('sdt_8_384', embed_dim=48, depth=0, num_steps=1).eval()
    seen = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, args, output: seen.append(output.shape[-2:]))
    with torch.no_grad():
        model(torch.rand(1, 3, 64, 96))
    assert seen == [(64 // size, 96 // size) for size in (1, 2, 4, 8, 16)]
    assert isinstance(model.stages[2].embed[0].pool, nn.MaxPool2d)
    assert all(isinstance(unit.pool, nn.Identity) for unit in (model.stem.units[0], model.stages[0].embed.units[0]))


def test_convolutions_start_small_and_the_classifier_as_torch_makes_it():
    model = timm.create_model('sdt_2_512')
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert all(conv.weight.std().item() == pytest.approx(0.02, rel=0.1) for conv in convs)
    assert not any(conv.bias.any() for conv in convs if conv.bias is not None)
    model.reset_classifier(7)
    assert model.head.fc.bias.any() and model.head.fc.weight.abs().max() <= 512**-0.5


def test_the_classifier_sees_spikes_of_the_pooled_stream():
    model = timm.create_model('sdt_2_512', depth=1, num_classes=10).eval()
    seen = []
    model.head.fc.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    with torch.no_grad():
        logits = model(torch.rand(2, 3, 32, 32))
    assert seen[0].shape == (4 * 2, 512) and set(seen[0].unique().tolist()) <= {0, 1}
    assert logits.shape == (2, 10)


def test_files_with_parameters_of_their_own_are_refused():
    model = timm.create_model('sdt_2_256')
    with pytest.raises(RuntimeError, match=r'1 keys unexpected'):
        checkpoint_filter_fn({**model.state_dict(), 'block.0.attn.talking_heads.weight': torch.rand(8, 8, 1)}, model)


@pytest.mark.parametrize('kwargs', [{'pools': (True, True)}, {'embed_dim': 100}])
def test_bad_arguments_are_refused(kwargs):
    with pytest.raises(ValueError, match='expected four pools and an embed_dim that 8 divides'):
        timm.create_model('sdt_8_384', device='meta', **kwargs)
