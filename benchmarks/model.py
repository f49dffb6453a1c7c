"""Time whole models against the same network on SpikingJelly's neurons, side by side in one run.

    python benchmarks/model.py                    msvit_10_384 on the GPU if there is one, else on two CPU threads
    python benchmarks/model.py --compile          also under torch.compile, which takes minutes to compile
    python benchmarks/model.py --graph            also as CUDA graphs, which leave the host nothing to do but start them
    python benchmarks/model.py --batch 1 4        also other batches
    python benchmarks/model.py --sweep            also how time and memory grow with steps, batch and resolution
    python benchmarks/model.py --spikingjelly-14 DIR
        also its older line with CuPy: pip install --no-deps --target DIR spikingjelly==0.0.0.0.14

"timm_snn" is what a user gets who chooses nothing: `timm_snn.fuse(model)` for inference, and for training what
recipes/train.py does by default. The rows with a backend and with "sparse" in their names are told so.

The peer has the same graph and weights, with its own structure: its neurons, batch norms as layers, and the first
convolution computed for every step. Half precision is autocast, for all. On a CPU, "sparse" is inside
timm_snn.ops.sparse_spikes(), whose time depends on how many inputs of the convolutions are not zero: the bias of all
batch norms is such that it is --density of them, weighed by MACs and the image left out, by default as in the trained
msvit_4_96.fashion_mnist. Columns:

    ms, spread     median of the rounds, in which all take turns; (slowest - fastest) / median
    speedup        time of SpikingJelly 2, eager, in the same dtype / time of this row
    saved MB       for the backward pass, among what autograd is asked to keep
    peak MB        above what was allocated before, of a CPU in the memory that is resident; a CUDA graph keeps its
                   memory, and none of it is counted
    convolutions   what torch's convolutions alone take, the fastest of three profiled passes: a speedup ends there,
                   unless zeros are skipped

Needs the extra bench.
"""

import argparse
import functools
import gc
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from lif import OLD, OLD_CUPY, load_spikingjelly, peak_megabytes, runnable_backends, saved_bytes, skipped, those_for
from timing import Clock, Table
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import timm_snn
from timm_snn.layers import neurons
from timm_snn.layers.conv import skip_zeros
from timm_snn.ops import backend as backends
from timm_snn.ops import keep_freed_memory, sparse_spikes
from timm_snn.ops.native.build import why_not_here

Run = Callable[[], object]
COLUMNS = ['variant', 'batch', 'pass', 'dtype', 'ms', 'spread', 'speedup', 'saved MB', 'peak MB', 'convolutions ms']
SPARSE, GRAPH = ', sparse', ', CUDA graph'  # ends of names
DTYPES = {'cpu': ['float32', 'bfloat16'], 'cuda': ['float32', 'bfloat16', 'float16']}
SWEPT = ['ms', 'speedup', 'peak MB']
DEFAULT = 'timm_snn'  # the variant of a user who chooses nothing


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.device == 'cpu':
        keep_freed_memory()  # for all, as the scripts in recipes/ do
    clock = Clock(args.device, args.threads if args.device == 'cpu' else None, args.rounds)
    out = args.out or Path(__file__).parent / 'results' / args.device
    shape = f'batch {", ".join(map(str, args.batch))}, {args.size} x {args.size}, T={args.steps}'
    head = {'shape': shape, 'model': args.model, 'nonzero inputs': str(args.density)}
    table = Table(f'model-{args.model}{"-torch-compile" * args.compile}', clock.environment() | head, COLUMNS)
    for batch, kind, dtype in itertools.product(args.batch, args.kind, args.dtype):
        for row in measure(changed(args, batch=batch), clock, kind, dtype):
            table.add(batch=batch, **row)
    table.save(out)
    for axis, sizes in sweeps(args).items() if args.sweep else ():
        sweep = Table(f'model-{args.model}-sweep-{axis}', clock.environment() | head, ['variant', axis, *SWEPT])
        for size in sizes:
            one = changed(args, **{'batch': args.batch[0], axis: size, 'compile': False})
            for row in measure(one, clock, 'training', args.dtype[0]):
                sweep.add(**{axis: size}, **{key: row[key] for key in ('variant', *SWEPT)})
        sweep.save(out)


def sweeps(args: argparse.Namespace) -> dict[str, list[int]]:
    """From less to more than what the table is measured at."""
    batch, size = args.batch[0], args.size
    return {'steps': [1, 2, 4, 8], 'batch': [batch, 2 * batch, 4 * batch], 'size': [size // 2, 3 * size // 4, size]}


def changed(args: argparse.Namespace, **options: Any) -> argparse.Namespace:
    return argparse.Namespace(**{**vars(args), **options})


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cuda = torch.cuda.is_available()
    parser.add_argument('--model', default='msvit_10_384')
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cuda' if cuda else 'cpu')
    parser.add_argument('--threads', type=int, default=2, help="torch's, on the CPU")
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--batch', type=int, nargs='+', default=[64 if cuda else 1])
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--steps', type=int, default=4)
    parser.add_argument('--density', type=float, default=0.18, help='nonzero inputs of the convolutions')
    parser.add_argument('--dtype', nargs='+', choices=DTYPES['cuda'])
    parser.add_argument('--kind', nargs='+', choices=['inference', 'training'], default=['inference', 'training'])
    parser.add_argument('--compile', action='store_true', help='also whole models under torch.compile')
    parser.add_argument('--graph', action='store_true', help='on CUDA, also as CUDA graphs')
    parser.add_argument('--sweep', action='store_true', help='training in the first dtype over steps, batch and size')
    parser.add_argument('--skip', nargs='+', default=[], metavar='WORD', help='leave out variants with it in the name')
    parser.add_argument('--spikingjelly-14', type=Path, metavar='DIR', help='where spikingjelly 0.0.0.0.14 lies')
    parser.add_argument('--out', type=Path, help='default: results/<device> beside this file')
    args = parser.parse_args(argv)
    args.dtype = args.dtype or DTYPES[args.device]
    if args.graph and args.device != 'cuda':
        parser.error('--graph needs a CUDA device')
    return args


class Peer(nn.Module):
    """A SpikingJelly neuron in the place of ours; it keeps its membrane, so every pass resets it."""

    def __init__(self, modules: dict[str, Any], v_threshold: float = 1.0, **kwargs: Any) -> None:
        super().__init__()
        surrogate = modules['surrogate'].Sigmoid(alpha=4.0)
        self.node = modules['neuron'].LIFNode(
            v_threshold=v_threshold, surrogate_function=surrogate, detach_reset=True, step_mode='m', **kwargs
        )

    def forward(self, x: Tensor) -> Tensor:
        self.node.reset()
        return self.node(x)


class PeerStem(nn.Module):
    """The stem as the peers have it: the image is repeated first, and every unit runs at every step."""

    def __init__(self, units: nn.Sequential) -> None:
        super().__init__()
        self.units = units

    def forward(self, x: Tensor, num_steps: int) -> Tensor:
        return self.units(x.expand(num_steps, -1, -1, -1, -1).contiguous())


def measure(args: argparse.Namespace, clock: Clock, kind: str, dtype: str) -> list[dict[str, Any]]:
    """Rows of the table for one pass in one dtype."""
    gc.collect()  # CUDA graphs of the last pass refer to themselves, and hold all their memory
    torch.manual_seed(0)
    torch._dynamo.reset()
    config: Any = timm.get_pretrained_cfg(args.model)
    images = torch.rand(args.batch, config.input_size[0], args.size, args.size, device=args.device)
    labels = torch.randint(10, (args.batch,), device=args.device)
    autocast = functools.partial(torch.autocast, args.device, getattr(torch, dtype), dtype != 'float32')
    models: dict[str, Any] = contenders(args, kind, images)
    if dtype == args.dtype[0]:  # weights and layers are the same for all
        check_equality(models, images)
    models = those_for(getattr(torch, dtype), models)
    if args.graph:
        models |= graphs(args, kind, models, images, autocast)
    step = inference if kind == 'inference' else training
    runs = {name: functools.partial(step, model, images, labels, autocast) for name, model in models.items()}
    times = clock.compare(runs)
    base = times[next(iter(times))].median
    return [
        {
            'variant': name,
            'pass': kind,
            'dtype': dtype,
            'ms': 1e3 * times[name].median,
            'spread': times[name].spread,
            'speedup': base / times[name].median,
            'saved MB': saved_bytes(run) / 1e6 if kind == 'training' and not name.endswith(GRAPH) else None,
            'peak MB': None if name.endswith(GRAPH) else peak_megabytes(run, clock.device),
            'convolutions ms': convolution_milliseconds(run, args.device) if is_dense(name) else None,
        }
        for name, run in runs.items()
    ]


def is_dense(name: str) -> bool:
    """Whether all of its convolutions are torch's, and a profiler of the host sees them."""
    return name != DEFAULT and not name.endswith((SPARSE, GRAPH))


def contenders(args: argparse.Namespace, kind: str, images: Tensor) -> dict[str, nn.Module]:
    """The peer first. All have the same weights."""
    ours = create(args)
    set_density(ours, images, args.density)
    ours.train(kind == 'training')
    fast = timm_snn.fuse(ours) if kind == 'inference' else as_trained(ours)
    models = {'spikingjelly 2': peer(args, ours, load_spikingjelly())}
    if args.spikingjelly_14:
        name, backend = OLD[args.device]
        models[name] = peer(args, ours, load_spikingjelly(args.spikingjelly_14), backend=backend)
    models[DEFAULT] = fast
    how = 'fused, ' if kind == 'inference' else ''
    names = {name: f'timm_snn {how}{name}' for name in backends.backends()}
    for name in runnable_backends(args.device, [name for name in names if not skipped(names[name], args)]):
        models[names[name]] = WithBackend(fast, name)
        if args.device == 'cpu':
            sparse = names[name] + SPARSE
            if why_not := why_not_here():
                print(f'without {sparse}: {why_not}')
            else:
                models[sparse] = WithBackend(fast, name, sparse=True)
    if args.compile:
        options: dict[str, Any] = {'freezing': True} if kind == 'inference' else {}  # weights as constants, laid out
        compiled: Any = functools.partial(torch.compile, options=options)
        models['spikingjelly 2, torch.compile'] = compiled(peer(args, ours, load_spikingjelly()))
        models[f'timm_snn {how}torch.compile'] = compiled(fast)
    chosen = {name: model for name, model in models.items() if not skipped(name, args)}
    return {name: model.train(kind == 'training') for name, model in chosen.items()}


def as_trained(model: nn.Module) -> nn.Module:
    """As recipes/train.py prepares a model of this package by default."""
    skip_zeros(model)
    return model.to(memory_format=torch.channels_last)


class WithBackend(nn.Module):
    def __init__(self, model: nn.Module, backend: str, sparse: bool = False) -> None:
        super().__init__()
        self.model, self.backend, self.sparse = model, backend, sparse

    def forward(self, x: Tensor) -> Tensor:
        with timm_snn.use_backend(self.backend), sparse_spikes(enabled=self.sparse):
            return self.model(x)


def graphs(
    args: argparse.Namespace, kind: str, models: dict[str, nn.Module], images: Tensor, autocast: Callable
) -> dict[str, Callable[[Tensor], Tensor]]:
    """The models as CUDA graphs, but for the older SpikingJelly, whose kernels run on a stream of CuPy.

    A graph keeps the places of the weights in memory, so nothing may convert them afterwards.
    """
    found: dict[str, Any] = {}
    for name, model in models.items():
        if name == OLD_CUPY or name.endswith('torch.compile') or skipped(name + GRAPH, args):
            continue
        with autocast(cache_enabled=False):
            if kind == 'training':
                found[name + GRAPH] = torch.cuda.make_graphed_callables(nn.Sequential(model), (images,))
            else:
                found[name + GRAPH] = inference_graph(model, images)
    return found


@torch.inference_mode()
def inference_graph(model: nn.Module, images: Tensor) -> Callable[[Tensor], Tensor]:
    held = images.clone()
    model(held)  # compiles what compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = model(held)

    def replay(x: Tensor) -> Tensor:
        held.copy_(x)
        graph.replay()
        return logits

    return replay


def create(args: argparse.Namespace, **kwargs: Any) -> Any:
    return timm.create_model(args.model, num_steps=args.steps, num_classes=10, **kwargs).to(args.device)


@torch.no_grad()
def set_density(model: Any, images: Tensor, density: float) -> None:
    """Give batch norms the statistics of these images, and the bias with which convolutions see so many nonzeros."""
    norms: list[Any] = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    low, high = -3.0, 3.0
    for _ in range(10):
        middle = (low + high) / 2
        for norm in norms:
            norm.bias.fill_(middle)
            norm.momentum = 1.0  # the statistics of this one pass
        found = nonzero_inputs(model.train(), images)
        low, high = (middle, high) if found < density else (low, middle)
    for norm in norms:
        norm.momentum = 0.1
    if abs(found - density) > 0.01:
        raise SystemExit(f'error: no bias gives --density {density}, the nearest is {found:.3f}')


@torch.no_grad()
def nonzero_inputs(model: nn.Module, images: Tensor) -> float:
    """How many inputs of the convolutions are not zero, weighed by MACs and the image left out."""
    inputs: list[tuple[Tensor, float]] = []  # nonzeros and MACs per number of an input
    convolutions = [m for m in model.modules() if isinstance(m, (nn.Conv1d, nn.Conv2d)) and m.groups == 1]

    def look(conv: Any, args: tuple[Tensor], output: Tensor) -> None:
        inputs.append((args[0].count_nonzero() / args[0].numel(), output.numel() * conv.weight[0].numel()))

    hooks = [conv.register_forward_hook(look) for conv in convolutions[1:]]
    model(images)
    for hook in hooks:
        hook.remove()
    return float(sum(nonzero * macs for nonzero, macs in inputs) / sum(macs for _, macs in inputs))


def peer(args: argparse.Namespace, ours: Any, modules: dict[str, Any], **kwargs: Any) -> nn.Module:
    name = f'benchmark {len(neurons.names())}'
    neurons.register(name)(functools.partial(Peer, modules, **kwargs))
    model = create(args, lif_layer=name)
    model.load_state_dict(ours.state_dict())
    model.stem = PeerStem(model.stem.units)
    return model.train(ours.training)


@torch.no_grad()
def check_equality(models: dict[str, nn.Module], images: Tensor) -> None:
    """In float64 all must agree, or their times do not compare. What torch.compile makes of them is not looked at.

    The older SpikingJelly's kernels know no float64; it has the layers of the first model, and equals it in float32.
    """
    x = images[:1, :, :64, :64]
    first, *others = [name for name in models if not name.endswith('torch.compile')]
    for other in others:
        dtype = torch.float32 if other == OLD_CUPY else torch.float64
        expected, logits = (evaluated(models[name], x.to(dtype)) for name in (first, other))
        if not torch.allclose(logits, expected, rtol=0, atol=1e-6):
            raise SystemExit(f'error: {other} computes something else than {first}')


def evaluated(model: nn.Module, x: Tensor) -> Tensor:
    training = model.training
    logits = model.to(x.dtype).eval()(x)
    model.float().train(training)
    return logits


def inference(model: nn.Module, images: Tensor, labels: Tensor, autocast: Callable) -> None:
    with torch.inference_mode(), autocast():
        model(images)


def training(model: nn.Module, images: Tensor, labels: Tensor, autocast: Callable) -> None:
    with autocast():
        loss = nn.functional.cross_entropy(model(images).float(), labels)
    loss.backward()
    model.zero_grad()


def convolution_milliseconds(run: Run, device: str) -> float:
    cuda = device == 'cuda'
    times = []
    for _ in range(3):
        with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * cuda]) as profiler:
            run()
            if cuda:
                torch.cuda.synchronize()
        events = [event for event in profiler.key_averages() if event.key.startswith('aten::') and 'conv' in event.key]
        times.append(sum(e.self_device_time_total if cuda else e.self_cpu_time_total for e in events) / 1e3)
    return min(times)


if __name__ == '__main__':
    main()
