"""The token mask of multi-scale spiking attention as one op."""

from collections.abc import Sequence

from torch import Tensor

from .backend import resolve_backend
from .lif import check_input, check_settings
from .surrogate import Surrogate, get_surrogate

__all__ = ['mssa']


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
    check_input(k)
    check_settings(tau, v_threshold, v_reset)
    surrogate = get_surrogate(surrogate)
    module = resolve_backend(backend, k, surrogate)
    neuron = dict(tau=tau, v_threshold=v_threshold, v_reset=v_reset, decay_input=decay_input)
    gradient = dict(surrogate=surrogate, detach_reset=detach_reset)
    if op := module.fused('mssa'):
        return op(list(queries), k, **neuron, **gradient)
    current = queries[0].sum(3, keepdim=True)
    for query in queries[1:]:
        current = current + query.sum(3, keepdim=True)
    return module.lif(current, None, needs_v=False, **neuron, **gradient)[0] * k
