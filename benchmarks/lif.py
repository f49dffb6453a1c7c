"""Time the LIF neuron against SpikingJelly, side by side in one run.

    python benchmarks/lif.py                      on the GPU if there is one, else on one thread of the CPU
    python benchmarks/lif.py --sweep              also how the cost grows with steps, batch and resolution
    python benchmarks/lif.py --spikingjelly-14 DIR
        also its older line with CuPy: pip install --no-deps --target DIR spikingjelly==0.0.0.0.14

Every backend of timm_snn that can run takes part, and SpikingJelly as it is and under torch.compile. A table for each
dtype goes to the terminal and to <out>/lif-<dtype>.csv and .png. Its columns:

    ms, spread         median of the rounds, in which all take turns; (slowest - fastest) / median
    speedup            time of the first SpikingJelly that is timed / time of this row; without one, of timm_snn torch
    of copy speed      time to copy as many bytes as must move / time; 1 is as fast as memory allows. The forward pass
                       must read x and write spikes; the backward pass reads x and a gradient, and writes one.
    saved bytes        for the backward pass and per neuron-step, among what autograd is asked to keep, x included
    peak MB            on CUDA, above what was allocated before the pass
    differing spikes   fraction, from those of the reference; see --tolerate

Needs the extra bench.
"""

import argparse
import ctypes
import functools
import importlib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import numpy
import torch
from timing import Clock, Table
from torch import Tensor

import timm_snn
from timm_snn.ops import backend as backends

Neuron = Callable[[Tensor], Tensor]
T = TypeVar('T')
OLD = {'cpu': ('spikingjelly 0.14 torch', 'torch'), 'cuda': ('spikingjelly 0.14 cupy', 'cupy')}  # name and its backend
OLD_CUPY = OLD['cuda'][0]
SHAPES = {'cpu': [4, 2, 192, 56, 56], 'cuda': [4, 32, 192, 56, 56]}
DTYPES = {'cpu': ['float32', 'bfloat16'], 'cuda': ['float32', 'bfloat16', 'float16']}
SWEEPS = {  # places in the shape, and their sizes
    'steps': ([0], [1, 2, 4, 8, 16, 32]),
    'batch': ([1], [1, 2, 4, 8, 16]),
    'resolution': ([3, 4], [14, 28, 56, 112]),
}
COLUMNS = ['variant', 'pass', 'ms', 'spread', 'speedup', 'of copy speed', 'saved bytes', 'peak MB', 'differing spikes']


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    clock = Clock(args.device, args.threads, args.rounds)
    neurons = our_neurons(args) | spikingjelly_neurons(args)
    out = args.out or Path(__file__).parent / 'results' / args.device
    for dtype in args.dtype:
        table = Table(f'lif-{dtype}', clock.environment() | {'shape': f'{args.shape}, {dtype}'}, COLUMNS)
        for row in measure(neurons, clock, args.shape, getattr(torch, dtype), args.tolerate):
            table.add(**row)
        table.save(out)
    for axis, (places, sizes) in SWEEPS.items() if args.sweep else ():
        head = clock.environment() | {'shape': f'{args.shape} but for the {axis}, {args.dtype[0]}'}
        table = Table(f'lif-sweep-{axis}', head, ['variant', axis, 'ns per neuron-step', 'ms', 'of copy speed'])
        for size in sizes[:2] if args.quick else sizes:
            shape = list(args.shape)
            for place in places:
                shape[place] = size
            for row in measure(neurons, clock, shape, getattr(torch, args.dtype[0]), args.tolerate):
                if row['pass'] == 'forward + backward' and row['ms'] is not None:
                    nanoseconds = 1e6 * row['ms'] / torch.Size(shape).numel()
                    kept = {key: row[key] for key in ('variant', 'ms', 'of copy speed')}
                    table.add(**kept, **{axis: size, 'ns per neuron-step': nanoseconds})
        table.save(out)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', choices=SHAPES, default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--threads', type=int, default=1, help="torch's, on the CPU")
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--shape', type=int, nargs='+', help='[T, B, C, H, W]')
    parser.add_argument('--dtype', nargs='+', choices=DTYPES['cuda'])
    parser.add_argument('--sweep', action='store_true', help='over steps, batch and resolution, in the first dtype')
    parser.add_argument('--skip', nargs='+', default=[], metavar='WORD', help='leave out variants with it in the name')
    parser.add_argument(
        '--tolerate', type=float, default=0.0, metavar='FRACTION', help='time variants with so many other spikes too'
    )
    parser.add_argument('--spikingjelly-14', type=Path, metavar='DIR', help='where spikingjelly 0.0.0.0.14 lies')
    parser.add_argument('--out', type=Path, help='default: results/<device> beside this file')
    parser.add_argument('--quick', action='store_true', help='tiny, to see that everything runs')
    args = parser.parse_args(argv)
    args.shape = args.shape or ([4, 2, 8, 7, 7] if args.quick else SHAPES[args.device])
    args.dtype = args.dtype or DTYPES[args.device]
    args.rounds = 1 if args.quick else args.rounds
    if len(args.shape) != 5:
        parser.error(f'--shape needs five sizes T B C H W, got {args.shape}')
    return args


def skipped(name: str, args: argparse.Namespace) -> bool:
    return any(word in name for word in args.skip)


def our_neurons(args: argparse.Namespace) -> dict[str, Neuron]:
    names = {name: f'timm_snn {name}' for name in backends.backends()}
    return {
        names[name]: functools.partial(timm_snn.lif, backend=name)
        for name in runnable_backends(args.device, [name for name in names if not skipped(names[name], args)])
    }


def runnable_backends(device: str, names: Iterable[str]) -> list[str]:
    """Those of the backends that can run on the device; why others cannot is printed."""
    runnable = []
    for name in names:
        try:
            timm_snn.lif(torch.ones(1, 1, device=device), backend=name)
        except timm_snn.BackendUnavailable as error:
            print(f'without timm_snn {name}: {error}')
        else:
            runnable.append(name)
    return runnable


def spikingjelly_neurons(args: argparse.Namespace) -> dict[str, Neuron]:
    try:
        neurons = {
            'spikingjelly 2': spikingjelly_neuron(load_spikingjelly(), compiled=False),
            'spikingjelly 2 compiled': spikingjelly_neuron(load_spikingjelly(), compiled=True),
        }
    except ModuleNotFoundError as error:
        print(f"without spikingjelly 2: {error}: pip install 'timm-snn[bench]'")
        neurons = {}
    if args.spikingjelly_14:
        old = load_spikingjelly(args.spikingjelly_14)
        name, kind = OLD[args.device]
        neurons[name] = spikingjelly_neuron(old, compiled=False, backend=kind)
    return {name: neuron for name, neuron in neurons.items() if not skipped(name, args)}


def load_spikingjelly(folder: Path | None = None) -> dict[str, ModuleType]:
    """Its modules, from the folder or as installed: two versions live in one process under one name, one hidden."""

    def hide() -> dict[str, ModuleType]:
        return {name: sys.modules.pop(name) for name in list(sys.modules) if name.split('.')[0] == 'spikingjelly'}

    names = ('functional', 'neuron', 'surrogate')
    if folder is None:
        return {name: importlib.import_module(f'spikingjelly.activation_based.{name}') for name in names}
    other = hide()
    sys.path.insert(0, str(folder))
    vars(numpy).setdefault('int', int)  # which it needs, and NumPy has not had since 1.24
    try:
        modules = {name: importlib.import_module(f'spikingjelly.activation_based.{name}') for name in names}
    except ImportError as error:
        raise SystemExit(f'error: cannot import spikingjelly from {folder} in this process: {error}') from error
    finally:
        sys.path.remove(str(folder))
        hide()
        sys.modules.update(other)
    if not Path(modules['neuron'].__file__ or '').resolve().is_relative_to(folder.resolve()):
        raise SystemExit(
            f'error: no spikingjelly in {folder}: pip install --no-deps --target {folder} spikingjelly==0.0.0.0.14'
        )
    return modules


def spikingjelly_neuron(modules: dict[str, ModuleType], compiled: bool, **kwargs: str) -> Neuron:
    """With the settings of timm_snn.lif; like that it starts at rest, for which a SpikingJelly neuron is reset."""
    surrogate = modules['surrogate'].Sigmoid(alpha=4.0)
    node = modules['neuron'].LIFNode(surrogate_function=surrogate, detach_reset=True, step_mode='m', **kwargs)
    forward = torch.compile(node) if compiled else node

    def neuron(x: Tensor) -> Tensor:
        modules['functional'].reset_net(node)
        return forward(x)

    return neuron


def those_for(dtype: torch.dtype, contenders: dict[str, T]) -> dict[str, T]:
    """Without the one that has no kernel for the dtype, which is printed."""
    if dtype == torch.bfloat16 and OLD_CUPY in contenders:
        print(f'without {OLD_CUPY}: it has no kernel for bfloat16')
        return {name: contender for name, contender in contenders.items() if name != OLD_CUPY}
    return contenders


def measure(neurons: dict[str, Neuron], clock: Clock, shape: list[int], dtype: torch.dtype, tolerate: float) -> list:
    """Rows of the table, as dicts."""
    torch._dynamo.reset()  # a compiled variant is compiled for this shape, not for any
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(shape, generator=generator) + 0.5).to(clock.device, dtype)
    upstream = torch.randn(shape, generator=generator).to(clock.device, dtype)
    expected = timm_snn.lif(x, backend='torch')
    neurons = those_for(dtype, neurons)
    differing = {name: (neuron(x) != expected).float().mean().item() for name, neuron in neurons.items()}
    equal = {name: neuron for name, neuron in neurons.items() if differing[name] <= tolerate}
    if refused := [name for name in neurons if name not in equal]:
        print(f'not timed in {dtype}, because spikes differ from the reference (see --tolerate): {", ".join(refused)}')
    base = next((name for name in equal if name.startswith('spikingjelly')), 'timm_snn torch')

    rows = []
    for name, backward, moves in (('forward', False, 2), ('forward + backward', True, 5)):
        copy = clock.copier(moves * x.numel() * x.element_size())
        runs = {key: functools.partial(one_pass, neuron, x, upstream, backward) for key, neuron in equal.items()}
        times = clock.compare({'copy': copy, **runs})
        for variant in neurons:
            row = {'variant': variant, 'pass': name, 'differing spikes': differing[variant], 'ms': None}
            if variant in equal:
                seconds = times[variant].median
                row |= {
                    'ms': 1e3 * seconds,
                    'spread': times[variant].spread,
                    'speedup': times[base].median / seconds if base in times else None,
                    'of copy speed': times['copy'].median / seconds,
                    'saved bytes': saved_bytes(runs[variant]) / x.numel() if backward else None,
                    'peak MB': peak_megabytes(runs[variant], x.device),
                }
            rows.append(row)
    return rows


def one_pass(neuron: Neuron, x: Tensor, upstream: Tensor, backward: bool) -> None:
    if backward:
        x = x.detach().requires_grad_()
        torch.autograd.grad(neuron(x), x, upstream)
    else:
        with torch.no_grad():
            neuron(x)


def peak_megabytes(run: Callable[[], object], device: torch.device) -> float | None:
    """What is allocated on CUDA, or resident on a CPU, at the peak of a run beyond what was there before it."""
    if device.type != 'cuda':
        return peak_resident_megabytes(run)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    return (torch.cuda.max_memory_allocated(device) - before) / 1e6


def peak_resident_megabytes(run: Callable[[], object]) -> float | None:
    """Of this process, without what the allocator had kept for it; None where there is no /proc of Linux."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        before = _resident_megabytes('VmRSS')
        Path('/proc/self/clear_refs').write_text('5')  # sets the peak back to what is resident now
    except (AttributeError, OSError):
        return None
    run()
    return _resident_megabytes('VmHWM') - before


def _resident_megabytes(name: str) -> float:
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f'{name}:'))


def saved_bytes(run: Callable[[], object]) -> int:
    """Of the memory behind the tensors that autograd keeps, weights aside; one that several share counts once."""
    sizes = {}

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()  # forward, so that all that is kept is alive at once, and backward
    return sum(sizes.values())


if __name__ == '__main__':
    main()
