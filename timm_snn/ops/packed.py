"""Spikes saved for the backward pass in one bit each, small sums of spikes in one byte: exact, smaller, slower."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from .layout import step_strides

__all__ = ['packed_spikes']

_MIN_SIZE = 4096  # smaller tensors are not worth the look


@dataclass
class _Packed:
    values: Tensor  # uint8
    bits: bool
    shape: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype

    def unpack(self) -> Tensor:
        values = self.values
        if self.bits:
            values = (values[:, None] >> torch.arange(8, dtype=torch.uint8, device=values.device)) & 1
        return values.flatten()[: self.shape.numel()].to(self.dtype).as_strided(self.shape, self.strides)


@contextmanager
def packed_spikes() -> Iterator[None]:
    """Forward passes inside keep spikes for the backward pass as bits, and whole numbers up to 255 as bytes.

        with timm_snn.ops.packed_spikes():
            loss = criterion(model(images), labels)
        loss.backward()

    Gradients are exactly those without it. A convolution's input is a spike train or a sum of a few, so what it saves
    shrinks to 1/32 or 1/4 of float32, and 1/16 or 1/2 of bfloat16; what is not whole numbers is kept as it is. Looking
    at the values waits for the device, so it costs time, and CUDA graphs cannot capture it.
    """
    known: dict[tuple, tuple[StorageWeakRef, _Packed | None]] = {}  # several layers save the same tensor

    def pack(x: Tensor) -> Tensor | _Packed:
        if x.numel() < _MIN_SIZE or not x.is_floating_point() or isinstance(x, nn.Parameter):
            return x
        key = (x.data_ptr(), x._version, x.shape, x.stride(), x.dtype)
        storage, packed = known.get(key, (None, None))
        if storage is None or storage.expired():
            packed = _pack(x.detach())
            known[key] = StorageWeakRef(x.untyped_storage()), packed
        return x if packed is None else packed

    def unpack(x: Tensor | _Packed) -> Tensor:
        return x.unpack() if isinstance(x, _Packed) else x

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


def _pack(x: Tensor) -> _Packed | None:
    strides = step_strides(x[None])
    if strides != x.stride():
        return None
    flat = x.as_strided((x.numel(),), (1,))
    if not _is_exact(flat[:_MIN_SIZE]) or not _is_exact(flat):
        return None
    values = flat.to(torch.uint8)
    bits = bool(values.max() <= 1)
    if bits:
        values = nn.functional.pad(values, (0, -len(values) % 8)).view(-1, 8)
        values = (values << torch.arange(8, dtype=torch.uint8, device=x.device)).sum(1, dtype=torch.uint8)
    return _Packed(values, bits, x.shape, strides, x.dtype)


def _is_exact(x: Tensor) -> bool:
    return torch.equal(x.clamp(0, 255).to(torch.uint8).to(x.dtype), x)
