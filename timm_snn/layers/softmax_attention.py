"""The attention of artificial transformers (VSA), for the networks that spiking ones are compared with."""

from typing import Any

from torch import Tensor, nn

from .attention import head_dim_of, merge_heads, split_heads
from .conv import ConvBn, ConvBnLif
from .neuron import LIF
from .registry import LayerFn

__all__ = ['SoftmaxAttention']


class SoftmaxAttention(nn.Module):
    """Softmax attention with the layers, and so the parameters, of `SpikingSelfAttention` (VSA, arXiv 1706.03762).

    out = SN(BN(Conv(softmax(Q K^T / sqrt(d)) V))) with Q, K, V = BN(Conv(x)) real, of d channels in a head. It has no
    neuron in the middle, and `attn_v_threshold` no effect. It is not in `timm_snn.layers.attentions`, which are for
    networks that spikes drive; `attn=SoftmaxAttention` takes it.

    Shape: [T, B, dim, H, W] -> the same.
    Raises: ValueError if num_heads does not divide dim.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        attn_v_threshold: float = 1.0,
        qkv_bias: bool = False,
        lif_layer: LayerFn = LIF,
        device=None,
        dtype=None,
    ) -> None:
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        super().__init__()
        self.head_dim = head_dim_of(dim, num_heads)
        self.q = ConvBn(dim, dim, bias=qkv_bias, dims=1, **dd)
        self.k = ConvBn(dim, dim, bias=qkv_bias, dims=1, **dd)
        self.v = ConvBn(dim, dim, bias=qkv_bias, dims=1, **dd)
        self.proj = ConvBnLif(dim, dim, bias=True, dims=1, lif_layer=lif_layer, **dd)

    def forward(self, x: Tensor) -> Tensor:
        H, W = x.shape[3], x.shape[4]
        x = x.flatten(3)  # [T, B, C, N]
        q, k, v = (split_heads(part, self.head_dim) for part in (self.q(x), self.k(x), self.v(x)))
        scores = (q * self.head_dim**-0.5).transpose(3, 4) @ k  # [T, B, heads, N, N]
        y = scores.softmax(-1) @ v.transpose(3, 4)  # [T, B, heads, N, D]
        return self.proj(merge_heads(y, x)).unflatten(3, [H, W])
