"""Time the LIF neuron against SpikingJelly, side by side in one run, on the CPU.

    python benchmarks/lif.py [--threads 1] [--rounds 9] [--csv FILE]

Prints the median over the rounds for a forward pass without gradients and for forward plus backward, and the ratio of
SpikingJelly's time to ours; above 1 is faster than SpikingJelly. The two take turns within a round, so that a change in
the machine's speed meets both. Needs spikingjelly (in the dev extra).
"""

import argparse
import csv
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import timm_snn


def spikingjelly_lif() -> Callable[[Tensor], Tensor]:
    from spikingjelly.activation_based import functional, neuron, surrogate

    node = neuron.LIFNode(surrogate_function=surrogate.Sigmoid(4.0), detach_reset=True, step_mode='m')

    def run(x: Tensor) -> Tensor:
        functional.reset_net(node)
        return node(x)

    return run


def seconds(lif: Callable[[Tensor], Tensor], x: Tensor, backward: bool) -> float:
    start = time.perf_counter()
    if backward:
        x = x.detach().requires_grad_()
        lif(x).sum().backward()
    else:
        with torch.no_grad():
            lif(x)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--shape', type=int, nargs='+', default=[4, 2, 192, 56, 56], help='[T, B, ...]')
    parser.add_argument('--csv', type=Path, help='also write the table to this file')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    x = torch.randn(args.shape) + 0.5
    implementations = {'timm_snn torch': timm_snn.lif, 'spikingjelly': spikingjelly_lif()}
    if not torch.equal(*(lif(x) for lif in implementations.values())):
        raise SystemExit('error: the two neurons give different spikes, so their times do not compare')

    rows = []
    for backward in (False, True):
        times: dict[str, list[float]] = {name: [] for name in implementations}
        for _ in range(args.rounds + 1):
            for name, lif in implementations.items():
                times[name].append(seconds(lif, x, backward))
        ours, theirs = (statistics.median(values[1:]) for values in times.values())  # the first round warms up
        rows.append(
            {
                'pass': 'forward + backward' if backward else 'forward',
                'timm_snn torch (ms)': f'{1e3 * ours:.1f}',
                'spikingjelly (ms)': f'{1e3 * theirs:.1f}',
                'ratio': f'{theirs / ours:.2f}',
            }
        )
    print(f'{tuple(x.shape)} float32, {args.threads} threads, median of {args.rounds}, torch {torch.__version__}')
    for row in rows:
        print(', '.join(f'{key}: {value}' for key, value in row.items()))
    if args.csv:
        with open(args.csv, 'w', newline='') as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == '__main__':
    main()
