"""Blocks against outputs of the research code (`tests/golden/README.md`)."""

import json

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from tests.support.reference import GOLDEN, fill, input_of, outputs_of, weights_of
from timm_snn.layers import (
    MultiScaleSpikingAttention,
    QKTokenAttention,
    SpikingBlock,
    SpikingMlp,
    SpikingPatchEmbed,
    SpikingSelfAttention,
    SpikingStem,
)
from timm_snn.models.msvit import checkpoint_filter_fn


@pytest.fixture(scope='module')
def blocks() -> tuple[dict, dict]:
    with np.load(GOLDEN / 'blocks.npz') as arrays:
        return json.loads((GOLDEN / 'blocks.json').read_text()), dict(arrays)


class Embed(nn.Module):
    """A stem with its patch embedding, which the research code has in one module."""

    def __init__(self, stem: SpikingStem, embed: SpikingPatchEmbed) -> None:
        super().__init__()
        self.stem, self.embed = stem, embed

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(self.stem(x, x.shape[0]))


ATTENTION_KEYS = {'q_': 'q.0.', 'p_': 'q.1.', 'k_': 'k.', 'v_': 'v.', 'proj_': 'proj.'}


class UnsummedAttention(MultiScaleSpikingAttention):
    """The released CIFAR-100 file, which the paper does not describe: P has kernel 1 and is not summed over a head."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(3)
        q, p, k = (unit(tokens).unflatten(2, [-1, self.head_dim]) for unit in (*self.q, self.k))
        attn = self.attn_lif(q.sum(3, keepdim=True) + p)
        return self.proj((attn * k).flatten(2, 3)).unflatten(3, x.shape[3:])


MLP_KEYS = {'fc1_': 'fc1.', 'fc2_': 'fc2.'}
DOWN_KEYS = {'proj3_': 'units.0.', 'proj4_': 'units.1.', 'proj_res_': 'shortcut.'}


def block_keys(attention: str) -> dict[str, str]:
    return {f'{attention}.{k}': f'attn.{v}' for k, v in ATTENTION_KEYS.items()} | {
        f'mlp.{k}': f'mlp.{v}' for k, v in MLP_KEYS.items()
    }


def stem_keys(units: int) -> dict[str, str]:
    """proj_, proj1_, ...: the first `units` are the stem."""
    names = ['proj_', 'proj1_', 'proj2_', 'proj3_']
    stem = {name: f'stem.units.{i}.' for i, name in enumerate(names[:units])}
    return stem | {n: f'embed.units.{i}.' for i, n in enumerate(names[units:])} | {'proj_res_': 'embed.shortcut.'}


BLOCKS = {
    'mssa_k3': (lambda: MultiScaleSpikingAttention(48, 4), ATTENTION_KEYS),
    'mssa_cifar100_k1_unsummed': (lambda: UnsummedAttention(48, 4, query_kernels=(1, 1)), ATTENTION_KEYS),
    'qkta': (lambda: QKTokenAttention(48, 4), ATTENTION_KEYS),
    'ssa_msvit_thr1': (lambda: SpikingSelfAttention(48, 4), ATTENTION_KEYS),
    'ssa_qk_thr05': (lambda: SpikingSelfAttention(48, 4, attn_v_threshold=0.5), ATTENTION_KEYS),
    'mlp': (lambda: SpikingMlp(48, 192), MLP_KEYS),
    'block_mssa': (lambda: SpikingBlock(MultiScaleSpikingAttention(48, 4), SpikingMlp(48, 192)), block_keys('tssa')),
    'block_ssa': (lambda: SpikingBlock(SpikingSelfAttention(48, 4), SpikingMlp(48, 192)), block_keys('attn')),
    'stem_imagenet': (
        lambda: Embed(SpikingStem(3, (16,), (True,)), SpikingPatchEmbed(16, (32, 32), (True, False))),
        stem_keys(1),
    ),
    'stem_cifar': (
        lambda: Embed(SpikingStem(3, (16,), (False,)), SpikingPatchEmbed(16, (32,), (False,))),
        stem_keys(1),
    ),
    'stem_dvs_qkformer': (
        lambda: Embed(SpikingStem(2, (4, 8), (False, True)), SpikingPatchEmbed(8, (16, 32), (True, True))),
        stem_keys(2),
    ),
    'down_same_imagenet': (lambda: SpikingPatchEmbed(32, (32, 32), (True, False)), DOWN_KEYS),
    'down_double_imagenet': (lambda: SpikingPatchEmbed(16, (32, 32), (True, False)), DOWN_KEYS),
    'down_same_cifar': (lambda: SpikingPatchEmbed(32, (32, 32), (False, True)), DOWN_KEYS),
    'down_double_cifar': (lambda: SpikingPatchEmbed(16, (32, 32), (False, True)), DOWN_KEYS),
}


def renamed(key: str, prefixes: dict[str, str]) -> str:
    for old in sorted(prefixes, key=len, reverse=True):
        if key.startswith(old):
            return prefixes[old] + key.removeprefix(old)
    raise AssertionError(f'no rule for {key}')


def test_every_golden_block_is_covered(blocks):
    assert set(BLOCKS) == set(blocks[0])


@pytest.mark.parametrize('name', BLOCKS)
def test_block_spikes_and_gradients_are_those_of_the_research_code(blocks, name):
    meta, arrays = blocks[0][name], blocks[1]
    make, prefixes = BLOCKS[name]
    block = make().eval()
    state_dict = fill(meta['keys'], meta['bn_table'])
    block.load_state_dict({renamed(key, prefixes): value for key, value in state_dict.items()})
    r = np.random.RandomState(2)
    shape = meta['input_shape']
    x = 2 * r.standard_normal(shape) if name.startswith('stem') else r.randint(0, 3, size=shape)
    x = torch.from_numpy(np.asarray(x, np.float32)).requires_grad_()

    y = block(x)

    np.testing.assert_array_equal(y.detach().numpy(), arrays[f'{name}.y'])
    weight = np.random.RandomState(3).standard_normal(y.shape).astype(np.float32)
    (dx,) = torch.autograd.grad((y * torch.from_numpy(weight)).sum(), x)
    np.testing.assert_allclose(dx.norm(), arrays[f'{name}.dx_l2'], rtol=1e-6)
    head = arrays[f'{name}.dx_head']
    np.testing.assert_allclose(dx.flatten()[:64], head, rtol=0, atol=1e-6 * np.abs(head).max())


def test_attention_threshold_of_one_half_equals_the_research_code():
    golden = outputs_of('msvit_cifar10')
    model = timm.create_model('msvit_4_384.cifar10', attn_v_threshold=float(golden['alt_attn_thr']))
    model.load_state_dict(checkpoint_filter_fn(weights_of('msvit_cifar10'), model))
    with torch.no_grad():
        logits = model.double().eval()(input_of('msvit_cifar10', (2, 3, 32, 32)))
    np.testing.assert_allclose(logits, golden['logits_fixed_alt_attn_thr'], rtol=0, atol=1e-9)
