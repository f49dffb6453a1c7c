"""ConvBnLif, the brick that every block is built from."""

from typing import Literal

from torch import Tensor, nn

from .neuron import LIF
from .registry import LayerFn
from .temporal import merge_time, split_time

__all__ = ['ConvBnLif']


class ConvBnLif(nn.Module):
    """Convolution, batch norm, optional 3x3 max pooling with stride 2, neuron.

    Convolution and norm act on every step alone; batch statistics are taken over T and B together, as all published
    models do. Pooling and strides round an odd size up, so that branches which halve it differently meet again.

    Shape: [T, B, in_chs, H, W] -> spikes [T, B, out_chs, H', W']; with `dims=1` tokens, [T, B, C, N] instead.
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        kernel_size: int = 1,
        stride: int = 1,
        pool: bool = False,
        bias: bool = False,
        dims: Literal[1, 2] = 2,
        lif_layer: LayerFn = LIF,
        device=None,
        dtype=None,
    ) -> None:
        if kernel_size % 2 == 0:
            raise ValueError(f'ConvBnLif keeps sizes with odd kernels only, got kernel_size={kernel_size}')
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        conv_layer, norm_layer, pool_layer = {
            1: (nn.Conv1d, nn.BatchNorm1d, nn.MaxPool1d),
            2: (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d),
        }[dims]
        self.conv = conv_layer(in_chs, out_chs, kernel_size, stride, (kernel_size - 1) // 2, bias=bias, **dd)
        self.bn = norm_layer(out_chs, **dd)
        self.pool = pool_layer(3, 2, 1) if pool else nn.Identity()
        self.lif = lif_layer().to(**dd)

    def current(self, x: Tensor) -> Tensor:
        """What the neuron integrates; without spikes, so it can be computed once for steps with the same input."""
        return split_time(self.pool(self.bn(self.conv(merge_time(x)))), x.shape[0])

    def forward(self, x: Tensor) -> Tensor:
        return self.lif(self.current(x))
