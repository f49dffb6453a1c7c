"""E-SpikeFormer's attention: efficient spike-driven self-attention (E-SDSA)."""

from torch import Tensor, nn

from .attention import head_dim_of
from .conv import ConvBn, ConvBnLif
from .neuron import LIF, neuron_for
from .registry import LayerFn, attentions

__all__ = ['EfficientSpikeDrivenSelfAttention']


@attentions.register('e_sdsa')
class EfficientSpikeDrivenSelfAttention(nn.Module):
    """Efficient spike-driven self-attention (E-SDSA, arXiv 2411.16061), for membrane shortcuts.

    out = BN(W SN(Q K^T V * scale)) with Q, K = SN(BN(W s)) of the width of the stream, V = SN(BN(W s)) of `value_ratio`
    times that, and s = SN(u). The scale is 2 / sqrt(d) for d channels of Q in a head. No convolution has a bias. K^T V
    comes first, which is linear in N; the released code's order is quadratic and the same up to rounding.

    Shape: currents [T, B, dim, H, W] -> currents of the same shape.
    Raises: ValueError if num_heads does not divide dim.
    """

    takes_currents = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        attn_v_threshold: float = 1.0,
        value_ratio: int = 4,
        lif_layer: LayerFn = LIF,
        device=None,
        dtype=None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.num_heads = num_heads
        self.scale = 2 * head_dim_of(dim, num_heads) ** -0.5
        self.lif = neuron_for(dim, lif_layer).to(**dd)
        self.q = ConvBnLif(dim, dim, dims=1, lif_layer=lif_layer, **dd)
        self.k = ConvBnLif(dim, dim, dims=1, lif_layer=lif_layer, **dd)
        self.v = ConvBnLif(dim, value_ratio * dim, dims=1, lif_layer=lif_layer, **dd)
        self.attn_lif = neuron_for(num_heads, lif_layer, v_threshold=attn_v_threshold).to(**dd)
        self.proj = ConvBn(value_ratio * dim, dim, dims=1, **dd)

    def forward(self, x: Tensor) -> Tensor:
        H, W = x.shape[3], x.shape[4]
        x = self.lif(x).flatten(3)  # [T, B, C, N]
        q, k, v = self.heads(self.q(x)), self.heads(self.k(x)), self.heads(self.v(x))
        x = self.attn_lif(self.values_of_keys(k, v) @ (q * self.scale))  # [T, B, heads, D of V, N]
        return self.proj(x.flatten(2, 3)).unflatten(3, [H, W])

    def values_of_keys(self, k: Tensor, v: Tensor) -> Tensor:
        """V K^T of every step, [T, B, heads, D of V, D]."""
        return v @ k.transpose(-2, -1)

    def heads(self, x: Tensor) -> Tensor:
        """[T, B, C, N] -> [T, B, heads, C / heads, N]."""
        return x.unflatten(2, [self.num_heads, -1])
