"""The token mask of multi-scale spiking attention as one op."""

from collections.abc import Sequence

from torch import Tensor

from .backend import resolve_backend
from .lif import check_input, on_device
from .neuron import Neuron, describe_neuron
from .surrogate import Surrogate

__all__ = ['mask_keys', 'mssa']


def mssa(
    queries: Sequence[Tensor],
    k: Tensor,
    *,
    tau: float | Tensor = 2.0,
    v_threshold: float = 1.0,
    v_reset: float | None = 0.0,
    decay_input: bool = True,
    surrogate: str | Surrogate = 'sigmoid',
    detach_reset: bool = True,
    backend: str | None = None,
) -> Tensor:
    """A token's key passes, head by head, if a neuron fires that the sum of its queries over the channels drives.

    The neuron's settings are those of `lif`. Shape: queries and k [T, B, heads, D, N] -> [T, B, heads, D, N].
    Source: MSViT, arXiv 2505.14719, Eq. 5-7: A = SN(sum_d Q + sum_d P), A * K.
    """
    neuron, learned = describe_neuron(tau, v_threshold, v_reset, decay_input, surrogate, detach_reset)
    return mask_keys(queries, k, learned, neuron, backend)


def mask_keys(queries: Sequence[Tensor], k: Tensor, tau: Tensor | None, neuron: Neuron, backend: str | None) -> Tensor:
    """`mssa` with its settings as one value, and tau if that is learned."""
    check_input(k)
    tau = on_device(tau, k)
    chosen = resolve_backend(backend, k, neuron.surrogate)
    if fused := chosen.fused('mssa'):
        return fused(list(queries), k, tau, neuron)
    current = queries[0].sum(3, keepdim=True)
    for query in queries[1:]:
        current = current + query.sum(3, keepdim=True)
    return chosen.lif(current, None, tau, neuron, False)[0] * k
