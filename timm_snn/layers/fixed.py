"""Layers of a quantised network: what `timm_snn.quantize` puts in the place of convolutions, neurons and pooling.

Their parameters are whole numbers, which have no gradient, and which no conversion to another floating-point type
changes. `timm_snn.ops.fixed` has their arithmetic. A tensor's type says what flows: spikes and sums of them are uint8,
currents int32 in fixed point, and what is real is an image that has just come in.
"""

from collections.abc import Mapping
from typing import Any

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn

from ..ops.fixed import LIMIT, FixedConvolution, FixedNeuron, count_levels, max_pool, narrow, to_whole
from ..ops.fixed_native import conv_current, conv_lif, fixed_lif
from .attention import SpikingSelfAttention
from .conv import ConvBnLif, is_plain
from .dssa import DualSpikeSelfAttention
from .e_sdsa import EfficientSpikeDrivenSelfAttention
from .rep_conv import RepConv
from .statten import SpatialTemporalAttention
from .temporal import merge_time, split_time

__all__ = [
    'FIXED_ATTENTIONS',
    'SPIKES',
    'FixedConv',
    'FixedConvBnLif',
    'FixedCurrents',
    'FixedLIF',
    'FixedLevels',
    'FixedMaxPool',
    'FixedMean',
    'FixedRepConv',
    'driving',
]

SPIKES = (torch.uint8, torch.int64)  # the second in exports, since ONNX Runtime adds no bytes
_RECIPROCAL_BITS = 30  # of what a sum is multiplied with to be a mean


@register_notrace_module  # branches on the type of its input
class FixedConv(nn.Module):
    """Convolution of whole numbers: int8 weights, and for each channel a multiplier and a bias that make currents.

    `takes` says what comes in, and how it is made whole: 'spikes' are; 'currents' are shifted right by `input_shift`,
    and an 'image' is multiplied by 2^input_shift. Both are rounded and clamped to +-`input_limit`.

    Shape: [N, C, H, W], tokens [N, C, L] or vectors [N, C] -> currents int32 of the same rank.
    Raises: TypeError for input of another kind.
    """

    # what every one of them has, by the names that torch's convolutions have for it
    dilation = (1, 1)
    transposed = False
    padding_mode = 'zeros'

    def __init__(self, conv: nn.Module, *, shift: int, takes: str, input_shift: int = 0, input_limit: int = 0) -> None:
        super().__init__()
        made: Any = conv
        shape = [*made.weight.shape[:2], *_map_size(made.weight.shape[2:])]
        self.stride, self.padding, self.groups = (1, 1), (0, 0), 1
        if isinstance(made, (nn.Conv1d, nn.Conv2d)):
            is_map = isinstance(made, nn.Conv2d)
            self.stride = made.stride if is_map else (1, *made.stride)  # type: ignore[assignment]
            self.padding = made.padding if is_map else (0, *made.padding)  # type: ignore[assignment]
            self.groups = made.groups
        self.out_channels, self.in_channels = shape[0], shape[1] * self.groups
        self.kernel_size = tuple(shape[2:])
        self.shift = shift
        self.takes = takes
        self.input_shift, self.input_limit = input_shift, input_limit
        device = made.weight.device
        self.weight = _constant(torch.zeros(shape, dtype=torch.int8, device=device))
        self.multiplier = _constant(torch.zeros(shape[0], dtype=torch.int32, device=device))
        self.bias = _constant(torch.zeros(shape[0], dtype=torch.int32, device=device))

    @property
    def settings(self) -> dict[str, Any]:
        """What a file has to say of it beside its tensors."""
        whole = {} if self.takes == 'spikes' else dict(input_shift=self.input_shift, input_limit=self.input_limit)
        return dict(shift=self.shift, takes=self.takes, **whole)

    def op(self) -> FixedConvolution:
        """Its arguments for `timm_snn.ops.fixed`."""
        return FixedConvolution(
            self.weight, self.multiplier, self.bias, self.shift, self.stride, self.padding, self.groups
        )

    def whole(self, x: Tensor) -> Tensor:
        """Its input as whole numbers."""
        kind = 'image' if x.is_floating_point() else 'spikes' if x.dtype in SPIKES else 'currents'
        if kind != self.takes:
            raise TypeError(
                f'this convolution was quantised for {self.takes} and got {kind} ({x.dtype}): quantise the model again '
                'after changing its layers'
            )
        if kind == 'spikes':
            return x
        if kind == 'image':
            return to_whole(x, self.input_shift, self.input_limit)
        return narrow(x, self.input_shift, self.input_limit)

    def forward(self, x: Tensor) -> Tensor:
        x = self.whole(x)
        if x.ndim == 4:
            return conv_current(x, self.op())
        if x.ndim == 3:
            return conv_current(x.unsqueeze(2), self.op()).squeeze(2)
        return conv_current(x[:, :, None, None], self.op()).flatten(1)

    def extra_repr(self) -> str:
        return (
            f'{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, '
            f'padding={self.padding}, groups={self.groups}, takes={self.takes}'
        )


class FixedMaxPool(nn.Module):
    """3x3 max pooling with stride 2 of currents. Shape: int32 [N, C, H, W] -> [N, C, H', W'], rounded up."""

    def forward(self, x: Tensor) -> Tensor:
        return max_pool(x)


class FixedConvBnLif(ConvBnLif):
    """A unit of a convolution that its norm is folded into, pooling and a neuron, in one op where nobody watches."""

    def current(self, x: Tensor) -> Tensor:
        conv: Any = self.conv
        if not (is_plain(conv, (FixedConv,)) and is_plain(self.pool, (FixedMaxPool,)) and self.dims == 2):
            return super().current(x)
        return split_time(conv_current(conv.whole(merge_time(x)), conv.op(), pool=True), x.shape[0])

    def forward(self, x: Tensor) -> Tensor:
        conv: Any = self.conv
        lif: Any = self.lif
        if not (is_plain(conv, (FixedConv,)) and is_plain(lif, (FixedLIF,)) and conv.takes == 'spikes'):
            return lif(self.current(x))
        x = conv.whole(x) if self.dims == 2 else conv.whole(x).unsqueeze(3)
        pool = not isinstance(self.pool, nn.Identity)
        spikes, _ = conv_lif(x, None, conv.op(), lif.threshold, lif.neuron, pool, needs_v=False)
        return spikes if self.dims == 2 else spikes.squeeze(3)


class FixedRepConv(RepConv):
    """Three convolutions, the bias of the first in that of the last. Shape: spikes [N, C, H, W] -> currents."""

    def forward(self, x: Tensor) -> Tensor:
        return self.pw2(self.dw(self.pw1(x)))


class FixedLIF(nn.Module):
    """Leaky integrate-and-fire neuron in fixed point (`timm_snn.ops.fixed.fixed_lif`), stateless as `LIF`.

    `count_bits` is the position of the binary point of its membrane if what drives it are counts, and None if they are
    currents. The threshold is one for all, or for each channel.

    Shape: currents or counts [T, B, C, ...] -> spikes uint8 of the same shape.
    """

    def __init__(self, neuron: FixedNeuron, threshold: Tensor, count_bits: int | None) -> None:
        super().__init__()
        self.neuron = neuron
        self.count_bits = count_bits
        self.threshold = _constant(threshold)

    @property
    def settings(self) -> dict[str, Any]:
        neuron = self.neuron
        return dict(
            leak_shift=neuron.leak_shift,
            v_reset=neuron.v_reset,
            decay_input=neuron.decay_input,
            count_bits=self.count_bits,
            channels=list(self.threshold.shape),
        )

    @staticmethod
    def from_settings(settings: Mapping[str, Any]) -> 'FixedLIF':
        neuron = FixedNeuron(settings['leak_shift'], settings['v_reset'], settings['decay_input'])
        return FixedLIF(neuron, torch.zeros(settings['channels'], dtype=torch.int32), settings['count_bits'])

    def forward(self, x: Tensor) -> Tensor:
        return fixed_lif(driving(x, self.count_bits), None, self.threshold, self.neuron, needs_v=False)[0]

    def stream(self, x: Tensor, state: dict[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The next steps of a stream (`timm_snn.stream`): from the state after the last ones, or at rest, on."""
        v = None if state is None else state['v']
        spikes, v = fixed_lif(driving(x, self.count_bits), v, self.threshold, self.neuron)
        return spikes, {'v': v}

    def extra_repr(self) -> str:
        threshold = self.threshold.item() if self.threshold.ndim == 0 else tuple(self.threshold.shape)
        return f'{self.neuron}, threshold={threshold}, count_bits={self.count_bits}'


class FixedLevels(nn.Module):
    """The integer neuron in fixed point (`timm_snn.ops.fixed.count_levels`).

    Shape: currents or counts [T, B, C, ...] -> uint8 in 0, ..., D for D thresholds, of the same shape.
    """

    memoryless = True

    def __init__(self, thresholds: Tensor, count_bits: int | None) -> None:
        super().__init__()
        self.count_bits = count_bits
        self.thresholds = _constant(thresholds)

    @property
    def settings(self) -> dict[str, Any]:
        return dict(levels=list(self.thresholds.shape), count_bits=self.count_bits)

    @staticmethod
    def from_settings(settings: Mapping[str, Any]) -> 'FixedLevels':
        return FixedLevels(torch.zeros(settings['levels'], dtype=torch.int32), settings['count_bits'])

    def forward(self, x: Tensor) -> Tensor:
        return count_levels(driving(x, self.count_bits), self.thresholds)

    def extra_repr(self) -> str:
        return f'thresholds={self.thresholds.tolist()}, count_bits={self.count_bits}'


class FixedMean(nn.Module):
    """Mean over height and width, as currents: sums times the rounded reciprocal of their number, rounded, halves up.

    `worth` is the current, in fixed point of `fraction_bits` bits, that one spike of the input stands for.

    Shape: spikes or currents [N, C, H, W] -> currents int32 [N, C].
    """

    def __init__(self, worth: float, fraction_bits: int) -> None:
        super().__init__()
        self.worth, self.fraction_bits = worth, fraction_bits

    @property
    def settings(self) -> dict[str, Any]:
        return dict(worth=self.worth, fraction_bits=self.fraction_bits)

    def forward(self, x: Tensor) -> Tensor:
        spikes = x.dtype in SPIKES
        reciprocal = round((self.worth if spikes else 1.0) * 2**_RECIPROCAL_BITS / (x.shape[2] * x.shape[3]))
        shift = _RECIPROCAL_BITS - self.fraction_bits if spikes else _RECIPROCAL_BITS
        mean = (x.to(torch.int64).sum((2, 3)) * reciprocal + (1 << (shift - 1))) >> shift
        return mean.clamp(-LIMIT, LIMIT).to(torch.int32)


class FixedCurrents(nn.Module):
    """Spikes as currents, for a sum with such. Shape: uint8 [...] -> int32 [...], each spike worth `current`."""

    def __init__(self, current: int) -> None:
        super().__init__()
        self.current = current

    def forward(self, x: Tensor) -> Tensor:
        return x.to(torch.int32) * self.current


class _FixedSelfAttention(SpikingSelfAttention):
    """SSA whose products are of whole numbers in float64, where they are exact; the scale is in the threshold."""

    def _heads(self, x: Tensor) -> Tensor:
        return super()._heads(x).double()


class _FixedSpatialTemporalAttention(SpatialTemporalAttention):
    """The same of STAtten."""

    def _heads(self, x: Tensor) -> Tensor:
        return super()._heads(x).double()


class _FixedEfficientAttention(EfficientSpikeDrivenSelfAttention):
    """The same of E-SDSA."""

    def heads(self, x: Tensor) -> Tensor:
        return super().heads(x).double()


class _FixedDualAttention(DualSpikeSelfAttention):
    """DSSA whose products are of currents and spikes; its firing rates are in the thresholds, one for each head."""

    def forward(self, x: Tensor) -> Tensor:
        H, W = x.shape[3], x.shape[4]
        s = self.lif(x)
        y = self.patches(s).flatten(3).unflatten(2, [self.num_heads, 2, self.head_dim]).double()
        s = s.flatten(3).unflatten(2, [self.num_heads, self.head_dim]).double()
        attn = self.attn_lif(y[:, :, :, 0].transpose(-2, -1) @ s)  # [T, B, heads, N / p^2, N]
        out = self.out_lif(y[:, :, :, 1] @ attn.double())
        return self.proj(out.flatten(2, 3).unflatten(3, [H, W]))


# What the attention of a network becomes; those whose sums and masks are of whole numbers already stay.
FIXED_ATTENTIONS: dict[type[nn.Module], type[nn.Module]] = {
    SpikingSelfAttention: _FixedSelfAttention,
    SpatialTemporalAttention: _FixedSpatialTemporalAttention,
    EfficientSpikeDrivenSelfAttention: _FixedEfficientAttention,
    DualSpikeSelfAttention: _FixedDualAttention,
}


def driving(x: Tensor, count_bits: int | None) -> Tensor:
    """What drives a neuron, in units of its membrane. Products of attention are whole numbers in float64."""
    if x.is_floating_point():
        x = x.round().to(torch.int64)
    return x if count_bits is None else x.to(torch.int64) << count_bits


def _constant(x: Tensor) -> nn.Parameter:
    """A parameter, by which users count, move and find the device of a model, that is not trained."""
    return nn.Parameter(x, requires_grad=False)


def _map_size(kernel: tuple[int, ...]) -> tuple[int, int]:
    """The kernel of a convolution of maps that stands for one of tokens, or a linear layer."""
    return (*(1,) * (2 - len(kernel)), *kernel)  # type: ignore[return-value]
