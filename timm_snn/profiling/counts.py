"""Activity of the values at one place in a model, and its operations, counted dense and effective, per sample.

There are two ways to count, and they differ on purpose:

* **Dense MACs** are the usual ones: every kernel position counts, those over the padding too. Papers call them FLOPs,
  and the conventions A, B and C (`energy.py`) multiply them by rates.
* **Dense, Effective_MACs and Effective_ACs** are NeuroBench's (arXiv 2304.04640), for convolutions and linear layers:
  a weight over the padding meets no input and does not count, and effective are those operations whose input and weight
  both differ from zero. They are accumulates (ACs) in a layer that is fed 0 and 1 (or -1) alone and MACs in any other;
  an integer spike is one operation, whatever its size.
"""

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers.fixed import FixedConv

__all__ = [
    'CONVOLUTIONS',
    'Activity',
    'Counts',
    'Geometry',
    'Measured',
    'Operation',
    'count_convolution',
    'count_elements',
    'count_linear',
    'count_matmul',
    'steps_and_samples',
]

CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    FixedConv,
)


class PerSample:
    """One number per sample, over batches; the calls of one batch add up.

    All are kept in one piece of memory: a small tensor of each batch, which stays, would split what the large ones
    around it gave back, so that the next large ones find no place and the process grows with every batch.
    """

    def __init__(self) -> None:
        self._numbers = array('d')
        self._pending: Tensor | float = 0.0

    def add(self, value: Tensor | float) -> None:
        self._pending = self._pending + value

    def end_batch(self, batch_size: int) -> None:
        value = torch.as_tensor(self._pending, dtype=torch.float64).cpu()  # exact for counts up to 2**53
        self._numbers.extend(value.expand(batch_size).tolist())
        self._pending = 0.0

    def all(self) -> Tensor:
        """[samples], float64."""
        return torch.tensor(self._numbers, dtype=torch.float64)


class Measured:
    """Values [steps, B, ...] reduced to what `Activity` adds up. Raises: ValueError for NaN and infinite ones."""

    def __init__(self, x: Tensor) -> None:
        x = (x if x.is_floating_point() else x.float()).reshape(*x.shape[:2], -1)
        low, high = x.aminmax() if x.numel() else (torch.zeros(()), torch.zeros(()))
        self.low, self.high = float(low), float(high)
        if not math.isfinite(self.low + self.high):
            raise ValueError('found NaN or infinite values, nothing can be counted from them')
        size = x if self.low >= 0 else x.abs()
        self.values = x.shape[2]
        self.nonzero = (x != 0).sum(2)  # [steps, B]
        self.magnitude = size.sum(2, dtype=torch.float64)
        self.ternary = max(self.high, -self.low) <= 1 and torch.equal((size == 1).sum(2), self.nonzero)
        self.whole = self.ternary or torch.equal(x, x.round())


class Activity:
    """Statistics of the values at one place: exact sums per sample, and what holds for all data."""

    def __init__(self) -> None:
        self.magnitude = PerSample()  # sum of absolute values: the number of spikes, where the values are spikes
        self.nonzero = PerSample()
        self.count = PerSample()  # how many values there are, over all steps
        self.largest = 0.0
        self.binary = True  # all values are 0 or 1
        self.ternary = True  # or -1
        self.whole = True  # all values are whole numbers
        self.by_step: Tensor | None = None  # non-zero values of every step, over samples
        self._steps: list[Tensor] = []  # of this batch

    def add(self, seen: 'Measured', repeats: int = 1) -> None:
        """`repeats` is how many steps each step that was measured stands for."""
        steps = len(seen.nonzero)
        self.ternary = self.ternary and seen.ternary
        self.binary = self.binary and seen.ternary and seen.low >= 0
        self.whole = self.whole and seen.whole
        self.largest = max(self.largest, seen.high, -seen.low)
        self.magnitude.add(seen.magnitude.sum(0) * repeats)
        self.nonzero.add(seen.nonzero.sum(0) * repeats)
        self.count.add(float(steps * seen.values * repeats))
        self._steps += list(seen.nonzero.sum(1).cpu().unbind()) * repeats

    def end_batch(self, batch_size: int) -> None:
        for numbers in (self.magnitude, self.nonzero, self.count):
            numbers.end_batch(batch_size)
        steps = torch.stack(self._steps) if self._steps else torch.zeros(0, dtype=torch.int64)
        self.by_step = steps if self.by_step is None or len(self.by_step) != len(steps) else self.by_step + steps
        self._steps = []

    def rate(self) -> Tensor:
        """Share of non-zero values, [samples]."""
        return self.nonzero.all() / self.count.all().clamp(min=1)

    def mean(self) -> Tensor:
        """Mean absolute value, [samples]; that of spikes is their mean number."""
        return self.magnitude.all() / self.count.all().clamp(min=1)

    @property
    def kind(self) -> str:
        return 'binary' if self.binary else 'integer' if self.whole else 'real'


@dataclass
class Counts:
    """Operations of one call: the same dense ones for all its rows (images or tokens), effective ones by row."""

    dense: float
    effective: Tensor  # [rows], or [steps, B, ...] once sorted
    reached: float
    bias: float = 0.0


@dataclass
class Operation:
    """Arithmetic of one kind at one place.

    Kinds: 'connection' (convolution or linear layer), 'matmul' (product of two activations), 'sum' (adding up spikes)
    and 'mask' (letting values pass or not). All counts are per sample and over all steps.
    """

    kind: str
    operands: tuple[Activity, ...]
    dense: PerSample = field(default_factory=PerSample)  # with padding, without bias
    bias: PerSample = field(default_factory=PerSample)  # one addition per output that has a bias
    reached: PerSample = field(default_factory=PerSample)  # NeuroBench's Dense: without padding
    effective: PerSample = field(default_factory=PerSample)
    calls: int = 0  # how often it runs for a sample: T times, or once
    is_first: bool = False  # the first connection that runs, fed the model's input
    static: bool = False  # which is an image, the same at all steps
    _calls: int = 0  # in this batch

    def add(self, counts: 'Counts', repeats: int = 1) -> None:
        """Add one call, whose `counts.effective` is [steps, B, ...]; it stands for `repeats` such steps."""
        steps, _, *more = counts.effective.shape
        rows = steps * math.prod(more) * repeats
        self.dense.add(counts.dense * rows)
        self.reached.add(counts.reached * rows)
        self.bias.add(counts.bias * rows)
        self.effective.add(counts.effective.double().reshape(steps, -1, math.prod(more)).sum((0, 2)) * repeats)
        self._calls += steps * repeats

    def end_batch(self, batch_size: int) -> None:
        for numbers in (self.dense, self.bias, self.reached, self.effective):
            numbers.end_batch(batch_size)
        self.calls, self._calls = self._calls or self.calls, 0  # it may not run for every batch


def steps_and_samples(x: Tensor, num_steps: int, batch_size: int, feature_dims: int) -> Tensor:
    """View x as [steps, B, ...], by its shape: time-first [T, B, ...], merged [T * B, ...], or [B, ...].

    The last `feature_dims` axes never hold time or samples. More rows than that, as of windows in a sample, are taken
    as that sample's: [T, B * windows, ...]. What has no axis of samples at all is shared by all samples.
    Raises: ValueError for [n, B, ...] where n steps are not T.
    """
    lead = x.shape[: x.ndim - feature_dims]
    features = x.shape[len(lead) :]
    T, B = num_steps, batch_size
    if len(lead) > 1 and lead[1] == B and T % max(lead[0], 1) == 0:  # all steps, or some of them
        return x
    if lead and T > 1 and lead[0] % (T * B) == 0:
        return x.reshape(T, B, -1, *features)
    if lead and lead[0] % B == 0:
        return x.reshape(1, B, -1, *features)
    if len(lead) > 1 and B > 1 and lead[1] == B:
        raise ValueError(f'found {tuple(x.shape)} for {B} samples, which is not T={T} steps: pass the right num_steps')
    return x.reshape(1, 1, -1, *features).expand(1, B, *[-1] * (1 + len(features)))


class Geometry:
    """How often a convolution's inputs are used: the kernel's window over the input, exactly."""

    def __init__(
        self,
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int] | str,
        dilation: Sequence[int],
        groups: int,
        transposed: bool = False,
        padding_mode: str = 'zeros',
        border: int = 0,
    ) -> None:
        self.kernel, self.stride, self.dilation = tuple(kernel), tuple(stride), tuple(dilation)
        self.groups, self.transposed, self.padding_mode = groups, transposed, padding_mode
        self.border = border  # zeros at the end, of a `MapConv`
        if isinstance(padding, str):  # 'same' puts the odd pixel at the end
            padding = [d * (k - 1) // 2 if padding == 'same' else 0 for k, d in zip(kernel, dilation, strict=True)]
        self.padding = tuple(padding)
        self._covers: dict[Any, Tensor] = {}

    @classmethod
    def of(cls, conv: Any) -> 'Geometry':
        names = ('stride', 'padding', 'dilation', 'groups', 'transposed', 'padding_mode')
        settings: Any = {name: getattr(conv, name) for name in names}
        return cls(conv.kernel_size, **settings, border=getattr(conv, 'border', 0))

    def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """The size of what comes out, for a convolution that is not transposed and pads as it says."""
        return tuple(self.output_size_of(axis, n) for axis, n in enumerate(size))

    def output_size_of(self, axis: int, size: int) -> int:
        k, s, d, p = self.kernel[axis], self.stride[axis], self.dilation[axis], self.padding[axis]
        return (size + 2 * p + self.border - d * (k - 1) - 1) // s + 1

    def cover(self, size: Sequence[int], out: Sequence[int]) -> Tensor:
        """For every input position, [*size], how many kernel positions of all outputs [*out] meet it."""
        key = (tuple(size), tuple(out))
        if key not in self._covers:
            axes = [self._axis_cover(axis, *lengths).sum(0) for axis, lengths in enumerate(zip(size, out, strict=True))]
            self._covers[key] = reduce(lambda cover, axis: cover.unsqueeze(-1) * axis, axes)
        return self._covers[key]

    def cover_by_tap(self, size: Sequence[int], out: Sequence[int]) -> Tensor:
        """The same for each kernel position, [positions, *size]."""
        cover = torch.ones(1, dtype=torch.float64)
        for axis, lengths in enumerate(zip(size, out, strict=True)):
            taps = self._axis_cover(axis, *lengths)  # [k, n]
            taps = taps.reshape(1, len(taps), *[1] * axis, -1)
            cover = (cover.unsqueeze(1).unsqueeze(-1) * taps).reshape(-1, *size[: axis + 1])
        return cover

    def _axis_cover(self, axis: int, size: int, out: int) -> Tensor:
        """[kernel size, size]: 1 where a tap meets an input, more where padding repeats the input."""
        k, s, d, p = self.kernel[axis], self.stride[axis], self.dilation[axis], self.padding[axis]
        taps = torch.arange(k)[:, None] * d
        if self.transposed:
            met = taps + torch.arange(size) * s - p
            return ((met >= 0) & (met < out)).double()
        short = (out - 1) * s + d * (k - 1) + 1 - size
        # a layer that pads by itself, such as timm's with TensorFlow's rule, is known by another output size
        left = p if self.output_size_of(axis, size) == out else max(short, 0) // 2
        right = max(short - left, 0)
        index = torch.arange(size)
        if self.padding_mode == 'zeros':
            index = F.pad(index, (left, right), value=size)
        else:
            index = F.pad(index.double()[None, None], (left, right), mode=self.padding_mode)[0, 0].long()
        met = index[taps + torch.arange(out) * s]  # [k, out]
        return torch.stack([torch.bincount(row, minlength=size + 1)[:size] for row in met]).double()


def count_convolution(
    x: Tensor, weight: Tensor, out_size: Sequence[int], geometry: Geometry, has_zeros: bool, has_bias: bool
) -> Counts:
    """Counts for x [rows, C, *size] -> [rows, C', *out_size]; the weights are looked at only if one `has_zeros`."""
    size = x.shape[2:]
    in_chs, taps = x.shape[1], math.prod(geometry.kernel)
    fan_out = weight.shape[1] if geometry.transposed else weight.shape[0] // geometry.groups
    out_chs = fan_out * geometry.groups
    cover = geometry.cover(size, out_size)
    if has_zeros:
        # Per input channel and kernel position, how many of its weights are not zero: an input meets their sum over
        # the positions that reach it. A transposed convolution stores its weights by input channel already.
        used = (weight != 0).double().flatten(2).cpu()
        if geometry.transposed:
            used = used.sum(1)
        else:
            used = used.unflatten(0, (geometry.groups, fan_out)).sum(1).reshape(in_chs, taps)
        reach = torch.tensordot(used, geometry.cover_by_tap(size, out_size), 1)  # [C, *size]
        effective = (x != 0).double().flatten(1) @ reach.to(x.device).flatten()
    else:
        met = (x != 0).sum(1, dtype=torch.float64).flatten(1)
        effective = met @ cover.to(x.device).flatten() * fan_out
    return Counts(
        dense=math.prod(size if geometry.transposed else out_size) * taps * in_chs * fan_out,
        effective=effective,
        reached=cover.sum().item() * in_chs * fan_out,
        bias=out_chs * math.prod(out_size) * has_bias,
    )


def count_linear(x: Tensor, weight: Tensor, has_zeros: bool, has_bias: bool) -> Counts:
    """Counts for x [..., C] -> [..., C']; the rows are all axes but the last."""
    nonzero = x != 0
    if has_zeros:
        effective = nonzero.double() @ (weight != 0).sum(0).double()
    else:
        effective = nonzero.sum(-1, dtype=torch.float64) * weight.shape[0]
    return Counts(dense=weight.numel(), effective=effective, reached=weight.numel(), bias=weight.shape[0] * has_bias)


def count_matmul(a: Tensor, b: Tensor) -> Counts:
    """Counts for a [..., m, k] @ b [..., k, n]: products of two values that are not zero are effective."""
    dense = a.shape[-2] * a.shape[-1] * b.shape[-1]
    by_k = (a != 0).sum(-2, dtype=torch.float64) * (b != 0).sum(-1, dtype=torch.float64)
    return Counts(dense=dense, effective=by_k.sum(-1), reached=dense)


def count_elements(x: Tensor) -> Counts:
    """One operation for every value of x [steps, B, ...], effective for those that are not zero."""
    values = math.prod(x.shape[2:])
    return Counts(dense=values, effective=(x != 0).flatten(2).sum(2, dtype=torch.float64), reached=values)
