"""SEW-ResNet: residual networks that add spikes.

Paper: "Deep Residual Learning in Spiking Neural Networks", arXiv 2102.04159 (NeurIPS 2021).

In a spiking ResNet the neuron after the sum keeps a block from being the identity. Spike-element-wise (SEW) residuals
add after the neuron, so that a silent branch passes the stream on:

    s' = SN(BN(W SN(BN(W s)))) + s          the paper's ADD, its best choice of the element-wise function

Where the size changes, SN(BN(W s)) takes the place of s. `sew_resnet50` has bottlenecks, of three convolutions with a
neuron each. The stream carries sums of spikes, whole numbers that grow by one with every block of a stage. Neurons
integrate and fire without leak, as the paper has them for ImageNet.

The five feature levels have strides of 2 to 32, as those of timm's ResNets. Stage 0 is the stem.

* AND and IAND, the other element-wise functions, are left out: the paper has them lose accuracy with depth.
* Surrogate gradient and reset are those of `LIF`, sigmoid and detached: they do not change what a network answers.
* Stochastic depth is ours, off by default.
* Logits equal those of SpikingJelly 2.0.0's `sew_resnet18`, `sew_resnet34` and `sew_resnet50` with the same weights,
  to 1e-9 in float64; its element-wise function for this is `cnf='ADD'`.

Shapes of sew_resnet18:

    input       [B, 3, 224, 224]
    stem        [T, B, 64, 112, 112]    a 7x7 convolution unit with stride 2: spikes
    stages.0    [T, B, 64, 112, 112]    the same
    stages.1    [T, B, 64, 56, 56]      max pooling, then 2 blocks
    stages.2    [T, B, 128, 28, 28]     2 blocks, the first with stride 2
    stages.3    [T, B, 256, 14, 14]     the same
    stages.4    [T, B, 512, 7, 7]       the same
    logits      [B, 1000]               mean over T, height and width, then a linear layer
"""

from typing import Any, ClassVar

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ..layers import ConvBnLif, DropPath, LayerFn
from .builder import build_spiking_model
from .cfgs import tagged_cfgs
from .keys import KeyRules, rename_keys
from .spiking_resnet import SpikingResNet
from .untrusted import check_state_dict

__all__ = ['SEWResNet']

CITATION = 'arXiv:2102.04159'
LIMITATIONS = (
    'The residual stream carries sums of spikes, whole numbers: layers that are fed by it multiply, and do not only '
    'accumulate.'
)


class SEWBlock(nn.Module):
    """Convolution units, two of 3x3, whose spikes are added to the stream.

    Shape: [T, B, in_chs, H, W] -> [T, B, out_chs, H / stride, W / stride], rounded up; whole numbers.
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
        layer: dict[str, Any] = {'lif_layer': lif_layer, 'device': device, 'dtype': dtype}
        super().__init__()
        self.units = self._units(in_chs, out_chs, stride, layer)
        self.drop_path = DropPath(drop_path)
        changes = stride != 1 or in_chs != out_chs
        self.shortcut = ConvBnLif(in_chs, out_chs, stride=stride, **layer) if changes else nn.Identity()

    def _units(self, in_chs: int, out_chs: int, stride: int, layer: dict[str, Any]) -> nn.Sequential:
        return nn.Sequential(
            ConvBnLif(in_chs, out_chs, 3, stride, **layer),
            ConvBnLif(out_chs, out_chs, 3, **layer),
        )

    def forward(self, s: Tensor) -> Tensor:
        return self.drop_path(self.units(s)) + self.shortcut(s)


class SEWBottleneck(SEWBlock):
    """The same with a 1x1, a 3x3 and a 1x1 unit, of which the first two have a quarter of out_chs."""

    def _units(self, in_chs: int, out_chs: int, stride: int, layer: dict[str, Any]) -> nn.Sequential:
        return nn.Sequential(
            ConvBnLif(in_chs, out_chs // 4, **layer),
            ConvBnLif(out_chs // 4, out_chs // 4, 3, stride, **layer),
            ConvBnLif(out_chs // 4, out_chs, **layer),
        )


class SEWResNet(SpikingResNet):
    """`SpikingResNet`, which documents the arguments, with spike-element-wise additions (arXiv 2102.04159)."""

    block: ClassVar[LayerFn] = SEWBlock


class SEWBottleneckResNet(SEWResNet):
    """`SEWResNet` of bottlenecks."""

    block: ClassVar[LayerFn] = SEWBottleneck


# Keys of SpikingJelly's files, which are those of torchvision's ResNet.
SPIKINGJELLY_KEYS: KeyRules = (
    (r'^(conv|bn)1\.', r'stem.units.0.\1.'),
    (r'^layer(\d)\.(\d+)\.', r'stages.\1.blocks.\2.'),
    (r'\.(conv|bn)(\d)\.', lambda match: f'.units.{int(match[2]) - 1}.{match[1]}.'),
    (r'\.downsample\.0\.', r'.shortcut.conv.'),
    (r'\.downsample\.1\.', r'.shortcut.bn.'),
    (r'^fc\.', r'head.fc.'),
)


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Our layout, or SpikingJelly's, to our keys. Raises RuntimeError for any other."""
    if 'conv1.weight' in state_dict:
        state_dict = rename_keys(state_dict, SPIKINGJELLY_KEYS)
    check_state_dict(state_dict, model, "our keys (stem.units.0.conv.weight) or SpikingJelly's (conv1.weight)")
    return state_dict


default_cfgs = generate_default_cfgs(
    tagged_cfgs(
        {f'sew_resnet{depth}': 'in1k' for depth in (18, 34, 50)},
        pool_size=(7, 7),
        paper_ids=CITATION,
        paper_name='Deep Residual Learning in Spiking Neural Networks',
        origin_url='https://github.com/fangwei123456/Spike-Element-Wise-ResNet',
    )
)


def _create_sew_resnet(model_cls: type[SEWResNet], variant: str, pretrained: bool, **kwargs: Any) -> SEWResNet:
    kwargs.setdefault('lif_layer', 'if')
    return build_spiking_model(model_cls, variant, pretrained, checkpoint_filter_fn, **kwargs)


# Never change a default below: saved models record only what their users passed.
@register_model
def sew_resnet18(pretrained: bool = False, **kwargs: Any) -> SEWResNet:
    """11,689,512 parameters with 1000 classes."""
    model_args = dict(embed_dims=(64, 64, 128, 256, 512), depths=(0, 2, 2, 2, 2))
    return _create_sew_resnet(SEWResNet, 'sew_resnet18', pretrained, **dict(model_args, **kwargs))


@register_model
def sew_resnet34(pretrained: bool = False, **kwargs: Any) -> SEWResNet:
    """21,797,672 parameters with 1000 classes."""
    model_args = dict(embed_dims=(64, 64, 128, 256, 512), depths=(0, 3, 4, 6, 3))
    return _create_sew_resnet(SEWResNet, 'sew_resnet34', pretrained, **dict(model_args, **kwargs))


@register_model
def sew_resnet50(pretrained: bool = False, **kwargs: Any) -> SEWResNet:
    """25,557,032 parameters with 1000 classes."""
    model_args = dict(embed_dims=(64, 256, 512, 1024, 2048), depths=(0, 3, 4, 6, 3))
    return _create_sew_resnet(SEWBottleneckResNet, 'sew_resnet50', pretrained, **dict(model_args, **kwargs))
