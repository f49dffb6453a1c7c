"""Rules for attention: what a layer computes between its convolutions, one rule per class of layers.

A rule is what the profiler knows of an attention layer beyond its convolutions and neurons, which it counts anywhere.
It gets the layer and, by name, the spikes [T, B, C, N] that its `ConvBnLif` units fired, such as `spikes['q.0']`, and
those that went into the last unit, `spikes['proj']`. So it depends neither on the layer's code nor on how much of it a
backend runs in one kernel. It adds operations to the site of the neuron in the middle, `attn_lif`:

    @register(MyAttention, 'mine')
    def my_attention(layer, spikes, site):
        site.operate('mask', ['k'], count_elements(spikes['k']))
        site.fire(spikes['proj'])

A layer without a rule is counted too, by the convolutions, neurons and matrix products that run in it. Sums and masks
of spikes need a rule.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..layers import (
    EfficientSpikeDrivenSelfAttention,
    MultiScaleSpikingAttention,
    QKTokenAttention,
    SpatialTemporalAttention,
    SpikeDrivenSelfAttention,
    SpikingSelfAttention,
)
from ..layers.expanded import mean_over_levels
from ..layers.statten import sum_over_chunks
from .counts import count_elements, count_matmul
from .site import Site

__all__ = ['Rule', 'gates', 'register', 'rule_of', 'runs_as']

Count = Callable[[Any, Mapping[str, Tensor], Site], None]


@dataclass(frozen=True)
class Rule:
    kind: str  # in reports
    count: Count
    neuron: str  # attributes of the layer
    output: str


_RULES: dict[type, Rule] = {}


def register(
    layer: type[nn.Module], kind: str, *, neuron: str = 'attn_lif', output: str = 'proj'
) -> Callable[[Count], Count]:
    """Decorator: the rule for layers of this class, called `kind` in reports.

    `neuron` and `output` are the layer's names for the neuron in the middle, which the rule stands for, and for the
    unit after it. The rule holds for subclasses too, unless they are a user's and have a `forward` of their own.
    """

    def add(count: Count) -> Count:
        _RULES[layer] = Rule(kind, count, neuron, output)
        return count

    return add


def rule_of(module: nn.Module) -> Rule | None:
    for cls in type(module).__mro__:
        if cls in _RULES:
            return _RULES[cls] if runs_as(module, cls) else None
    return None


def runs_as(module: nn.Module, cls: Any) -> bool:
    """True if a module computes what `cls` does: a user's subclass with its own `forward` may compute anything."""
    forward: Any = type(module).forward
    return isinstance(module, cls) and (forward is cls.forward or forward.__module__.startswith('timm_snn.'))


@register(MultiScaleSpikingAttention, 'MSSA')
def multi_scale(layer: MultiScaleSpikingAttention, spikes: Mapping[str, Tensor], site: Site) -> None:
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
def self_attention(layer: SpikingSelfAttention, spikes: Mapping[str, Tensor], site: Site) -> None:
    """Q (K^T V): N * d * d multiply-accumulates for each head, twice; K^T V first, as the layer does."""
    # [T, B, heads, d, N], of tokens or maps; float32 holds the products of spikes exactly, float16 would not
    heads = {name: x.float().flatten(3).unflatten(2, [-1, layer.head_dim]) for name, x in spikes.items()}
    queries = [f'q.{i}' for i in range(len(layer.q))]
    kv = _keys_and_values(layer, heads['k'], heads['v'], site)
    if isinstance(layer, SpatialTemporalAttention):
        site.operate('sum', [kv], count_elements(kv))
        kv = sum_over_chunks(kv, layer.chunk_steps)
    q = sum(heads[query] for query in queries)
    site.operate('matmul', queries if len(queries) == 1 else [q], count_matmul(kv, q))
    site.fire(spikes['proj'])


# N * d * d twice, as SSA, and between them the sums of d * d products of a chunk's steps
register(SpatialTemporalAttention, 'STAtten')(self_attention)


@register(SpikeDrivenSelfAttention, 'SDSA')
def spike_driven(layer: SpikeDrivenSelfAttention, spikes: Mapping[str, Tensor], site: Site) -> None:
    """SN(sum_n K * V) * Q: N * C masks of values by keys, N * C additions, N * C masks of queries."""
    agreement = layer.agreement(spikes['k'], spikes['v'])
    site.operate('mask', ['v'], count_elements(spikes['v']))
    site.operate('sum', [agreement], count_elements(agreement))
    site.operate('mask', ['q'], count_elements(spikes['q']))
    site.fire(layer.attn_lif.forward(agreement.sum(3, keepdim=True)))


@register(EfficientSpikeDrivenSelfAttention, 'E-SDSA')
def efficient_spike_driven(layer: EfficientSpikeDrivenSelfAttention, spikes: Mapping[str, Tensor], site: Site) -> None:
    """Q (K^T V), as SSA, of values that are wider than queries and keys."""
    q, k, v = (layer.heads(spikes[name].float()) for name in ('q', 'k', 'v'))
    site.operate('matmul', ['q'], count_matmul(_keys_and_values(layer, k, v, site), q))
    site.fire(spikes['proj'])


def _keys_and_values(layer: nn.Module, k: Tensor, v: Tensor, site: Site) -> Tensor:
    """Count V K^T of every step, of k [..., d, N] and v [..., d', N], and return it, [..., d', d].

    In a network of `timm_snn.expand_levels` the spikes of a key meet the mean of the values.
    """
    levels = getattr(layer, 'levels', 1)
    if levels > 1:
        v = mean_over_levels(v, levels)
    site.operate('matmul', ['k', 'v' if levels == 1 else v], count_matmul(v, k.transpose(-2, -1)))
    return mean_over_levels(v @ k.transpose(-2, -1), levels)
