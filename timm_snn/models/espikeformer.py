"""E-SpikeFormer, also called Spike-driven Transformer V3: integer spikes in training, spikes over time in inference.

Paper: "Scaling Spike-driven Transformer with Efficient Spike Firing Approximation Training", arXiv 2411.16061
(TPAMI 2025).

The skeleton is Meta-SpikeFormer's: membrane shortcuts, three stages of separable and 3x3 convolutions, two of
attention, downsampling that replaces the stream by BN(W SN(u)). The neuron is another: `IntegerNeuron` rounds a current
to 0 to 4 spikes in one step, which stand for four steps of a binary neuron, so that training has no loop over time.
Separable convolutions have a neuron between the depthwise and the last convolution, attention blocks have such a
convolution of 3x3 before attention, whose values are four times as wide as its keys (E-SDSA).

* `num_steps` is 1: the four steps are in the neuron. Frames are seen each by itself, and their logits averaged; an
  image at more steps gives the same logits. `lif_layer='lif'` with `num_steps=4` is the skeleton with a usual neuron.
* Spikes are n / 4, and integers before the classifier, as released; on hardware the factor goes into the next weights.
  `timm_snn.profile` takes n / 4 for a real number and counts MACs, not n accumulates.
* Depths are fixed and stochastic depth is unused in the released code; both are arguments here.
* The models of 83 M and 173 M have other neurons and files, and are not here, nor is masked pre-training.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from timm.layers import calculate_drop_path_rates
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ..layers import (
    CurrentStem,
    IntegerNeuron,
    LayerFn,
    LifConvBn,
    SepConv,
    SpikingMlp,
    SpikingResidual,
    attentions,
)
from .base import SpikingStage, SpikingTransformer, neuron_layer
from .builder import KeyRules, build_spiking_model, check_state_dict, match_pointwise_shapes, rename_keys
from .cfgs import tagged_cfgs

__all__ = ['ESpikeformer']


class ESpikeformer(SpikingTransformer):
    """Hierarchical spiking transformer of integer spikes (arXiv 2411.16061).

    Args:
        num_classes: 0 for no classifier.
        in_chans: Channels of images and of every event frame; time is never folded into channels.
        global_pool: Pooling over H and W before the classifier, '' for none.
        embed_dims: Channels of the last four stages; the first of the five has half of the first of them.
        depths: Blocks of the five stages, three of convolutions and two of attention.
        num_heads: Attention heads.
        mlp_ratio: Hidden width of what mixes channels over the width of the stage.
        num_steps: T. Images are repeated so often, 5-D input must have as many frames. No weight depends on it: assign
            `model.num_steps` to run the same weights for more or fewer steps.
        attn: Name in `timm_snn.layers.attentions` or layer, of those from currents to currents.
        attn_v_threshold: Threshold of the neuron inside attention; all others have the neuron layer's default.
        lif_layer: Name in `timm_snn.layers.neurons` or layer, called as `lif_layer()` and, inside attention, as
            `lif_layer(v_threshold=...)`.
        backend: Implementation of the neurons, see `timm_snn.ops.backend`; not saved with the model.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block, growing linearly from 0.

    Shape: images [B, C, H, W] or frames [B, T, C, H, W] -> logits [B, num_classes], of any H and W.
    Raises: ValueError for arguments and input that do not fit, with what was expected.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = 'avg',
        embed_dims: Sequence[int] = (32, 64, 128, 192),
        depths: Sequence[int] = (1, 1, 2, 6, 2),
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        num_steps: int = 1,
        attn: str | LayerFn = 'e_sdsa',
        attn_v_threshold: float = 1.0,
        lif_layer: str | LayerFn = 'integer',
        backend: str | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device=None,
        dtype=None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        if len(embed_dims) != 4 or embed_dims[0] % 2 or len(depths) != 5:
            raise ValueError(
                f'expected four embed_dims, the first of them even, and five depths, got {tuple(embed_dims)} and '
                f'{tuple(depths)}'
            )
        neuron = neuron_layer(lif_layer, backend)
        attn_layer = attentions.get(attn)
        layer: dict[str, Any] = {'lif_layer': neuron, **dd}

        def branches(dim: int, has_attention: bool) -> dict[str, nn.Module]:
            hidden_dim = int(dim * mlp_ratio)
            if not has_attention:
                return {
                    'conv': SepConv(dim, 7, True, **layer),
                    'mlp': SpikingMlp(dim, hidden_dim, 3, bias=False, pre_activation=True, **layer),
                }
            return {
                'conv': SepConv(dim, 3, True, **layer),
                'attn': attn_layer(dim, num_heads, attn_v_threshold=attn_v_threshold, **layer),
                'mlp': SpikingMlp(dim, hidden_dim, pre_activation=True, **layer),
            }

        widths = [embed_dims[0] // 2, *embed_dims]
        drop_paths: Any = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        stages = []
        for i, (dim, reduction) in enumerate(zip(widths, (2, 4, 8, 16, 16), strict=True)):
            stride = 1 if i == 4 else 2
            embed = LifConvBn(widths[i - 1], dim, 3, stride, bias=True, **layer) if i > 0 else nn.Identity()
            blocks = [
                nn.Sequential(OrderedDict((name, SpikingResidual(b, rate)) for name, b in branches(dim, i > 2).items()))
                for rate in drop_paths[i]
            ]
            stages.append(SpikingStage(embed, blocks, dim, reduction))
        head_lif = neuron().to(**dd)
        if isinstance(head_lif, IntegerNeuron):
            head_lif.normalize = False
        super().__init__(
            CurrentStem(in_chans, widths[0], 7, stride=2, bias=True, **dd),
            stages,
            num_classes=num_classes,
            in_chans=in_chans,
            global_pool=global_pool,
            num_steps=num_steps,
            drop_rate=drop_rate,
            head_lif=head_lif,
            **dd,
        )


AUTHORS_KEYS: KeyRules = (
    (r'^downsample1_1\.encode_(conv|bn)\.', r'stem.unit.\1.'),
    (r'^downsample1_2\.', r'downsample1.'),
    (r'^downsample(\d)\.encode_(conv|bn)\.', r'stages.\1.embed.unit.\2.'),
    (r'^ConvBlock1_([12])\.0\.', lambda match: f'stages.{int(match[1]) - 1}.blocks.0.'),
    (r'^ConvBlock2_([12])\.0\.', lambda match: f'stages.2.blocks.{int(match[1]) - 1}.'),
    (r'^block([34])\.', r'stages.\1.blocks.'),
    (r'\.(?:Conv|conv)\.(pw|dw)conv(\d?)\.0\.', r'.conv.branch.\1\2.conv.'),
    (r'\.(?:Conv|conv)\.(pw|dw)conv(\d?)\.1\.', r'.conv.branch.\1\2.bn.'),
    (r'\.blocks\.(\d)\.(conv|bn)([12])\.', r'.blocks.\1.mlp.branch.fc\3.\2.'),
    (r'\.attn\.(q|k|v|proj)_conv\.0\.', r'.attn.branch.\1.conv.'),
    (r'\.attn\.(q|k|v|proj)_conv\.1\.', r'.attn.branch.\1.bn.'),
    (r'\.mlp\.fc(\d)_(conv|bn)\.', r'.mlp.branch.fc\1.\2.'),
    (r'^head\.(weight|bias)$', r'head.fc.\1'),
)


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Our layout, or that of the authors' files, to our keys. Raises RuntimeError for any other."""
    if 'downsample1_1.encode_conv.weight' in state_dict:
        state_dict = match_pointwise_shapes(rename_keys(state_dict, AUTHORS_KEYS), model)
    layouts = "our keys (stem.unit.conv.weight) or the authors' (downsample1_1.encode_conv.weight)"
    check_state_dict(state_dict, model, layouts)
    return state_dict


default_cfgs = generate_default_cfgs(
    tagged_cfgs(
        {'espikeformer_5m': 'in1k', 'espikeformer_10m': 'in1k', 'espikeformer_19m': 'in1k'},
        first_conv='stem.unit.conv',
        paper_ids='arXiv:2411.16061',
        paper_name='Scaling Spike-driven Transformer with Efficient Spike Firing Approximation Training',
        origin_url='https://github.com/BICLab/Spike-Driven-Transformer-V3',
    )
)


def _create_espikeformer(variant: str, pretrained: bool = False, **kwargs: Any) -> ESpikeformer:
    return build_spiking_model(ESpikeformer, variant, pretrained, checkpoint_filter_fn, num_levels=5, **kwargs)


# Never change a default below: saved models record only what their users passed.
@register_model
def espikeformer_5m(pretrained: bool = False, **kwargs: Any) -> ESpikeformer:
    """5,105,608 parameters with 1000 classes."""
    model_args = dict(embed_dims=(32, 64, 128, 192))
    return _create_espikeformer('espikeformer_5m', pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def espikeformer_10m(pretrained: bool = False, **kwargs: Any) -> ESpikeformer:
    """10,023,112 parameters with 1000 classes."""
    model_args = dict(embed_dims=(48, 96, 192, 240))
    return _create_espikeformer('espikeformer_10m', pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def espikeformer_19m(pretrained: bool = False, **kwargs: Any) -> ESpikeformer:
    """18,987,504 parameters with 1000 classes."""
    model_args = dict(embed_dims=(64, 128, 256, 360))
    return _create_espikeformer('espikeformer_19m', pretrained=pretrained, **dict(model_args, **kwargs))
