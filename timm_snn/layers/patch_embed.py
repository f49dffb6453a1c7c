"""From pixels to spikes, and from one resolution to the next: MSViT's SPEMSF (arXiv 2505.14719, Eq. 3)."""

from collections.abc import Sequence

from torch import Tensor, nn

from .conv import ConvBnLif
from .neuron import LIF
from .registry import LayerFn, patch_embeds

__all__ = ['SpikingPatchEmbed', 'SpikingStem']


class SpikingStem(nn.Module):
    """3x3 convolution units that turn real-valued input into spikes: `widths[i]` channels, pooled if `pools[i]`.

    The current of the first unit does not depend on the neurons, so for a static image it is computed for one step
    and held for `num_steps`. In training the batch statistics of that one step are the mean and variance of all.

    Shape: [1 or T, B, in_chs, H, W] -> spikes [T, B, widths[-1], H', W'], with T = num_steps.
    """

    def __init__(
        self,
        in_chs: int,
        widths: Sequence[int],
        pools: Sequence[bool],
        lif_layer: LayerFn = LIF,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        self.units = _conv_units(in_chs, widths, pools, lif_layer=lif_layer, device=device, dtype=dtype)

    def forward(self, x: Tensor, num_steps: int) -> Tensor:
        for i, unit in enumerate(self.units):
            x = unit.lif(unit.current(x).expand(num_steps, -1, -1, -1, -1)) if i == 0 else unit(x)  # type: ignore
        return x


@patch_embeds.register('spemsf')
class SpikingPatchEmbed(nn.Module):
    """Spiking patch embedding with multi-scale feature fusion (SPEMSF): Y = F(x) + G(x).

    G is a chain of 3x3 convolution units of `widths[i]` channels, those with `pools[i]` halve the resolution; F is a
    1x1 convolution unit whose stride makes up for the pooling. The sum of the two is a map of 0, 1 and 2.

    Shape: spikes [T, B, in_chs, H, W] -> [T, B, widths[-1], H / 2**sum(pools), W / 2**sum(pools)], rounded up.
    """

    def __init__(
        self,
        in_chs: int,
        widths: Sequence[int],
        pools: Sequence[bool],
        lif_layer: LayerFn = LIF,
        device=None,
        dtype=None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.units = _conv_units(in_chs, widths, pools, lif_layer=lif_layer, **dd)
        self.shortcut = ConvBnLif(in_chs, widths[-1], stride=2 ** sum(pools), lif_layer=lif_layer, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.units(x) + self.shortcut(x)


def _conv_units(in_chs: int, widths: Sequence[int], pools: Sequence[bool], **kwargs) -> nn.Sequential:
    if len(widths) != len(pools) or not widths:
        raise ValueError(f'expected as many widths as pools and at least one, got {tuple(widths)} and {tuple(pools)}')
    chs = [in_chs, *widths]
    return nn.Sequential(
        *(ConvBnLif(chs[i], chs[i + 1], kernel_size=3, pool=pool, **kwargs) for i, pool in enumerate(pools))
    )
