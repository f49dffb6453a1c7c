"""Time the loop of recipes/train.py against the bare training step, in turn, in one run.

    python benchmarks/recipe.py                                digits, and random images of CIFAR's size from a folder
    python benchmarks/recipe.py --data cifar -- --workers 1    options after -- are those of recipes/train.py
    python benchmarks/recipe.py -- --batch-size 512 --cuda-graph

The bare step has the model, backend, precision and optimizer of the recipe and one batch that stays on the device: it
says what the kernels can do. The recipe reads, augments and copies its batches, counts, clips, and looks for losses
that are not finite. Columns:

    images/s    median of the rounds, each of an epoch of the recipe and as many bare steps
    spread      (fastest - slowest) / median
    share       of the bare step's images per second

Devices and precision are those of Accelerate: its variables, such as ACCELERATE_MIXED_PRECISION=bf16, hold here too.
Needs the extras train and bench.
"""

import argparse
import copy
import runpy
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timing import Clock, Table
from torch import nn

from timm_snn.training import options

RECIPES = Path(__file__).parents[1] / 'recipes'
DATA = {
    'digits': ['--config', str(RECIPES / 'configs' / 'msvit' / 'digits.yaml')],
    'cifar': ['--dataset', '', '--in-chans', '3', '--img-size', '32', '--num-classes', '10'],
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', nargs='+', choices=DATA, default=list(DATA))
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--updates', type=int, default=20, help='in a round')
    parser.add_argument('--out', type=Path, help='default: results/<device> beside this file')
    parser.add_argument('recipe', nargs='*', help='options of recipes/train.py, after --')
    args = parser.parse_args(argv)
    table: Table | None = None
    for data in args.data:
        with tempfile.TemporaryDirectory() as folder:
            device, rows = measure(args, data, Path(folder))
        table = table or Table('recipe', Clock(device, rounds=args.rounds).environment(), list(rows[0]))
        for row in rows:
            table.add(**row)
    if table:
        table.save(args.out or Path(__file__).parent / 'results' / device)


def measure(args: argparse.Namespace, data: str, folder: Path) -> tuple[str, list[dict[str, Any]]]:
    """The device, and a row for the bare step and one for the recipe."""
    common = ['--output', str(folder / 'run'), '--log-with', 'none', '--epochs', '1000', *args.recipe]
    wanted = options.training_options([*DATA[data], *common])
    samples = args.updates * wanted.batch_size
    if data == 'cifar':
        write_images(folder / 'data', max(samples, 10))
        common = ['--data-dir', str(folder / 'data'), *common]
    common += ['--max-train-samples', str(samples)]
    recipe = runpy.run_path(str(RECIPES / 'train.py'))
    run = recipe['Run'](options.training_options([*DATA[data], *common]))
    step = bare_step(run, wanted)
    pace: dict[str, list[float]] = {'bare step': [], 'recipe': []}
    for number in range(1 + args.rounds):
        found = recipe['train_epoch'](run, number)
        run.progress.finish_epoch({})
        start = time.perf_counter()
        for _ in range(run.updates_per_epoch):
            step()
        if run.accelerator.device.type == 'cuda':
            torch.cuda.synchronize()
        images = run.updates_per_epoch * run.effective_batch / run.accelerator.num_processes
        if number:  # the first round compiles what compiles
            pace['bare step'].append(images / (time.perf_counter() - start))
            pace['recipe'].append(found / run.accelerator.num_processes)
    bare = statistics.median(pace['bare step'])
    rows = []
    for variant, values in pace.items():
        median = statistics.median(values)
        spread = (max(values) - min(values)) / median
        rows.append({'data': data, 'variant': variant, 'images/s': median, 'spread': spread, 'share': median / bare})
    return run.accelerator.device.type, rows


def bare_step(run: Any, wanted: argparse.Namespace) -> Any:
    """An update of a copy of the run's model, by a batch that stays where it is."""
    model = copy.deepcopy(run.model).train()
    optimizer = type(run.optimizer.optimizer)(model.parameters(), lr=1e-6)
    for group in optimizer.param_groups:
        if 'fused' in group:
            group['fused'] = run.optimizer.param_groups[0].get('fused')
    device = run.accelerator.device
    image, _ = run.train_set[0]
    images = image.to(device).expand(wanted.batch_size, *image.shape).clone()
    if run.transform.channels_last and images.ndim == 4:
        images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(wanted.batch_size, device=device) % run.model.num_classes

    def step() -> None:
        for _ in range(run.accumulation):
            with run.accelerator.autocast():
                loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def write_images(folder: Path, count: int) -> None:
    """Pictures of noise of CIFAR's size in ten classes, as many to train on as `count`, and ten to validate on."""
    random = np.random.default_rng(0)
    for split, number in (('train', count), ('validation', 10)):
        for i in range(number):
            path = folder / split / f'class_{i % 10}' / f'{i}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)


if __name__ == '__main__':
    main()
