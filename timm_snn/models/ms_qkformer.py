"""MS-QKFormer: QKFormer with membrane shortcuts, so that every convolution but the first sees binary spikes.

Paper: "Spiking Neural Networks Need High-Frequency Information", arXiv 2505.18608 (NeurIPS 2025), which compares its
MaxFormer with it; QKFormer's is arXiv 2403.16552.

The layers are QKFormer's (`qkformer.py`) in MaxFormer's order (`maxformer.py`): every branch is neuron, convolution,
batch norm, the stream carries real currents, and a neuron reads it before the classifier. Stages 1 and 2 have QK token
attention, the last self-attention. Patch embeddings stride their shortcuts, where MaxFormer pools them. The parameters
are as many as QKFormer's. No neuron ends a branch, so the released code has no membrane that leaks from image to image,
as QKFormer's has: the published checkpoints answer here as there.

* What the released code takes as depths, heads and stochastic depth it never reads; here they are arguments that work,
  with the values that are fixed there.
* The released model for events does not run: an embedding asks another for a value that it does not return. Ours has
  the evident order of its layers, and was compared with nothing.
* Initialisation is that of the CIFAR and event files, see `maxformer.py`.
* The names in the released ImageNet files are known from a description alone, not from a file.

Any size works and no weight depends on it: 288 and 384 pixels for ImageNet's models too.

Shapes of ms_qkformer_10_384:

    input       [B, 3, 224, 224]
    stem        [T, B, 48, 112, 112]    a 3x3 convolution unit, pooled: spikes
    stages.0    [T, B, 96, 56, 56]      patch embedding, then 1 block with QKTA: currents
    stages.1    [T, B, 192, 28, 28]     patch embedding, then 2 blocks with QKTA
    stages.2    [T, B, 384, 14, 14]     patch embedding, then 7 blocks with SSA
    head_lif    [T, B, 384]             mean over height and width, then a neuron
    logits      [B, 1000]               a linear layer, mean over T
"""

from collections.abc import Sequence
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ..layers import LayerFn
from .base import KEEP, POOL, per_stage
from .builder import build_spiking_model
from .cfgs import tagged_cfgs
from .keys import KeyRules, rename_known_layout
from .maxformer import AUTHORS_KEYS as MAXFORMER_KEYS
from .maxformer import CIFAR_STEM, EVENTS_STEM, MaxFormer
from .untrusted import check_state_dict

__all__ = ['MSQKFormer']

CITATION = 'arXiv:2505.18608'
LIMITATIONS = 'The model for events was compared with nothing: the released one does not run.'


class MSQKFormer(MaxFormer):
    """QKFormer with membrane shortcuts (arXiv 2505.18608).

    Arguments, shapes and errors are those of `MaxFormer`, with other defaults and two differences: `attn` is the
    attention of all stages, or one for each, in place of `mixers`; shortcuts of patch embeddings are strided.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        embed_dims: Sequence[int] = (96, 192, 384),
        attn: str | LayerFn | Sequence[str | LayerFn] = ('qkta', 'qkta', 'ssa'),
        stem_stride: int = 1,
        stem_pools: Sequence[bool] = (POOL,),
        embed_pools: Sequence[Sequence[bool]] = ((POOL, KEEP), (POOL, KEEP), (POOL, KEEP)),
        max_shortcut: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            num_classes,
            embed_dims=embed_dims,
            mixers=per_stage(attn, len(embed_dims), 'attn'),
            stem_stride=stem_stride,
            stem_pools=stem_pools,
            embed_pools=embed_pools,
            max_shortcut=max_shortcut,
            **kwargs,
        )


# Keys of the authors' files: those of CIFAR and events have MaxFormer's stems, and other embeddings after them.
_IMAGENET_KEYS: KeyRules = (
    (r'^patch_embed1\.proj_(conv|bn)\.', r'stem.units.0.\1.'),
    (r'^patch_embed1\.proj_(conv|bn)1\.', r'stages.0.embed.units.0.\1.'),
    (r'^patch_embed1\.proj_(conv|bn)2\.', r'stages.0.embed.units.1.\1.'),
    (r'^patch_embed1\.rpe_', r'stages.0.embed.shortcut.'),
    (r'^patch_embed(\d)\.proj3_', r'patch_embed\1.embed.units.0.'),
    (r'^patch_embed(\d)\.proj4_', r'patch_embed\1.embed.units.1.'),
    (r'^patch_embed(\d)\.proj_res_', r'patch_embed\1.embed.shortcut.'),
)
_EMBEDS: KeyRules = (
    (r'^patch_embed(\d)\.embed1\.', r'patch_embed\1.embed.units.0.'),
    (r'^patch_embed(\d)\.max_embed1\.', r'patch_embed\1.embed.units.1.'),
    (r'^patch_embed(\d)\.embed2\.', r'patch_embed\1.embed.shortcut.'),
)
_LAYOUTS: dict[str, KeyRules] = {
    'patch_embed1.rpe_conv.weight': (*_IMAGENET_KEYS, *MAXFORMER_KEYS),
    'patch_embed1.max_embed3.embed_conv.weight': (*EVENTS_STEM, *_EMBEDS, *MAXFORMER_KEYS),
    'patch_embed1.embed2.embed_conv.weight': (*CIFAR_STEM, *_EMBEDS, *MAXFORMER_KEYS),
}


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Our layout, or those of the authors' ImageNet, CIFAR and DVS files, to our keys. RuntimeError for any other."""
    state_dict = rename_known_layout(state_dict, _LAYOUTS)
    layouts = "our keys (stem.units.0.conv.weight) or the authors' (patch_embed1.proj_conv.weight)"
    check_state_dict(state_dict, model, layouts)
    return state_dict


default_cfgs = generate_default_cfgs(
    tagged_cfgs(
        {
            'ms_qkformer_10_384': 'in1k',
            'ms_qkformer_10_512': 'in1k',
            'ms_qkformer_10_768': 'in1k',
            'ms_qkformer_4_384': 'cifar10 cifar100',
            'ms_qkformer_2_256': 'cifar10_dvs dvs128_gesture',
        },
        paper_ids=CITATION,
        paper_name='Spiking Neural Networks Need High-Frequency Information',
        origin_url='https://github.com/bic-L/MaxFormer',
    )
)


def _create_ms_qkformer(variant: str, pretrained: bool = False, **kwargs: Any) -> MSQKFormer:
    return build_spiking_model(MSQKFormer, variant, pretrained, checkpoint_filter_fn, **kwargs)


# Never change a default below: saved models record only what their users passed.
@register_model
def ms_qkformer_10_384(pretrained: bool = False, **kwargs: Any) -> MSQKFormer:
    """16,473,688 parameters with 1000 classes."""
    model_args = dict(embed_dims=(96, 192, 384), num_heads=6)
    return _create_ms_qkformer('ms_qkformer_10_384', pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def ms_qkformer_10_512(pretrained: bool = False, **kwargs: Any) -> MSQKFormer:
    """29,079,336 parameters with 1000 classes."""
    model_args = dict(embed_dims=(128, 256, 512), num_heads=8)
    return _create_ms_qkformer('ms_qkformer_10_512', pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def ms_qkformer_10_768(pretrained: bool = False, **kwargs: Any) -> MSQKFormer:
    """64,962,760 parameters with 1000 classes."""
    model_args = dict(embed_dims=(192, 384, 768), num_heads=12)
    return _create_ms_qkformer('ms_qkformer_10_768', pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def ms_qkformer_4_384(pretrained: bool = False, **kwargs: Any) -> MSQKFormer:
    """For CIFAR: full resolution in stage 1, pooling after the second convolution; 6,706,234 parameters, 10 classes."""
    model_args = dict(
        embed_dims=(96, 192, 384),
        depths=(1, 1, 2),
        num_heads=8,
        stem_pools=(KEEP,),
        embed_pools=((KEEP,), (KEEP, POOL), (KEEP, POOL)),
    )
    return _create_ms_qkformer('ms_qkformer_4_384', pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def ms_qkformer_2_256(pretrained: bool = False, **kwargs: Any) -> MSQKFormer:
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
    return _create_ms_qkformer('ms_qkformer_2_256', pretrained=pretrained, **dict(model_args, **kwargs))
