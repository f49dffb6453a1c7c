"""Host work of a unit: Python frames and started operators of one training step, counted without a GPU.

    python benchmarks/host_work.py [--backend triton] [--where]

On a GPU the host bounds small batches: it takes longer to start the kernels than they run. A unit is what follows most
of a network's convolutions, ConvBnLif, with and without pooling; MSSA's mask is the other fused op. Counted is a
step after the first, forward and backward:

    frames     Python functions of timm_snn and torch that were entered, up to the call of a kernel
    kernels    of ours that were started
    operators  of torch that are no views and make no memory; on a GPU most start one kernel

Kernels do not run here and memory stays as it is allocated, so that the count is the same on every machine. Counts are
no times.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

os.environ['TRITON_INTERPRET'] = '1'  # before Triton is imported: its kernels take tensors on the CPU

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import timm_snn
from timm_snn.layers import ConvBnLif

NO_KERNEL = (
    *('empty', 'new_empty', 'detach', 'alias', 'view', 'as_strided', 'expand', 'permute'),
    *('unsqueeze', 'squeeze', 'select', 'slice', 'unbind'),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--backend', nargs='+', default=['triton', 'cpp', 'torch'], help='which to count')
    parser.add_argument('--where', action='store_true', help='list the functions that are entered most')
    args = parser.parse_args()
    table = Table('backend', 'unit', 'frames', 'kernels', 'operators')
    console = Console()
    for backend in args.backend:
        for name, (make, x) in units().items():
            frames, kernels, operators = count(make, x, backend)
            table.add_row(backend, name, *map(str, (frames.total(), kernels.total(), operators.total())))
            if args.where:
                console.print(f'{backend}, {name}:', *(f'{n:4} {what}' for what, n in frames.most_common()), sep='\n')
                console.print(operators)
    console.print(table)


def units() -> dict[str, tuple[Callable[[], Callable[[Tensor], Tensor]], Tensor]]:
    """What makes a unit, and its input."""
    x = torch.randn(4, 2, 16, 8, 8).flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, (4, 2))
    tokens = torch.randn(4, 2, 3, 16, 16)
    return {
        'conv, batch norm, neuron': (unit, x),
        'with pooling': (lambda: unit(pool=True), x),
        'neuron': (timm_snn.LIF, x),
        "MSSA's mask": (lambda: lambda k: timm_snn.ops.mssa([k, k], k), tokens),
    }


def unit(**settings: Any) -> nn.Module:
    return ConvBnLif(16, 16, **settings).train().to(memory_format=torch.channels_last)


def count(make: Callable[[], Callable[[Tensor], Tensor]], x: Tensor, backend: str) -> tuple[Counter[str], ...]:
    """Frames by function, kernels of ours and operators by name, of forward and backward pass.

    They are what a chain of two units has more than one of one unit, so that what autograd does once is left out.
    """
    timm_snn.set_backend(backend)
    one, two = (count_chain([make() for _ in range(length)], x) for length in (1, 2))
    return tuple(more - less for more, less in zip(two, one, strict=True))


def count_chain(chain: list[Callable[[Tensor], Tensor]], x: Tensor) -> tuple[Counter[str], ...]:
    parameters = [p for part in chain if isinstance(part, nn.Module) for p in part.parameters()]
    x.requires_grad_()

    def step() -> None:
        for leaf in (x, *parameters):
            leaf.grad = None
        y = x
        for part in chain:
            y = part(y)
        y.backward(torch.ones_like(y))

    with unlaunched() as kernels:
        step()  # the first makes what later ones find
        kernels.clear()
        with profiled() as frames:
            step()
        counted = Counter(kernels)
        with Operators() as operators:
            step()
    return frames, counted, operators.counts


@contextmanager
def unlaunched() -> Iterator[Counter[str]]:
    """Triton's kernels do not run, but are counted by name."""
    from triton.runtime.interpreter import InterpretedFunction

    launched: Counter[str] = Counter()
    getitem = InterpretedFunction.__getitem__

    def note(kernel: Any, grid: Any) -> Callable[..., None]:
        return lambda *args, **kwargs: launched.update([kernel.__name__])

    InterpretedFunction.__getitem__ = note
    try:
        yield launched
    finally:
        InterpretedFunction.__getitem__ = getitem


@contextmanager
def profiled() -> Iterator[Counter[str]]:
    """Counts the functions of timm_snn and torch that are entered inside the block."""
    frames: Counter[str] = Counter()

    def see(frame: FrameType, event: str, _: Any) -> None:
        module = frame.f_globals.get('__name__', '')
        if event == 'call' and module.partition('.')[0] in ('timm_snn', 'torch'):
            frames[f'{module}:{frame.f_code.co_name}'] += 1

    sys.setprofile(see)
    try:
        yield frames
    finally:
        sys.setprofile(None)


class Operators(TorchDispatchMode):
    """Counts torch's operators."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if not name.startswith(NO_KERNEL):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


if __name__ == '__main__':
    main()
