"""Time every neuron of `timm_snn.layers.neurons` that spikes, beside `lif` and beside SpikingJelly's own.

    python benchmarks/neurons.py                     on the GPU if there is one, else on one thread of the CPU
    python benchmarks/neurons.py --neurons psn klif  these alone, and `lif`

A row for each neuron as it is, inside torch.compile, and of SpikingJelly, goes to the terminal and to
<out>/neurons.csv and .png. Its columns:

    ms, spread         median of the rounds, in which all take turns; (slowest - fastest) / median
    of lif             time / time of `lif` as it is, on the backend that 'auto' takes
    of spikingjelly    time / time of SpikingJelly's neuron of this kind, where it has one
    saved bytes        for the backward pass and per neuron-step, among what autograd is asked to keep, x included

Needs the extra bench.
"""

import argparse
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lif import one_pass, saved_bytes
from spikingjelly.activation_based import functional, neuron, surrogate
from timing import Clock, Table
from torch import Tensor, nn

from timm_snn.layers import FixedSteps, neurons

NEURONS = ['lif', 'plif', 'integer', 'psn', 'sliding_psn', 'clif', 'glif', 'klif', 'ternary', 'alif']
COLUMNS = ['neuron', 'variant', 'pass', 'ms', 'spread', 'of lif', 'of spikingjelly', 'saved bytes']
PASSES = {'forward': False, 'forward + backward': True}


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    torch._dynamo.config.recompile_limit = 100  # the neurons share their code, and it would stop compiling after a few
    clock = Clock(args.device, args.threads, args.rounds)
    generator = torch.Generator().manual_seed(0)
    x, upstream = (torch.randn(args.shape, generator=generator).to(args.device) for _ in range(2))
    x += 0.5
    variants = {}
    for name in dict.fromkeys(['lif', *args.neurons]):
        for variant, run in variants_of(name, args.shape[0], args.device):
            if variant not in args.skip or (name, variant) == ('lif', 'timm_snn'):
                variants[name, variant] = run
    head = clock.environment() | {'shape': f'{args.shape}, float32'}
    table = Table('neurons', head, COLUMNS)
    for kind, backward in PASSES.items():
        runs = {' '.join(key): functools.partial(one_pass, run, x, upstream, backward) for key, run in variants.items()}
        times = clock.compare(runs)
        for name, variant in variants:
            time, theirs = times[f'{name} {variant}'], times.get(f'{name} spikingjelly')
            table.add(
                **{
                    'neuron': name,
                    'variant': variant,
                    'pass': kind,
                    'ms': 1e3 * time.median,
                    'spread': time.spread,
                    'of lif': time.median / times['lif timm_snn'].median,
                    'of spikingjelly': None if theirs is None else time.median / theirs.median,
                    'saved bytes': saved_bytes(runs[f'{name} {variant}']) / x.numel() if backward else None,
                }
            )
    table.save(args.out or Path(__file__).parent / 'results' / args.device)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--threads', type=int, default=1, help="torch's, on the CPU")
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--shape', type=int, nargs=5, default=[4, 2, 192, 28, 28], metavar=tuple('TBCHW'))
    parser.add_argument('--neurons', nargs='+', choices=NEURONS, default=NEURONS)
    parser.add_argument('--skip', nargs='+', choices=['compiled', 'spikingjelly'], default=[])
    parser.add_argument('--out', type=Path, help='default: results/<device> beside this file')
    return parser.parse_args(argv)


def variants_of(name: str, num_steps: int, device: str) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    layer = neurons.get(name)()
    if isinstance(layer, FixedSteps):
        layer.set_num_steps(num_steps)
    layer.to(device)
    yield 'timm_snn', layer
    yield 'compiled', torch.compile(layer)
    if name in THEIRS:
        yield 'spikingjelly', at_rest(THEIRS[name](num_steps).to(device))


def at_rest(node: nn.Module) -> Callable[[Tensor], Tensor]:
    """Like ours it starts at rest, for which a SpikingJelly neuron is reset."""

    def run(x: Tensor) -> Tensor:
        functional.reset_net(node)
        return node(x)

    return run


HOW: dict[str, Any] = dict(surrogate_function=surrogate.Sigmoid(alpha=4.0), step_mode='m')
THEIRS: dict[str, Callable[[int], nn.Module]] = {
    'lif': lambda num_steps: neuron.LIFNode(detach_reset=True, **HOW),
    'plif': lambda num_steps: neuron.ParametricLIFNode(detach_reset=True, **HOW),
    'psn': lambda num_steps: neuron.PSN(num_steps, surrogate_function=HOW['surrogate_function']),
    'sliding_psn': lambda num_steps: neuron.SlidingPSN(4, **HOW),
    'clif': lambda num_steps: neuron.ComplementaryLIFNode(**HOW),
    'glif': lambda num_steps: neuron.GatedLIFNode(num_steps, **HOW),
    'klif': lambda num_steps: neuron.KLIFNode(detach_reset=True, **HOW),
    'ternary': lambda num_steps: neuron.TernaryLIFNode(detach_reset=True, **HOW),
}


if __name__ == '__main__':
    main()
