"""MS-ResNet: residual networks that add membrane currents.

Paper: "Advancing Spiking Neural Networks towards Deep Residual Learning", arXiv 2112.08954 (TNNLS 2024).

Membrane shortcuts (MS) put the neuron in front of each convolution, so that nothing stands between the sums of a block
and the next, and every convolution but the first and those of shortcuts is fed by spikes:

    u' = BN(W SN(BN(W SN(u)))) + u          u: currents; where the size changes, BN(W u) takes the place of u

A neuron reads the last map, whose firing rates are pooled and classified. Neurons are those of `spiking_resnet`.

The five feature levels have strides of 2 to 32, as those of timm's ResNets. Stage 0 is the stem.

* The paper's surrogate gradient is a rectangle. Here it is the triangle `piecewise_quadratic`, which all backends have:
  training differs, and what a network answers does not.
* Convolutions of shortcuts multiply real currents. That is how SpikingJelly 2.0.0 has it, too, whose `ms_resnet18` and
  `ms_resnet34` have the same logits and whose files load.
* Stochastic depth is ours, off by default.

Shapes of ms_resnet18:

    input       [B, 3, 224, 224]
    stem        [T, B, 64, 112, 112]    a 7x7 convolution with stride 2, batch norm: currents
    stages.0    [T, B, 64, 112, 112]    the same
    stages.1    [T, B, 64, 56, 56]      2 blocks, the first with stride 2
    stages.2    [T, B, 128, 28, 28]     the same
    stages.3    [T, B, 256, 14, 14]     the same
    stages.4    [T, B, 512, 7, 7]       the same
    head_lif    [T, B, 512, 7, 7]       a neuron: spikes
    logits      [B, 1000]               mean over height and width, a linear layer, mean over T
"""

from typing import Any, ClassVar

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ..layers import ConvBn, ConvBnLif, CurrentStem, DropPath, LayerFn, merge_time, neuron_for, split_time
from .builder import build_spiking_model
from .cfgs import tagged_cfgs
from .keys import KeyRules, rename_keys
from .spiking_resnet import SpikingResNet
from .untrusted import check_state_dict

__all__ = ['MSResNet']

CITATION = 'arXiv:2112.08954'
LIMITATIONS = (
    'Convolutions of shortcuts are fed by real currents: they multiply, and do not only accumulate. The surrogate '
    "gradient is a triangle and not the paper's rectangle."
)


class MSBlock(nn.Module):
    """Two 3x3 convolutions, each behind a neuron, whose currents are added to the stream.

    With `max_pool` the stride is that of 3x3 max pooling after the first convolution, which is not strided itself.

    Shape: currents [T, B, in_chs, H, W] -> currents [T, B, out_chs, H / stride, W / stride], rounded up.
    Raises: ValueError for max pooling with another stride than 1 or 2.
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        stride: int,
        drop_path: float,
        lif_layer: LayerFn,
        max_pool: bool = False,
        device=None,
        dtype=None,
    ) -> None:
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        super().__init__()
        if max_pool and stride not in (1, 2):
            raise ValueError(f'max pooling in a block halves the resolution: expected stride 1 or 2, got {stride}')
        pool = max_pool and stride == 2
        self.lif = neuron_for(in_chs, lif_layer).to(**dd)
        self.conv1 = ConvBnLif(in_chs, out_chs, 3, 1 if pool else stride, pool=pool, lif_layer=lif_layer, **dd)
        self.conv2 = ConvBn(out_chs, out_chs, 3, **dd)
        self.drop_path = DropPath(drop_path)
        changes = stride != 1 or in_chs != out_chs
        self.shortcut = ConvBn(in_chs, out_chs, stride=stride, **dd) if changes else nn.Identity()

    def forward(self, u: Tensor) -> Tensor:
        return self.drop_path(self.conv2(self.conv1(self.lif(u)))) + self.shortcut(u)


class MSResNet(SpikingResNet):
    """`SpikingResNet`, which documents the arguments, with membrane shortcuts (arXiv 2112.08954)."""

    block: ClassVar[LayerFn] = MSBlock
    stream_is_currents: ClassVar[bool] = True

    @staticmethod
    def _stem(in_chans: int, dim: int, kernel_size: int, stride: int, **layer: Any) -> nn.Module:
        del layer['lif_layer']  # the blocks begin with a neuron
        return CurrentStem(in_chans, dim, kernel_size, stride=stride, **layer)

    def _head_steps(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """As the base has it, with the neuron before the pooling."""
        if self.head_lif is not None:
            x = self.head_lif(x)
        return split_time(self.head(merge_time(x), pre_logits=pre_logits), x.shape[0])


# Keys of SpikingJelly's files.
SPIKINGJELLY_KEYS: KeyRules = (
    (r'^stem\.0\.', r'stem.unit.conv.'),
    (r'^stem\.1\.', r'stem.unit.bn.'),
    (r'\.(conv|bn)(\d)\.', r'.conv\2.\1.'),
    (r'\.downsample\.0\.', r'.shortcut.conv.'),
    (r'\.downsample\.1\.', r'.shortcut.bn.'),
    (r'^head\.(weight|bias)$', r'head.fc.\1'),
)


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    """Our layout, or SpikingJelly's, to our keys. Raises RuntimeError for any other."""
    if 'stem.0.weight' in state_dict:
        first = 0 if len(model.stages[0].blocks) else 1  # of its stages, which it counts from 1, among ours

        def stage_key(match) -> str:
            return f'stages.{int(match[1]) - 1 + first}.blocks.{match[2]}.'

        state_dict = rename_keys(state_dict, ((r'^layer(\d)\.(\d+)\.', stage_key), *SPIKINGJELLY_KEYS))
    check_state_dict(state_dict, model, "our keys (stem.unit.conv.weight) or SpikingJelly's (stem.0.weight)")
    return state_dict


default_cfgs = generate_default_cfgs(
    tagged_cfgs(
        {'ms_resnet18': 'in1k', 'ms_resnet34': 'in1k'},
        first_conv='stem.unit.conv',
        pool_size=(7, 7),
        paper_ids=CITATION,
        paper_name='Advancing Spiking Neural Networks towards Deep Residual Learning',
    )
)


def _create_ms_resnet(variant: str, pretrained: bool = False, **kwargs: Any) -> MSResNet:
    layout: dict[str, Any] = dict(strides=(1, 2, 2, 2, 2), pools=(False,) * 5, num_steps=6, lif_layer='stbp_lif')
    kwargs = {**layout, **kwargs}
    return build_spiking_model(MSResNet, variant, pretrained, checkpoint_filter_fn, **kwargs)


# Never change a default below: saved models record only what their users passed.
@register_model
def ms_resnet18(pretrained: bool = False, **kwargs: Any) -> MSResNet:
    """11,693,736 parameters with 1000 classes; T is 6."""
    model_args = dict(depths=(0, 2, 2, 2, 2))
    return _create_ms_resnet('ms_resnet18', pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def ms_resnet34(pretrained: bool = False, **kwargs: Any) -> MSResNet:
    """21,801,896 parameters with 1000 classes; T is 6."""
    model_args = dict(depths=(0, 3, 4, 6, 3))
    return _create_ms_resnet('ms_resnet34', pretrained=pretrained, **dict(model_args, **kwargs))
