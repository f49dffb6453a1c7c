"""Whole models against outputs of the research code, and the key layouts of its files (`tests/golden/README.md`)."""

import sys

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

import timm_snn
from tests.support.reference import GOLDEN, input_of, outputs_of, shapes_of, weights_of
from timm_snn.layers import IntegerNeuron

IMAGES = (2, 3, 32, 32)

# Golden file: the model, its arguments, the shape of its input.
MODELS = {
    'msvit_cifar10': ('msvit_4_384.cifar10', {}, IMAGES),
    'qkformer_cifar10': ('qkformer_4_384.cifar10', {}, IMAGES),
    'spikformer_cifar10_4_384': ('spikformer_4_384.cifar10', {}, IMAGES),
    'maxformer_cifar10': ('maxformer_4_384.cifar10', {}, IMAGES),
    'maxformer_cifar10dvs': ('maxformer_2_256.cifar10_dvs', {'num_steps': 4}, (2, 4, 2, 128, 128)),
    'ms_qkformer_cifar10': ('ms_qkformer_4_384.cifar10', {}, IMAGES),
    'espikeformer_small': (
        'espikeformer_5m',
        {'embed_dims': (16, 32, 64, 80), 'num_classes': 10},
        (2, 3, 64, 64),
    ),
    'spikingresformer_cifar10': ('spikingresformer_cifar.cifar10', {}, IMAGES),
    'spikingresformer_dvsg': ('spikingresformer_gesture', {'num_steps': 4}, (2, 4, 3, 64, 64)),
    'cml_spikformer_cifar10_4_384': ('spikformer_4_384.cifar10', {'downsample': 'cml'}, IMAGES),
    'metaspikformer_small': (
        'metaspikformer_8_256',
        {'embed_dims': (24, 48, 96, 120), 'num_classes': 10, 'num_steps': 4},
        (2, 3, 64, 64),
    ),
    'sdt_v1_cifar_2_512': ('sdt_2_512.cifar10', {}, IMAGES),
    'spikingformer_cifar10_4_384': ('spikingformer_4_384.cifar10', {}, IMAGES),
}

# A second neuron of the released code on the input of another, which fires the same.
TWINS = {'patch_embed1.embed2.embed_lif'}

# Files of which only the keys are known.
LAYOUTS = {
    'msvit_10_384': ('msvit_10_384', {}),
    'msvit_10_512': ('msvit_10_512', {}),
    'msvit_10_768': ('msvit_10_768', {}),
    # the released CIFAR-100 file has P with kernel 1, unlike the paper and its parameter count
    'msvit_cifar100': ('msvit_4_384.cifar100', {'query_kernels': ((1, 1), (1, 1), (1,))}),
    'qkformer_10_384': ('qkformer_10_384', {}),
    'qkformer_10_512': ('qkformer_10_512', {}),
    'qkformer_10_768': ('qkformer_10_768', {}),
    'qkformer_cifar100': ('qkformer_4_384.cifar100', {}),
    'qkformer_cifar10-dvs': ('qkformer_2_256.cifar10_dvs', {}),
    'qkformer_dvs128-gesture': ('qkformer_2_256.dvs128_gesture', {'mlp_ratio': 4.0}),
}
EVERY_LAYOUT = {name: model[:2] for name, model in MODELS.items()} | LAYOUTS


def read(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A file's state dict with the names of our model."""
    return sys.modules[type(model).__module__].checkpoint_filter_fn(dict(state_dict), model)


def test_every_golden_file_is_covered():
    assert {path.name.removesuffix('.npz') for path in GOLDEN.glob('*.npz')} == {*MODELS, 'blocks', 'membrane_blocks'}
    assert {path.name.removesuffix('.keys.json') for path in GOLDEN.glob('*.keys.json')} == set(EVERY_LAYOUT)


@pytest.mark.parametrize('name', MODELS)
def test_model_in_float64_equals_the_research_code(name):
    registered, kwargs, shape = MODELS[name]
    golden, weights = outputs_of(name), weights_of(name)
    model = timm.create_model(registered, **kwargs)
    ours = read(weights, model)
    model.load_state_dict(ours)
    model.double().eval()
    fired = []
    for module in model.modules():
        if isinstance(module, timm_snn.LIF):
            module.register_forward_hook(lambda _, args, out: fired.append((int(out.sum()), out.numel())))
        elif isinstance(module, IntegerNeuron):  # counted are the integers
            scale = module.levels if module.normalize else 1
            module.register_forward_hook(lambda _, args, out, n=scale: fired.append((int(n * out.sum()), out.numel())))

    per_step = golden['logits_fixed'].ndim == 3
    x = input_of(name, shape)
    logits = model.forward_steps(x).transpose(0, 1) if per_step else model(x)

    np.testing.assert_allclose(logits.detach(), golden['logits_fixed'], rtol=0, atol=1e-9)
    theirs = zip(golden['lif_names'], golden['lif_spikes_fixed'].tolist(), golden['lif_numel'].tolist(), strict=True)
    assert sorted(fired) == sorted((spikes, numel) for lif, spikes, numel in theirs if lif not in TWINS)

    (logits * torch.from_numpy(np.random.RandomState(1).standard_normal(logits.shape))).sum().backward()
    # a weight keeps its memory when it is renamed and reshaped
    key_of = {value.untyped_storage().data_ptr(): key for key, value in weights.items()}
    norm_of = dict(zip(golden['grad_names'].tolist(), golden['grad_l2_fixed'].tolist(), strict=True))
    for key, parameter in model.named_parameters():
        norm = norm_of[key_of[ours[key].untyped_storage().data_ptr()]]
        np.testing.assert_allclose(parameter.grad.norm(), norm, rtol=1e-9, err_msg=key)


@pytest.mark.parametrize('name', EVERY_LAYOUT)
def test_key_layouts_of_the_authors_map_onto_every_weight(name):
    registered, kwargs = EVERY_LAYOUT[name]
    state_dict = {key: torch.empty(shape, device='meta') for key, shape in shapes_of(name).items()}
    model = timm.create_model(registered, device='meta', **kwargs)
    ours = read(state_dict, model)
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in model.state_dict().items()}


@pytest.mark.parametrize('name', MODELS)
def test_unknown_and_missing_keys_are_refused(name):
    registered, kwargs, _ = MODELS[name]
    state_dict = {key: torch.empty(shape, device='meta') for key, shape in shapes_of(name).items()}
    model = timm.create_model(registered, device='meta', **kwargs)
    with pytest.raises(RuntimeError, match=r'1 keys unexpected \(first: nonsense\.weight\)'):
        read({**state_dict, 'nonsense.weight': torch.empty(1)}, model)
    key = next(key for key in state_dict if key.endswith('.running_var'))
    del state_dict[key]
    with pytest.raises(RuntimeError, match=r'1 keys missing'):
        read(state_dict, model)
