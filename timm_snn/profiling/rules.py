"""What spiking attention computes between its convolutions, one rule per kind of layer.

A rule is what the profiler knows of an attention layer beyond its convolutions and neurons, which it counts anywhere.
It gets the layer and, by name, the spikes [T, B, C, N] that its `ConvBnLif` units fired, such as `spikes['q.0']`, and
those that went into the last unit, `spikes['proj']`. So it depends neither on the layer's code nor on how much of it a
backend runs in one kernel. It adds operations to the site `attn_lif`, the neuron in the middle:

    @register(MyAttention, 'mine')
    def my_attention(layer, spikes, site):
        site.operate('mask', ['k'], count_elements(spikes['k']))
        site.fire(spikes['proj'])

Attention without a rule is not lost: convolutions, neurons and matrix products are counted wherever they run. Sums and
masks are not, they need a rule.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..layers import (
    EfficientSpikeDrivenSelfAttention,
    MultiScaleSpikingAttention,
    QKTokenAttention,
    SpikeDrivenSelfAttention,
    SpikingSelfAttention,
)
from .counts import count_elements, count_matmul

if TYPE_CHECKING:
    from .recorder import Site

__all__ = ['gates', 'register', 'rule_of', 'runs_as']

Rule = Callable[[Any, Mapping[str, Tensor], Any], None]

_RULES: dict[type, tuple[str, Rule]] = {}


def register(layer: type[nn.Module], kind: str) -> Callable[[Rule], Rule]:
    """Decorator: the rule for layers of this class, called `kind` in reports.

    It holds for subclasses too, unless they are a user's and have a `forward` of their own.
    """

    def add(rule: Rule) -> Rule:
        _RULES[layer] = (kind, rule)
        return rule

    return add


def rule_of(module: nn.Module) -> tuple[str, Rule] | None:
    for cls in type(module).__mro__:
        if cls in _RULES:
            return _RULES[cls] if runs_as(module, cls) else None
    return None


def runs_as(module: nn.Module, cls: Any) -> bool:
    """Whether it computes what `cls` does: a subclass of a user with its own `forward` may compute anything."""
    forward: Any = type(module).forward
    return isinstance(module, cls) and (forward is cls.forward or forward.__module__.startswith('timm_snn.'))


@register(MultiScaleSpikingAttention, 'MSSA')
def multi_scale(layer: MultiScaleSpikingAttention, spikes: Mapping[str, Tensor], site: 'Site') -> None:
    """A = SN(sum_d Q + sum_d P), out = A * K: N * C additions for every scale of the query, N * C masks."""
    queries = [f'q.{i}' for i in range(len(layer.q))]
    for query in queries:
        site.operate('sum', [query], count_elements(spikes[query]))
    site.operate('mask', ['k'], count_elements(spikes['k']))
    site.fire(gates(layer, [spikes[query] for query in queries]))


register(QKTokenAttention, 'QKTA')(multi_scale)


def gates(layer: MultiScaleSpikingAttention, queries: Sequence[Tensor]) -> Tensor:
    """A [T, B, heads, 1, N] of the queries [T, B, C, N], computed again because a fused kernel does not show it."""
    return layer.attn_lif.forward(sum(q.unflatten(2, [-1, layer.head_dim]).sum(3, keepdim=True) for q in queries))


@register(SpikingSelfAttention, 'SSA')
def self_attention(layer: SpikingSelfAttention, spikes: Mapping[str, Tensor], site: 'Site') -> None:
    """Q (K^T V): N * d * d multiply-accumulates for each head, twice; K^T V first, as the layer does."""
    # [T, B, heads, d, N], of tokens or maps; float32 holds the products of spikes exactly, float16 would not
    heads = {name: x.float().flatten(3).unflatten(2, [-1, layer.head_dim]) for name, x in spikes.items()}
    queries = [f'q.{i}' for i in range(len(layer.q))]
    kv = heads['v'] @ heads['k'].transpose(-2, -1)
    site.operate('matmul', ['k', 'v'], count_matmul(heads['v'], heads['k'].transpose(-2, -1)))
    q = sum(heads[query] for query in queries)
    site.operate('matmul', queries if len(queries) == 1 else [q], count_matmul(kv, q))
    site.fire(spikes['proj'])


@register(SpikeDrivenSelfAttention, 'SDSA')
def spike_driven(layer: SpikeDrivenSelfAttention, spikes: Mapping[str, Tensor], site: 'Site') -> None:
    """SN(sum_n K * V) * Q: N * C masks of values by keys, N * C additions, N * C masks of queries."""
    agreement = layer.agreement(spikes['k'], spikes['v'])
    site.operate('mask', ['v'], count_elements(spikes['v']))
    site.operate('sum', [agreement], count_elements(agreement))
    site.operate('mask', ['q'], count_elements(spikes['q']))
    site.fire(layer.attn_lif.forward(agreement.sum(3, keepdim=True)))


@register(EfficientSpikeDrivenSelfAttention, 'E-SDSA')
def efficient_spike_driven(
    layer: EfficientSpikeDrivenSelfAttention, spikes: Mapping[str, Tensor], site: 'Site'
) -> None:
    """Q (K^T V), as SSA, of values that are wider than queries and keys."""
    q, k, v = (layer.heads(spikes[name].float()) for name in ('q', 'k', 'v'))
    site.operate('matmul', ['k', 'v'], count_matmul(v, k.transpose(-2, -1)))
    site.operate('matmul', ['q'], count_matmul(v @ k.transpose(-2, -1), q))
    site.fire(spikes['proj'])
