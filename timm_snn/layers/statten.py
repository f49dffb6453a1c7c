"""Spatial-temporal attention (STAtten): self-attention whose queries meet the keys of several time steps."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .attention import SpikingSelfAttention
from .neuron import LIF
from .registry import LayerFn, attentions
from .temporal import merge_time

__all__ = ['SpatialTemporalAttention', 'sum_over_chunks']


@attentions.register('statten')
class SpatialTemporalAttention(SpikingSelfAttention):
    """Block-wise spatial-temporal attention (STAtten, arXiv 2409.19764): SSA over the tokens of `chunk_steps` steps.

    Time is cut into chunks of c steps. Within one, the c N tokens of all steps attend to each other:

        Y = SN(Q (K^T V) * scale)                       Q, K, V [c N, D] of a chunk and head
        Y_t = SN(Q_t (sum_s K_s^T V_s) * scale)         the same, with s over the chunk of step t

    The second line is what is computed: the work of SSA, O(T N D^2), and sums of D x D matrices. There are no further
    parameters, so weights of SSA load. At T = 1, or with chunks of one step, it is SSA. A last chunk may be shorter.

    **Not causal within a chunk**: step t sees the steps after it, up to the end of its chunk, so a stream of frames
    can be answered once a chunk and not once a step. From chunk to chunk it is causal. The paper pairs steps in its
    figure, c = 2. The scale is SSA's, as the public text settles no other.

    Another number of steps is another layer: `attentions.register('statten4')(partial(SpatialTemporalAttention,
    chunk_steps=4))`. Other arguments, shapes and errors are those of `SpikingSelfAttention`.

    Raises: ValueError if chunk_steps is not a whole number of at least 1.
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
        chunk_steps: int = 2,
        lif_layer: LayerFn = LIF,
        device=None,
        dtype=None,
    ) -> None:
        if type(chunk_steps) is not int or chunk_steps < 1:
            raise ValueError(f'chunk_steps must be a whole number of at least 1, got {chunk_steps!r}')
        layer: dict[str, Any] = {'lif_layer': lif_layer, 'device': device, 'dtype': dtype}
        super().__init__(
            dim, num_heads, attn_v_threshold, query_kernels, qkv_bias, scale, pre_activation=pre_activation, **layer
        )
        self.chunk_steps = chunk_steps

    def _key_values(self, k: Tensor, v: Tensor, num_steps: int) -> Tensor:
        kv = (k.transpose(1, 2) @ v).unflatten(0, [num_steps, -1])
        return merge_time(sum_over_chunks(kv, self.chunk_steps))


def sum_over_chunks(x: Tensor, chunk_steps: int) -> Tensor:
    """[T, ...] -> the sum over the chunk of each step, at all of its steps: the same shape."""
    return torch.cat([chunk.sum(0, keepdim=True).expand_as(chunk) for chunk in x.split(chunk_steps)])
