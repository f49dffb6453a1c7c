"""Spikformer V2, a reconstruction: Spikformer with a convolutional stem that learns more.

Paper: "Spikformer V2: Join the High Accuracy Club on ImageNet with an SNN Ticket", arXiv 2401.02020. Its code was
never released, and its text does not settle the stem. **Nothing here was compared with the authors' network**: the
78.80 % and 80.38 % of the paper's 8-384 and 8-512 are not promised.

What is known: a spiking convolutional stem "with supplementary convolutional layers" replaces the patch splitting, the
rest is Spikformer, and there are 29.11 M and 51.55 M parameters (8-384, 8-512). What was chosen: four stages, each a
2x2 convolution with stride 2 and a residual block of two 3x3 convolutions, c -> 4c -> c; no pooling, no position
embedding, no biases. Of some eleven million layouts that were counted, those with the same blocks in every stage and
these sums are this one, with a first kernel of 2 to 5, and one with two blocks of expansion 2 in its place. It also has
the 172 M of the paper's 16-768. Additions after the neurons, 8 heads, scale 0.125 and attention threshold 0.5 are
Spikformer's values. Masked pre-training is not part of the model.

The blocks of the last stage are `SpikformerBlock`s: X' = SSA(X) + X, then X'' = MLP(X') + X'.

Shapes of spikformer_v2_8_384:

    input       [B, 3, 224, 224]
    stem        [T, B, 48, 112, 112]    a 2x2 convolution unit with stride 2: convolution, batch norm, LIF
    stages.0    [T, B, 48, 112, 112]    a block of two 3x3 convolution units
    stages.1    [T, B, 96, 56, 56]      a 2x2 convolution unit with stride 2 and such a block
    stages.2    [T, B, 192, 28, 28]     the same
    stages.3    [T, B, 384, 14, 14]     the same, then 8 blocks with SSA
    logits      [B, 1000]               mean over T, height and width, then a linear layer
"""

from typing import Any

from timm.layers import calculate_drop_path_rates
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ..layers import ConvBnLif, LayerFn, SpikingMlp, SpikingResidual, SpikingStem
from .base import KEEP, SpikingStage, SpikingTransformer, attention_layer, neuron_layer
from .builder import build_spiking_model
from .cfgs import tagged_cfgs
from .spikformer import SpikformerBlock
from .untrusted import check_state_dict

__all__ = ['SpikformerV2']

CITATION = 'arXiv:2401.02020'
LIMITATIONS = (
    "A reconstruction: the authors' code was never released, and nothing here was compared with their network. The "
    'accuracies of the paper are not promised.'
)


class SpikformerV2(SpikingTransformer):
    """Spikformer with a spiking convolutional stem (arXiv 2401.02020), reconstructed: see the file's docstring.

    Args:
        num_classes: 0 for no classifier.
        in_chans: Channels of images and of every event frame; time is never folded into channels.
        global_pool: Pooling over H and W before the classifier, '' for none.
        embed_dim: Channels of the tokens; the four stages have an eighth, a quarter, half and all of them.
        depth: Blocks of attention and MLP, all in the last stage.
        num_heads: Attention heads.
        mlp_ratio: Hidden width of the MLP, and of the stages' convolution blocks, over the width of the stage.
        num_steps: T. Images are repeated so often, 5-D input must have as many frames. No weight depends on it: assign
            `model.num_steps` to run the same weights for more or fewer steps.
        attn: Name in `timm_snn.layers.attentions` or layer.
        attn_v_threshold: Threshold of the neuron inside attention; all others have the neuron layer's default.
        lif_layer: Name in `timm_snn.layers.neurons` or layer, called as `lif_layer()` and, inside attention, as
            `lif_layer(v_threshold=...)`.
        backend: Implementation of the neurons, see `timm_snn.ops.backend`; not saved with the model.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block, growing linearly from 0.

    Shape: images [B, C, H, W] or frames [B, T, C, H, W] -> logits [B, num_classes]. H and W should be divisible by 16:
    what is left over at the border is not seen.

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
        attn: str | LayerFn = 'ssa',
        attn_v_threshold: float = 0.5,
        lif_layer: str | LayerFn = 'lif',
        backend: str | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device=None,
        dtype=None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        if embed_dim % 8:
            raise ValueError(f'expected an embed_dim that 8 divides, got {embed_dim}')
        neuron = neuron_layer(lif_layer, backend)
        attn_layer = attention_layer(attn)
        drop_paths: Any = calculate_drop_path_rates(drop_path_rate, [1, 1, 1, 1 + depth], stagewise=True)

        widths = [embed_dim // 8, embed_dim // 4, embed_dim // 2, embed_dim]
        stem = SpikingStem(in_chans, widths[:1], (KEEP,), kernel_size=2, stride=2, lif_layer=neuron, **dd)
        stages = []
        for i, dim in enumerate(widths):
            embed = ConvBnLif(widths[i - 1], dim, 2, 2, lif_layer=neuron, **dd) if i else nn.Identity()
            convs = SpikingMlp(dim, int(dim * mlp_ratio), kernel_size=3, bias=False, lif_layer=neuron, **dd)
            blocks: list[nn.Module] = [SpikingResidual(convs, drop_paths[i][0])]
            blocks += [
                SpikformerBlock(
                    attn_layer(dim, num_heads, attn_v_threshold=attn_v_threshold, lif_layer=neuron, **dd),
                    SpikingMlp(dim, int(dim * mlp_ratio), lif_layer=neuron, **dd),
                    rate,
                )
                for rate in drop_paths[i][1:]
            ]
            stages.append(SpikingStage(embed, blocks, dim, 2 ** (i + 1)))
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


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Our layout, the only one there is. Raises RuntimeError for any other."""
    check_state_dict(state_dict, model, 'our keys (stem.units.0.conv.weight); the authors have published none')
    return state_dict


default_cfgs = generate_default_cfgs(
    tagged_cfgs(
        {'spikformer_v2_8_384': 'in1k', 'spikformer_v2_8_512': 'in1k'},
        paper_ids=CITATION,
        paper_name='Spikformer V2: Join the High Accuracy Club on ImageNet with an SNN Ticket',
    )
)


def _create_spikformer_v2(variant: str, pretrained: bool = False, **kwargs: Any) -> SpikformerV2:
    return build_spiking_model(SpikformerV2, variant, pretrained, checkpoint_filter_fn, **kwargs)


# Never change a default below: saved models record only what their users passed.
@register_model
def spikformer_v2_8_384(pretrained: bool = False, **kwargs: Any) -> SpikformerV2:
    """A reconstruction: 29,111,272 parameters with 1000 classes, the paper's 29.11 M."""
    return _create_spikformer_v2('spikformer_v2_8_384', pretrained=pretrained, **dict(dict(embed_dim=384), **kwargs))


@register_model
def spikformer_v2_8_512(pretrained: bool = False, **kwargs: Any) -> SpikformerV2:
    """A reconstruction: 51,545,064 parameters with 1000 classes, the paper's 51.55 M."""
    return _create_spikformer_v2('spikformer_v2_8_512', pretrained=pretrained, **dict(dict(embed_dim=512), **kwargs))
