"""Energy of arithmetic under the three conventions that the field uses, by name.

All of them price a multiply-accumulate (MAC) at 4.6 pJ and an accumulate (AC) at 0.9 pJ, 32-bit floats at 45 nm (M.
Horowitz, ISSCC 2014), and price nothing else: no movement of weights and spikes, no neuron updates, no membrane memory,
no batch norm, pooling or residual addition. In a network that `timm_snn.quantize` made a MAC costs 0.23 pJ and an AC
0.03 pJ, 8-bit integers at 45 nm (SpikingJelly 2.0's `op_counter`), and no price is put on what makes currents of its
sums: a multiplication, a shift and an addition of 32 bits for each output. Data movement costs more than arithmetic;
with it, a spiking network at T = 5 has to fire below 5.7 % to beat a quantised ANN (arXiv 2409.08290). An estimate of
this kind ranks variants of one network, it does not predict what a chip draws.

With F the dense MACs of a layer at one step, padding included, T the steps and the input of the layer as in `Activity`:

A (Spikingformer's counter, a fork of syops)
    If the input is 0 and 1 alone over the whole data: AC = T * F * mean(input). Otherwise MAC = T * F. So a layer that
    is fed the integers of a residual stream is a MAC layer, and the first convolution counts T times. A bias adds one
    operation per output, at the layer's price, unless the layer is a `ConvBnLif`, where it vanishes in the batch norm.
B (Spike-driven Transformer, Attention-SNN)
    The first layer: MAC = T * F, for event frames times the share of non-zero pixels. Layers fed whole numbers:
    AC = T * F * firing rate, the share of non-zero values.
C (Spikformer, QKFormer, MSViT)
    As B, but an integer spike n counts as n ACs, AC = T * F * mean(input), and the first convolution of a static image
    counts once.

B and C have no rule for a layer fed real numbers, such as a classifier after pooling over time. It cannot be
made of accumulates, so it is T * F MACs (the classifier runs once: T = 1).

Products of activations follow the same rules with the rate of the operand that gates them: the smaller one where both
are spikes, that of the spikes where the other operand is not. For self-attention, h heads of width d over N tokens, A
is then T h N d^2 (min(fr_k, fr_v) + fr_q), as published. B and C also take whole numbers for spikes. Sums over spikes
and masks (MSSA) are one AC per spike that enters them, in all conventions; only neurons with graded output make them
MACs under A.

The ANN twin is the same network with real-valued activations, run once: a MAC for all dense MACs of one step.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .counts import Operation

__all__ = [
    'AC_PJ',
    'ANN_TWIN',
    'CONVENTIONS',
    'INT8_AC_PJ',
    'INT8_MAC_PJ',
    'MAC_PJ',
    'energy_mj',
    'first_layer',
]

MAC_PJ = 4.6
AC_PJ = 0.9
INT8_MAC_PJ = 0.23
INT8_AC_PJ = 0.03
ANN_TWIN = 'ANN twin'


def convention_a(op: Operation) -> tuple[Tensor, Tensor]:
    dense = op.dense.all() + op.bias.all()
    means = [operand.mean() for operand in op.operands if operand.binary]
    return _macs(dense) if not means else _acs(dense * _gate(means))


def convention_b(op: Operation) -> tuple[Tensor, Tensor]:
    dense = op.dense.all()
    if op.is_first:
        return _macs(dense if op.static else dense * op.operands[0].rate())
    rates = [operand.rate() for operand in op.operands if operand.whole]
    return _macs(dense) if not rates else _acs(dense * _gate(rates))


def convention_c(op: Operation) -> tuple[Tensor, Tensor]:
    dense = op.dense.all()
    if op.is_first:
        return _macs(dense / op.calls if op.static else dense * op.operands[0].rate())
    means = [operand.mean() for operand in op.operands if operand.whole]
    return _macs(dense) if not means else _acs(dense * _gate(means))


# Each takes an operation to (MACs, ACs), per sample.
CONVENTIONS: dict[str, Callable[[Operation], tuple[Tensor, Tensor]]] = {
    'A': convention_a,
    'B': convention_b,
    'C': convention_c,
}


def _macs(count: Tensor) -> tuple[Tensor, Tensor]:
    return count, torch.zeros_like(count)


def _acs(count: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(count), count


def _gate(rates: list[Tensor]) -> Tensor:
    """The rate, for each sample, of the operand that fires less over the whole data."""
    return min(rates, key=lambda rate: rate.mean().item())


def energy_mj(charge: tuple[Tensor, Tensor], mac_pj: float, ac_pj: float) -> Tensor:
    """mJ per sample for (MACs, ACs) per sample."""
    macs, acs = charge
    return (macs * mac_pj + acs * ac_pj) * 1e-9


def first_layer(convention: str, op: Operation) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(MACs, ACs) of the first layer on a static image, charged for one step, and charged for all of them."""
    macs, acs = CONVENTIONS[convention](op)
    charged = 1 if convention == 'C' else op.calls
    return (macs / charged, acs / charged), (macs * op.calls / charged, acs * op.calls / charged)
