"""Blocks with membrane shortcuts against outputs of the research code, in float64 (`tests/golden/README.md`)."""

import json
from collections import OrderedDict
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import timm_snn
from tests.support.reference import GOLDEN, fill
from timm_snn.layers import (
    LIF,
    DualSpikeSelfAttention,
    GroupWiseMlp,
    LifConvBn,
    MembranePatchEmbed,
    ParametricLIF,
    QKTokenAttention,
    SpikingMlp,
    SpikingResidual,
    SpikingSelfAttention,
    SpikingStem,
)
from timm_snn.models.builder import rename_keys
from timm_snn.models.spikingresformer import AUTHORS_KEYS as RESFORMER_KEYS


class Stem(nn.Sequential):
    """A stem with its patch embedding, which the research code has in one module."""

    def __init__(self, stem: SpikingStem, embed: MembranePatchEmbed) -> None:
        super().__init__(OrderedDict(stem=stem, embed=embed))

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(self.stem(x, x.shape[0]))


def depthwise(kernel_size: int) -> SpikingResidual:
    return SpikingResidual(LifConvBn(32, 32, kernel_size, bias=True, groups=32))


def spike_input(in_chs: int, widths: tuple, pools: tuple, stride: int = 1) -> MembranePatchEmbed:
    return MembranePatchEmbed(in_chs, widths, pools, stride, pre_activation=False)


MIXER = ((r'^conv5?_bn\.', 'branch.unit.bn.'), (r'^conv5?\.', 'branch.unit.conv.'))


def embed_keys(**names: str):
    """Rules from the names of the research code's convolutions to ours."""
    rules = [(rf'^{name}\.embed_', f'{ours}.') for name, ours in names.items() if name != 'proj']
    return (*rules, (r'^proj_', f'{names.get("proj")}.'))


def resformer_keys(theirs: str, ours: str):
    """The family's rules for a block of a model."""
    branch = '' if 'embed' in ours else 'branch.'
    return ((r'^', theirs), *RESFORMER_KEYS, (rf'^{ours}', branch))


def renamed(state_dict: dict[str, Tensor], rules) -> dict[str, Tensor]:
    ours = rename_keys(state_dict, rules)
    return {key: value.flatten() if key.endswith('_rate.running') else value for key, value in ours.items()}


ATAN, ATAN_PLIF = partial(LIF, surrogate='atan'), partial(ParametricLIF, surrogate='atan')
DSSA = resformer_keys('layers.0.0.', 'stages.0.blocks.0.attn.')

# Our block and the rules that rename the research code's keys.
BLOCKS = {
    'mixer_dwc7_d32': (lambda: depthwise(7), MIXER),
    'mixer_dwc5_d32': (lambda: depthwise(5), MIXER),
    'mixer_dwc3_d32': (lambda: depthwise(3), MIXER),
    'ms_mlp_d32_r4': (
        lambda: SpikingResidual(SpikingMlp(32, 128, pre_activation=True)),
        ((r'^fc(\d)_', r'branch.fc\1.'),),
    ),
    'ms_mlp_d32_r1': (
        lambda: nn.Sequential(*(SpikingResidual(LifConvBn(32, 32, bias=True)) for _ in range(2))),
        (('^fc1_', '0.branch.unit.'), ('^fc2_', '1.branch.unit.')),
    ),
    'ms_ssa_d64_h2': (
        lambda: SpikingResidual(SpikingSelfAttention(64, 2, attn_v_threshold=0.5, pre_activation=True)),
        (('^q_', 'branch.q.0.'), (r'^(k|v|proj)_', r'branch.\1.')),
    ),
    'ms_qkta_d32_h4': (
        lambda: SpikingResidual(QKTokenAttention(32, 4, pre_activation=True)),
        (('^q_', 'branch.q.0.'), (r'^(k|proj)_', r'branch.\1.')),
    ),
    'dssa_d64_h2_p4': (lambda: SpikingResidual(DualSpikeSelfAttention(64, 2, 4, 8, ATAN)), DSSA),
    'dssa_d32_h1_p1_plif': (lambda: SpikingResidual(DualSpikeSelfAttention(32, 1, 1, 48, ATAN_PLIF)), DSSA),
    'gwffn_d32_g32': (
        lambda: SpikingResidual(GroupWiseMlp(32, 128, 32, ATAN)),
        resformer_keys('layers.0.1.', 'stages.0.blocks.0.mlp.'),
    ),
    'down_32_48': (lambda: LifConvBn(32, 48, 3, 2, lif_layer=ATAN), resformer_keys('layers.1.0.', 'stages.1.embed.')),
    'embed_max_32_48': (
        lambda: MembranePatchEmbed(32, (48, 48), (True, False), max_shortcut=True),
        embed_keys(max_embed1='units.0', embed1='units.1', max_embed2='shortcut'),
    ),
    'embed_1max_cifar_32_48': (
        lambda: MembranePatchEmbed(32, (48, 48), (False, True)),
        embed_keys(embed1='units.0', max_embed1='units.1', embed2='shortcut'),
    ),
    'embed_orig_imagenet_3_32': (
        lambda: Stem(SpikingStem(3, (16,), (False,), stride=2), spike_input(16, (32, 32), (False, False), 2)),
        embed_keys(embed1='stem.units.0', embed2='embed.units.0', embed3='embed.units.1', embed4='embed.shortcut'),
    ),
    'embed_orig_cifar_3_32': (
        lambda: Stem(SpikingStem(3, (16,), (False,)), spike_input(16, (32,), (False,))),
        embed_keys(proj='stem.units.0', embed1='embed.units.0', embed2='embed.shortcut'),
    ),
    'embed_max_plus_dvs_2_64': (
        lambda: Stem(SpikingStem(2, (8, 16), (False, True)), spike_input(16, (32, 64), (True, True))),
        embed_keys(
            proj='stem.units.0',
            max_embed1='stem.units.1',
            max_embed2='embed.units.0',
            max_embed3='embed.units.1',
            embed1='embed.shortcut',
        ),
    ),
}


@pytest.fixture(scope='module')
def golden() -> tuple[dict, dict]:
    with np.load(GOLDEN / 'membrane_blocks.npz') as arrays:
        return json.loads((GOLDEN / 'membrane_blocks.json').read_text()), dict(arrays)


def test_every_golden_block_is_covered(golden):
    assert set(BLOCKS) == set(golden[0])


@pytest.mark.parametrize('name', BLOCKS)
def test_block_currents_spikes_and_gradients_are_those_of_the_research_code(golden, name):
    meta, arrays = golden[0][name], golden[1]
    make, rules = BLOCKS[name]
    block = make().double().eval()
    state_dict = fill(meta['keys'], meta['bn_table'])
    block.load_state_dict(renamed(state_dict, rules))
    x = (2 * np.random.RandomState(2).standard_normal(meta['input_shape'])).astype(np.float32)
    x = torch.from_numpy(x).double().requires_grad_()
    fired = []
    for module in block.modules():
        if isinstance(module, timm_snn.LIF):
            module.register_forward_hook(lambda _, args, out: fired.append(int(out.sum())))

    y = block(x)

    assert list(y.shape) == arrays[f'{name}.y_shape'].tolist()
    np.testing.assert_allclose(y.detach().flatten()[:512], arrays[f'{name}.y_head'], rtol=0, atol=1e-9)
    weighted = (y * torch.from_numpy(np.random.RandomState(3).standard_normal(y.shape))).sum()
    np.testing.assert_allclose(weighted.detach(), arrays[f'{name}.y_sumw'], rtol=1e-9)
    spikes = arrays[f'{name}.spikes'].tolist()
    assert sorted(fired) == sorted(set(spikes) if name == 'embed_orig_cifar_3_32' else spikes)  # one neuron is twice
    (dx,) = torch.autograd.grad(weighted, x)
    np.testing.assert_allclose(dx.norm(), arrays[f'{name}.dx_l2'], rtol=1e-9)
    np.testing.assert_allclose(dx.flatten()[:64], arrays[f'{name}.dx_head'], rtol=0, atol=1e-9)


def test_running_firing_rates_are_those_of_the_research_code(golden):
    meta, arrays = golden[0]['dssa_d64_h2_p4'], golden[1]
    block = BLOCKS['dssa_d64_h2_p4'][0]().double().train()
    state_dict = fill(meta['keys'], meta['bn_table'])
    for key in ('firing_rate_x', 'firing_rate_attn'):
        state_dict[key].zero_()
    block.load_state_dict(renamed(state_dict, DSSA))
    r = np.random.RandomState(4)
    with torch.no_grad():
        for step in range(3):
            x = ((2 + 0.5 * step) * r.standard_normal((4, 2, 64, 16, 8))).astype(np.float32)
            y = block(torch.from_numpy(x).double())
            np.testing.assert_allclose(y.flatten()[:64], arrays[f'dssa_train.step{step}.y_head'], rtol=0, atol=1e-9)
            for ours, theirs in (('lif_rate', 'firing_rate_x'), ('attn_rate', 'firing_rate_attn')):
                running = getattr(block.branch, ours).running.flatten()
                np.testing.assert_allclose(running, arrays[f'dssa_train.step{step}.{theirs}'], rtol=1e-12)
        y = block.eval()(torch.from_numpy(x).double())
    np.testing.assert_allclose(y.sum(), arrays['dssa_train.eval_after.y_sum'], rtol=1e-9)
