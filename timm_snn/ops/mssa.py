"""The token mask of multi-scale spiking attention as one op."""

from collections.abc import Sequence

from torch import Tensor

from .backend import resolve_backend
from .lif import check_input, scaled
from .neuron import Learned, Neuron, describe_neuron
from .surrogate import Surrogate

__all__ = ['mask_keys', 'mssa']


def mssa(
    queries: Sequence[Tensor],
    k: Tensor,
    *,
    tau: float | Tensor = 2.0,
    v_threshold: float | Tensor = 1.0,
    v_reset: float | None = 0.0,
    decay_input: bool = True,
    surrogate: str | Surrogate = 'sigmoid',
    detach_reset: bool = True,
    backend: str | None = None,
) -> Tensor:
    """A token's key passes, head by head, if a neuron fires that the sum of its queries over the channels drives.

    The neuron's settings are those of `lif`, where a channel is a head.

    Shape: queries and k [T, B, heads, D, N] -> [T, B, heads, D, N].
    Source: MSViT, arXiv 2505.14719, Eq. 5-7: A = SN(sum_d Q + sum_d P), A * K.
    """
    neuron, learned = describe_neuron(tau, v_threshold, v_reset, decay_input, surrogate, detach_reset)
    return mask_keys(queries, k, neuron, learned, backend)


def mask_keys(queries: Sequence[Tensor], k: Tensor, neuron: Neuron, learned: Learned, backend: str | None) -> Tensor:
    """`mssa` with its settings as values."""
    check_input(k)
    learned = learned.of(k)
    chosen = resolve_backend(backend, k, neuron)
    fused = chosen.fused('mssa')
    if fused and learned.scale is None and not learned.is_by_channel:
        return fused(list(queries), k, learned.tau, neuron)
    current = queries[0].sum(3, keepdim=True)
    for query in queries[1:]:
        current = current + query.sum(3, keepdim=True)
    return chosen.lif(scaled(current, learned), None, learned.tau, neuron, False)[0] * k
