"""Time convolutions that skip zeros against dense ones, side by side, by how many inputs are not zero. On a CPU.

    python benchmarks/sparse_conv.py

A row is one pass of a convolution with as many outputs as inputs, of 3 x 3 or 1 x 1 taps, on channels_last maps whose
nonzero numbers lie at random. Weights in the forward pass are frozen, as in inference. Columns:

    at D         time of the dense one / time of the other, at this density of nonzero inputs: above 1 skipping pays.
                 Medians of the rounds, in which all take turns
    break-even   the density up to which it pays, between two that were timed; 1 if it does at the highest one, and 0,
                 which has no place in the picture, if it never does

The table in `timm_snn/ops/sparse_conv.py` says up to which density a convolution skips zeros by default.

Needs the extra bench.
"""

import argparse
import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from timing import Clock, Table
from torch import Tensor

from timm_snn.ops import keep_freed_memory, sparse_spikes
from timm_snn.ops.sparse_conv import conv2d

SHAPES = ((64, 16), (128, 16), (192, 8), (256, 14))  # channels, height and width
DENSITIES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9)
PASSES = ('forward', 'weight gradient')


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--threads', type=int, default=1, help="torch's")
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--batch', type=int, default=32)
    parser.add_argument('--dtype', nargs='+', default=['float32', 'bfloat16'])
    parser.add_argument('--density', type=float, nargs='+', default=DENSITIES)
    parser.add_argument('--out', type=Path, default=Path(__file__).parent / 'results' / 'cpu')
    args = parser.parse_args(argv)
    keep_freed_memory()
    clock = Clock('cpu', args.threads, args.rounds)
    head = {'instructions of torch': torch.backends.cpu.get_cpu_capability(), 'batch': str(args.batch)}
    densities = sorted(args.density)
    columns = ['dtype', 'taps', 'channels', 'size', 'pass', 'break-even', *(f'at {density}' for density in densities)]
    table = Table('sparse_conv', clock.environment() | head, columns)
    for dtype, (channels, size), taps in itertools.product(args.dtype, SHAPES, (3, 1)):
        runs: dict[str, Callable[[], object]] = {}
        for density in densities:
            runs |= passes(getattr(torch, dtype), args.batch, channels, size, taps, density)
        times = clock.compare(runs)
        for name in PASSES:
            ratios = [times[f'{name}, {d}, dense'].median / times[f'{name}, {d}'].median for d in densities]
            row = (dtype, taps, channels, size, name, break_even(densities, ratios), *ratios)
            table.add(**dict(zip(columns, row, strict=True)))
    table.save(args.out)


def break_even(densities: Sequence[float], ratios: Sequence[float]) -> float:
    """Where the ratio first falls below 1, on a straight line between its neighbours; 0 if it begins there."""
    for i, ratio in enumerate(ratios):
        if ratio < 1:
            if not i:
                return 0.0
            share = (ratios[i - 1] - 1) / (ratios[i - 1] - ratio)
            return densities[i - 1] + share * (densities[i] - densities[i - 1])
    return 1.0


def passes(
    dtype: torch.dtype, batch: int, channels: int, size: int, taps: int, density: float
) -> dict[str, Callable[[], object]]:
    """Callables by pass and density; those that skip no zeros are called dense."""
    torch.manual_seed(0)
    x, grad, noise = (torch.randn(batch, channels, size, size) for _ in range(3))
    x = torch.where(noise.abs() <= noise.abs().quantile(density), x, 0)
    x, grad = (t.to(dtype, memory_format=torch.channels_last) for t in (x, grad))
    weight = torch.randn(channels, channels, taps, taps).to(dtype, memory_format=torch.channels_last)
    runs: dict[str, Callable[[], object]] = {}
    for skips in (True, False):
        how = f'{density}' if skips else f'{density}, dense'
        runs[f'forward, {how}'] = functools.partial(convolved, x, weight, skips)
        trained = weight.clone().requires_grad_()
        y = convolved(x, trained, skips)
        runs[f'weight gradient, {how}'] = functools.partial(torch.autograd.grad, y, trained, grad, retain_graph=True)
    return runs


def convolved(x: Tensor, weight: Tensor, skips: bool) -> Tensor:
    with sparse_spikes(max_density=1) if skips else sparse_spikes(enabled=False):
        return conv2d(x, weight, None, (1, 1), (weight.shape[-1] // 2,) * 2, 1)


if __name__ == '__main__':
    main()
