"""Facts about Spikingformer alone; `test_families.py` and `test_golden_models.py` have the rest."""

import pytest
import timm
import torch
from torch import Tensor

import timm_snn
from tests.conftest import lively
from timm_snn.models.spikingformer import checkpoint_filter_fn


@pytest.mark.parametrize(
    ('name', 'released', 'unused'),
    [
        ('spikingformer_8_384', 16_828_312, 12_288),
        ('spikingformer_8_512', 29_705_768, 16_384),
        ('spikingformer_8_768', 66_363_208, 24_576),
        ('spikingformer_4_384.cifar10', 9_326_266, 6_144),
        ('spikingformer_4_384.cifar100', 9_360_916, 6_144),
        ('spikingformer_2_256.cifar10_dvs', 2_568_714, 2_048),
        ('spikingformer_2_256.dvs128_gesture', 2_568_971, 2_048),
    ],
)
@pytest.mark.parametrize('downsample', ['spike', 'cml'])
def test_parameters_are_the_released_ones_less_those_never_used(name, released, unused, downsample):
    model = timm.create_model(name, device='meta', downsample=downsample)
    assert sum(p.numel() for p in model.parameters()) == released - unused


def test_event_models_have_another_time_constant_everywhere():
    taus = {
        name: {m.tau for m in timm.create_model(name, device='meta').modules() if isinstance(m, timm_snn.LIF)}
        for name in ('spikingformer_2_256', 'spikingformer_4_384')
    }
    assert taus == {'spikingformer_2_256': {1.5}, 'spikingformer_4_384': {2.0}}


@pytest.mark.parametrize('downsample', ['spike', 'cml'])
@pytest.mark.parametrize(
    ('name', 'sizes'), [('spikingformer_8_384', (1, 2, 4, 8, 16)), ('spikingformer_4_384', (1, 1, 1, 2, 4))]
)
def test_convolutions_of_the_tokenizer_see_the_sizes_of_the_table(name, sizes, downsample):
    model = lively(timm.create_model(name, depth=0, num_steps=1, downsample=downsample).eval())
    seen = []
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[-2:]))
    with torch.no_grad():
        tokens = model.stages(model.stem(torch.rand(1, 1, 3, 64, 96), 1))
    assert seen == [(64 // size, 96 // size) for size in sizes]
    assert tokens.shape[-2:] == seen[-1] and len(tokens.unique()) > 2  # currents


def authors_file(dim: int, depth: int, in_chans: int, classes: int) -> dict[str, Tensor]:
    """A state dict in the layout of the ImageNet and DVS files, as described, with the LayerNorms nobody calls."""
    norm = {'weight': (dim,), 'bias': (dim,)}
    batch_norm = {**norm, 'running_mean': (dim,), 'running_var': (dim,), 'num_batches_tracked': ()}
    widths = [in_chans, dim // 8, dim // 4, dim // 2, dim, dim]
    shapes: dict[str, tuple[int, ...]] = {}

    def add(unit: str, weight: tuple[int, ...], bias: bool = False) -> None:
        shapes[f'{unit}_conv.weight'] = weight
        if bias:
            shapes[f'{unit}_conv.bias'] = weight[:1]
        for leaf, shape in batch_norm.items():
            shapes[f'{unit}_bn.{leaf}'] = shape and weight[:1]

    for i in range(5):
        add(f'patch_embed.proj{i or ""}', (widths[i + 1], widths[i], 3, 3))
    for i in range(depth):
        for name in ('norm1', 'norm2'):
            shapes.update({f'block.{i}.{name}.{leaf}': shape for leaf, shape in norm.items()})
        for name in ('q', 'k', 'v', 'proj'):
            add(f'block.{i}.attn.{name}', (dim, dim, 1), bias=name == 'proj')
        add(f'block.{i}.mlp.mlp1', (4 * dim, dim, 1, 1), bias=True)
        add(f'block.{i}.mlp.mlp2', (dim, 4 * dim, 1, 1), bias=True)
    shapes.update({'head.weight': (classes, dim), 'head.bias': (classes,)})
    return {key: torch.rand(shape) for key, shape in shapes.items()}


class TestAuthorsFiles:
    @pytest.mark.parametrize(
        ('name', 'sizes', 'entries'),
        [('spikingformer_8_384', (384, 8, 3, 1000), 376), ('spikingformer_2_256', (256, 2, 2, 10), 118)],
    )
    def test_load(self, name, sizes, entries):
        theirs, model = authors_file(*sizes), timm.create_model(name)
        assert len(theirs) == entries  # as counted in the released models
        model.load_state_dict(checkpoint_filter_fn(theirs, model))
        assert torch.equal(model.stages[2].embed[1].conv.weight, theirs['patch_embed.proj4_conv.weight'])
        assert torch.equal(model.stages[1].embed.units[0].bn.bias, theirs['patch_embed.proj2_bn.bias'])
        assert torch.equal(model.stages[2].blocks[1].mlp.fc2.conv.bias, theirs['block.1.mlp.mlp2_conv.bias'])

    @pytest.mark.parametrize('key', ['norm.weight', 'block.0.norm3.weight', 'pos_embed', 'patch_embed.proj5_bn.bias'])
    def test_unknown_keys_are_refused(self, key):
        theirs = {**authors_file(256, 2, 2, 10), key: torch.rand(1)}
        with pytest.raises(RuntimeError, match='1 keys unexpected'):
            checkpoint_filter_fn(theirs, timm.create_model('spikingformer_2_256'))


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'downsample': 'max'}, "downsample must be 'spike' or 'cml', got 'max'"),
        ({'pools': (True, True)}, 'expected four pools and an embed_dim that 8 divides'),
        ({'embed_dim': 100}, 'an embed_dim that 8 divides, got .* and 100'),
    ],
)
def test_bad_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model('spikingformer_8_384', device='meta', **kwargs)
