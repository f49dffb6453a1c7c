"""Time integer inference against float32 inference, the same network side by side in one run, on a CPU.

    python benchmarks/int8.py                                         msvit_10_384 at 224 x 224, one image
    python benchmarks/int8.py --model msvit_4_96 --size 32 --batch 1 32
    python benchmarks/int8.py --model msvit_4_96.fashion_mnist --batch 1 32 \\
        --dataset torch/fashion_mnist --data-dir DIR                  trained weights on their own images

"float32" is `timm_snn.fuse(model)`: batch norms folded, zeros skipped, neurons in C++. "int8" is `timm_snn.quantize` of
the same model, by the best instructions of the CPU; the other rows name theirs (TIMM_SNN_INT8_LEVEL). All of these give
the same logits to the bit, which is looked at first. Both kinds skip zeros, so time depends on how many inputs of the
convolutions are not zero: without --dataset, random weights and images of noise are given batch norms of --density.
Columns:

    ms, spread       median of the rounds, in which all take turns; (slowest - fastest) / median
    speedup          time of float32 / time of this row
    nonzero inputs   of the convolutions in the float32 model, weighed by MACs and the image left out

Needs the extra bench.
"""

import argparse
import functools
import os
from pathlib import Path
from typing import Any

import timm
import torch
from model import nonzero_inputs, set_density
from timing import Clock, Table
from timm.data import create_dataset, create_transform, resolve_data_config
from torch import Tensor, nn

import timm_snn
from timm_snn.ops import keep_freed_memory

COLUMNS = ['variant', 'batch', 'ms', 'spread', 'speedup', 'nonzero inputs']
LEVELS = {'int8': '', 'int8, avx2': 'avx2', 'int8, plain C++': 'plain'}
CALIBRATION = 64  # images


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    keep_freed_memory()
    clock = Clock('cpu', args.threads, args.rounds)
    model, images = create(args)
    fused, quantized = timm_snn.fuse(model), timm_snn.quantize(model, images[-CALIBRATION:])
    head = {'model': args.model, 'shape': f'{tuple(images.shape[1:])}, T={model.num_steps}'}
    head['images'] = args.dataset or f'noise, nonzero inputs set to {args.density}'
    table = Table(f'int8-{args.model}', clock.environment() | head, COLUMNS)
    for batch in args.batch:
        for row in measure(clock, fused, quantized, images[:batch], args.level):
            table.add(batch=batch, **row)
    table.save(args.out)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default='msvit_10_384', help='one with a tag brings its weights')
    parser.add_argument('--threads', type=int, default=2, help="torch's")
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--batch', type=int, nargs='+', default=[1])
    parser.add_argument('--size', type=int, default=224, help='of images of noise')
    parser.add_argument('--steps', type=int, default=4, help='T, of a model without a tag')
    parser.add_argument('--density', type=float, default=0.18, help='nonzero inputs of the convolutions')
    parser.add_argument('--level', nargs='+', choices=list(LEVELS), default=['int8'], help='rows beside float32')
    parser.add_argument('--dataset', help="images of this data set, as timm's create_dataset has it")
    parser.add_argument('--data-dir', help='where it is')
    parser.add_argument('--out', type=Path, default=Path(__file__).parent / 'results' / 'cpu')
    return parser.parse_args(argv)


def create(args: argparse.Namespace) -> tuple[Any, Tensor]:
    """The model, in eval mode, and images: those to time first, those to calibrate with last."""
    torch.manual_seed(0)
    count = max(args.batch) + (CALIBRATION if args.dataset else 0)
    if args.dataset:
        model: Any = timm.create_model(args.model, pretrained=True).eval()
        transform = create_transform(**resolve_data_config({}, model=model))
        data = create_dataset(args.dataset, args.data_dir, split='validation', transform=transform)
        return model, torch.stack([data[i][0] for i in range(count)])
    model = timm.create_model(args.model, num_steps=args.steps, num_classes=10)
    images = torch.rand(count, model.pretrained_cfg['input_size'][0], args.size, args.size)
    set_density(model, images[:4], args.density)
    return model.eval(), images


def measure(
    clock: Clock, fused: nn.Module, quantized: nn.Module, images: Tensor, levels: list[str]
) -> list[dict[str, Any]]:
    """Rows of the table for one batch."""
    runs = {'float32': functools.partial(infer, fused, images)}
    runs |= {name: functools.partial(infer, quantized, images, LEVELS[name]) for name in levels}
    with timm_snn.use_backend('torch'):
        expected = infer(quantized, images[:1])
    for name in levels:
        if not torch.equal(infer(quantized, images[:1], LEVELS[name]), expected):
            raise SystemExit(f'error: {name} has other logits than plain torch')
    density = nonzero_inputs(fused, images)
    times = clock.compare(runs)
    return [
        {
            'variant': name,
            'ms': 1e3 * time.median,
            'spread': time.spread,
            'speedup': times['float32'].median / time.median,
            'nonzero inputs': density,
        }
        for name, time in times.items()
    ]


def infer(model: nn.Module, images: Tensor, level: str = '') -> Tensor:
    os.environ['TIMM_SNN_INT8_LEVEL'] = level
    with torch.inference_mode():
        return model(images)


if __name__ == '__main__':
    main()
