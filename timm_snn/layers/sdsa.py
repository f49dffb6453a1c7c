"""Spike-driven self-attention (SDSA): masks and sums in place of products of matrices."""

from torch import Tensor, nn

from ..ops.fixed import max_pool
from .attention import head_dim_of
from .conv import ConvBn, ConvBnLif
from .neuron import LIF, neuron_for
from .registry import LayerFn, attentions
from .temporal import merge_time, split_time

__all__ = ['SpikeDrivenSelfAttention']


@attentions.register('sdsa')
class SpikeDrivenSelfAttention(nn.Module):
    """Spike-driven self-attention, linear in tokens and channels (SDSA, arXiv 2307.01694), for membrane shortcuts.

    out = BN(Conv(Q * SN(sum_n K_n * V_n))), with Q, K, V = SN(BN(Conv(SN(u)))): a channel of the query passes, at all N
    tokens, if the neuron driven by the number of tokens where key and value both fire does. There is no scale, and
    every channel is on its own, whatever the heads.

    `erode`, which the released code sets for CIFAR10-DVS alone, pools K, V, K * V and the masked query by 3x3 windows
    with stride 1: a dilation of spikes, despite its name. K and V are pooled over the map, the other two over the plane
    of tokens, in raster order, and channels of a head.

    Shape: currents [T, B, dim, H, W] -> currents of the same shape.
    Raises: ValueError if num_heads does not divide dim.
    """

    takes_currents = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        attn_v_threshold: float = 0.5,
        erode: bool = False,
        lif_layer: LayerFn = LIF,
        device=None,
        dtype=None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.head_dim = head_dim_of(dim, num_heads)
        self.erode = erode
        self.lif = neuron_for(dim, lif_layer).to(**dd)
        self.q = ConvBnLif(dim, dim, lif_layer=lif_layer, **dd)
        self.k = ConvBnLif(dim, dim, lif_layer=lif_layer, **dd)
        self.v = ConvBnLif(dim, dim, lif_layer=lif_layer, **dd)
        self.attn_lif = neuron_for(dim, lif_layer, v_threshold=attn_v_threshold).to(**dd)
        self.proj = ConvBn(dim, dim, bias=True, **dd)

    def forward(self, x: Tensor) -> Tensor:
        H, W = x.shape[3], x.shape[4]
        x = self.lif(x)
        k, v = self.k(x), self.v(x)
        x = self.q(x).flatten(3) * self.gates(self.agreement(k, v))  # [T, B, C, N]
        if self.erode:
            x = self._dilate_tokens(x)
        return self.proj(x.unflatten(3, [H, W]))

    def agreement(self, k: Tensor, v: Tensor) -> Tensor:
        """K * V of every token, which the neuron in the middle counts. Shape: [T, B, C, H, W] -> [T, B, C, N]."""
        if self.erode:
            return self._dilate_tokens((_dilate(k) * _dilate(v)).flatten(3))
        return (k * v).flatten(3)

    def gates(self, agreement: Tensor) -> Tensor:
        """Which channels pass, [T, B, C, 1]."""
        return self.attn_lif(agreement.sum(3, keepdim=True))

    def _dilate_tokens(self, x: Tensor) -> Tensor:
        heads = x.unflatten(2, [-1, self.head_dim]).transpose(-2, -1)  # [T, B, heads, N, D]
        return _dilate(heads).transpose(-2, -1).flatten(2, 3)


def _dilate(x: Tensor) -> Tensor:
    """Maximum over 3x3 windows of the last two axes, with stride 1. Shape: [T, B, C, H, W] -> the same."""
    return split_time(max_pool(merge_time(x), stride=1), x.shape[0])
