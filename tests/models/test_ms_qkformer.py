"""Facts about MS-QKFormer alone: sizes, the layouts of files of which there is no golden one, where neurons are."""

import pytest
import timm
import torch
from torch import Tensor, nn

from timm_snn.layers import LIF, ConvBnLif, QKTokenAttention, SpikingSelfAttention
from timm_snn.models.ms_qkformer import checkpoint_filter_fn

TAGS = ['10_384.in1k', '10_512.in1k', '10_768.in1k', '4_384.cifar10', '2_256.cifar10_dvs', '2_256.dvs128_gesture']


@pytest.mark.parametrize('tag', TAGS)
def test_every_part_has_as_many_parameters_as_qkformers(tag):
    def sizes(family: str) -> list[int]:
        model = timm.create_model(f'{family}_{tag}', device='meta')
        parts = [model.stem, *(part for stage in model.stages for part in (stage.embed, stage.blocks)), model.head]
        return [sum(p.numel() for p in part.parameters()) for part in parts]

    assert sizes('ms_qkformer') == sizes('qkformer')


def add_unit(shapes: dict[str, tuple[int, ...]], conv: str, *shape: int, bias: bool = False) -> None:
    """A convolution of this name and the batch norm after it, whose name has bn for conv."""
    shapes[f'{conv}.weight'] = shape
    if bias:
        shapes[f'{conv}.bias'] = shape[:1]
    bn = conv.replace('conv', 'bn')
    for leaf in ('weight', 'bias', 'running_mean', 'running_var'):
        shapes[f'{bn}.{leaf}'] = shape[:1]
    shapes[f'{bn}.num_batches_tracked'] = ()


def add_stages(shapes: dict[str, tuple[int, ...]], widths: list[int], depths: list[int], mlp_ratio: int) -> None:
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True), 1):
        for i in range(depth):
            block = f'stage{stage}.{i}'
            for part in ('q', 'k', 'proj') if stage < len(widths) else ('q', 'k', 'v', 'proj'):
                add_unit(shapes, f'{block}.attn.{part}_conv', width, width, 1, bias=part == 'proj')
            add_unit(shapes, f'{block}.mlp.fc1_conv', mlp_ratio * width, width, 1, 1, bias=True)
            add_unit(shapes, f'{block}.mlp.fc2_conv', width, mlp_ratio * width, 1, 1, bias=True)


def imagenet_file(dim: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {'head.weight': (1000, dim), 'head.bias': (1000,)}
    widths = [dim // 4, dim // 2, dim]
    c = widths[0]
    add_unit(shapes, 'patch_embed1.proj_conv', c // 2, 3, 3, 3)
    add_unit(shapes, 'patch_embed1.proj_conv1', c, c // 2, 3, 3)
    add_unit(shapes, 'patch_embed1.proj_conv2', c, c, 3, 3)
    add_unit(shapes, 'patch_embed1.rpe_conv', c, c // 2, 1, 1)
    for i, before, after in ((2, c, 2 * c), (3, 2 * c, dim)):
        add_unit(shapes, f'patch_embed{i}.proj3_conv', after, before, 3, 3)
        add_unit(shapes, f'patch_embed{i}.proj4_conv', after, after, 3, 3)
        add_unit(shapes, f'patch_embed{i}.proj_res_conv', after, before, 1, 1)
    add_stages(shapes, widths, [1, 2, 7], 4)
    return shapes


def events_file() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {'head.weight': (11, 256), 'head.bias': (11,)}
    add_unit(shapes, 'patch_embed1.proj_conv', 16, 2, 3, 3)
    for i, (before, after) in enumerate(((16, 32), (32, 64), (64, 128)), 1):
        add_unit(shapes, f'patch_embed1.max_embed{i}.embed_conv', after, before, 3, 3)
    add_unit(shapes, 'patch_embed1.embed1.embed_conv', 128, 32, 1, 1)
    add_unit(shapes, 'patch_embed2.embed1.embed_conv', 256, 128, 3, 3)
    add_unit(shapes, 'patch_embed2.max_embed1.embed_conv', 256, 256, 3, 3)
    add_unit(shapes, 'patch_embed2.embed2.embed_conv', 256, 128, 1, 1)
    add_stages(shapes, [128, 256], [1, 1], 1)
    return shapes


@pytest.mark.parametrize(
    ('name', 'shapes'),
    [
        ('ms_qkformer_10_384', imagenet_file(384)),
        ('ms_qkformer_10_768', imagenet_file(768)),
        ('ms_qkformer_2_256.dvs128_gesture', events_file()),
    ],
)
def test_files_as_described_map_onto_every_weight(name, shapes):
    model = timm.create_model(name, device='meta')
    file: dict[str, Tensor] = {key: torch.empty(shape, device='meta') for key, shape in shapes.items()}
    ours = checkpoint_filter_fn(file, model)
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_maxformers_files_are_refused():
    model = timm.create_model('ms_qkformer_4_384.cifar10', device='meta')
    other = timm.create_model('maxformer_4_384.cifar10', device='meta')
    with pytest.raises(RuntimeError, match='missing'):
        checkpoint_filter_fn(other.state_dict(), model)


def test_no_neuron_ends_a_branch_and_thresholds_of_attention_are_one_half():
    model = timm.create_model('ms_qkformer_10_384', device='meta')
    layers = [stage.blocks[0].mixer.branch for stage in model.stages]
    assert [type(layer) for layer in layers] == [QKTokenAttention, QKTokenAttention, SpikingSelfAttention]
    assert all(isinstance(layer.lif, LIF) and not isinstance(layer.proj, ConvBnLif) for layer in layers)
    thresholds = {name.endswith('attn_lif'): m.v_threshold for name, m in model.named_modules() if isinstance(m, LIF)}
    assert thresholds == {True: 0.5, False: 1.0}


def test_every_convolution_but_the_first_sees_spikes():
    model = timm.create_model('ms_qkformer_4_384', depths=(1, 1, 1), num_steps=2).eval()
    binary = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d)):
            module.register_forward_pre_hook(
                lambda _, args, name=name: binary.update(
                    {name: bool(torch.isin(args[0], torch.tensor([0.0, 1.0])).all())}
                )
            )
    with torch.no_grad():
        model(torch.rand(1, 3, 16, 16))
    assert [name for name, ok in binary.items() if not ok] == ['stem.units.0.conv']


def test_one_attention_or_one_for_each_stage():
    model = timm.create_model('ms_qkformer_4_384', attn='ssa', device='meta')
    assert all(isinstance(stage.blocks[0].mixer.branch, SpikingSelfAttention) for stage in model.stages)
    with pytest.raises(ValueError, match='expected one attn for each of 3 stages, got 2'):
        timm.create_model('ms_qkformer_4_384', attn=('qkta', 'ssa'), device='meta')
