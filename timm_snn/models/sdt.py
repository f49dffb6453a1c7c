"""Spike-driven Transformer: membrane shortcuts, and attention made of masks and sums.

Paper: "Spike-driven Transformer", arXiv 2307.01694 (NeurIPS 2023).

The residual stream holds currents, u' = u + BN(W SN(u)), and spike-driven self-attention (SDSA) replaces the products
of Q, K and V. The tokenizer is Spikformer's but for its end: the last map is pooled as a current, m, and the position
embedding is a membrane shortcut, u = m + BN(W SN(m)). A neuron stands between pooling and classifier.

* The released code makes a convolution `talking_heads` in every block and never calls it. It is left out here and
  skipped in files: counts are the released ones less those.
* Stochastic depth is an unused argument there and works here, off by default, as trained. Any size divisible by 16
  (CIFAR: 4) works.
* The two networks for events have weights of the same shapes: `sdt_2_256`, for CIFAR10-DVS, pools two maps of the
  tokenizer and its attention has `erode`; `sdt_2_256_gesture` pools three and has not.
* The released config named 10_384 holds a 10-512. With `depth=10`, `sdt_8_512` is that model.

Shapes of sdt_8_384:

    input       [B, 3, 224, 224]
    stem        [T, B, 48, 224, 224]    a 3x3 convolution unit: spikes, as in the next two
    stages.0    [T, B, 96, 56, 56]      pooling, a convolution unit, pooling
    stages.1    [T, B, 192, 28, 28]     a convolution unit, pooling
    stages.2    [T, B, 384, 14, 14]     a convolution, pooling and the position embedding, then 8 blocks with SDSA
    head_lif    [T, B, 384]             mean over height and width, then a neuron
    logits      [B, 1000]               a linear layer, mean over T
"""

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

from timm.layers import calculate_drop_path_rates
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ..layers import (
    ConvBn,
    LayerFn,
    SpikingBlock,
    SpikingMlp,
    SpikingPatchSplitting,
    SpikingResidual,
    SpikingStem,
    neuron_for,
)
from .base import KEEP, POOL, SpikingStage, SpikingTransformer, attention_layer, neuron_layer, tokenizer_widths
from .builder import build_spiking_model
from .cfgs import tagged_cfgs
from .keys import KeyRules, rename_keys
from .spikformer import AUTHORS_KEYS as SPIKFORMER_KEYS
from .untrusted import check_state_dict

__all__ = ['SpikeDrivenTransformer']

CITATION = 'arXiv:2307.01694'
LIMITATIONS = (
    'Attention treats every channel by itself: without `erode`, which only the model for CIFAR10-DVS has, the number '
    'of heads changes nothing.'
)


class SpikeDrivenBlock(SpikingBlock):
    """SDSA and MLP, which begin with a neuron and end in a batch norm: the stream u holds currents.

    Shape: currents [T, B, dim, H, W] -> the same.
    """

    def forward(self, u: Tensor) -> Tensor:
        u = u + self.drop_path(self.attn(u))  # u' = u + BN(W (Q * SN(sum_n K_n * V_n))), with Q, K, V of SN(u)
        u = u + self.drop_path(self.mlp(u))  # u'' = u' + BN(W SN(BN(W SN(u'))))
        return u


class SpikeDrivenTransformer(SpikingTransformer):
    """Spike-driven transformer of one resolution (arXiv 2307.01694).

    Args:
        num_classes: 0 for no classifier.
        in_chans: Channels of images and of every event frame; time is never folded into channels.
        global_pool: Pooling over H and W before the classifier, '' for none.
        embed_dim: Channels of the tokens; the tokenizer has an eighth, a quarter, half and all of them.
        depth: Blocks.
        num_heads: Attention heads, which make no difference to SDSA without `erode`.
        mlp_ratio: Hidden width of the MLP over embed_dim.
        num_steps: T. Images are repeated so often, 5-D input must have as many frames. No weight depends on it: assign
            `model.num_steps` to run the same weights for more or fewer steps.
        pools: Whether each of the first four convolutions of the tokenizer is pooled: three spikes, the last currents.
        attn: Name in `timm_snn.layers.attentions` or layer, called with `pre_activation=True` if it takes that; another
            takes currents and returns them.
        attn_v_threshold: Threshold of the neuron inside attention; all others have the neuron layer's default.
        erode: Whether SDSA dilates its spikes, see `timm_snn.layers.SpikeDrivenSelfAttention`.
        lif_layer: Name in `timm_snn.layers.neurons` or layer, called as `lif_layer()` and, inside attention, as
            `lif_layer(v_threshold=...)`.
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
        attn: str | LayerFn = 'sdsa',
        attn_v_threshold: float = 0.5,
        erode: bool = False,
        lif_layer: str | LayerFn = 'lif',
        backend: str | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device=None,
        dtype=None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        widths = tokenizer_widths(embed_dim, pools)
        neuron = neuron_layer(lif_layer, backend)
        options = {'erode': True} if erode else {}
        attn_layer = attention_layer(attn, neuron_first=False, pre_activation=True, **options)
        attn_layer = partial(attn_layer, attn_v_threshold=attn_v_threshold)

        stem = SpikingStem(in_chans, widths[:1], (KEEP,), lif_layer=neuron, **dd)
        embeds: list[nn.Module] = [
            SpikingPatchSplitting(
                widths[i - 1],
                widths[i : i + 1],
                pools[i : i + 1],
                pool_input=i == 1 and pools[0],
                lif_layer=neuron,
                **dd,
            )
            for i in (1, 2)
        ]
        position = SpikingResidual(
            nn.Sequential(neuron_for(embed_dim, neuron).to(**dd), ConvBn(embed_dim, embed_dim, 3, **dd))
        )
        embeds.append(nn.Sequential(ConvBn(widths[2], embed_dim, 3, pool=pools[3], **dd), position))
        drop_paths: Any = calculate_drop_path_rates(drop_path_rate, depth)
        blocks = [
            SpikeDrivenBlock(
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
            head_lif=neuron_for(embed_dim, neuron).to(**dd),
            **dd,
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def _init_head(self) -> None:
        """The classifier keeps PyTorch's initialisation and the convolutions do not, as in the released code."""


# Keys of the authors' files: as Spikformer's, but for the end of the tokenizer.
AUTHORS_KEYS: KeyRules = (
    (r'^patch_embed\.proj_(conv|bn)3\.', r'stages.2.embed.0.\1.'),
    (r'^patch_embed\.rpe_(conv|bn)\.', r'stages.2.embed.1.branch.1.\1.'),
    (r'\.attn\.q_(conv|bn)\.', r'.attn.q.\1.'),
    *SPIKFORMER_KEYS,
)


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Our layout, or that of the authors' files, to our keys. Raises RuntimeError for any other."""
    if 'patch_embed.rpe_conv.weight' in state_dict:
        state_dict = rename_keys(state_dict, AUTHORS_KEYS, unused=r'^block\.\d+\.attn\.talking_heads\.weight$')
    layouts = "our keys (stem.units.0.conv.weight) or the authors' (patch_embed.rpe_conv.weight)"
    check_state_dict(state_dict, model, layouts)
    return state_dict


_FAMILY: dict[str, Any] = dict(
    paper_ids=CITATION,
    paper_name='Spike-driven Transformer',
    origin_url='https://github.com/BICLab/Spike-Driven-Transformer',
)

default_cfgs = generate_default_cfgs(
    {
        **tagged_cfgs(
            {'sdt_8_384': 'in1k', 'sdt_8_512': 'in1k', 'sdt_8_768': 'in1k', 'sdt_2_512': 'cifar10 cifar100'}, **_FAMILY
        ),
        **tagged_cfgs({'sdt_2_256': 'cifar10_dvs'}, input_size=(2, 64, 64), pool_size=(16, 16), **_FAMILY),
        **tagged_cfgs({'sdt_2_256_gesture': 'dvs128_gesture'}, pool_size=(16, 16), **_FAMILY),
    }
)


def _create_sdt(variant: str, pretrained: bool = False, **kwargs: Any) -> SpikeDrivenTransformer:
    return build_spiking_model(SpikeDrivenTransformer, variant, pretrained, checkpoint_filter_fn, **kwargs)


# Never change a default below: saved models record only what their users passed.
@register_model
def sdt_8_384(pretrained: bool = False, **kwargs: Any) -> SpikeDrivenTransformer:
    """16,816,024 parameters with 1000 classes; released with 512 more, unused."""
    return _create_sdt('sdt_8_384', pretrained=pretrained, **dict(dict(embed_dim=384), **kwargs))


@register_model
def sdt_8_512(pretrained: bool = False, **kwargs: Any) -> SpikeDrivenTransformer:
    """29,689,384 parameters with 1000 classes; released with 512 more, unused."""
    return _create_sdt('sdt_8_512', pretrained=pretrained, **dict(dict(embed_dim=512), **kwargs))


@register_model
def sdt_8_768(pretrained: bool = False, **kwargs: Any) -> SpikeDrivenTransformer:
    """66,338,632 parameters with 1000 classes; released with 512 more, unused."""
    return _create_sdt('sdt_8_768', pretrained=pretrained, **dict(dict(embed_dim=768), **kwargs))


@register_model
def sdt_2_512(pretrained: bool = False, **kwargs: Any) -> SpikeDrivenTransformer:
    """For CIFAR: tokens of 4 x 4 pixels; 10,233,418 parameters with 10 classes; released with 128 more, unused."""
    model_args = dict(embed_dim=512, depth=2, pools=(KEEP, KEEP, POOL, POOL))
    return _create_sdt('sdt_2_512', pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def sdt_2_256(pretrained: bool = False, **kwargs: Any) -> SpikeDrivenTransformer:
    """For CIFAR10-DVS, frames of 2 x 64 x 64: 2,566,666 parameters with 10 classes; released with 128 more, unused."""
    cfg: Any = kwargs.get('pretrained_cfg')
    if (cfg.get('tag') if isinstance(cfg, dict) else cfg) == 'dvs128_gesture':
        warnings.warn(
            'sdt_2_256.dvs128_gesture is now called sdt_2_256_gesture.dvs128_gesture: use that name', stacklevel=2
        )
        if isinstance(cfg, dict):  # of a config.json
            kwargs['pretrained_cfg'] = {**cfg, 'architecture': 'sdt_2_256_gesture'}
        return sdt_2_256_gesture(pretrained, **kwargs)
    model_args = dict(embed_dim=256, depth=2, num_steps=16, pools=(KEEP, KEEP, POOL, POOL), erode=True)
    return _create_sdt('sdt_2_256', pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def sdt_2_256_gesture(pretrained: bool = False, **kwargs: Any) -> SpikeDrivenTransformer:
    """For DVS128 Gesture, frames of 2 x 128 x 128: 2,566,923 parameters with 11 classes; released with 128 more."""
    model_args = dict(embed_dim=256, depth=2, num_steps=16, pools=(KEEP, POOL, POOL, POOL))
    return _create_sdt('sdt_2_256_gesture', pretrained=pretrained, **dict(model_args, **kwargs))
