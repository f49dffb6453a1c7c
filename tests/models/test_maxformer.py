"""Facts about MaxFormer alone: sizes, the key layout of ImageNet files, arguments."""

import pytest
import timm
import torch

from timm_snn.models.maxformer import checkpoint_filter_fn


@pytest.mark.parametrize(
    ('name', 'parameters'),
    [
        ('maxformer_10_384', 16_237_240),
        ('maxformer_10_512', 28_653_480),
        ('maxformer_10_768', 63_992_200),
        ('maxformer_4_384.cifar10', 6_568_282),
        ('maxformer_4_384.cifar100', 6_602_932),
        ('maxformer_2_256.cifar10_dvs', 1_455_626),
        ('maxformer_2_256.dvs128_gesture', 1_455_883),
    ],
)
def test_models_have_as_many_parameters_as_the_released_code(name, parameters):
    model = timm.create_model(name, device='meta')
    assert sum(p.numel() for p in model.parameters()) == parameters


def imagenet_file(dim: int = 384) -> dict[str, torch.Tensor]:
    """Names and shapes of an ImageNet file, as its authors' code is described."""
    shapes = {}

    def unit(name: str, *shape: int, bias: bool = False, bn: str = '') -> None:
        conv = name if bn else f'{name}_conv'
        shapes[f'{conv}.weight'] = shape
        if bias:
            shapes[f'{conv}.bias'] = shape[:1]
        for leaf in ('weight', 'bias', 'running_mean', 'running_var'):
            shapes[f'{bn or name + "_bn"}.{leaf}'] = shape[:1]
        shapes[f'{bn or name + "_bn"}.num_batches_tracked'] = ()

    widths = [dim // 4, dim // 2, dim]
    c = widths[0]
    for i, shape in enumerate(((c // 2, 3, 3, 3), (c, c // 2, 3, 3), (c, c, 3, 3), (c, c // 2, 1, 1)), 1):
        unit(f'patch_embed1.embed{i}.embed', *shape)
    for i in (2, 3):
        before, after = widths[i - 2], widths[i - 1]
        unit(f'patch_embed{i}.max_embed1.embed', after, before, 3, 3)
        unit(f'patch_embed{i}.embed1.embed', after, after, 3, 3)
        unit(f'patch_embed{i}.max_embed2.embed', after, before, 1, 1)
    for stage, (width, depth) in enumerate(zip(widths, (1, 2, 7), strict=True), 1):
        for j in range(depth):
            block = f'stage{stage}.{j}'
            if stage == 1:
                unit(f'{block}.mixer.conv5', width, 1, 7, 7, bias=True, bn=f'{block}.mixer.conv5_bn')
            elif stage == 2:
                unit(f'{block}.mixer.conv', width, 1, 5, 5, bias=True, bn=f'{block}.mixer.conv_bn')
            else:
                for part in ('q', 'k', 'v', 'proj'):
                    unit(f'{block}.attn.{part}', width, width, 1, bias=part == 'proj')
            unit(f'{block}.mlp.fc1', 4 * width, width, 1, 1, bias=True)
            unit(f'{block}.mlp.fc2', width, 4 * width, 1, 1, bias=True)
    shapes['head.weight'], shapes['head.bias'] = (1000, dim), (1000,)
    return {key: torch.empty(shape, device='meta') for key, shape in shapes.items()}


def test_imagenet_files_map_onto_every_weight():
    model = timm.create_model('maxformer_10_384', device='meta')
    ours = checkpoint_filter_fn(imagenet_file(), model)
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in model.state_dict().items()}


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'mixers': (7, 'ssa')}, 'expected one mixer for each of 3 stages, got 2'),
        ({'mixers': (7, 5, 'nope')}, "unknown attention 'nope'"),
        ({'mixers': (7, 4, 'ssa')}, 'odd kernels'),
        ({'embed_pools': ((), (True, False), (True, False))}, 'stage 0 needs a patch embedding'),
        ({'embed_pools': ((False,), (True, True), (True, False))}, 'max_shortcut halves the resolution'),
        ({'embed_widths': ((96, 96), (192, 96), (384, 384))}, 'must end in the embed_dims'),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model('maxformer_10_384', device='meta', **arguments)
