"""The folder of a run and its checkpoints, which survive what happens to long runs: kills, full disks, torn files.

A checkpoint is a folder of Accelerate's (weights, optimizer, scaler, random states) with what is ours beside it:
progress.json, setup.json, ema.safetensors, and manifest.json with size and CRC-32 of every file. It is written under
another name, flushed to the disk and renamed when complete. epoch_0012 follows the 12th epoch, epoch_0012_step_000340
another 340 updates.
"""

import argparse
import json
import os
import random
import shutil
import signal
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, load
from data import UnreadableSample
from options import as_config, one_line_errors
from safetensors.torch import load_file, save_file
from timm.utils import ModelEmaV3

__all__ = ['Checkpoints', 'Progress', 'StopSignal', 'prepare_output', 'save_failure']

# What a run leaves in --output.
RUN = ('config.yaml', 'checkpoints', 'summary.csv', 'curve.png', 'test.json', 'model', 'logs', 'failed')
# Options of a run that may differ when it goes on; all others would be mixed with, or lose to, what was saved. Those of
# the batch may as far as the effective batch stays the same, which setup.json tells.
MAY_CHANGE = (
    *('output', 'resume', 'overwrite', 'epochs', 'max_steps', 'data_dir', 'dataset_download', 'workers', 'num_threads'),
    *('checkpoint_steps', 'checkpoint_hist', 'log_with', 'push_to_hub', 'backend', 'compile', 'grad_checkpointing'),
    *('batch_size', 'grad_accum_steps', 'find_batch_size'),
)


@dataclass
class Progress:
    """How far the run is: finished epochs with a row of results each, and sums over the updates of the one begun."""

    history: list[dict[str, float]] = field(default_factory=list)
    updates: int = 0
    loss_sum: float = 0.0  # over samples, of all processes
    hits: float = 0.0
    seen: float = 0.0

    @property
    def epoch(self) -> int:
        return len(self.history)

    @property
    def name(self) -> str:
        return f'epoch_{self.epoch:04d}' + (f'_step_{self.updates:06d}' if self.updates else '')

    def add_update(self, loss_sum: float, hits: float, seen: float) -> None:
        self.updates += 1
        self.loss_sum += loss_sum
        self.hits += hits
        self.seen += seen

    def finish_epoch(self, row: dict[str, float]) -> None:
        self.history.append(row)
        self.updates, self.loss_sum, self.hits, self.seen = 0, 0.0, 0.0, 0.0

    def best_epoch(self, metric: str) -> int:
        """The number of epochs finished when `metric` was highest, for the first time."""
        values = [row[metric] for row in self.history]
        return values.index(max(values)) + 1


class StopSignal:
    """Notes SIGTERM, which schedulers send some time before they kill, and a sample that cannot be read."""

    def __init__(self) -> None:
        self.came = False
        self.unreadable: UnreadableSample | None = None
        signal.signal(signal.SIGTERM, self._note)

    def _note(self, *_: Any) -> None:
        self.came = True

    def came_to(self, accelerator: Accelerator) -> bool:
        """Whether it came to any process; all of them ask together and get the same answer."""
        has_come = float(self.came or self.unreadable is not None)
        return bool(accelerator.reduce(torch.tensor([has_come], device=accelerator.device)).item())

    def readable(self, loader: Iterable[Any]) -> Iterator[Any]:
        """Its batches, up to one with a sample that cannot be read: other processes wait, so it must not just raise."""
        try:
            yield from loader
        except UnreadableSample as error:
            self.unreadable = error


def prepare_output(args: argparse.Namespace, accelerator: Accelerator, setup: dict[str, Any]) -> Path | None:
    """Make --output and find the checkpoint to go on from; ends the program in one line rather than mix two runs.

    `setup` is what options do not say and a run must not change. The first process decides and tells the others.
    """
    checkpoint = [_prepare_output(args, accelerator.print, setup) if accelerator.is_main_process else None]
    checkpoint = broadcast_object_list(checkpoint)
    if not (args.output / 'config.yaml').is_file():  # the other nodes would write their part of a checkpoint elsewhere
        raise SystemExit(f'error: --output {args.output} is not the same folder on all nodes: use a disk they share')
    return checkpoint[0]


def _prepare_output(args: argparse.Namespace, say: Any, setup: dict[str, Any]) -> Path | None:
    with one_line_errors(f'write to --output {args.output}'):
        args.output.mkdir(parents=True, exist_ok=True)
    old_run = [path for name in RUN if (path := args.output / name).exists()]
    found = sorted((args.output / 'checkpoints').glob('epoch_*'), reverse=True)
    checkpoint, damaged = None, []
    if args.resume == 'auto':
        for checkpoint in found:
            if not (reason := damage(checkpoint)):
                break
            damaged.append(checkpoint)
            say(f'warning: checkpoint {checkpoint} is damaged and not used: {reason}')
        else:
            if damaged:
                raise SystemExit(
                    f'error: no checkpoint in {args.output} is whole; pass --overwrite without --resume to start anew'
                )
            if (args.output / 'model').exists():
                raise SystemExit(
                    f'error: {args.output} holds a finished run without checkpoints; pass --overwrite without --resume '
                    'to start anew'
                )
    elif args.resume:
        checkpoint = Path(args.resume)
        if not checkpoint.is_dir():
            raise SystemExit(f'error: checkpoint {checkpoint} does not exist; --resume auto takes the newest, if any')
        if found and not checkpoint.samefile(found[0]):
            raise SystemExit(f'error: {args.output} holds other checkpoints; pass --resume auto or another --output')
        if reason := damage(checkpoint):
            raise SystemExit(
                f'error: cannot read checkpoint {checkpoint}: {reason}; --resume takes a folder in OUTPUT/checkpoints, '
                'or auto for the newest that is whole'
            )
    elif old_run and not args.overwrite:
        raise SystemExit(f'error: {args.output} holds another run; pass --resume auto, --overwrite or another --output')

    config = as_config(args)
    if checkpoint:
        with one_line_errors('read the options of that run', '--resume takes a folder in OUTPUT/checkpoints'):
            before = yaml.safe_load((checkpoint.parent.parent / 'config.yaml').read_text(encoding='utf-8'))
            before |= json.loads((checkpoint / 'setup.json').read_text(encoding='utf-8'))
        given = config | setup
        changed = [key for key in given if key not in MAY_CHANGE and given[key] != before.get(key)]
        if changed:
            now = ', '.join(f'{key} {before.get(key)!r} to {given[key]!r}' for key in changed)
            raise SystemExit(f'error: a run goes on with the options it began with, these changed: {now}')
    with one_line_errors(f'write to --output {args.output}'):
        for path in old_run if args.overwrite and not args.resume else ():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in damaged:  # out of the way of the checkpoint that will have its name
            path.rename(free_name(path.with_name(f'damaged_{path.name}')))
        (args.output / 'config.yaml').write_text(yaml.safe_dump(config, sort_keys=False), encoding='utf-8')
    return checkpoint


class Checkpoints:
    """Saves and loads the state of a run; keeps the newest `hist` checkpoints and the best epoch's."""

    def __init__(
        self,
        accelerator: Accelerator,
        output: Path,
        progress: Progress,
        setup: dict[str, Any],
        ema: ModelEmaV3 | None,
        hist: int,
        metric: str,
    ) -> None:
        self.accelerator = accelerator
        self.folder = output / 'checkpoints'
        self.progress = progress
        self.setup = setup
        self.ema = ema
        self.hist = hist
        self.metric = metric  # column of the history in which the best epoch is highest
        accelerator.register_save_state_pre_hook(contiguous)

    def save(self) -> Path:
        """All processes call it. A disk that is full ends the program in one line; earlier checkpoints stay."""
        target, unfinished = self.folder / self.progress.name, self.folder / 'unfinished'
        if target.exists():  # stopped before any update since
            return target
        main = self.accelerator.is_main_process
        if main:
            shutil.rmtree(unfinished, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            with one_line_errors(f'write checkpoint {target}', 'those before it are kept, for --resume auto'):
                self.accelerator.save_state(str(unfinished))
                if main:
                    (unfinished / 'progress.json').write_text(json.dumps(asdict(self.progress)), encoding='utf-8')
                    (unfinished / 'setup.json').write_text(json.dumps(self.setup), encoding='utf-8')
                    if self.ema:
                        average = self.ema.module.state_dict()
                        contiguous([], [average], '')
                        save_file(average, unfinished / 'ema.safetensors')
                self.accelerator.wait_for_everyone()
                if main:
                    write_manifest(unfinished)
                    unfinished.rename(target)
                    flush(self.folder)
        except SystemExit:
            shutil.rmtree(unfinished, ignore_errors=True)  # it may be what fills the disk
            raise
        if main:
            self._prune()
        return target

    def _prune(self) -> None:
        found = sorted(self.folder.glob('epoch_*'))
        best = self.best if self.progress.history else None
        for path in found[: -self.hist]:
            if path != best:
                shutil.rmtree(path)

    @property
    def best(self) -> Path:
        return self.folder / f'epoch_{self.progress.best_epoch(self.metric):04d}'

    def load(self, checkpoint: Path) -> None:
        """Go on from there: `progress` and the average as they were, random states too.

        A process that finds none of its own, as on other hardware, says so and keeps those of the seed.
        """
        random_states = checkpoint / f'random_states_{self.accelerator.process_index}.pkl'
        with one_line_errors(f'read checkpoint {checkpoint}'):
            state = json.loads((checkpoint / 'progress.json').read_text(encoding='utf-8'))
            self.accelerator.load_state(str(checkpoint))
            if self.ema:
                self.ema.module.load_state_dict(load_file(checkpoint / 'ema.safetensors'))
            vars(self.progress).update(state)
            missing = not_restored(load(random_states)) if random_states.is_file() else 'all'
        if missing:
            index = self.accelerator.process_index
            print(
                f'warning: checkpoint {checkpoint} has not the random states of process {index} ({missing}), which go '
                'on from the seed: what is drawn for mixing and stochastic depth is not what it would have been'
            )

    def load_weights(self, checkpoint: Path, model: torch.nn.Module) -> None:
        """Only the weights that `metric` is about: the average's where there is one."""
        with one_line_errors(f'read checkpoint {checkpoint}'):
            model.load_state_dict(load_file(checkpoint / ('ema.safetensors' if self.ema else 'model.safetensors')))


def not_restored(states: dict[str, Any]) -> str:
    """Whose random numbers are not in these states, which Accelerate leaves as they are without a word."""
    numpy_state: Any = np.random.get_state()
    found = {
        'Python': random.getstate() == states['random_state'],
        'NumPy': bool((numpy_state[1] == states['numpy_random_seed'][1]).all()),
        'torch': torch.equal(torch.get_rng_state(), states['torch_manual_seed']),
    }
    if torch.cuda.is_available():
        saved = states.get('torch_cuda_manual_seed', [])
        now = torch.cuda.get_rng_state_all()
        found['CUDA'] = len(saved) >= len(now) and all(map(torch.equal, now, saved))
    return ', '.join(name for name, is_there in found.items() if not is_there)


def contiguous(_: Any, states: list[dict[str, torch.Tensor]], __: str) -> None:
    """A hook of Accelerate's: safetensors takes no tensors in another memory format."""
    for state in states:
        state.update({name: tensor.contiguous() for name, tensor in state.items()})


def write_manifest(folder: Path) -> None:
    """Flush every file to the disk, and list them so that `damage` can tell."""
    files = sorted(path for path in folder.rglob('*') if path.is_file())
    entries = {str(path.relative_to(folder)): [path.stat().st_size, crc32(path)] for path in files}
    manifest = folder / 'manifest.json'
    manifest.write_text(json.dumps(entries, indent=1), encoding='utf-8')
    for path in (*files, manifest, *{path.parent for path in files}):
        flush(path)


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None: it is whole."""
    if not (folder / 'manifest.json').is_file():
        return 'it has no manifest.json'
    try:
        entries = json.loads((folder / 'manifest.json').read_text(encoding='utf-8'))
        for name, (size, checksum) in entries.items():
            if (found := (folder / name).stat().st_size) != size:
                return f'{name} has {found} bytes instead of {size}'
            if crc32(folder / name) != checksum:
                return f'{name} is not what was written'
    except (OSError, ValueError, TypeError, AttributeError) as error:  # not JSON, or JSON of something else
        return f'{type(error).__name__}: {error}'
    return None


def crc32(path: Path) -> int:
    checksum = 0
    with open(path, 'rb') as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return checksum


def flush(path: Path) -> None:
    """To the disk; of a folder, the names in it."""
    if os.name == 'nt':
        return  # which cannot open a folder, nor flush what is open for reading
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_name(path: Path) -> Path:
    number = 1
    candidate = path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f'{path.name}_{number}')
    return candidate


def save_failure(
    accelerator: Accelerator, output: Path, model: torch.nn.Module, batch: dict[str, torch.Tensor], facts: dict
) -> Path:
    """OUTPUT/failed, to look into a loss or gradient that is not finite: the state before the update, and the batch.

    Every process leaves its last batch; facts.json also names parameters whose gradients are not finite.
    """
    folder = output / 'failed'
    with one_line_errors(f'write {folder}'):
        accelerator.save_state(str(folder / 'state'))
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in batch.items()}
        save_file(tensors, folder / f'batch_{accelerator.process_index}.safetensors')
        if accelerator.is_main_process:
            facts['gradients that are not finite'] = [
                name for name, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()
            ]
            (folder / 'facts.json').write_text(json.dumps(facts, indent=1), encoding='utf-8')
    return folder
