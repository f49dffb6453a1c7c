"""Meta-SpikeFormer, also called Spike-driven Transformer V2: convolution stages, then attention, on membrane shortcuts.

Paper: "Spike-driven Transformer V2: Meta Spiking Neural Network Architecture Inspiring the Design of Next-generation
Neuromorphic Chips", arXiv 2404.03663 (ICLR 2024).

The stream holds currents from the first convolution to the pooling before the classifier, which sees spikes. Three
stages mix tokens by separable convolutions (`SepConv`) and channels by 3x3 convolutions, two have self-attention whose
convolutions are `RepConv`s, and an MLP. Downsampling replaces the stream by BN(W SN(u)). The products of attention are
those of Spikformer with a constant scale of 0.125, not the masks of the first Spike-driven Transformer.

* The 15 M model is in the paper and not in the released code: its widths are those of public copies, and its count is
  the paper's.
* Files from distillation have a second classifier, `head_kd`. The released model averages both answers in evaluation;
  here the two classifiers are averaged when a file is read, which is the same. There is none to train.
* T is 1 here as in the released code, and 4 in its fine-tuning: `num_steps=4` for those weights. Of the released code
  before March 2024 the classifier saw currents; released weights are younger.
* Depths are fixed and stochastic depth is unused there; both are arguments here. Sizes divisible by 16 lose nothing.
* In training, the border of `RepConv` has other statistics than in the released code, see there.

Shapes of metaspikformer_8_256, with T = 1:

    input       [B, 3, 224, 224]
    stem        [T, B, 32, 112, 112]    a 7x7 convolution with stride 2, batch norm
    stages.0    [T, B, 32, 112, 112]    1 block of convolutions
    stages.1    [T, B, 64, 56, 56]      downsampling, then 1 block of convolutions
    stages.2    [T, B, 128, 28, 28]     downsampling, then 2 blocks of convolutions
    stages.3    [T, B, 256, 14, 14]     downsampling, then 6 blocks with attention
    stages.4    [T, B, 360, 14, 14]     wider, then 2 blocks with attention
    head_lif    [T, B, 360]             mean over height and width, then a neuron
    logits      [B, 1000]               a linear layer, mean over T
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from timm.layers import calculate_drop_path_rates
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ..layers import ConvBn, CurrentStem, LayerFn, SepConv, SpikingBlock, SpikingMlp, attentions, neuron_for
from .base import SpikingStage, SpikingTransformer, attention_layer, neuron_layer
from .builder import build_spiking_model
from .cfgs import tagged_cfgs
from .keys import KeyRules, match_pointwise_shapes, rename_keys
from .untrusted import check_state_dict

__all__ = ['MetaSpikformer']

CITATION = 'arXiv:2404.03663'
LIMITATIONS = 'T is 1 unless set. The published accuracies are of T = 4, fine-tuned with a teacher.'


class MetaSpikformerBlock(SpikingBlock):
    """Token mixer and channel mixer, which begin with a neuron and end in a batch norm: the stream u holds currents.

    The token mixer, `attn`, is `SepConv` in the first three stages.

    Shape: currents [T, B, dim, H, W] -> the same.
    """

    def forward(self, u: Tensor) -> Tensor:
        u = u + self.drop_path(self.attn(u))  # u' = u + TokenMixer(u)
        u = u + self.drop_path(self.mlp(u))  # u'' = u' + ChannelMixer(u')
        return u


class MetaSpikformer(SpikingTransformer):
    """Hierarchical spiking transformer with membrane shortcuts (arXiv 2404.03663).

    Args:
        num_classes: 0 for no classifier.
        in_chans: Channels of images and of every event frame; time is never folded into channels.
        global_pool: Pooling over H and W before the classifier, '' for none.
        embed_dims: Channels of all stages but the first, which has half of the second's: four, or three for a network
            of one stage of attention.
        depths: Blocks of the five stages, three of convolutions and two of attention, or of four.
        num_heads: Attention heads.
        mlp_ratio: Hidden width of what mixes channels over the width of the stage.
        num_steps: T. Images are repeated so often, 5-D input must have as many frames. No weight depends on it: assign
            `model.num_steps` to run the same weights for more or fewer steps.
        attn: Name in `timm_snn.layers.attentions` or layer, called with `pre_activation=True` if it takes that.
        attn_v_threshold: Threshold of the neuron inside attention; all others have the neuron layer's default.
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
        embed_dims: Sequence[int] = (64, 128, 256, 360),
        depths: Sequence[int] = (1, 1, 2, 6, 2),
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        num_steps: int = 1,
        attn: str | LayerFn = 'rep_ssa',
        attn_v_threshold: float = 0.5,
        lif_layer: str | LayerFn = 'lif',
        backend: str | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device=None,
        dtype=None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        if len(embed_dims) not in (3, 4) or embed_dims[0] % 2 or len(depths) != len(embed_dims) + 1:
            raise ValueError(
                f'expected four embed_dims, the first of them even, and five depths, got {tuple(embed_dims)} and '
                f'{tuple(depths)}; three embed_dims and four depths make a network of one stage of attention'
            )
        neuron = neuron_layer(lif_layer, backend)
        attn_layer = attentions.get(attn)
        drop_paths: Any = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)

        layer: dict[str, Any] = {'lif_layer': neuron, **dd}
        attention = partial(attn_layer, num_heads=num_heads, attn_v_threshold=attn_v_threshold)
        widths = [embed_dims[0] // 2, *embed_dims]
        stages = []
        for i, (dim, reduction) in enumerate(zip(widths, (2, 4, 8, 16, 16)[: len(widths)], strict=True)):
            down = ConvBn(widths[i - 1], dim, 3, stride=1 if i == 4 else 2, bias=True, **dd) if i else nn.Identity()
            embed = nn.Sequential(neuron_for(widths[i - 1], neuron).to(**dd), down) if i else nn.Identity()
            hidden_dim = int(dim * mlp_ratio)
            blocks = [
                self._conv_block(dim, hidden_dim, rate, layer)
                if i < 3
                else self._attention_block(dim, hidden_dim, rate, layer, attention)
                for rate in drop_paths[i]
            ]
            stages.append(SpikingStage(embed, blocks, dim, reduction))
        super().__init__(
            CurrentStem(in_chans, widths[0], 7, stride=2, bias=True, **dd),
            stages,
            num_classes=num_classes,
            in_chans=in_chans,
            global_pool=global_pool,
            num_steps=num_steps,
            drop_rate=drop_rate,
            head_lif=neuron_for(widths[-1], neuron).to(**dd),
            **dd,
        )

    @staticmethod
    def _conv_block(dim: int, hidden_dim: int, drop_path: float, layer: dict[str, Any]) -> nn.Module:
        mlp = SpikingMlp(dim, hidden_dim, kernel_size=3, bias=False, pre_activation=True, **layer)
        return MetaSpikformerBlock(SepConv(dim, **layer), mlp, drop_path)

    @staticmethod
    def _attention_block(
        dim: int, hidden_dim: int, drop_path: float, layer: dict[str, Any], attention: LayerFn
    ) -> nn.Module:
        mlp = SpikingMlp(dim, hidden_dim, pre_activation=True, **layer)
        return MetaSpikformerBlock(attention_layer(attention, pre_activation=True)(dim, **layer), mlp, drop_path)


AUTHORS_KEYS: KeyRules = (
    (r'^downsample1_1\.encode_(conv|bn)\.', r'stem.unit.\1.'),
    (r'^downsample1_2\.', r'downsample1.'),
    (r'^downsample(\d)\.encode_(conv|bn)\.', r'stages.\1.embed.1.\2.'),
    (r'^ConvBlock1_([12])\.', lambda match: f'stages.{int(match[1]) - 1}.blocks.'),
    (r'^ConvBlock2_([12])\.0\.', lambda match: f'stages.2.blocks.{int(match[1]) - 1}.'),
    (r'^block([34])\.', r'stages.\1.blocks.'),
    (r'\.Conv\.pwconv([12])\.', r'.attn.pw\1.conv.'),
    (r'\.Conv\.bn([12])\.', r'.attn.pw\1.bn.'),
    (r'\.Conv\.dwconv\.', r'.attn.dw.conv.'),
    (r'^(stages\.[012]\.blocks\.\d+)\.(conv|bn)([12])\.', r'\1.mlp.fc\3.\2.'),
    (r'\.attn\.q_conv\.', r'.attn.q.0_conv.'),
    (r'\.attn\.(q\.0|k|v|proj)_conv\.1\.', r'.attn.\1.bn.'),
    (r'\.attn\.(q\.0|k|v|proj)_conv\.0\.body\.0\.', r'.attn.\1.conv.pw1.'),
    (r'\.attn\.(q\.0|k|v|proj)_conv\.0\.body\.1\.bn\.', r'.attn.\1.conv.bn1.'),
    (r'\.attn\.(q\.0|k|v|proj)_conv\.0\.body\.2\.0\.', r'.attn.\1.conv.dw.'),
    (r'\.attn\.(q\.0|k|v|proj)_conv\.0\.body\.2\.1\.', r'.attn.\1.conv.pw2.'),
    (r'\.attn\.(q\.0|k|v|proj)_conv\.0\.body\.2\.2\.', r'.attn.\1.conv.bn2.'),
    (r'\.mlp\.fc(\d)_(conv|bn)\.', r'.mlp.fc\1.\2.'),
    (r'^head\.(weight|bias)$', r'head.fc.\1'),
)


def checkpoint_filter_fn(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Our layout, or that of the authors' files, to our keys. Raises RuntimeError for any other."""
    state_dict = dict(state_dict)
    if 'downsample1_1.encode_conv.weight' in state_dict:
        if {'head.weight', 'head_kd.weight', 'head.bias', 'head_kd.bias'} <= state_dict.keys():
            for leaf in ('weight', 'bias'):
                state_dict[f'head.{leaf}'] = (state_dict[f'head.{leaf}'] + state_dict.pop(f'head_kd.{leaf}')) / 2
        state_dict = match_pointwise_shapes(rename_keys(state_dict, AUTHORS_KEYS), model)
    layouts = "our keys (stem.unit.conv.weight) or the authors' (downsample1_1.encode_conv.weight)"
    check_state_dict(state_dict, model, layouts)
    return state_dict


default_cfgs = generate_default_cfgs(
    tagged_cfgs(
        {'metaspikformer_8_256': 'in1k', 'metaspikformer_8_384': 'in1k', 'metaspikformer_8_512': 'in1k'},
        first_conv='stem.unit.conv',
        paper_ids=CITATION,
        paper_name='Spike-driven Transformer V2: Meta Spiking Neural Network Architecture Inspiring the Design of '
        'Next-generation Neuromorphic Chips',
        origin_url='https://github.com/BICLab/Spike-Driven-Transformer-V2',
    )
)


def _create_metaspikformer(variant: str, pretrained: bool = False, **kwargs: Any) -> MetaSpikformer:
    return build_spiking_model(MetaSpikformer, variant, pretrained, checkpoint_filter_fn, **kwargs)


# Never change a default below: saved models record only what their users passed.
@register_model
def metaspikformer_8_256(pretrained: bool = False, **kwargs: Any) -> MetaSpikformer:
    """The paper's 15 M: 15,112,208 parameters with 1000 classes."""
    model_args = dict(embed_dims=(64, 128, 256, 360))
    return _create_metaspikformer('metaspikformer_8_256', pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def metaspikformer_8_384(pretrained: bool = False, **kwargs: Any) -> MetaSpikformer:
    """The paper's 31 M: 31,333,864 parameters with 1000 classes."""
    model_args = dict(embed_dims=(96, 192, 384, 480))
    return _create_metaspikformer('metaspikformer_8_384', pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def metaspikformer_8_512(pretrained: bool = False, **kwargs: Any) -> MetaSpikformer:
    """The paper's 55 M: 55,350,248 parameters with 1000 classes."""
    model_args = dict(embed_dims=(128, 256, 512, 640))
    return _create_metaspikformer('metaspikformer_8_512', pretrained=pretrained, **dict(model_args, **kwargs))
