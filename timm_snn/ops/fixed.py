"""Integer arithmetic of quantised networks, in plain torch: the definition that every kernel matches to the bit.

Two kinds of tensors flow through a quantised network. Spikes, counts and sums of spikes are uint8 whole numbers, of any
integer type once they were multiplied. Currents and membranes are int32 in fixed point: a number times 2^F, with one F
for the network, so that currents of different layers are added as they are. They lie within +-LIMIT, which is enough
room for all that is computed of them in int32 not to overflow.

Nothing here is rounded but where a comment says so, whole numbers have one sum in any order, and so the results are the
same on every machine, with any number of threads and any memory format.

What kernels may rely on, because `timm_snn.quantize` makes sure of it: no sum of a convolution reaches 2^24, nor does a
sum of the absolute values of its products; a multiplier is in [0, 2^22), and so no product with a sum reaches 2^46; a
shift is in [1, 46]; biases, thresholds and resets lie within +-LIMIT.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .neuron import by_channel

__all__ = [
    'LIMIT',
    'MAX_SUM',
    'MULTIPLIER_BITS',
    'FixedConvolution',
    'FixedNeuron',
    'conv_current',
    'conv_lif',
    'conv_sums',
    'count_levels',
    'fixed_lif',
    'max_pool',
    'narrow',
    'to_current',
    'to_whole',
]

LIMIT = 2**29  # of currents, membranes and thresholds: x - (v - r) of three such numbers is an int32
MAX_SUM = 2**24  # sums of a convolution stay below, which float32 holds exactly too
MULTIPLIER_BITS = 22  # the product of a multiplier and any int32 is exact in float64 too


@dataclass(frozen=True)
class FixedNeuron:
    """Settings of the neuron of `fixed_lif`, but for its threshold, in units of the membrane.

    Args:
        leak_shift: The base-2 logarithm of tau, at least 0; None for tau = inf, the neuron that does not leak.
        v_reset: Membrane after a spike and at rest; None for a soft reset, with rest at 0.
        decay_input: Whether the input is divided by tau as well.
    """

    leak_shift: int | None = 1
    v_reset: int | None = 0
    decay_input: bool = True

    @property
    def v_rest(self) -> int:
        """The resting potential."""
        return 0 if self.v_reset is None else self.v_reset


class FixedConvolution(NamedTuple):
    """What a convolution of whole numbers is, with the scale and the bias that make a current of its sums.

    Shape: weight int8 [O, C / groups, kh, kw], multiplier int32 [O], bias int32 [O].
    """

    weight: Tensor
    multiplier: Tensor
    bias: Tensor
    shift: int
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    groups: int = 1


def to_whole(x: Tensor, scale_bits: int, limit: int) -> Tensor:
    """Real input as whole numbers of 2^-scale_bits: int16, rounded to the nearest, halves to even, and clamped.

    A product with a power of two, rounding and clamping are exact, hence the same everywhere. NaN becomes 0.

    Shape: floating-point [...] -> int16 [...] within +-limit, which is below 2^15.
    """
    scaled = (x.float() * 2.0**scale_bits).round().clamp(-limit, limit)
    return scaled.nan_to_num(0.0).to(torch.int16)


def narrow(x: Tensor, shift: int, limit: int) -> Tensor:
    """Currents as whole numbers of fewer bits, for a convolution: x / 2^shift, rounded, halves up, and clamped.

    Shape: int32 [...] -> int16 [...] within +-limit, which is below 2^15.
    """
    half = 1 << (shift - 1) if shift else 0
    return ((x + half) >> shift).clamp(-limit, limit).to(torch.int16)


def conv_sums(
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    groups: int = 1,
) -> Tensor:
    """The sums of products of a convolution that pads with zeros.

    Computed in float64, which neither autocast nor a setting for less precise products touches. All such sums are exact
    in it; the result is rounded in case an algorithm for convolutions on a GPU takes a detour over other numbers.

    Shape: x uint8, int8 or int16 [N, C, H, W], weight int8 [O, C / groups, kh, kw] -> int32 [N, O, H', W'].
    """
    return F.conv2d(x.double(), weight.double(), None, stride, padding, 1, groups).round().to(torch.int32)


def to_current(sums: Tensor, multiplier: Tensor, shift: int, bias: Tensor) -> Tensor:
    """The current of each channel: sums * multiplier / 2^shift, rounded, halves up, plus the bias; within +-LIMIT.

        current = clamp(((sums * multiplier[c] + 2^(shift - 1)) >> shift) + bias[c])

    with an arithmetic shift, in int64. Shape: int32 [N, O, H, W], multiplier and bias int32 [O] -> int32 [N, O, H, W].
    """
    by = [-1, *[1] * (sums.ndim - 2)]
    scaled = (sums.to(torch.int64) * multiplier.view(by) + (1 << (shift - 1))) >> shift
    return (scaled + bias.view(by)).clamp(-LIMIT, LIMIT).to(torch.int32)


def max_pool(x: Tensor, stride: int = 2, dilation: int = 1) -> Tensor:
    """3x3 max pooling with a border that never is the largest. Shape: [N, C, H, W] -> [N, C, H', W'], rounded up.

    Whole numbers go by float64, which holds all of them here, and which torch pools on every device and in every size;
    uint8 it does not. Real numbers, of a network that is not quantised, are pooled as they are.
    """
    y = x if x.is_floating_point() else x.double()
    # torch pads by half of the kernel at most, and not by half of what a dilated one covers
    more = dilation - 1
    y = F.pad(y, [more, more, more, more], value=-math.inf) if more else y
    return F.max_pool2d(y, 3, stride, 1, dilation).to(x.dtype)


def conv_current(x: Tensor, conv: FixedConvolution, pool: bool = False) -> Tensor:
    """`conv_sums`, `to_current` and, with `pool`, `max_pool`.

    Shape: x uint8, int8 or int16 [N, C, H, W] -> int32 [N, O, H', W'].
    """
    sums = conv_sums(x, conv.weight, conv.stride, conv.padding, conv.groups)
    current = to_current(sums, conv.multiplier, conv.shift, conv.bias)
    return max_pool(current) if pool else current


def fixed_lif(x: Tensor, v: Tensor | None, threshold: Tensor, neuron: FixedNeuron) -> tuple[Tensor, Tensor]:
    """The neuron of `timm_snn.ops.lif` in fixed point, from the membrane v on, or from rest for None.

    With k = leak_shift and the resting potential r, at every step

        h = v + ((x - (v - r)) >> k)       with decay_input
        h = v - ((v - r) >> k) + x         without; with k None, h = v + x
        h = clamp(h, -LIMIT, LIMIT)
        s = 1 where h >= threshold, else 0
        v = r where s else h               hard reset
        v = h - s * threshold              soft reset

    The shift is arithmetic: it divides and rounds down. x is clamped to +-LIMIT first.

    Shape: x int32 or int64 [T, B, C, ...], v int32 [B, C, ...], threshold int32 () or [C] -> spikes uint8
    [T, B, C, ...], v int32 [B, C, ...].
    """
    threshold = by_channel(threshold, x.ndim - 1)
    rest, k = neuron.v_rest, neuron.leak_shift
    current = x.clamp(-LIMIT, LIMIT).to(torch.int32)
    if v is None:
        v = torch.full_like(current[0], rest)
    spikes = []
    for x_t in current.unbind(0):
        if k is None:
            h = v + x_t
        elif neuron.decay_input:
            h = v + ((x_t - (v - rest)) >> k)
        else:
            h = v - ((v - rest) >> k) + x_t
        h = h.clamp(-LIMIT, LIMIT)
        fires = h >= threshold
        v = torch.where(fires, h - threshold if neuron.v_reset is None else rest, h)
        spikes.append(fires.to(torch.uint8))
    return torch.stack(spikes), v


def count_levels(x: Tensor, thresholds: Tensor) -> Tensor:
    """The neuron of `timm_snn.ops.integer_spikes` in fixed point: how many of its thresholds a current reaches.

    The thresholds of D levels are (1/2, 3/2, ..., D - 1/2) * v_threshold, rounded up to whole numbers: halves count.

    Shape: x int32 or int64 [T, B, C, ...], thresholds int32 [D] or [C, D] -> uint8 [T, B, C, ...] in 0, ..., D.
    """
    counts = torch.zeros_like(x, dtype=torch.uint8)
    for threshold in thresholds.unbind(-1):
        counts = counts + (x >= by_channel(threshold, x.ndim - 1))
    return counts


def conv_lif(
    x: Tensor,
    v: Tensor | None,
    conv: FixedConvolution,
    threshold: Tensor,
    neuron: FixedNeuron,
    pool: bool = False,
) -> tuple[Tensor, Tensor]:
    """`conv_current` of every step, then `fixed_lif`: the unit that most of a network consists of, as one op.

    Shape: x uint8, int8 or int16 [T, B, C, H, W], v int32 [B, O, H', W'] or None, threshold int32 () or [O] -> spikes
    uint8 [T, B, O, H', W'], v int32 [B, O, H', W'].
    """
    current = conv_current(x.flatten(0, 1), conv, pool).unflatten(0, [x.shape[0], -1])
    return fixed_lif(current, v, threshold, neuron)
