"""Max-ResNet: MS-ResNet with max pooling in the branches.

Paper: "Spiking Neural Networks Need High-Frequency Information", arXiv 2505.18608 (NeurIPS 2025), which is MaxFormer's.

Where MS-ResNet halves the resolution by a stride, Max-ResNet pools what its first convolution makes of every pixel,
because max pooling passes the high frequencies that neurons lose:

    u' = BN(W SN(MaxPool(BN(W SN(u))))) + BN(W u)          W u with stride 2

Everything else is MS-ResNet's, with the neuron of MaxFormer: tau of 2 and a threshold of 1.

* The paper has it for CIFAR alone: `max_resnet18_cifar`, a 3x3 stem and stages of 3, 3 and 2 blocks. Its logits equal
  those of SpikingJelly 2.0.0's `max_resnet18`, whose files load.
* `max_resnet18` is ours: the layout of `ms_resnet18`, five feature levels at strides of 2 to 32, for images of usual
  size. It was compared with nothing.
* Stochastic depth is ours, off by default.

Shapes of max_resnet18:

    input       [B, 3, 224, 224]
    stem        [T, B, 64, 112, 112]    a 7x7 convolution with stride 2, batch norm: currents
    stages.0    [T, B, 64, 112, 112]    the same
    stages.1    [T, B, 64, 56, 56]      2 blocks, pooling in the first
    stages.2    [T, B, 128, 28, 28]     the same
    stages.3    [T, B, 256, 14, 14]     the same
    stages.4    [T, B, 512, 7, 7]       the same
    head_lif    [T, B, 512, 7, 7]       a neuron: spikes
    logits      [B, 1000]               mean over height and width, a linear layer, mean over T
"""

from functools import partial
from typing import Any, ClassVar

from timm.models import generate_default_cfgs, register_model

from ..layers import LayerFn
from .builder import build_spiking_model
from .cfgs import tagged_cfgs
from .ms_resnet import MSBlock, MSResNet, checkpoint_filter_fn

__all__ = ['MaxResNet']

CITATION = 'arXiv:2505.18608'
LIMITATIONS = 'Convolutions of shortcuts are fed by real currents: they multiply, and do not only accumulate.'


class MaxResNet(MSResNet):
    """`MSResNet` with max pooling in the place of strides (arXiv 2505.18608)."""

    block: ClassVar[LayerFn] = partial(MSBlock, max_pool=True)


_PAPER: dict[str, Any] = dict(
    first_conv='stem.unit.conv',
    paper_ids=CITATION,
    paper_name='Spiking Neural Networks Need High-Frequency Information',
    origin_url='https://github.com/bic-L/MaxFormer',
)

default_cfgs = generate_default_cfgs(
    {
        **tagged_cfgs({'max_resnet18': 'in1k'}, pool_size=(7, 7), **_PAPER),
        **tagged_cfgs({'max_resnet18_cifar': 'cifar10 cifar100'}, **_PAPER),
    }
)


def _create_max_resnet(variant: str, pretrained: bool = False, **kwargs: Any) -> MaxResNet:
    return build_spiking_model(MaxResNet, variant, pretrained, checkpoint_filter_fn, **kwargs)


# Never change a default below: saved models record only what their users passed.
@register_model
def max_resnet18(pretrained: bool = False, **kwargs: Any) -> MaxResNet:
    """11,693,736 parameters with 1000 classes."""
    model_args = dict(depths=(0, 2, 2, 2, 2), strides=(1, 2, 2, 2, 2), pools=(False,) * 5)
    return _create_max_resnet('max_resnet18', pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def max_resnet18_cifar(pretrained: bool = False, **kwargs: Any) -> MaxResNet:
    """For CIFAR: 12,502,090 parameters with 10 classes."""
    model_args = dict(
        stem_kernel_size=3,
        stem_stride=1,
        embed_dims=(128, 256, 512),
        depths=(3, 3, 2),
        strides=(1, 2, 2),
        pools=(False,) * 3,
    )
    return _create_max_resnet('max_resnet18_cifar', pretrained=pretrained, **dict(model_args, **kwargs))
