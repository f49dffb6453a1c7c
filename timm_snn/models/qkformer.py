"""QKFormer: a hierarchical spiking vision transformer with QK token attention.

Paper: "QKFormer: Hierarchical Spiking Transformer using Q-K Attention", arXiv 2403.16552 (NeurIPS 2024).

MSViT without its second scale: the layers are MSViT's (`msvit.py`), with the token attention QKTA at high resolution
and self-attention (SSA) in the last stage, narrower first stages, and 0.5 as the threshold of every attention neuron.

**The published checkpoints were trained with a leak.** In the released code the last neuron of SSA runs over
[T * B, ...]: its membrane goes on from one image of the batch to the next, and logits depend on the order of the batch
and on its size. Here every neuron runs over time alone, so these files load and do not reach their published accuracy:
run without the leak, the authors' 10-384 was reported to fall from 78.7 to 74.2 %. Fine-tune them, or train anew.

Where else the release differs:

* It swaps H and W at the end of SSA; here non-square input works. Stochastic depth, an unused argument there, works.
* The MLP ratio of `qkformer_2_256` is 1, as in the release's CIFAR10-DVS file and the paper's 1.50 M. The release's
  DVS128 Gesture file has 4, which is `mlp_ratio=4.0`, with 1,999,371 parameters.

The block is `MSViTBlock`: X' = QKTA(X) + X, or SSA in the last stage, then X'' = SMLP(X') + X'.

Shapes of qkformer_10_384:

    input       [B, 3, 224, 224]
    stem        [T, B, 48, 112, 112]    a 3x3 convolution unit, pooled
    stages.0    [T, B, 96, 56, 56]      patch embedding, then 1 block with QKTA
    stages.1    [T, B, 192, 28, 28]     patch embedding, then 2 blocks with QKTA
    stages.2    [T, B, 384, 14, 14]     patch embedding, then 7 blocks with SSA
    logits      [B, 1000]               mean over T, height and width, then a linear layer
"""

from collections.abc import Sequence
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ..layers import LayerFn
from .base import KEEP, POOL
from .builder import build_spiking_model
from .cfgs import tagged_cfgs
from .keys import KeyRules, rename_keys
from .msvit import AUTHORS_KEYS, MSViT
from .msvit import LIMITATIONS as MSVIT_LIMITATIONS
from .untrusted import check_state_dict

__all__ = ['QKFormer']

CITATION = 'arXiv:2403.16552'
LIMITATIONS = MSVIT_LIMITATIONS  # the released code leaks in the same place


class QKFormer(MSViT):
    """Hierarchical spiking transformer with QK token attention (arXiv 2403.16552).

    Arguments, shapes and errors are those of `MSViT`, with other defaults.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        embed_dims: Sequence[int] = (96, 192, 384),
        attn: str | LayerFn | Sequence[str | LayerFn] = ('qkta', 'qkta', 'ssa'),
        attn_v_threshold: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, embed_dims=embed_dims, attn=attn, attn_v_threshold=attn_v_threshold, **kwargs)


# Files for events have two stages, counted from 1. Ours have one more in front, without blocks, so the numbers agree.
_EVENTS_KEYS: KeyRules = (
    (r'^patch_embed1\.proj_(conv|bn)\.', r'stem.units.0.\1.'),
    (r'^patch_embed1\.proj1_(conv|bn)\.', r'stem.units.1.\1.'),
    (r'^patch_embed1\.proj2_(conv|bn)\.', r'stages.1.embed.units.0.\1.'),
    (r'^patch_embed1\.proj3_(conv|bn)\.', r'stages.1.embed.units.1.\1.'),
    (r'^patch_embed2\.proj_(conv|bn)\.', r'stages.2.embed.units.0.\1.'),
    (r'^patch_embed2\.proj4_(conv|bn)\.', r'stages.2.embed.units.1.\1.'),
    (r'^patch_embed(\d)\.proj_res_(conv|bn)\.', r'stages.\1.embed.shortcut.\2.'),
    (r'^stage(\d)\.(\d+)\.', r'stages.\1.blocks.\2.'),
)


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Our layout, or those of the authors' ImageNet, CIFAR and DVS files, to our keys. RuntimeError for any other."""
    if 'patch_embed1.proj3_conv.weight' in state_dict:
        state_dict = rename_keys(state_dict, (*_EVENTS_KEYS, *AUTHORS_KEYS))
    elif 'patch_embed1.proj_conv.weight' in state_dict:
        state_dict = rename_keys(state_dict, AUTHORS_KEYS)
    layouts = "our keys (stem.units.0.conv.weight) or the authors' (patch_embed1.proj_conv.weight)"
    check_state_dict(state_dict, model, layouts)
    return state_dict


default_cfgs = generate_default_cfgs(
    tagged_cfgs(
        {
            'qkformer_10_384': 'in1k',
            'qkformer_10_512': 'in1k',
            'qkformer_10_768': 'in1k',
            'qkformer_4_384': 'cifar10 cifar100',
            'qkformer_2_256': 'cifar10_dvs dvs128_gesture',
        },
        paper_ids=CITATION,
        paper_name='QKFormer: Hierarchical Spiking Transformer using Q-K Attention',
        origin_url='https://github.com/zhouchenlin2096/QKFormer',
    )
)


def _create_qkformer(variant: str, pretrained: bool = False, **kwargs: Any) -> QKFormer:
    return build_spiking_model(QKFormer, variant, pretrained, checkpoint_filter_fn, **kwargs)


# Never change a default below: saved models record only what their users passed.
@register_model
def qkformer_10_384(pretrained: bool = False, **kwargs: Any) -> QKFormer:
    """16,473,688 parameters with 1000 classes."""
    model_args = dict(embed_dims=(96, 192, 384), num_heads=6)
    return _create_qkformer('qkformer_10_384', pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def qkformer_10_512(pretrained: bool = False, **kwargs: Any) -> QKFormer:
    """29,079,336 parameters with 1000 classes."""
    model_args = dict(embed_dims=(128, 256, 512), num_heads=8)
    return _create_qkformer('qkformer_10_512', pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def qkformer_10_768(pretrained: bool = False, **kwargs: Any) -> QKFormer:
    """64,962,760 parameters with 1000 classes."""
    model_args = dict(embed_dims=(192, 384, 768), num_heads=12)
    return _create_qkformer('qkformer_10_768', pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def qkformer_4_384(pretrained: bool = False, **kwargs: Any) -> QKFormer:
    """For CIFAR: full resolution in stage 1, pooling after the second convolution; 6,706,234 parameters, 10 classes."""
    model_args = dict(
        embed_dims=(96, 192, 384),
        depths=(1, 1, 2),
        num_heads=8,
        stem_pools=(KEEP,),
        embed_pools=((KEEP,), (KEEP, POOL), (KEEP, POOL)),
    )
    return _create_qkformer('qkformer_4_384', pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def qkformer_2_256(pretrained: bool = False, **kwargs: Any) -> QKFormer:
    """For event frames of 2 x 128 x 128: 1,504,138 parameters with 10 classes.

    The stem is also the first stage, which has no blocks; depths count the other two.
    """
    model_args = dict(
        embed_dims=(32, 128, 256),
        depths=(0, 1, 1),
        num_heads=16,
        mlp_ratio=1.0,
        num_steps=16,
        stem_pools=(KEEP, POOL),
        embed_pools=((), (POOL, POOL), (KEEP, POOL)),
        embed_widths=((), (64, 128), (256, 256)),
    )
    return _create_qkformer('qkformer_2_256', pretrained=pretrained, **dict(model_args, **kwargs))
