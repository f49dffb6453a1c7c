"""MaxFormer: a hierarchical spiking transformer of layers that keep high frequencies.

Paper: "Spiking Neural Networks Need High-Frequency Information", arXiv 2505.18608 (NeurIPS 2025).

Spiking neurons pass low frequencies and lose high ones, says the paper, and puts two things against it: max pooling in
both branches of the patch embeddings, and depthwise convolutions in the first two stages instead of attention. The last
stage has self-attention (SSA). Residuals are membrane shortcuts: the stream carries real currents, every branch is
neuron, convolution, batch norm, and every convolution but the first sees spikes. A neuron reads the pooled stream
before the classifier.

* What the released code takes as depths, heads and stochastic depth it never reads; here they are arguments that work,
  with the values that are fixed there.
* For CIFAR, stage 1 has no token mixer. For events, the MLP is as wide as the stage and has a residual around each of
  its two convolutions, as in the released code for that width.
* Initialisation is that of the CIFAR and event files: truncated normal for the classifier, PyTorch's for convolutions.
  The ImageNet file draws its 2-D convolutions from a truncated normal of 0.02 and leaves the classifier to PyTorch.
* The names in the released ImageNet files after the stem are known from a description alone, not from a file.

Shapes of maxformer_10_384:

    input       [B, 3, 224, 224]
    stem        [T, B, 48, 112, 112]    a 3x3 convolution unit with stride 2: spikes
    stages.0    [T, B, 96, 56, 56]      patch embedding, then 1 block with a depthwise 7x7 convolution: currents
    stages.1    [T, B, 192, 28, 28]     Embed-Max, then 2 blocks with a depthwise 5x5 convolution
    stages.2    [T, B, 384, 14, 14]     Embed-Max, then 7 blocks with SSA
    head_lif    [T, B, 384]             mean over height and width, then a neuron
    logits      [B, 1000]               a linear layer, mean over T
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, ClassVar

from timm.layers import calculate_drop_path_rates
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ..layers import (
    LayerFn,
    LifConvBn,
    MembranePatchEmbed,
    SpikingMlp,
    SpikingResidual,
    SpikingStem,
    neuron_for,
)
from .base import (
    KEEP,
    POOL,
    SpikingStage,
    SpikingTransformer,
    attention_layer,
    embedding_widths,
    neuron_layer,
    per_stage,
)
from .builder import build_spiking_model
from .cfgs import tagged_cfgs
from .keys import KeyRules, rename_known_layout
from .untrusted import check_state_dict

__all__ = ['MaxFormer']

CITATION = 'arXiv:2505.18608'
LIMITATIONS = 'Several of the published accuracies are those of the best epoch on the test data.'


class MaxFormerBlock(nn.Sequential):
    """Token mixer and MLP, which begin with a neuron and end in a batch norm: the stream u holds currents.

    The token mixer is a depthwise convolution if `mixer` is its kernel size, the attention of that name or layer, or
    None. An MLP as wide as the stage has a residual around each of its two convolutions.

    Shape: currents [T, B, dim, H, W] -> the same.
    """

    def __init__(
        self,
        dim: int,
        mixer: int | str | LayerFn | None,
        num_heads: int,
        attn_v_threshold: float,
        mlp_ratio: float,
        drop_path: float,
        lif_layer: LayerFn,
        device=None,
        dtype=None,
    ) -> None:
        layer: dict[str, Any] = {'lif_layer': lif_layer, 'device': device, 'dtype': dtype}
        branches: dict[str, nn.Module] = {}
        if isinstance(mixer, int):
            branches['mixer'] = LifConvBn(dim, dim, mixer, bias=True, groups=dim, **layer)
        elif mixer is not None:
            attn_layer = attention_layer(mixer, pre_activation=True)
            branches['mixer'] = attn_layer(dim, num_heads, attn_v_threshold=attn_v_threshold, **layer)
        hidden_dim = int(dim * mlp_ratio)
        if hidden_dim == dim:
            branches['fc1'] = LifConvBn(dim, dim, bias=True, **layer)
            branches['fc2'] = LifConvBn(dim, dim, bias=True, **layer)
        else:
            branches['mlp'] = SpikingMlp(dim, hidden_dim, pre_activation=True, **layer)
        super().__init__(OrderedDict((name, SpikingResidual(b, drop_path)) for name, b in branches.items()))

    def forward(self, u: Tensor) -> Tensor:
        for residual in self:
            u = residual(u)  # u' = u + Mixer(u), u'' = u' + MLP(u')
        return u


class MaxFormer(SpikingTransformer):
    """Hierarchical spiking transformer with depthwise convolutions before attention (arXiv 2505.18608).

    Args:
        num_classes: 0 for no classifier.
        in_chans: Channels of images and of every event frame; time is never folded into channels.
        global_pool: Pooling over H and W before the classifier, '' for none.
        embed_dims: Channels of each stage.
        depths: Blocks of each stage; a stage may have none.
        mixers: What mixes tokens in the blocks of each stage: the kernel size of a depthwise convolution, attention as
            a name in `timm_snn.layers.attentions` or a layer, or None for the MLP alone.
        attn: Attention in the stages in which `mixers` has one; None for that of `mixers`.
        num_heads: Heads of attention, the same in all stages or one number each.
        mlp_ratio: Hidden width of the MLP over the width of its stage. At 1 both of its convolutions have a residual.
        num_steps: T. Images are repeated so often, 5-D input must have as many frames. No weight depends on it: assign
            `model.num_steps` to run the same weights for more or fewer steps.
        stem_stride: Stride of the stem's convolution and of the first one after it.
        stem_pools: Per 3x3 convolution of the stem, whether it is pooled. The first has half of embed_dims[0].
        embed_pools: Per stage, the same for the convolutions of its patch embedding. () for a stage without one.
        max_shortcut: Whether the shortcuts of these embeddings are max-pooled, as their units are, or strided. That of
            the first embedding is strided.
        embed_widths: Per stage, the channels of these convolutions; None for those of the stage.
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
        embed_dims: Sequence[int] = (96, 192, 384),
        depths: Sequence[int] = (1, 2, 7),
        mixers: Sequence[int | str | LayerFn | None] = (7, 5, 'ssa'),
        attn: str | LayerFn | None = None,
        num_heads: int | Sequence[int] = 6,
        mlp_ratio: float = 4.0,
        num_steps: int = 4,
        stem_stride: int = 2,
        stem_pools: Sequence[bool] = (KEEP,),
        embed_pools: Sequence[Sequence[bool]] = ((KEEP, KEEP), (POOL, KEEP), (POOL, KEEP)),
        max_shortcut: bool = True,
        embed_widths: Sequence[Sequence[int]] | None = None,
        attn_v_threshold: float = 0.5,
        lif_layer: str | LayerFn = 'lif',
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
        mixers = per_stage(mixers, num_stages, 'mixer')
        if attn is not None:
            mixers = tuple(mixer if mixer is None or isinstance(mixer, int) else attn for mixer in mixers)
        embed_pools = per_stage(embed_pools, num_stages, 'tuple of embed_pools')
        embed_widths = embedding_widths(embed_dims, embed_pools, embed_widths)
        neuron = neuron_layer(lif_layer, backend)
        layer = {'lif_layer': neuron, **dd}

        stem_widths = [embed_dims[0] // 2, *(embed_dims[0] for _ in stem_pools[1:])]
        stem = SpikingStem(in_chans, stem_widths, stem_pools, stride=stem_stride, **layer)
        chs, reduction = stem_widths[-1], stem_stride ** len(stem_pools) * 2 ** sum(stem_pools)
        spikes = True  # what comes into the next patch embedding; currents after it
        drop_paths: Any = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        stages = []
        for i, (dim, pools) in enumerate(zip(embed_dims, embed_pools, strict=True)):
            if pools:
                stride = stem_stride if spikes else 1
                embed: nn.Module = MembranePatchEmbed(
                    chs,
                    embed_widths[i],
                    pools,
                    stride,
                    max_shortcut=max_shortcut and not spikes,
                    pre_activation=not spikes,
                    **layer,
                )
                chs, reduction, spikes = dim, reduction * stride * 2 ** sum(pools), False
            elif chs == dim and not (spikes and depths[i]):
                embed = nn.Identity()
            else:
                raise ValueError(
                    f'stage {i} needs a patch embedding, to have blocks or to make {dim} channels of {chs}'
                )
            blocks = [
                MaxFormerBlock(dim, mixers[i], stage_heads[i], attn_v_threshold, mlp_ratio, rate, **layer)
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
            head_lif=neuron_for(embed_dims[-1], neuron).to(**dd),
            **dd,
        )


# Keys of the authors' files, which number their stems differently and count stages from 1.
_IMAGENET_STEM: KeyRules = (
    (r'^patch_embed1\.embed1\.', r'stem.units.0.'),
    (r'^patch_embed1\.embed2\.', r'stages.0.embed.units.0.'),
    (r'^patch_embed1\.embed3\.', r'stages.0.embed.units.1.'),
    (r'^patch_embed1\.embed4\.', r'stages.0.embed.shortcut.'),
)
EVENTS_STEM: KeyRules = (  # two stages, and the first, without blocks, is ours
    (r'^patch_embed1\.proj_', r'stem.units.0.'),
    (r'^patch_embed1\.max_embed1\.', r'stem.units.1.'),
    (r'^patch_embed1\.max_embed2\.', r'stages.1.embed.units.0.'),
    (r'^patch_embed1\.max_embed3\.', r'stages.1.embed.units.1.'),
    (r'^patch_embed1\.embed1\.', r'stages.1.embed.shortcut.'),
    (r'^patch_embed2\.', r'patch_embed3.'),
    (r'^stage2\.', r'stage3.'),
    (r'^stage1\.', r'stage2.'),
    (r'\.mlp\.fc(\d)_', r'.fc\1.branch.unit.'),
)
CIFAR_STEM: KeyRules = (
    (r'^patch_embed1\.proj_', r'stem.units.0.'),
    (r'^patch_embed1\.embed1\.', r'stages.0.embed.units.0.'),
    (r'^patch_embed1\.embed2\.', r'stages.0.embed.shortcut.'),
)
AUTHORS_KEYS: KeyRules = (
    (r'^patch_embed(\d)\.max_embed1\.', r'patch_embed\1.embed.units.0.'),
    (r'^patch_embed(\d)\.embed1\.', r'patch_embed\1.embed.units.1.'),
    (r'^patch_embed(\d)\.max_embed2\.', r'patch_embed\1.embed.shortcut.'),
    (r'^patch_embed(\d)\.', lambda match: f'stages.{int(match[1]) - 1}.'),
    (r'^stage(\d)\.(\d+)\.', lambda match: f'stages.{int(match[1]) - 1}.blocks.{match[2]}.'),
    (r'\.mixer\.conv5?\.', r'.mixer.branch.unit.conv.'),
    (r'\.mixer\.conv5?_bn\.', r'.mixer.branch.unit.bn.'),
    (r'\.attn\.q_', r'.mixer.branch.q.0.'),
    (r'\.attn\.(k|v|proj)_', r'.mixer.branch.\1.'),
    (r'\.mlp\.fc(\d)_', r'.mlp.branch.fc\1.'),
    (r'\.embed_(conv|bn)\.', r'.\1.'),
    (r'^head\.(weight|bias)$', r'head.fc.\1'),
)
_LAYOUTS: dict[str, KeyRules] = {
    'patch_embed1.embed4.embed_conv.weight': (*_IMAGENET_STEM, *AUTHORS_KEYS),
    'patch_embed1.max_embed3.embed_conv.weight': (*EVENTS_STEM, *AUTHORS_KEYS),
    'patch_embed1.embed2.embed_conv.weight': (*CIFAR_STEM, *AUTHORS_KEYS),
}


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Our layout, or those of the authors' ImageNet, CIFAR and DVS files, to our keys. RuntimeError for any other."""
    state_dict = rename_known_layout(state_dict, _LAYOUTS)
    layouts = "our keys (stem.units.0.conv.weight) or the authors' (patch_embed1.embed2.embed_conv.weight)"
    check_state_dict(state_dict, model, layouts)
    return state_dict


default_cfgs = generate_default_cfgs(
    tagged_cfgs(
        {
            'maxformer_10_384': 'in1k',
            'maxformer_10_512': 'in1k',
            'maxformer_10_768': 'in1k',
            'maxformer_4_384': 'cifar10 cifar100',
            'maxformer_2_256': 'cifar10_dvs dvs128_gesture',
        },
        paper_ids=CITATION,
        paper_name='Spiking Neural Networks Need High-Frequency Information',
        origin_url='https://github.com/bic-L/MaxFormer',
    )
)


def _create_maxformer(variant: str, pretrained: bool = False, **kwargs: Any) -> MaxFormer:
    return build_spiking_model(MaxFormer, variant, pretrained, checkpoint_filter_fn, **kwargs)


# Never change a default below: saved models record only what their users passed.
@register_model
def maxformer_10_384(pretrained: bool = False, **kwargs: Any) -> MaxFormer:
    """16,237,240 parameters with 1000 classes."""
    model_args = dict(embed_dims=(96, 192, 384), num_heads=6)
    return _create_maxformer('maxformer_10_384', pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def maxformer_10_512(pretrained: bool = False, **kwargs: Any) -> MaxFormer:
    """28,653,480 parameters with 1000 classes."""
    model_args = dict(embed_dims=(128, 256, 512), num_heads=8)
    return _create_maxformer('maxformer_10_512', pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def maxformer_10_768(pretrained: bool = False, **kwargs: Any) -> MaxFormer:
    """63,992,200 parameters with 1000 classes."""
    model_args = dict(embed_dims=(192, 384, 768), num_heads=12)
    return _create_maxformer('maxformer_10_768', pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def maxformer_4_384(pretrained: bool = False, **kwargs: Any) -> MaxFormer:
    """For CIFAR: full resolution in stage 1, which mixes no tokens; 6,568,282 parameters with 10 classes."""
    model_args = dict(
        embed_dims=(96, 192, 384),
        depths=(1, 1, 2),
        mixers=(None, 3, 'ssa'),
        num_heads=8,
        stem_stride=1,
        embed_pools=((KEEP,), (POOL, KEEP), (POOL, KEEP)),
    )
    return _create_maxformer('maxformer_4_384', pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def maxformer_2_256(pretrained: bool = False, **kwargs: Any) -> MaxFormer:
    """For event frames of 2 x 128 x 128: 1,455,626 parameters with 10 classes.

    The stem is also the first stage, which has no blocks; depths count the other two.
    """
    model_args = dict(
        embed_dims=(32, 128, 256),
        depths=(0, 1, 1),
        mixers=(None, 3, 'ssa'),
        num_heads=16,
        mlp_ratio=1.0,
        num_steps=16,
        stem_stride=1,
        stem_pools=(KEEP, POOL),
        embed_pools=((), (POOL, POOL), (POOL, KEEP)),
        embed_widths=((), (64, 128), (256, 256)),
    )
    return _create_maxformer('maxformer_2_256', pretrained=pretrained, **dict(model_args, **kwargs))
