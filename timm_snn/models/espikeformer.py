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
* `levels=8` has neurons of 0 to 8 spikes, the released "1x8". No weight depends on the input's size: 224 or 384 pixels.

**The two large models are reconstructions**, compared with nothing. Public are their names, 83M and 171M (173 M in the
paper's abstract), spikformer12_512 and spikformer12_768, and widths of 128, 256 and 512 for the first. With the blocks
of the smaller models, 12 of them in one stage of attention and the same convolution stages in both, the counts are 83.2
and 170.8 M. Open are the number of heads, and whether each block is exactly this one: a released file is said to have
re-parameterised convolutions, whose names are not known. So their files do not load, and the published 84.0 and 86.2 %
are not promised. Those came after pre-training as a masked autoencoder, which is not here: the public text at hand
names it, and not the size of its patches, how many are masked, its decoder, what that predicts, or the schedule.

Shapes of espikeformer_5m, with T = 1:

    input       [B, 3, 224, 224]
    stem        [T, B, 16, 112, 112]    a 7x7 convolution with stride 2, batch norm
    stages.0    [T, B, 16, 112, 112]    1 block of convolutions
    stages.1    [T, B, 32, 56, 56]      downsampling, then 1 block of convolutions
    stages.2    [T, B, 64, 28, 28]      downsampling, then 2 blocks of convolutions
    stages.3    [T, B, 128, 14, 14]     downsampling, then 6 blocks with attention
    stages.4    [T, B, 192, 14, 14]     wider, then 2 blocks with attention
    head_lif    [T, B, 192]             mean over height and width, then a neuron
    logits      [B, 1000]               a linear layer, mean over T
"""

from collections.abc import Sequence
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ..layers import IntegerNeuron, LayerFn, SepConv, SpikingMlp, SpikingResidual
from .base import attention_layer
from .builder import build_spiking_model
from .cfgs import tagged_cfgs
from .keys import KeyRules, match_pointwise_shapes, rename_keys
from .metaspikformer import MetaSpikformer, MetaSpikformerBlock
from .neurons import with_settings
from .untrusted import check_state_dict

__all__ = ['ESpikeformer']

CITATION = 'arXiv:2411.16061'
LIMITATIONS = (
    'Spikes are n / 4 in one step, which stand for four steps of binary spikes: reports count them as '
    'multiply-accumulates. Frames are seen each by itself, without a memory between them. The members of 83 M and '
    '173 M are reconstructions, of which the number of parameters alone was compared.'
)


class ESpikeformerBlock(nn.Module):
    """A separable convolution in front of attention and MLP, all with membrane shortcuts.

    Shape: currents [T, B, dim, H, W] -> the same.
    """

    def __init__(self, conv: nn.Module, attention: nn.Module, mlp: nn.Module, drop_path: float) -> None:
        super().__init__()
        self.conv = SpikingResidual(conv, drop_path)
        self.block = MetaSpikformerBlock(attention, mlp, drop_path)

    def forward(self, u: Tensor) -> Tensor:
        u = self.conv(u)  # u' = u + SepConv(u)
        return self.block(u)  # u'' = u' + E-SDSA(u'), then u'' + MLP(u'')


class ESpikeformer(MetaSpikformer):
    """Hierarchical spiking transformer of integer spikes (arXiv 2411.16061).

    Arguments, shapes and errors are those of `MetaSpikformer`, with other defaults. An `attn` without an argument
    `pre_activation` takes currents and returns them. `levels` is that of the neurons; None leaves it to them.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        embed_dims: Sequence[int] = (32, 64, 128, 192),
        attn: str | LayerFn = 'e_sdsa',
        attn_v_threshold: float = 1.0,
        lif_layer: str | LayerFn = 'integer',
        levels: int | None = None,
        **kwargs: Any,
    ) -> None:
        if levels is not None:
            lif_layer = with_settings(lif_layer, dict(levels=levels))
        super().__init__(
            num_classes,
            embed_dims=embed_dims,
            attn=attn,
            attn_v_threshold=attn_v_threshold,
            lif_layer=lif_layer,
            **kwargs,
        )
        if isinstance(self.head_lif, IntegerNeuron):
            self.head_lif.normalize = False

    @staticmethod
    def _conv_block(dim: int, hidden_dim: int, drop_path: float, layer: dict[str, Any]) -> nn.Module:
        mlp = SpikingMlp(dim, hidden_dim, kernel_size=3, bias=False, pre_activation=True, **layer)
        return MetaSpikformerBlock(SepConv(dim, depthwise_lif=True, **layer), mlp, drop_path)

    @staticmethod
    def _attention_block(
        dim: int, hidden_dim: int, drop_path: float, layer: dict[str, Any], attention: LayerFn
    ) -> nn.Module:
        conv = SepConv(dim, kernel_size=3, depthwise_lif=True, **layer)
        mlp = SpikingMlp(dim, hidden_dim, pre_activation=True, **layer)
        attn = attention_layer(attention, neuron_first=False, pre_activation=True)
        return ESpikeformerBlock(conv, attn(dim, **layer), mlp, drop_path)


AUTHORS_KEYS: KeyRules = (
    (r'^downsample1_1\.encode_(conv|bn)\.', r'stem.unit.\1.'),
    (r'^downsample1_2\.', r'downsample1.'),
    (r'^downsample(\d)\.encode_(conv|bn)\.', r'stages.\1.embed.1.\2.'),
    (r'^ConvBlock1_([12])\.0\.', lambda match: f'stages.{int(match[1]) - 1}.blocks.0.'),
    (r'^ConvBlock2_([12])\.0\.', lambda match: f'stages.2.blocks.{int(match[1]) - 1}.'),
    (r'\.Conv\.', r'.attn.'),
    (r'^block([34])\.(\d)\.conv\.', r'stages.\1.blocks.\2.conv.branch.'),
    (r'^block([34])\.(\d)\.', r'stages.\1.blocks.\2.block.'),
    (r'\.(pw|dw)conv(\d?)\.0\.', r'.\1\2.conv.'),
    (r'\.(pw|dw)conv(\d?)\.1\.', r'.\1\2.bn.'),
    (r'\.blocks\.(\d)\.(conv|bn)([12])\.', r'.blocks.\1.mlp.fc\3.\2.'),
    (r'\.attn\.(q|k|v|proj)_conv\.0\.', r'.attn.\1.conv.'),
    (r'\.attn\.(q|k|v|proj)_conv\.1\.', r'.attn.\1.bn.'),
    (r'\.mlp\.fc(\d)_(conv|bn)\.', r'.mlp.fc\1.\2.'),
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
        {f'espikeformer_{size}': 'in1k' for size in ('5m', '10m', '19m', '83m', '173m')},
        first_conv='stem.unit.conv',
        paper_ids=CITATION,
        paper_name='Scaling Spike-driven Transformer with Efficient Spike Firing Approximation Training',
        origin_url='https://github.com/BICLab/Spike-Driven-Transformer-V3',
    )
)


def _create_espikeformer(variant: str, pretrained: bool = False, **kwargs: Any) -> ESpikeformer:
    return build_spiking_model(ESpikeformer, variant, pretrained, checkpoint_filter_fn, **kwargs)


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


@register_model
def espikeformer_83m(pretrained: bool = False, **kwargs: Any) -> ESpikeformer:
    """A reconstruction of one stage of attention: 83,230,824 parameters with 1000 classes, the paper's 83 M."""
    model_args = dict(embed_dims=(128, 256, 512), depths=(1, 1, 2, 12))
    return _create_espikeformer('espikeformer_83m', pretrained, **dict(model_args, **kwargs))


@register_model
def espikeformer_173m(pretrained: bool = False, **kwargs: Any) -> ESpikeformer:
    """A reconstruction: 170,760,040 parameters with 1000 classes, the 171 M of its files and the paper's 173 M."""
    model_args = dict(embed_dims=(128, 256, 768), depths=(1, 1, 2, 12))
    return _create_espikeformer('espikeformer_173m', pretrained, **dict(model_args, **kwargs))
