"""Spiking attention: Spikformer's self-attention (SSA), QKFormer's token attention (QKTA), MSViT's multi-scale (MSSA).

All see the feature map as N = H * W tokens in raster order, [T, B, C, N], and split the channels into heads,
[T, B, heads, D, N]. Every neuron runs along T alone, so a sample never sees its neighbours in the batch.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import register_notrace_function
from torch import Tensor, nn
from torch.fx import Proxy

from ..ops.mssa import mask_keys
from .conv import ConvBn, ConvBnLif, is_plain
from .neuron import FUSED, LIF, neuron_for
from .registry import LayerFn, attentions
from .rep_conv import RepConv

__all__ = ['MultiScaleSpikingAttention', 'QKTokenAttention', 'SpikingSelfAttention']


@attentions.register('mssa')
class MultiScaleSpikingAttention(nn.Module):
    """Multi-scale spiking attention, linear in N (MSSA, arXiv 2505.14719, Eq. 4-8).

    A token's key passes, head by head, if the neuron driven by the sum of its queries over the head's channels fires:
    A = SN(sum_d Q + sum_d P), out = SN(BN(Conv(A * K))). There is no value and no product of tokens.

    `query_kernels` has a kernel size per query: 1 is Q and 3 is P, which runs over the raster order, so that a token
    sees its neighbours in the row and, at the border, the end of the row before. Others than (1, 3) are the ablations
    of Table 3; (1,) is `QKTokenAttention`. With `pre_activation` a neuron comes first and none last, for membrane
    shortcuts (arXiv 2505.18608): out = BN(Conv(A * K)), with Q, P and K of SN(u).

    Shape: [T, B, dim, H, W] -> spikes, or currents with `pre_activation`, of the same shape.
    Raises: ValueError if num_heads does not divide dim.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        attn_v_threshold: float = 1.0,
        query_kernels: Sequence[int] = (1, 3),
        pre_activation: bool = False,
        lif_layer: LayerFn = LIF,
        device=None,
        dtype=None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.head_dim = head_dim_of(dim, num_heads)
        self.lif = neuron_for(dim, lif_layer).to(**dd) if pre_activation else nn.Identity()
        self.q = SumOfScales(dim, query_kernels, lif_layer=lif_layer, **dd)
        self.k = ConvBnLif(dim, dim, dims=1, lif_layer=lif_layer, **dd)
        self.attn_lif = neuron_for(num_heads, lif_layer, v_threshold=attn_v_threshold).to(**dd)
        if pre_activation:
            self.proj: nn.Module = ConvBn(dim, dim, bias=True, dims=1, **dd)
        else:
            self.proj = ConvBnLif(dim, dim, bias=True, dims=1, lif_layer=lif_layer, **dd)

    def forward(self, x: Tensor) -> Tensor:
        H, W = x.shape[3], x.shape[4]
        x = self.lif(x).flatten(3)  # [T, B, C, N]
        k = split_heads(self.k(x), self.head_dim)
        queries = [split_heads(q(x), self.head_dim) for q in self.q]
        x = self.proj(self._mask(queries, k).flatten(2, 3))
        return x.unflatten(3, [H, W])

    def _mask(self, queries: list[Tensor], k: Tensor) -> Tensor:
        if torch.jit.is_scripting() or not self._can_fuse(k):
            current = queries[0].sum(3, keepdim=True)  # [T, B, heads, 1, N]
            for query in queries[1:]:
                current = current + query.sum(3, keepdim=True)
            return self.attn_lif(current) * k
        return self._fused_mask(queries, k)

    @torch.jit.unused
    def _can_fuse(self, x: Tensor) -> bool:
        return is_plain(self.attn_lif, FUSED) and not isinstance(x, Proxy)

    @torch.jit.unused
    def _fused_mask(self, queries: list[Tensor], k: Tensor) -> Tensor:
        neuron: Any = self.attn_lif
        return mask_keys(queries, k, neuron.neuron, neuron.learned(), neuron.backend)


@attentions.register('qkta')
class QKTokenAttention(MultiScaleSpikingAttention):
    """QK token attention, linear in N (QKTA, arXiv 2403.16552): A = SN(sum_d Q), out = SN(BN(Conv(A * K))).

    MSSA with the point-wise query alone. `pre_activation`, shape and errors: as `MultiScaleSpikingAttention`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        attn_v_threshold: float = 0.5,
        pre_activation: bool = False,
        lif_layer: LayerFn = LIF,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__(dim, num_heads, attn_v_threshold, (1,), pre_activation, lif_layer, device, dtype)


@attentions.register('ssa')
class SpikingSelfAttention(nn.Module):
    """Spiking self-attention without softmax (SSA, arXiv 2209.15425; arXiv 2505.14719, Eq. 9-12).

    out = SN(BN(Conv(SN(Q (K^T V) * scale)))). The published scale is 0.125 for every head size, and 0.25 in
    Spikformer's model for events. Q may be a sum of scales, as in MSSA: `query_kernels=(1, 3)` adds P and is the "MSSA
    in all stages" of MSViT's Table 3. With `pre_activation` a neuron comes first, which Q, K and V share, and none
    last, for membrane shortcuts (arXiv 2304.11954): out = BN(Conv(SN(Q (K^T V) * scale))), Q = SN(BN(Conv(SN(u)))).
    `conv_layer` replaces the four convolutions, see `ConvBn`. With `RepConv` this is Meta-SpikeFormer's attention
    (arXiv 2404.03663), 'rep_ssa' in `attentions`.

    QKFormer's and MSViT's released code runs the last neuron over [T * B, ...], so that its membrane leaks from one
    image to the next and logits depend on the order of the batch. Here it runs over T; published accuracies were
    obtained with the leak.

    Shape: [T, B, dim, H, W] -> spikes, or currents with `pre_activation`, of the same shape.
    Raises: ValueError if num_heads does not divide dim.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        attn_v_threshold: float = 1.0,
        query_kernels: Sequence[int] = (1,),
        qkv_bias: bool = False,
        scale: float = 0.125,
        pre_activation: bool = False,
        conv_layer: LayerFn | None = None,
        lif_layer: LayerFn = LIF,
        device=None,
        dtype=None,
    ) -> None:
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        super().__init__()
        self.head_dim = head_dim_of(dim, num_heads)
        self.scale = scale
        self.on_maps = conv_layer is not None
        conv: dict[str, Any] = dict(dims=1) if conv_layer is None else dict(dims=2, conv_layer=conv_layer)
        self.lif = neuron_for(dim, lif_layer).to(**dd) if pre_activation else nn.Identity()
        self.q = SumOfScales(dim, query_kernels, bias=qkv_bias, lif_layer=lif_layer, **conv, **dd)
        self.k = ConvBnLif(dim, dim, bias=qkv_bias, lif_layer=lif_layer, **conv, **dd)
        self.v = ConvBnLif(dim, dim, bias=qkv_bias, lif_layer=lif_layer, **conv, **dd)
        self.attn_lif = neuron_for(num_heads, lif_layer, v_threshold=attn_v_threshold).to(**dd)
        if pre_activation:
            self.proj: nn.Module = ConvBn(dim, dim, bias=not self.on_maps, **conv, **dd)
        else:
            self.proj = ConvBnLif(dim, dim, bias=not self.on_maps, lif_layer=lif_layer, **conv, **dd)

    def forward(self, x: Tensor) -> Tensor:
        H, W = x.shape[3], x.shape[4]
        x = self.lif(x)
        tokens = x.flatten(3)  # [T, B, C, N]
        if not self.on_maps:
            x = tokens
        q, k, v = self._heads(self.q(x)), self._heads(self.k(x)), self._heads(self.v(x))
        # First K^T V, D x D, which is linear in N. The scale is a power of two and exact anywhere; on Q it keeps the
        # product within the range of float16.
        y = (q * self.scale) @ self._key_values(k, v, x.shape[0])
        # -1 is the batch, which an ONNX export would keep from its example. [T, B, heads, N, D]
        y = self.attn_lif(y.unflatten(0, [x.shape[0], -1, x.shape[2] // self.head_dim]))
        y = merge_heads(y, tokens)
        if self.on_maps:
            return self.proj(y.unflatten(3, [H, W]))
        return self.proj(y).unflatten(3, [H, W])

    def _key_values(self, k: Tensor, v: Tensor, num_steps: int) -> Tensor:
        """K^T V of every step [T * B * heads, D, D], of k and v [..., N, D]; STAtten adds up steps here."""
        return k.transpose(1, 2) @ v

    def _heads(self, x: Tensor) -> Tensor:
        """[T, B, C, N], or maps, -> [T * B * heads, N, D]: a view, or of channels_last a copy that moves whole rows."""
        return split_heads(x.flatten(3), self.head_dim).transpose(3, 4).flatten(0, 2)


attentions.register('rep_ssa')(partial(SpikingSelfAttention, conv_layer=RepConv))


@register_notrace_function  # branches on strides; torch.fx passes over names with an underscore in front
def split_heads(x: Tensor, head_dim: int) -> Tensor:
    """[T, B, C, N] -> [T, B, heads, D, N], a view whose gradient gets the memory order of x."""
    if x.stride(2) == 1:  # channels_last
        return x.transpose(2, 3).unflatten(3, [-1, head_dim]).permute(0, 1, 3, 4, 2)
    return x.unflatten(2, [-1, head_dim])


@register_notrace_function
def merge_heads(x: Tensor, like: Tensor) -> Tensor:
    """[T, B, heads, N, D] -> [T, B, C, N] in the memory order of `like`, to which it is added in the end."""
    if like.stride(2) == 1:  # channels_last
        return x.transpose(2, 3).flatten(3).transpose(2, 3)
    return x.transpose(3, 4).flatten(2, 3)


def head_dim_of(dim: int, num_heads: int) -> int:
    if not isinstance(num_heads, int) or num_heads < 1 or dim % num_heads:
        raise ValueError(f'num_heads={num_heads!r} does not divide dim={dim}: choose a whole number that does')
    return dim // num_heads


class SumOfScales(nn.ModuleList):
    """The query: the sum of one convolution unit per kernel size. Shape: [T, B, dim, N] -> the same."""

    def __init__(self, dim: int, kernels: Sequence[int], **kwargs) -> None:
        if not isinstance(kernels, Sequence) or not kernels or any(k < 1 or k % 2 == 0 for k in kernels):
            raise ValueError(f'query_kernels needs a tuple of odd kernel sizes, such as (1, 3), got {kernels!r}')
        super().__init__(ConvBnLif(dim, dim, k, **{'dims': 1, **kwargs}) for k in kernels)

    def forward(self, x: Tensor) -> Tensor:
        q = self[0](x)
        for i, unit in enumerate(self):  # a slice would call the constructor
            if i > 0:
                q = q + unit(x)
        return q
