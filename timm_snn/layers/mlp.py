"""The channel mixer of spiking transformers."""

from torch import Tensor, nn

from .conv import ConvBn, ConvBnLif
from .neuron import LIF, neuron_for
from .registry import LayerFn

__all__ = ['SpikingMlp']


class SpikingMlp(nn.Module):
    """SMLP (arXiv 2505.14719, Sec. 3.1.3): two convolution units, dim -> hidden_dim -> dim, 1x1 with bias by default.

    With `pre_activation` a neuron comes first and none comes last, for membrane shortcuts: BN(W SN(BN(W SN(u)))).

    Shape: [T, B, dim, H, W] -> spikes, or currents with `pre_activation`, of the same shape.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        kernel_size: int = 1,
        bias: bool = True,
        pre_activation: bool = False,
        lif_layer: LayerFn = LIF,
        device=None,
        dtype=None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.lif = neuron_for(dim, lif_layer).to(**dd) if pre_activation else nn.Identity()
        self.fc1 = ConvBnLif(dim, hidden_dim, kernel_size, bias=bias, lif_layer=lif_layer, **dd)
        if pre_activation:
            self.fc2: nn.Module = ConvBn(hidden_dim, dim, kernel_size, bias=bias, **dd)
        else:
            self.fc2 = ConvBnLif(hidden_dim, dim, kernel_size, bias=bias, lif_layer=lif_layer, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(self.lif(x)))
