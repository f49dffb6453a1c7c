"""Spikformer: the first spiking transformer, with spiking self-attention.

Paper: "Spikformer: When Spiking Neural Network Meets Transformer", arXiv 2209.15425 (ICLR 2023). CML downsampling:
"Enhancing the Performance of Transformer-based Spiking Neural Networks by SNN-optimized Downsampling with Precise
Gradient Backpropagation", arXiv 2305.05954.

Spiking patch splitting (SPS), four convolutions that pool their spikes and a convolutional position embedding, makes
tokens of 1/16 of the image's size (CIFAR: 1/4), which all blocks keep: self-attention (SSA) and MLP, added after their
neurons, so the stream carries small integers. The first convolution is our stem; the steps after it are the embeddings
of three stages, two without blocks, so that there are three feature levels as in the other families.

`downsample='cml'` pools the current before the neuron where 'spike', the default, pools the spikes after it. The
released CML file for CIFAR is this; none was released for ImageNet and events, where all four pool like that here.

* The released code makes LayerNorms in every block, and for events one more and a position embedding, and never calls
  them. They are left out here and skipped in files: counts are the released ones less those.
* CIFAR files have linear layers with bias for Q, K and V, the others convolutions without.
* Stochastic depth is an unused argument there and works here, off by default, as trained. Any size divisible by 16
  (CIFAR: 4) works.
* Heads: 8 for ImageNet, as in the released 8-512, 12 for CIFAR, 16 for events.

`transformer_4_384` is the artificial network of the paper's CIFAR table, Transformer-4-384 of 9.32 M parameters: the
layers of `spikformer_4_384`, which print as 9.32 M, with ReLU for neurons (`act='relu'`) and softmax attention (VSA).
The table has a name, a count and accuracies. Activation, norms and heads are open, and it was compared with nothing.

Shapes of spikformer_8_384:

    input       [B, 3, 224, 224]
    stem        [T, B, 48, 224, 224]    a 3x3 convolution unit: convolution, batch norm, LIF
    stages.0    [T, B, 96, 56, 56]      pooling, a convolution unit, pooling
    stages.1    [T, B, 192, 28, 28]     a convolution unit, pooling
    stages.2    [T, B, 384, 14, 14]     the same and the position embedding, then 8 blocks with SSA
    logits      [B, 1000]               mean over T, height and width, then a linear layer
"""

from collections.abc import Sequence
from typing import Any, Literal

from timm.layers import calculate_drop_path_rates
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ..layers import LayerFn, SoftmaxAttention, SpikingBlock, SpikingMlp, SpikingPatchSplitting, SpikingStem
from .base import KEEP, POOL, SpikingStage, SpikingTransformer, attention_layer, neuron_layer, tokenizer_widths
from .builder import build_spiking_model
from .cfgs import tagged_cfgs
from .keys import KeyRules, match_pointwise_shapes, rename_keys
from .untrusted import check_state_dict

__all__ = ['Spikformer']

CITATION = 'arXiv:2209.15425'
LIMITATIONS = (
    'The residual stream carries sums of spikes, whole numbers: layers that are fed by it multiply, and do not only '
    'accumulate.'
)


class SpikformerBlock(SpikingBlock):
    """SSA and MLP, each added after its last neuron. Shape: tokens as a map [T, B, dim, H, W] -> the same."""

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(x))  # X' = SSA(X) + X
        x = x + self.drop_path(self.mlp(x))  # X'' = MLP(X') + X'
        return x


class Spikformer(SpikingTransformer):
    """Spiking transformer of one resolution (arXiv 2209.15425).

    Args:
        num_classes: 0 for no classifier.
        in_chans: Channels of images and of every event frame; time is never folded into channels.
        global_pool: Pooling over H and W before the classifier, '' for none.
        embed_dim: Channels of the tokens; the patch splitting has an eighth, a quarter, half and all of them.
        depth: Blocks.
        num_heads: Attention heads.
        mlp_ratio: Hidden width of the MLP over embed_dim.
        num_steps: T. Images are repeated so often, 5-D input must have as many frames. No weight depends on it: assign
            `model.num_steps` to run the same weights for more or fewer steps.
        pools: Whether each of the four convolutions of the patch splitting is pooled.
        downsample: 'spike' pools spikes, 'cml' the current before the neuron.
        attn: Name in `timm_snn.layers.attentions` or layer.
        attn_v_threshold: Threshold of the neuron inside attention; all others have the neuron layer's default.
        attn_scale: Scale of self-attention; None leaves it to the attention layer.
        qkv_bias: Whether Q, K and V have a bias; None leaves it to the attention layer.
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
        embed_dim: int = 384,
        depth: int = 8,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        num_steps: int = 4,
        pools: Sequence[bool] = (POOL, POOL, POOL, POOL),
        downsample: Literal['spike', 'cml'] = 'spike',
        attn: str | LayerFn = 'ssa',
        attn_v_threshold: float = 0.5,
        attn_scale: float | None = None,
        qkv_bias: bool | None = None,
        lif_layer: str | LayerFn = 'lif',
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
        neuron = neuron_layer(lif_layer, backend)
        options: dict[str, Any] = dict(scale=attn_scale, qkv_bias=qkv_bias)
        options = {k: v for k, v in options.items() if v is not None}
        attn_layer = attention_layer(attn, **options)

        stem = SpikingStem(in_chans, widths[:1], (cml and pools[0],), lif_layer=neuron, **dd)
        drop_paths: Any = calculate_drop_path_rates(drop_path_rate, depth)
        stages = []
        for i in (1, 2, 3):
            embed = SpikingPatchSplitting(
                widths[i - 1],
                widths[i : i + 1],
                pools[i : i + 1],
                pool_input=i == 1 and pools[0] and not cml,
                cml=cml,
                position=i == 3,
                lif_layer=neuron,
                **dd,
            )
            blocks = [
                SpikformerBlock(
                    attn_layer(embed_dim, num_heads, attn_v_threshold=attn_v_threshold, lif_layer=neuron, **dd),
                    SpikingMlp(embed_dim, int(embed_dim * mlp_ratio), lif_layer=neuron, **dd),
                    rate,
                )
                for rate in (drop_paths if i == 3 else [])
            ]
            stages.append(SpikingStage(embed, blocks, widths[i], 2 ** sum(pools[: i + 1])))
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


# Keys of the authors' files: CML files count the convolutions of the patch splitting from 1, CIFAR files have linear
# layers in blocks.
AUTHORS_KEYS: KeyRules = (
    (r'^patch_embed\.rpe_(conv|bn)\.', r'stages.2.embed.position.\1.'),
    (r'^patch_embed\.proj_(conv|bn)\.', r'patch_embed.proj_\g<1>0.'),
    (r'^patch_embed\.block(\d)_(conv|bn)\.', lambda match: f'patch_embed.proj_{match[2]}{int(match[1]) - 1}.'),
    (r'^patch_embed\.proj_(conv|bn)0\.', r'stem.units.0.\1.'),
    (
        r'^patch_embed\.proj_(conv|bn)(\d)\.',
        lambda match: f'stages.{int(match[2]) - 1}.embed.units.0.{match[1]}.',
    ),
    (r'^block\.(\d+)\.', r'stages.2.blocks.\1.'),
    (r'\.attn\.q_(?:conv|linear)\.', r'.attn.q.0.conv.'),
    (r'\.attn\.q_bn\.', r'.attn.q.0.bn.'),
    (r'\.attn\.(k|v|proj)_(?:conv|linear)\.', r'.attn.\1.conv.'),
    (r'\.attn\.(k|v|proj)_bn\.', r'.attn.\1.bn.'),
    (r'\.mlp\.fc(\d)_(?:conv|linear)\.', r'.mlp.fc\1.conv.'),
    (r'\.mlp\.fc(\d)_bn\.', r'.mlp.fc\1.bn.'),
    (r'^head\.(weight|bias)$', r'head.fc.\1'),
)


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Our layout, or that of the authors' files, CML included, to our keys. Raises RuntimeError for any other."""
    if 'patch_embed.rpe_conv.weight' in state_dict:
        state_dict = rename_keys(state_dict, AUTHORS_KEYS, unused=r'^(block\.\d+\.norm[12]|norm)\.|^pos_embed$')
        state_dict = match_pointwise_shapes(state_dict, model)
    layouts = "our keys (stem.units.0.conv.weight) or the authors' (patch_embed.rpe_conv.weight)"
    check_state_dict(state_dict, model, layouts)
    return state_dict


default_cfgs = generate_default_cfgs(
    tagged_cfgs(
        {
            'spikformer_8_384': 'in1k',
            'spikformer_8_512': 'in1k',
            'spikformer_8_768': 'in1k',
            'spikformer_4_384': 'cifar10 cifar100',
            'spikformer_2_256': 'cifar10_dvs dvs128_gesture',
            'transformer_4_384': 'cifar10 cifar100',
        },
        paper_ids=CITATION,
        paper_name='Spikformer: When Spiking Neural Network Meets Transformer',
        origin_url='https://github.com/ZK-Zhou/spikformer',
    )
)


def _create_spikformer(variant: str, pretrained: bool = False, **kwargs: Any) -> Spikformer:
    return build_spiking_model(Spikformer, variant, pretrained, checkpoint_filter_fn, **kwargs)


# Never change a default below: saved models record only what their users passed.
@register_model
def spikformer_8_384(pretrained: bool = False, **kwargs: Any) -> Spikformer:
    """16,816,024 parameters with 1000 classes; released with 12,288 more, unused."""
    return _create_spikformer('spikformer_8_384', pretrained=pretrained, **dict(dict(embed_dim=384), **kwargs))


@register_model
def spikformer_8_512(pretrained: bool = False, **kwargs: Any) -> Spikformer:
    """29,689,384 parameters with 1000 classes; released with 16,384 more, unused."""
    return _create_spikformer('spikformer_8_512', pretrained=pretrained, **dict(dict(embed_dim=512), **kwargs))


@register_model
def spikformer_8_768(pretrained: bool = False, **kwargs: Any) -> Spikformer:
    """66,338,632 parameters with 1000 classes; released with 24,576 more, unused."""
    return _create_spikformer('spikformer_8_768', pretrained=pretrained, **dict(dict(embed_dim=768), **kwargs))


@register_model
def spikformer_4_384(pretrained: bool = False, **kwargs: Any) -> Spikformer:
    """For CIFAR: tokens of 4 x 4 pixels; 9,324,730 parameters with 10 classes; released with 6,144 more, unused."""
    model_args = dict(embed_dim=384, depth=4, num_heads=12, pools=(KEEP, KEEP, POOL, POOL), qkv_bias=True)
    return _create_spikformer('spikformer_4_384', pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def spikformer_2_256(pretrained: bool = False, **kwargs: Any) -> Spikformer:
    """For event frames of 2 x 128 x 128: 2,566,666 parameters with 10 classes; released with 18,944 more, unused."""
    model_args = dict(embed_dim=256, depth=2, num_heads=16, num_steps=16, attn_scale=0.25)
    return _create_spikformer('spikformer_2_256', pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def transformer_4_384(pretrained: bool = False, **kwargs: Any) -> Spikformer:
    """The artificial `spikformer_4_384`, with softmax attention, for CIFAR: 9,324,730 parameters with 10 classes."""
    model_args = dict(
        embed_dim=384,
        depth=4,
        num_heads=12,
        pools=(KEEP, KEEP, POOL, POOL),
        attn=SoftmaxAttention,
        qkv_bias=True,
        act='relu',
    )
    return _create_spikformer('transformer_4_384', pretrained=pretrained, **dict(model_args, **kwargs))
