"""Measure the smallest member of every family that takes colour images: activity before training, speed, memory.

    python benchmarks/family.py    three to five minutes on a CPU core; then: python hub/table.py

The input is scikit-learn's two sample photographs, as each model's evaluation transform makes them: members for CIFAR
see 32 x 32 pixels, those for ImageNet 224 x 224. Weights are those of seed 0. Counts are per image, over all steps:

    firing rate    of all neurons, with batch norms at the statistics of the two images, as in the first training step
    ACs, MACs      NeuroBench's Effective_ACs and Effective_MACs
    attention      products, sums and masks of activations that are not zero
    images/s       both photographs as one batch in eval mode; median of the rounds, in which all models take turns
    peak MB        resident during a pass, above what was before it, in a process of its own; on Linux alone

Needs the extras bench and train.
"""

import argparse
import functools
import multiprocessing
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timing import Clock, Table
from timm.data import create_transform, resolve_model_data_config
from timm.models import model_entrypoint
from torch import Tensor, nn

import timm_snn

COLUMNS = ['model', 'input', 'T', 'firing rate', 'ACs', 'MACs', 'attention', 'images/s', 'spread', 'peak MB']


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', nargs='+', help='default: one of every family')
    parser.add_argument('--threads', type=int, default=1, help="torch's")
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--out', type=Path, default=Path(__file__).parent / 'results' / 'cpu')
    args = parser.parse_args(argv)
    names = args.model or smallest_members()
    if others := [name for name in names if not timm.is_model(name) or not takes_photographs(name)]:
        parser.error(f'expected models for colour images, such as sdt_2_512 or sdt_8_384, got {" ".join(others)}')

    clock = Clock('cpu', args.threads, args.rounds)
    head = clock.environment() | {'timm': timm.__version__, 'timm_snn': timm_snn.__version__}
    table = Table('family', head, COLUMNS)
    models = {name: create(name) for name in names}
    batches = {name: photographs(model) for name, model in models.items()}
    # a fresh process for each, where nothing that another left over is reused
    with multiprocessing.get_context('spawn').Pool(1, maxtasksperchild=1) as pool:
        peaks = pool.starmap(peak_megabytes, [(name, args.threads) for name in models], chunksize=1)
    times = clock.compare({name: functools.partial(infer, model, batches[name]) for name, model in models.items()})
    for (name, model), peak in zip(models.items(), peaks, strict=True):
        images = batches[name]
        take_statistics(model, images)
        total = timm_snn.profile(model, images, progress=False).total
        table.add(
            **{
                'model': name,
                'input': ' x '.join(map(str, images.shape[1:])),
                'T': model.num_steps,
                'firing rate': total.firing_rate,
                'ACs': total.effective_acs,
                'MACs': total.effective_macs,
                'attention': total.effective_matmul_ops + total.effective_mask_ops,
                'images/s': len(images) / times[name].median,
                'spread': times[name].spread,
                'peak MB': peak,
            }
        )
    table.save(args.out)


def smallest_members() -> list[str]:
    """Of every family, the tag for colour images with the fewest parameters."""
    smallest: dict[str, tuple[int, str]] = {}
    for tag in filter(takes_photographs, timm.list_models(['*.in1k', '*.cifar10'], include_tags=True)):
        size = sum(p.numel() for p in timm.create_model(tag, device='meta').parameters())
        family = model_entrypoint(tag.partition('.')[0]).__module__
        smallest[family] = min(smallest.get(family, (size, tag)), (size, tag))
    return [tag for _, tag in sorted(smallest.values())]


def takes_photographs(name: str) -> bool:
    """Whether this is a model of ours for colour images; three channels alone may be events."""
    cfg = timm.get_pretrained_cfg(name)
    ours = model_entrypoint(name.partition('.')[0]).__module__.startswith('timm_snn.models.')
    return ours and cfg is not None and cfg.tag in ('in1k', 'cifar10', 'cifar100')


def create(name: str) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name).eval()


def photographs(model: nn.Module) -> Tensor:
    transform: Any = create_transform(**resolve_model_data_config(model))
    return torch.stack([transform(Image.fromarray(pixels)) for pixels in load_sample_images().images])


@torch.inference_mode()
def infer(model: nn.Module, images: Tensor) -> Tensor:
    return model(images)


@torch.no_grad()
def take_statistics(model: nn.Module, images: Tensor) -> None:
    """Set the batch norms to these images: with the statistics that they are made with, deep layers stay silent."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    model.train()(images)
    model.eval()


def peak_megabytes(name: str, threads: int) -> float | None:
    """Called in a process of its own."""
    torch.set_num_threads(threads)
    model = create(name)
    images = photographs(model)
    status = Path('/proc/self/status')
    if not status.exists():
        return None

    def resident(key: str) -> float:
        line = next(line for line in status.read_text().splitlines() if line.startswith(key))
        return int(line.split()[1]) * 1024 / 1e6

    infer(model, images[:1, :, ::4, ::4])  # torch loads what it needs
    before = resident('VmRSS')
    infer(model, images)
    return resident('VmHWM') - before


if __name__ == '__main__':
    main()
