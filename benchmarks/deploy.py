"""File size and latency of a model in every form in which it can leave Python: files, whole numbers, streams.

    python benchmarks/deploy.py                       the models in the package, one thread, batch of 1
    python benchmarks/deploy.py --models msvit_4_96.digits --forms onnx int8 --threads 2
    python benchmarks/deploy.py --files FOLDER        keep the exports there; a second time none is made

Forms whose packages are missing, and those that a model cannot take, are left out and named. One table for all models
goes to the terminal and to <out>/deploy.csv and .png. Its columns:

    MB          of the file: safetensors for what runs in Python, else that of the export
    ms          for a batch of 1, all T steps; `stream`: one step
    spread      (slowest - fastest) / median, of the rounds
    same class  of 100 random inputs, how many get the class that the model gives them, where these are the same sums
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save
from timing import Clock, Table
from torch import Tensor

import timm_snn
from timm_snn.export import FORMATS
from timm_snn.export.capture import example_input

Run = Callable[[Tensor], Tensor]
COLUMNS = ['model', 'T', 'form', 'runs in', 'MB', 'ms', 'spread', 'same class']
# those of another runtime; the others run in Python
RUNS_IN = {
    'onnx': 'ONNX Runtime',
    'onnx of int8': 'ONNX Runtime',
    'torch_export': 'torch',
    'aoti': 'libtorch',
    'executorch': 'ExecuTorch',
}
FORMS = ['model', 'fused', 'stream', 'int8', *RUNS_IN]


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    clock = Clock('cpu', threads=args.threads, rounds=args.rounds)
    head = clock.environment() | {'times': 'milliseconds for a batch of 1, median of interleaved rounds'}
    table = Table('deploy', head, COLUMNS)
    for name in args.models:
        model: Any = timm.create_model(name, pretrained=True).eval()
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            for row in measure(model, clock, args, (args.files or Path(folder)) / name):
                table.add(model=name, T=model.num_steps, **row)
    table.save(args.out or Path(__file__).parent / 'results' / 'cpu')


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--models', nargs='+', default=timm_snn.list_pretrained(), help='by NAME.TAG')
    parser.add_argument('--forms', nargs='+', choices=FORMS, default=FORMS)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--files', type=Path, help='a folder for the exports; default: one that is removed')
    parser.add_argument('--out', type=Path, help='default: results/cpu beside this file')
    return parser.parse_args(argv)


def measure(model: Any, clock: Clock, args: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    folder.mkdir(parents=True, exist_ok=True)
    x = example_input(model)[:1]
    inputs = torch.randn(100, *x.shape[1:], generator=torch.Generator().manual_seed(1))
    made: dict[str, tuple[Run, float]] = {}
    for form in args.forms:
        try:
            with torch.inference_mode(False), torch.no_grad():
                made[form] = make(model, form, folder, args.threads)
        except (ImportError, RuntimeError, ValueError) as error:
            print(f'{form}: {error}')
    times = clock.compare({form: partial(run, x) for form, (run, _) in made.items()})
    classes = torch.cat([model(one) for one in inputs.split(1)]).argmax(1)
    for form, (run, size) in made.items():
        is_other = form == 'stream' or 'int8' in form  # it sees one step, or was calibrated on noise
        same = None if is_other else sum(int(run(inputs[i : i + 1]).argmax(1) == classes[i]) for i in range(100))
        yield {
            'form': form,
            'runs in': RUNS_IN.get(form, 'Python'),
            'MB': size / 1e6,
            'ms': 1000 * times[form].median,
            'spread': times[form].spread,
            'same class': same,
        }


# Whole numbers are calibrated on noise: their size and time do not depend on it, and their answers are not looked at.
def make(model: Any, form: str, folder: Path, threads: int) -> tuple[Run, float]:
    """How the form runs, and the bytes of its file. Raises: ValueError or ImportError if it cannot be made here."""
    if form == 'model':
        return model, size_of(model)
    if form == 'fused':
        fused = timm_snn.fuse(model)
        return fused, size_of(fused)
    if form == 'stream':
        fused = timm_snn.fuse(model)
        stream = timm_snn.stream(fused)
        return lambda x: stream(x[:, 0] if x.ndim == 5 else x), size_of(fused)
    if 'int8' in form:
        noise = torch.randn(64, *example_input(model).shape[1:], generator=torch.Generator().manual_seed(2))
        exported = timm_snn.quantize(model, noise)
        if form == 'int8':
            return exported, size_of(exported)
    else:
        exported = model
    format = form.removesuffix(' of int8')
    file = folder / f'{form.replace(" ", "_")}{FORMATS[format]}'
    if not file.exists():
        timm_snn.export(exported, file, format=format, example=example_input(model))
    return load(format, file, threads), file.stat().st_size


def size_of(model: torch.nn.Module) -> int:
    return len(save({key: value.contiguous() for key, value in model.state_dict().items()}))


def load(format: str, file: Path, threads: int) -> Run:
    """A file of `timm_snn.export`, by that format's own loader."""
    writer = import_module(f'timm_snn.export.{format}')
    run = writer.load(file, threads) if format == 'onnx' else writer.load(file)
    return lambda x: run(x)[0]


if __name__ == '__main__':
    main()
