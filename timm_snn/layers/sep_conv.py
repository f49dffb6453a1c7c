"""Separable convolution as a token mixer, in the order of membrane shortcuts (Meta-SpikeFormer, E-SpikeFormer)."""

from torch import Tensor, nn

from .conv import ConvBn, ConvBnLif
from .neuron import LIF, neuron_for
from .registry import LayerFn
from .temporal import merge_time, split_time

__all__ = ['SepConv']


class SepConv(nn.Module):
    """Inverted separable convolution (arXiv 2404.03663): BN(Conv_pw(Conv_dw(SN(BN(Conv_pw(SN(u))))))).

    Point-wise dim -> 2 dim, depth-wise with `kernel_size`, point-wise 2 dim -> dim, none with bias. With
    `depthwise_lif`, batch norm and a neuron follow the depth-wise convolution too (arXiv 2411.16061), which otherwise
    hands real values on.

    Shape: currents [T, B, dim, H, W] -> currents of the same shape.
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int = 7,
        depthwise_lif: bool = False,
        lif_layer: LayerFn = LIF,
        device=None,
        dtype=None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        hidden = 2 * dim
        self.lif = neuron_for(dim, lif_layer).to(**dd)
        self.pw1 = ConvBnLif(dim, hidden, lif_layer=lif_layer, **dd)
        if depthwise_lif:
            self.dw: nn.Module = ConvBnLif(hidden, hidden, kernel_size, groups=hidden, lif_layer=lif_layer, **dd)
        else:
            self.dw = DepthwiseConv(hidden, kernel_size, **dd)
        self.pw2 = ConvBn(hidden, dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.pw2(self.dw(self.pw1(self.lif(x))))


class DepthwiseConv(nn.Module):
    """A depth-wise convolution alone, without bias. Shape: [T, B, dim, H, W] -> the same."""

    def __init__(self, dim: int, kernel_size: int, device=None, dtype=None) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, bias=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return split_time(self.conv(merge_time(x)), x.shape[0])
