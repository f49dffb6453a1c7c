"""Spiking ResNet: ResNet with neurons in place of its activations, and ResNet-19 itself.

Paper: "Going Deeper With Directly-Trained Larger Spiking Neural Networks", arXiv 2011.05280 (AAAI 2021).

Neurons follow every batch norm and every sum of a residual block, as ReLU does in ResNet:

    s' = SN(BN(W SN(BN(W s))) + s)          s: spikes; where the size changes, BN(W s) takes the place of s

Neurons are those of spatio-temporal backpropagation (STBP), 'stbp_lif': they keep a quarter of their membrane from step
to step, fire at 0.5 and are reset to 0, and the current is not divided by tau.

The other families of residual networks move this last neuron: `sew_resnet` into the branch, `ms_resnet` in front of
it. ResNet-19, for CIFAR, is a 3x3 convolution, stages of 3, 3 and 2 blocks, mean pooling, and two linear layers with a
neuron between them. The first linear layer is a 1x1 convolution before the pooling here, which gives the same numbers.

`resnet19` is the artificial network that papers quote beside it (12.63 M parameters; table 2 of MSViT's paper, arXiv
2505.14719): the same layers with `act='relu'`, see `timm_snn.models.builder`.

* The papers print 12.63 M for 10 and for 100 classes and no layers. A stem of 64 channels and a hidden layer of 256
  give 12,630,858 parameters with 10 classes. No text settles the rest: whether the artificial network has the hidden
  layer's ReLU, and how it was trained.
* The paper scales batch norms by the threshold (tdBN), alpha * v_threshold with alpha = 1 / sqrt(2) in sums. Batch
  norms are plain here.
* Stochastic depth is ours, off by default.

Shapes of spiking_resnet19:

    input       [B, 3, 32, 32]
    stem        [T, B, 64, 32, 32]      a 3x3 convolution unit: spikes
    stages.0    [T, B, 128, 32, 32]     3 blocks
    stages.1    [T, B, 256, 16, 16]     3 blocks, the first with stride 2
    stages.2    [T, B, 512, 8, 8]       2 blocks, the first with stride 2
    stages.3    [T, B, 256, 8, 8]       the hidden layer, without its neuron: currents
    head_lif    [T, B, 256]             mean over height and width, then a neuron
    logits      [B, 10]                 a linear layer, mean over T
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

from timm.layers import calculate_drop_path_rates
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ..layers import (
    LIF,
    ConvBn,
    ConvBnLif,
    DropPath,
    LayerFn,
    SpikingStem,
    merge_time,
    neuron_for,
    neurons,
    split_time,
)
from ..layers.conv import SpikePool
from .base import KEEP, SpikingStage, SpikingTransformer, neuron_layer, per_stage
from .builder import build_spiking_model
from .cfgs import tagged_cfgs
from .untrusted import check_state_dict

__all__ = ['SpikingResNet']

CITATION = 'arXiv:2011.05280'
LIMITATIONS = "Batch norms are plain ones and not the paper's (tdBN), which are scaled by the threshold."


# The paper's surrogate gradient is a rectangle; the triangle is one that all backends have.
neurons.register('stbp_lif')(
    partial(LIF, tau=4 / 3, v_threshold=0.5, decay_input=False, surrogate='piecewise_quadratic')
)


class SpikingResNetBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, whose sum fires.

    Shape: spikes [T, B, in_chs, H, W] -> spikes [T, B, out_chs, H / stride, W / stride], rounded up.
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        stride: int,
        drop_path: float,
        lif_layer: LayerFn,
        device=None,
        dtype=None,
    ) -> None:
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        super().__init__()
        self.conv1 = ConvBnLif(in_chs, out_chs, 3, stride, lif_layer=lif_layer, **dd)
        self.conv2 = ConvBn(out_chs, out_chs, 3, **dd)
        self.drop_path = DropPath(drop_path)
        changes = stride != 1 or in_chs != out_chs
        self.shortcut = ConvBn(in_chs, out_chs, stride=stride, **dd) if changes else nn.Identity()
        self.lif = neuron_for(out_chs, lif_layer).to(**dd)

    def forward(self, s: Tensor) -> Tensor:
        return self.lif(self.drop_path(self.conv2(self.conv1(s))) + self.shortcut(s))


class HiddenLayer(nn.Module):
    """A linear map of the channels, with bias. Shape: [T, B, in_chs, H, W] -> currents [T, B, out_chs, H, W]."""

    def __init__(self, in_chs: int, out_chs: int, device=None, dtype=None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chs, out_chs, 1, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return split_time(self.conv(merge_time(x)), x.shape[0])


class SpikingResNet(SpikingTransformer):
    """Residual network of spiking neurons (arXiv 2011.05280).

    Args:
        num_classes: 0 for no classifier.
        in_chans: Channels of images and of every event frame; time is never folded into channels.
        global_pool: Pooling over H and W before the classifier, '' for none.
        stem_dim: Channels of the stem.
        stem_kernel_size, stem_stride: The stem's convolution.
        embed_dims: Channels of each stage.
        depths: Blocks of each stage; a stage may have none, and keeps channels and resolution then.
        strides: Stride of the first block of each stage.
        pools: Whether a stage begins with 3x3 max pooling, which halves the resolution.
        hidden_dim: Width of a linear layer, with a neuron, before the classifier; None for none.
        num_steps: T. Images are repeated so often, 5-D input must have as many frames. No weight depends on it: assign
            `model.num_steps` to run the same weights for more or fewer steps.
        lif_layer: Name in `timm_snn.layers.neurons` or layer, called as `lif_layer()`.
        backend: Implementation of the neurons, see `timm_snn.ops.backend`; not saved with the model.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block, growing linearly from 0.

    Shape: images [B, C, H, W] or frames [B, T, C, H, W] -> logits [B, num_classes], of any H and W.
    Raises: ValueError for arguments and input that do not fit, with what was expected.
    """

    block: ClassVar[LayerFn] = SpikingResNetBlock  # called as block(in_chs, out_chs, stride, drop_path, lif_layer=...)

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = 'avg',
        stem_dim: int = 64,
        stem_kernel_size: int = 7,
        stem_stride: int = 2,
        embed_dims: Sequence[int] = (64, 64, 128, 256, 512),
        depths: Sequence[int] = (0, 2, 2, 2, 2),
        strides: Sequence[int] = (1, 1, 2, 2, 2),
        pools: Sequence[bool] = (False, True, False, False, False),
        hidden_dim: int | None = None,
        num_steps: int = 4,
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
        strides = per_stage(strides, num_stages, 'stride')
        pools = per_stage(pools, num_stages, 'entry of pools')
        neuron = neuron_layer(lif_layer, backend)

        stem = self._stem(in_chans, stem_dim, stem_kernel_size, stem_stride, lif_layer=neuron, **dd)
        chs, reduction = stem_dim, stem_stride
        drop_paths: Any = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        stages = []
        for i, dim in enumerate(embed_dims):
            if not depths[i] and (dim, strides[i]) != (chs, 1):
                raise ValueError(
                    f'stage {i} needs blocks to make {dim} channels of {chs}, with stride {strides[i]}: '
                    f'a stage without blocks keeps both, got depths={depths}'
                )
            blocks = []
            for j in range(depths[i]):
                stride = strides[i] if j == 0 else 1
                blocks.append(type(self).block(chs, dim, stride, drop_paths[i][j], lif_layer=neuron, **dd))
                chs = dim
            reduction *= strides[i] * (2 if pools[i] else 1)
            stages.append(SpikingStage(SpikePool() if pools[i] else nn.Identity(), blocks, chs, reduction))
        if hidden_dim is not None:
            stages.append(SpikingStage(HiddenLayer(chs, hidden_dim, **dd), [], hidden_dim, reduction, is_level=False))
        # A neuron is put before the classifier where it would see currents.
        fires_last = hidden_dim is not None or self.stream_is_currents
        super().__init__(
            stem,
            stages,
            num_classes=num_classes,
            in_chans=in_chans,
            global_pool=global_pool,
            num_steps=num_steps,
            drop_rate=drop_rate,
            head_lif=neuron_for(hidden_dim or chs, neuron).to(**dd) if fires_last else None,
            **dd,
        )

    @staticmethod
    def _stem(in_chans: int, dim: int, kernel_size: int, stride: int, **layer: Any) -> nn.Module:
        return SpikingStem(in_chans, [dim], [KEEP], kernel_size, stride, **layer)


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Our layout. Raises RuntimeError for any other."""
    check_state_dict(state_dict, model, 'our keys (stem.units.0.conv.weight)')
    return state_dict


# The head of table 2 of arXiv 2505.14719, which has the published accuracies, names no layers.
default_cfgs = generate_default_cfgs(
    tagged_cfgs(
        {'spiking_resnet19': 'cifar10 cifar100', 'resnet19': 'cifar10 cifar100'},
        paper_ids=CITATION,
        paper_name='Going Deeper With Directly-Trained Larger Spiking Neural Networks',
    )
)


def _create_spiking_resnet(variant: str, pretrained: bool = False, **kwargs: Any) -> SpikingResNet:
    resnet19: dict[str, Any] = dict(
        stem_kernel_size=3,
        stem_stride=1,
        embed_dims=(128, 256, 512),
        depths=(3, 3, 2),
        strides=(1, 2, 2),
        pools=(False, False, False),
        hidden_dim=256,
        lif_layer='stbp_lif',
    )
    kwargs = {**resnet19, **kwargs}
    return build_spiking_model(SpikingResNet, variant, pretrained, checkpoint_filter_fn, **kwargs)


# Never change a default below: saved models record only what their users passed.
@register_model
def spiking_resnet19(pretrained: bool = False, **kwargs: Any) -> SpikingResNet:
    """For CIFAR: 12,630,858 parameters with 10 classes."""
    return _create_spiking_resnet('spiking_resnet19', pretrained=pretrained, **kwargs)


@register_model
def resnet19(pretrained: bool = False, **kwargs: Any) -> SpikingResNet:
    """The artificial network of the same layers, for CIFAR: 12,630,858 parameters with 10 classes, and T = 1."""
    model_args = dict(act='relu')
    return _create_spiking_resnet('resnet19', pretrained=pretrained, **dict(model_args, **kwargs))
