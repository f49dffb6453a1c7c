"""Facts about Spikformer alone, V2 included; `test_families.py` and `test_golden_models.py` have the rest."""

import pytest
import timm
import torch
from torch import Tensor

from timm_snn.models.spikformer import checkpoint_filter_fn


@pytest.mark.parametrize(
    ('name', 'released', 'unused'),
    [
        ('spikformer_8_384', 16_828_312, 12_288),
        ('spikformer_8_512', 29_705_768, 16_384),
        ('spikformer_8_768', 66_363_208, 24_576),
        ('spikformer_4_384.cifar10', 9_330_874, 6_144),
        ('spikformer_4_384.cifar100', 9_365_524, 6_144),
        ('spikformer_2_256.cifar10_dvs', 2_585_610, 18_944),
        ('spikformer_v2_8_384', 29_111_272, 0),  # computed: no code was released
        ('spikformer_v2_8_512', 51_545_064, 0),
    ],
)
@pytest.mark.parametrize('downsample', ['spike', 'cml'])
def test_parameters_are_the_released_ones_less_those_never_used(name, released, unused, downsample):
    kwargs = {} if '_v2_' in name else {'downsample': downsample}
    model = timm.create_model(name, device='meta', **kwargs)
    assert sum(p.numel() for p in model.parameters()) == released - unused


@pytest.mark.parametrize(
    ('name', 'kwargs', 'count'),
    [
        ('spikformer_8_512', {'depth': 6}, 23_373_352),
        ('spikformer_8_512', {'depth': 10}, 36_005_416),
        ('spikformer_4_384.cifar10', {'embed_dim': 256, 'num_heads': 8}, 4_155_178),
        ('spikformer_4_384.cifar10', {'depth': 2}, 5_765_050),
        ('spikformer_v2_8_512', {'embed_dim': 768, 'depth': 16}, 172_278_760),
        ('spikformer_v2_8_512', {'embed_dim': 768}, 115_508_200),
    ],
)
def test_parameters_of_other_sizes(name, kwargs, count):
    assert sum(p.numel() for p in timm.create_model(name, device='meta', **kwargs).parameters()) == count


@pytest.mark.parametrize('downsample', ['spike', 'cml'])
@pytest.mark.parametrize(('name', 'reductions'), [('spikformer_8_384', (4, 8, 16)), ('spikformer_4_384', (1, 2, 4))])
def test_maps_shrink_alike_with_both_ways_of_downsampling(name, reductions, downsample):
    model = timm.create_model(name, depth=1, downsample=downsample, features_only=True, num_steps=1).eval()
    with torch.no_grad():
        taps = model(torch.rand(1, 3, 64, 96))
    assert [tap.shape[1:] for tap in taps] == [
        (chs, 64 // r, 96 // r) for chs, r in zip((96, 192, 384), reductions, strict=True)
    ]


def test_pooling_spikes_and_pooling_currents_differ_and_share_weights():
    model = timm.create_model('spikformer_4_384', depth=0, num_classes=0, pools=(True,) * 4).eval()
    cml = timm.create_model('spikformer_4_384', depth=0, num_classes=0, pools=(True,) * 4, downsample='cml').eval()
    cml.load_state_dict(model.state_dict())
    x = 9 * torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert not torch.equal(model.stages[0](model.stem(x[None], 4)), cml.stages[0](cml.stem(x[None], 4)))


def authors_file(name: str) -> dict[str, Tensor]:
    """A state dict in the layout of the ImageNet and DVS files: Conv1d in attention, and for events in the MLP too."""
    model = timm.create_model(name, device='meta')
    dim = model.num_features
    shapes = {}
    for key, value in model.state_dict().items():
        key = key.replace('stem.units.0.conv', 'patch_embed.proj_conv').replace(
            'stem.units.0.bn', 'patch_embed.proj_bn'
        )
        for i in range(3):
            for part in ('conv', 'bn'):
                key = key.replace(f'stages.{i}.embed.units.0.{part}', f'patch_embed.proj_{part}{i + 1}')
        key = key.replace('stages.2.embed.position.', 'patch_embed.rpe_').replace('stages.2.blocks.', 'block.')
        for unit, theirs in {'q.0': 'q', 'k': 'k', 'v': 'v', 'proj': 'proj', 'fc1': 'fc1', 'fc2': 'fc2'}.items():
            key = key.replace(f'attn.{unit}.', f'attn.{theirs}_').replace(f'mlp.{unit}.', f'mlp.{theirs}_')
        shape = value.shape[:3] if '.mlp.' in key and name == 'spikformer_2_256' else value.shape
        shapes[key.replace('head.fc.', 'head.')] = shape
    norms = [f'block.{i}.norm{n}' for i in range(len(model.stages[2].blocks)) for n in (1, 2)]
    if name == 'spikformer_2_256':
        norms.append('norm')
        shapes['pos_embed'] = (1, 64, dim)
    shapes.update({f'{norm}.{leaf}': (dim,) for norm in norms for leaf in ('weight', 'bias')})
    return {key: torch.rand(tuple(shape)) for key, shape in shapes.items()}


class TestAuthorsFiles:
    @pytest.mark.parametrize(('name', 'entries'), [('spikformer_8_384', 376), ('spikformer_2_256', 121)])
    def test_load(self, name, entries):
        theirs, model = authors_file(name), timm.create_model(name)
        assert len(theirs) == entries  # as counted in the released models
        model.load_state_dict(checkpoint_filter_fn(theirs, model))
        weight = model.stages[2].blocks[1].mlp.fc2.conv.weight
        assert torch.equal(weight.flatten(), theirs['block.1.mlp.fc2_conv.weight'].flatten())
        assert torch.equal(model.stages[1].embed.units[0].bn.bias, theirs['patch_embed.proj_bn2.bias'])

    @pytest.mark.parametrize('key', ['norm3.weight', 'block.0.norm3.weight', 'pos_embed2', 'block.0.attn.norm1.bias'])
    def test_unknown_keys_are_refused(self, key):
        theirs = {**authors_file('spikformer_2_256'), key: torch.rand(1)}
        with pytest.raises(RuntimeError, match='1 keys unexpected'):
            checkpoint_filter_fn(theirs, timm.create_model('spikformer_2_256'))


@pytest.mark.parametrize(
    ('name', 'kwargs', 'message'),
    [
        ('spikformer_8_384', {'downsample': 'max'}, "downsample must be 'spike' or 'cml', got 'max'"),
        ('spikformer_8_384', {'pools': (True, True)}, 'expected four pools and an embed_dim that 8 divides'),
        ('spikformer_8_384', {'embed_dim': 100}, 'an embed_dim that 8 divides, got .* and 100'),
        ('spikformer_v2_8_384', {'embed_dim': 100}, 'an embed_dim that 8 divides, got 100'),
        ('spikformer_8_384', {'num_heads': 7}, 'num_heads=7 does not divide dim=384'),
    ],
)
def test_bad_arguments_are_refused(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model(name, device='meta', **kwargs)
