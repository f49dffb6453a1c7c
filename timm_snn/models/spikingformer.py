"""Spikingformer: Spikformer with membrane shortcuts, so that every convolution but the first sees binary spikes.

Paper: "Spikingformer: A Key Foundation Model for Spiking Neural Networks", arXiv 2304.11954, at first
"Spikingformer: Spike-driven Residual Learning for Transformer-based Spiking Neural Network".
CML downsampling: arXiv 2305.05954.

The residual stream holds currents, u' = u + BN(W SN(u)), where Spikformer adds spikes after their neurons; pooling and
classifier see the stream itself. The tokenizer is a chain of SN-Pool-Conv-BN whose last convolution takes the place of
the position embedding and has no shortcut. Here the same chain is cut elsewhere, Conv-BN-SN, Pool-Conv-BN-SN, ...,
Conv-BN, because batch norm and neuron are one operation. So all feature levels but the last are spikes.

* The released code makes LayerNorms in every block and never calls them. They are left out here and skipped in files:
  counts are the released ones less those.
* Stochastic depth is an unused argument there and works here, off by default, as trained. Any size divisible by 16
  (CIFAR: 4) works.
* Heads: 8 for ImageNet, which the authors' logs show for 8-512 and 8-768 and nothing public settles for 8-384; 12 for
  CIFAR-10, but 8 in the config for CIFAR-100 (`num_heads=8`); 16 for events. No weight has a shape that would tell.
* All neurons have tau 1.5 for events, 2 otherwise. With `downsample='cml'` the files for events have `tau=1.75`.

Shapes of spikingformer_8_384:

    input       [B, 3, 224, 224]
    stem        [T, B, 48, 224, 224]    a 3x3 convolution unit: spikes, as in the next two
    stages.0    [T, B, 96, 56, 56]      pooling, a convolution unit, pooling
    stages.1    [T, B, 192, 28, 28]     a convolution unit, pooling
    stages.2    [T, B, 384, 14, 14]     the same and a convolution, which gives currents, then 8 blocks with SSA
    logits      [B, 1000]               mean over T, height and width, then a linear layer
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Literal

from timm.layers import calculate_drop_path_rates
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ..layers import ConvBn, LayerFn, SpikingBlock, SpikingMlp, SpikingPatchSplitting, SpikingStem
from .base import KEEP, POOL, SpikingStage, SpikingTransformer, attention_layer, neuron_layer, tokenizer_widths
from .builder import build_spiking_model
from .cfgs import tagged_cfgs
from .keys import KeyRules, match_pointwise_shapes, rename_keys
from .spikformer import AUTHORS_KEYS as SPIKFORMER_KEYS
from .untrusted import check_state_dict

__all__ = ['Spikingformer']

CITATION = 'arXiv:2304.11954'
LIMITATIONS = (
    'The classifier sees real currents and not spikes. All neurons have tau 1.5 where the model was made for events, '
    'and 2 otherwise; no weight shows which.'
)


class SpikingformerBlock(SpikingBlock):
    """SSA and MLP, which begin with a neuron and end in a batch norm: the stream u holds currents.

    Shape: currents [T, B, dim, H, W] -> the same.
    """

    def forward(self, u: Tensor) -> Tensor:
        u = u + self.drop_path(self.attn(u))  # u' = u + BN(W SN(Q K^T V)), with Q, K, V of SN(u)
        u = u + self.drop_path(self.mlp(u))  # u'' = u' + BN(W SN(BN(W SN(u'))))
        return u


class Spikingformer(SpikingTransformer):
    """Spiking transformer of one resolution with membrane shortcuts (arXiv 2304.11954).

    Args:
        num_classes: 0 for no classifier.
        in_chans: Channels of images and of every event frame; time is never folded into channels.
        global_pool: Pooling over H and W before the classifier, '' for none.
        embed_dim: Channels of the tokens; the tokenizer has an eighth, a quarter, half and all of them.
        depth: Blocks.
        num_heads: Attention heads.
        mlp_ratio: Hidden width of the MLP over embed_dim.
        num_steps: T. Images are repeated so often, 5-D input must have as many frames. No weight depends on it: assign
            `model.num_steps` to run the same weights for more or fewer steps.
        pools: Whether what each of the first four convolutions of the tokenizer gives is pooled.
        downsample: 'spike' pools spikes, 'cml' the current before the neuron.
        attn: Name in `timm_snn.layers.attentions` or layer, called with `pre_activation=True` if it takes that.
        attn_v_threshold: Threshold of the neuron inside attention; all others have the neuron layer's default.
        lif_layer: Name in `timm_snn.layers.neurons` or layer, called as `lif_layer()` and, inside attention, as
            `lif_layer(v_threshold=...)`.
        tau: Time constant of all neurons, in steps; None leaves it to the neuron layer.
        backend: Implementation of the neurons, see `timm_snn.ops.backend`; not saved with the model.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block, growing linearly from 0.

    Shape: images [B, C, H, W] or frames [B, T, C, H, W] -> logits [B, num_classes], of any H and W.
    Raises: ValueError for arguments and input that do not fit, with what was expected.
    """

    stream_is_currents: ClassVar[bool] = True

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = 'avg',
        embed_dim: int = 384,
        depth: int = 8,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        num_steps: int = 4,
        pools: Sequence[bool] = (POOL, POOL, POOL, POOL),
        downsample: Literal['spike', 'cml'] = 'spike',
        attn: str | LayerFn = 'ssa',
        attn_v_threshold: float = 0.5,
        lif_layer: str | LayerFn = 'lif',
        tau: float | None = None,
        backend: str | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device=None,
        dtype=None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        widths = tokenizer_widths(embed_dim, pools)
        if downsample not in ('spike', 'cml'):
            raise ValueError(f"downsample must be 'spike' or 'cml', got {downsample!r}")
        cml = downsample == 'cml'
        neuron = neuron_layer(lif_layer, backend, tau=tau)
        attn_layer = partial(attention_layer(attn, pre_activation=True), attn_v_threshold=attn_v_threshold)

        stem = SpikingStem(in_chans, widths[:1], (cml and pools[0],), lif_layer=neuron, **dd)
        embeds: list[nn.Module] = [
            SpikingPatchSplitting(
                widths[i - 1],
                widths[i : i + 1],
                pools[i : i + 1],
                pool_input=i == 1 and pools[0] and not cml,
                cml=cml,
                lif_layer=neuron,
                **dd,
            )
            for i in (1, 2, 3)
        ]
        embeds[2] = nn.Sequential(embeds[2], ConvBn(embed_dim, embed_dim, 3, **dd))
        drop_paths: Any = calculate_drop_path_rates(drop_path_rate, depth)
        blocks = [
            SpikingformerBlock(
                attn_layer(embed_dim, num_heads, lif_layer=neuron, **dd),
                SpikingMlp(embed_dim, int(embed_dim * mlp_ratio), pre_activation=True, lif_layer=neuron, **dd),
                rate,
            )
            for rate in drop_paths
        ]
        super().__init__(
            stem,
            [
                SpikingStage(embed, blocks if i == 3 else [], widths[i], 2 ** sum(pools[: i + 1]))
                for i, embed in enumerate(embeds, start=1)
            ],
            num_classes=num_classes,
            in_chans=in_chans,
            global_pool=global_pool,
            num_steps=num_steps,
            drop_rate=drop_rate,
            **dd,
        )


# Keys of the authors' files: the convolutions of the tokenizer are proj, proj1, ... and, for CIFAR, block0, block1, ...
AUTHORS_KEYS: KeyRules = (
    (r'^patch_embed\.block0_', r'patch_embed.proj_'),
    (r'^patch_embed\.block(\d)_', r'patch_embed.proj\1_'),
    (r'^patch_embed\.proj([12])_(conv|bn)\.', lambda match: f'stages.{int(match[1]) - 1}.embed.units.0.{match[2]}.'),
    (r'^patch_embed\.proj3_(conv|bn)\.', r'stages.2.embed.0.units.0.\1.'),
    (r'^patch_embed\.proj4_(conv|bn)\.', r'stages.2.embed.1.\1.'),
    (r'\.mlp\.mlp(\d)_', r'.mlp.fc\1_'),
    *SPIKFORMER_KEYS,
)


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Our layout, or those of the authors' files, CML included, to our keys. Raises RuntimeError for any other."""
    if 'patch_embed.proj4_conv.weight' in state_dict or 'patch_embed.block4_conv.weight' in state_dict:
        state_dict = rename_keys(state_dict, AUTHORS_KEYS, unused=r'^block\.\d+\.norm[12]\.')
        state_dict = match_pointwise_shapes(state_dict, model)
    layouts = (
        "our keys (stem.units.0.conv.weight) or the authors' (patch_embed.proj4_conv.weight, for CIFAR "
        'patch_embed.block4_conv.weight)'
    )
    check_state_dict(state_dict, model, layouts)
    return state_dict


default_cfgs = generate_default_cfgs(
    tagged_cfgs(
        {
            'spikingformer_8_384': 'in1k',
            'spikingformer_8_512': 'in1k',
            'spikingformer_8_768': 'in1k',
            'spikingformer_4_384': 'cifar10 cifar100',
            'spikingformer_2_256': 'cifar10_dvs dvs128_gesture',
        },
        paper_ids=CITATION,
        paper_name='Spikingformer: A Key Foundation Model for Spiking Neural Networks',
        origin_url='https://github.com/zhouchenlin2096/Spikingformer',
    )
)


def _create_spikingformer(variant: str, pretrained: bool = False, **kwargs: Any) -> Spikingformer:
    return build_spiking_model(Spikingformer, variant, pretrained, checkpoint_filter_fn, **kwargs)


# Never change a default below: saved models record only what their users passed.
@register_model
def spikingformer_8_384(pretrained: bool = False, **kwargs: Any) -> Spikingformer:
    """16,816,024 parameters with 1000 classes; released with 12,288 more, unused."""
    return _create_spikingformer('spikingformer_8_384', pretrained=pretrained, **dict(dict(embed_dim=384), **kwargs))


@register_model
def spikingformer_8_512(pretrained: bool = False, **kwargs: Any) -> Spikingformer:
    """29,689,384 parameters with 1000 classes; released with 16,384 more, unused."""
    return _create_spikingformer('spikingformer_8_512', pretrained=pretrained, **dict(dict(embed_dim=512), **kwargs))


@register_model
def spikingformer_8_768(pretrained: bool = False, **kwargs: Any) -> Spikingformer:
    """66,338,632 parameters with 1000 classes; released with 24,576 more, unused."""
    return _create_spikingformer('spikingformer_8_768', pretrained=pretrained, **dict(dict(embed_dim=768), **kwargs))


@register_model
def spikingformer_4_384(pretrained: bool = False, **kwargs: Any) -> Spikingformer:
    """For CIFAR: tokens of 4 x 4 pixels; 9,320,122 parameters with 10 classes; released with 6,144 more, unused."""
    model_args = dict(embed_dim=384, depth=4, num_heads=12, pools=(KEEP, KEEP, POOL, POOL))
    return _create_spikingformer('spikingformer_4_384', pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def spikingformer_2_256(pretrained: bool = False, **kwargs: Any) -> Spikingformer:
    """For event frames of 2 x 128 x 128: 2,566,666 parameters with 10 classes; released with 2,048 more, unused."""
    model_args = dict(embed_dim=256, depth=2, num_heads=16, num_steps=16, tau=1.5)
    return _create_spikingformer('spikingformer_2_256', pretrained=pretrained, **dict(model_args, **kwargs))
