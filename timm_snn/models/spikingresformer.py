"""SpikingResformer: ResNet's stages with dual spike self-attention.

Paper: "SpikingResformer: Bridging ResNet and Vision Transformer in Spiking Neural Networks", arXiv 2403.14302
(CVPR 2024).

A ResNet stem, then three stages of blocks: dual spike self-attention (DSSA), which attends from pixels to patches of 4,
2 and 1 pixels, so that all stages have the same number of patches, and a group-wise feed-forward network with a 3x3
convolution. Residuals are membrane shortcuts: the stream carries real currents, from the stem to the classifier, which
no neuron precedes. Neurons have the surrogate gradient ATan. Convolutions and the classifier have no bias.

DSSA scales its products by running firing rates, which are buffers: they are saved, and fixed in eval mode.

* Before training there are no rates. The released code divides by 0 then; here the rate of the batch at hand is used,
  so that an untrained model's logits depend on the batch. Its rates begin with the first batch, here with the first in
  which a head fires: a silent one leaves rates near 0 there for a thousand steps.
* The scale has a number of patches in it, which belongs to the `img_size` that a model is made for. Other sizes run
  and keep the number, as there; here they need not be multiples of 16 (CIFAR and events: 4).
* The paper counts 11.14, 17.76 and 35.52 M parameters for Ti, S and M; the released code has 11.18, 17.81 and 35.60.
* The released code returns logits of every step; here their mean, and `forward_steps` returns them.
* Stochastic depth is ours, off by default.

Shapes of spikingresformer_ti:

    input       [B, 3, 224, 224]
    stem        [T, B, 64, 56, 56]      a 7x7 convolution with stride 2, batch norm, max pooling: currents
    stages.0    [T, B, 64, 56, 56]      1 block, patches of 4 x 4 pixels
    stages.1    [T, B, 192, 28, 28]     downsampling, then 2 blocks, patches of 2 x 2 pixels
    stages.2    [T, B, 384, 14, 14]     downsampling, then 3 blocks, every pixel a patch
    logits      [B, 1000]               mean over T, height and width, then a linear layer
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

from timm.layers import calculate_drop_path_rates, to_2tuple
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ..layers import CurrentStem, DualSpikeSelfAttention, GroupWiseMlp, LayerFn, LifConvBn, SpikingBlock
from .base import SpikingStage, SpikingTransformer, attention_layer, neuron_layer, per_stage
from .builder import build_spiking_model
from .cfgs import tagged_cfgs
from .keys import KeyRules, rename_keys
from .untrusted import check_state_dict

__all__ = ['SpikingResformer']

CITATION = 'arXiv:2403.14302'
LIMITATIONS = (
    'Attention is scaled by running firing rates, and by the number of patches at the size that the model is made for, '
    'also for images of another size. Before training there are no rates, and logits depend on the batch.'
)


class SpikingResformerBlock(SpikingBlock):
    """DSSA and GWSFFN, which begin with a neuron and end in a batch norm: the stream u holds currents.

    Shape: currents [T, B, dim, H, W] -> the same.
    """

    def forward(self, u: Tensor) -> Tensor:
        u = u + self.drop_path(self.attn(u))  # u' = u + DSSA(u)
        u = u + self.drop_path(self.mlp(u))  # u'' = u' + GWSFFN(u')
        return u


class SpikingResformer(SpikingTransformer):
    """Spiking transformer of ResNet's shape (arXiv 2403.14302).

    Args:
        num_classes: 0 for no classifier.
        in_chans: Channels of images and of every event frame; time is never folded into channels.
        global_pool: Pooling over H and W before the classifier, '' for none.
        img_size: Height and width, or one number for both, that the scale of attention is for; input may
            be of another size.
        embed_dims: Channels of each stage.
        depths: Blocks of each stage.
        num_heads: Attention heads, the same in all stages or one number each.
        attn: 'dssa', or in its place a name in `timm_snn.layers.attentions` or a layer, called with
            `pre_activation=True` if it takes that; one for all stages or one each.
        attn_v_threshold: Threshold of the neuron inside such attention; DSSA has that of the neuron layer.
        patch_sizes: Pixels along the side of the patches that DSSA attends to, for each stage.
        mlp_ratio: Hidden width of the feed-forward network over the width of its stage.
        group_size: Channels in a group of its 3x3 convolution.
        num_steps: T. Images are repeated so often, 5-D input must have as many frames. No weight depends on it: assign
            `model.num_steps` to run the same weights for more or fewer steps.
        stem_kernel_size, stem_stride, stem_pool: The stem's convolution, and whether it is max-pooled.
        lif_layer: Name in `timm_snn.layers.neurons` or layer, called as `lif_layer(surrogate=...)`.
        surrogate: Surrogate gradient of the neurons; None leaves it to the neuron layer.
        backend: Implementation of the neurons, see `timm_snn.ops.backend`; not saved with the model.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block, growing linearly from 0.

    Shape: images [B, C, H, W] or frames [B, T, C, H, W] -> logits [B, num_classes]; maps must hold a patch.
    Raises: ValueError for arguments and input that do not fit, with what was expected.
    """

    stream_is_currents: ClassVar[bool] = True

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = 'avg',
        img_size: int | Sequence[int] = 224,
        embed_dims: Sequence[int] = (64, 192, 384),
        depths: Sequence[int] = (1, 2, 3),
        num_heads: int | Sequence[int] = (1, 3, 6),
        attn: str | LayerFn | Sequence[str | LayerFn] = 'dssa',
        attn_v_threshold: float = 0.5,
        patch_sizes: Sequence[int] = (4, 2, 1),
        mlp_ratio: float = 4.0,
        group_size: int = 64,
        num_steps: int = 4,
        stem_kernel_size: int = 7,
        stem_stride: int = 2,
        stem_pool: bool = True,
        lif_layer: str | LayerFn = 'lif',
        surrogate: str | None = 'atan',
        backend: str | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device=None,
        dtype=None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        num_stages = len(embed_dims)
        depths = per_stage(depths, num_stages, 'depth')
        stage_heads = per_stage(num_heads, num_stages, 'num_heads')
        stage_attns = per_stage(attn, num_stages, 'attn')
        patch_sizes = per_stage(patch_sizes, num_stages, 'patch size')
        layer = {'lif_layer': neuron_layer(lif_layer, backend, surrogate=surrogate), **dd}

        chs = embed_dims[0]
        stem = CurrentStem(in_chans, chs, stem_kernel_size, stride=stem_stride, pool=stem_pool, **dd)
        reduction = stem_stride * (2 if stem_pool else 1)
        drop_paths: Any = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        stages = []
        for i, (dim, patch_size) in enumerate(zip(embed_dims, patch_sizes, strict=True)):
            embed = nn.Identity() if i == 0 else LifConvBn(chs, dim, 3, 2, **layer)
            chs, reduction = dim, reduction * (1 if i == 0 else 2)
            H, W = (size // reduction // patch_size for size in to_2tuple(img_size))
            num_patches = H * W
            if num_patches == 0:
                raise ValueError(f'img_size={img_size} has no patch of {patch_size} pixels at 1/{reduction} size')
            if stage_attns[i] == 'dssa':
                attention: LayerFn = partial(DualSpikeSelfAttention, patch_size=patch_size, num_patches=num_patches)
            else:
                attention = attention_layer(stage_attns[i], pre_activation=True)
                attention = partial(attention, attn_v_threshold=attn_v_threshold)
            blocks = [
                SpikingResformerBlock(
                    attention(dim, stage_heads[i], **layer),
                    GroupWiseMlp(dim, int(dim * mlp_ratio), group_size, **layer),
                    rate,
                )
                for rate in drop_paths[i]
            ]
            stages.append(SpikingStage(embed, blocks, chs, reduction))
        super().__init__(
            stem,
            stages,
            num_classes=num_classes,
            in_chans=in_chans,
            global_pool=global_pool,
            num_steps=num_steps,
            drop_rate=drop_rate,
            **dd,
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)

    def _init_head(self) -> None:
        """A linear layer without bias."""
        super()._init_head()
        if self.num_classes > 0:
            self.head.fc.register_parameter('bias', None)


# Keys of the authors' files: blocks are two entries of a list each, which begins with the downsampling but in stage 0.
def _block_key(match) -> str:
    stage, entry = int(match[1]), int(match[2])
    if stage > 0 and entry == 0:
        return f'stages.{stage}.embed.'
    block, part = divmod(entry - (stage > 0), 2)
    return f'stages.{stage}.blocks.{block}.{"mlp" if part else "attn"}.'


AUTHORS_KEYS: KeyRules = (
    (r'^prologue\.0\.', r'stem.unit.conv.'),
    (r'^prologue\.1\.bn\.', r'stem.unit.bn.'),
    (r'^layers\.(\d)\.(\d+)\.', _block_key),
    (r'\.embed\.conv\.', r'.embed.unit.conv.'),
    (r'\.embed\.norm\.bn\.', r'.embed.unit.bn.'),
    (r'\.embed\.activation\.', r'.embed.lif.'),
    (r'\.attn\.firing_rate_x$', r'.attn.lif_rate.running'),
    (r'\.attn\.firing_rate_attn$', r'.attn.attn_rate.running'),
    (r'\.attn\.activation_in\.', r'.attn.lif.'),
    (r'\.attn\.activation_(attn|out)\.', r'.attn.\1_lif.'),
    (r'\.attn\.W\.', r'.attn.patches.conv.'),
    (r'\.attn\.norm\.bn\.', r'.attn.patches.bn.'),
    (r'\.attn\.Wproj\.', r'.attn.proj.conv.'),
    (r'\.attn\.norm_proj\.bn\.', r'.attn.proj.bn.'),
    (r'\.mlp\.conv\.0\.', r'.mlp.conv.branch.'),
    (r'\.mlp\.(up|down|conv\.branch)\.0\.', r'.mlp.\1.lif.'),
    (r'\.mlp\.(up|down|conv\.branch)\.1\.', r'.mlp.\1.unit.conv.'),
    (r'\.mlp\.(up|down|conv\.branch)\.2\.bn\.', r'.mlp.\1.unit.bn.'),
    (r'^classifier\.', r'head.fc.'),
)


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Our layout, or that of the authors' files, to our keys. Raises RuntimeError for any other."""
    if 'prologue.0.weight' in state_dict:
        state_dict = rename_keys(state_dict, AUTHORS_KEYS)
        # theirs are [1, 1, heads, 1, 1]
        state_dict = {k: v.flatten() if k.endswith('_rate.running') else v for k, v in state_dict.items()}
    layouts = "our keys (stem.unit.conv.weight) or the authors' (prologue.0.weight)"
    check_state_dict(state_dict, model, layouts)
    return state_dict


_PAPER: dict[str, Any] = dict(
    first_conv='stem.unit.conv',
    paper_ids=CITATION,
    paper_name='SpikingResformer: Bridging ResNet and Vision Transformer in Spiking Neural Networks',
    origin_url='https://github.com/xyshi2000/SpikingResformer',
)
# Frames of both polarities and their sum.
_EVENTS: dict[str, Any] = dict(input_size=(3, 64, 64), pool_size=(16, 16), mean=(0, 0, 0), std=(1, 1, 1))

default_cfgs = generate_default_cfgs(
    {
        **tagged_cfgs({f'spikingresformer_{size}': 'in1k' for size in ('ti', 's', 'm', 'l')}, crop_pct=0.95, **_PAPER),
        **tagged_cfgs({'spikingresformer_cifar': 'cifar10 cifar100'}, **_PAPER),
        **tagged_cfgs({'spikingresformer_gesture': 'dvs128_gesture'}, **_EVENTS, **_PAPER),
    }
)


def _create_spikingresformer(variant: str, pretrained: bool = False, **kwargs: Any) -> SpikingResformer:
    return build_spiking_model(SpikingResformer, variant, pretrained, checkpoint_filter_fn, **kwargs)


# Never change a default below: saved models record only what their users passed.
@register_model
def spikingresformer_ti(pretrained: bool = False, **kwargs: Any) -> SpikingResformer:
    """11,180,992 parameters with 1000 classes."""
    model_args = dict(embed_dims=(64, 192, 384), num_heads=(1, 3, 6))
    return _create_spikingresformer('spikingresformer_ti', pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def spikingresformer_s(pretrained: bool = False, **kwargs: Any) -> SpikingResformer:
    """17,813,824 parameters with 1000 classes."""
    model_args = dict(embed_dims=(64, 256, 512), num_heads=(1, 4, 8))
    return _create_spikingresformer('spikingresformer_s', pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def spikingresformer_m(pretrained: bool = False, **kwargs: Any) -> SpikingResformer:
    """35,601,472 parameters with 1000 classes."""
    model_args = dict(embed_dims=(64, 384, 768), num_heads=(1, 6, 12))
    return _create_spikingresformer('spikingresformer_m', pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def spikingresformer_l(pretrained: bool = False, **kwargs: Any) -> SpikingResformer:
    """60,375,680 parameters with 1000 classes."""
    model_args = dict(embed_dims=(128, 512, 1024), num_heads=(2, 8, 16))
    return _create_spikingresformer('spikingresformer_l', pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def spikingresformer_cifar(pretrained: bool = False, **kwargs: Any) -> SpikingResformer:
    """For CIFAR: `spikingresformer_ti` without downsampling in the stem; 10,793,152 parameters with 10 classes.

    For CIFAR10-DVS the authors trained it on frames of 3 x 64 x 64, with img_size=64 and num_steps=16.
    """
    model_args = dict(
        img_size=32,
        embed_dims=(64, 192, 384),
        num_heads=(1, 3, 6),
        stem_kernel_size=3,
        stem_stride=1,
        stem_pool=False,
    )
    return _create_spikingresformer('spikingresformer_cifar', pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def spikingresformer_gesture(pretrained: bool = False, **kwargs: Any) -> SpikingResformer:
    """For DVS128 Gesture, frames of 3 x 64 x 64, with learned time constants: 2,709,830 parameters with 11 classes."""
    model_args = dict(
        img_size=64,
        embed_dims=(32, 96, 192),
        num_heads=(1, 3, 6),
        group_size=32,
        num_steps=16,
        stem_kernel_size=3,
        stem_stride=1,
        stem_pool=False,
        lif_layer='plif',
    )
    return _create_spikingresformer('spikingresformer_gesture', pretrained=pretrained, **dict(model_args, **kwargs))
