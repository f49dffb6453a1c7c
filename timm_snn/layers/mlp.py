"""The channel mixer of spiking transformers."""

from torch import Tensor, nn

from .conv import ConvBnLif
from .neuron import LIF
from .registry import LayerFn

__all__ = ['SpikingMlp']


class SpikingMlp(nn.Module):
    """SMLP (arXiv 2505.14719, Sec. 3.1.3): two 1x1 convolution units with bias, dim -> hidden_dim -> dim.

    Shape: [T, B, dim, H, W] -> spikes of the same shape.
    """

    def __init__(self, dim: int, hidden_dim: int, lif_layer: LayerFn = LIF, device=None, dtype=None) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.fc1 = ConvBnLif(dim, hidden_dim, bias=True, lif_layer=lif_layer, **dd)
        self.fc2 = ConvBnLif(hidden_dim, dim, bias=True, lif_layer=lif_layer, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x))
