"""The folder of a run and its checkpoints, which survive what happens to long runs: kills, full disks, torn files.

A checkpoint is a folder of Accelerate's (weights, optimizer, scaler, random states) with what is ours beside it:
progress.json, setup.json, config.yaml, ema.safetensors, and manifest.json with size and CRC-32 of every file. It is
written under another name, flushed to the disk and renamed when complete, and all that a run needs to go on.
epoch_0012 follows the 12th epoch, epoch_0012_step_000340 another 340 updates.
"""

import json
import random
import re
import shutil
import signal
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import yaml
from accelerate import Accelerator, DistributedType
from accelerate.utils import broadcast_object_list, load
from safetensors.torch import load_file, save_file
from timm.utils import ModelEmaV3

from ..files import flush, write_whole, write_whole_text
from ..models.weights import check_finite
from .console import say
from .errors import UserError, one_line_errors
from .fingerprint import difference
from .lock import lock_output
from .models import options_file
from .progress import Progress, StopSignal

__all__ = ['Checkpoints']

# What a run leaves in --output.
RUN = (
    'config.yaml',
    'checkpoints',
    'summary.csv',
    'curve.png',
    'test.json',
    'per_class.csv',
    'predictions.png',
    'results_row.csv',
    'model',
    'logs',
    'failed',
)
NAME = re.compile(r'epoch_(\d+)(?:_step_(\d+))?')
# Options of a run that may differ when it goes on; all others would be mixed with, or lose to, what was saved. Those of
# the batch may as far as the effective batch stays the same, which setup.json tells.
MAY_CHANGE = (
    *('output', 'resume', 'overwrite', 'epochs', 'max_steps', 'data_dir', 'dataset_download', 'workers', 'num_threads'),
    *('checkpoint_steps', 'checkpoint_hist', 'log_with', 'push_to_hub', 'backend', 'compile', 'grad_checkpointing'),
    *('batch_size', 'grad_accum_steps', 'find_batch_size', 'channels_last', 'sparse_spikes', 'cuda_graph'),
    *('packed_spikes', 'data_in_memory'),
)


def prepare_output(
    output: Path,
    config: dict[str, Any],
    setup: dict[str, Any],
    accelerator: Accelerator,
    *,
    resume: str | None,
    overwrite: bool,
) -> Path | None:
    """Make and lock the folder, write config.yaml, find the checkpoint to go on from: `resume` is 'auto' or names one.

    `config` holds the options of the run, `setup` what options do not say and a run must not change; its 'data' has the
    fingerprints of the splits. The first process decides and tells the others. Raises: UserError rather than mix runs.
    """
    found: list[Any] = [None]
    if accelerator.is_main_process:
        with one_line_errors(f'write to --output {output}'):
            output.mkdir(parents=True, exist_ok=True)
            lock_output(output)
        checkpoint, damaged = find_checkpoint(output, resume, overwrite, say)
        if checkpoint:
            check_unchanged(config, setup, checkpoint, say)
        with one_line_errors(f'write to --output {output}'):
            for path in what_a_run_left(output) if overwrite and not resume else ():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            for path in damaged:  # out of the way of the checkpoint that will have its name
                path.rename(free_name(path.with_name(f'damaged_{path.name}')))
            write_whole_text(output / 'config.yaml', yaml.safe_dump(config, sort_keys=False))
        found = [checkpoint]
    (checkpoint,) = broadcast_object_list(found)
    if not (output / 'config.yaml').is_file():  # the other nodes would write their part of a checkpoint elsewhere
        raise UserError(f'--output {output} is not the same folder on all nodes: use a disk they share')
    return checkpoint


def what_a_run_left(output: Path) -> list[Path]:
    return [path for name in RUN if (path := output / name).exists()]


def find_checkpoint(
    output: Path, resume: str | None, overwrite: bool, say: Callable[[str], None]
) -> tuple[Path | None, list[Path]]:
    """The checkpoint to go on from, and the newer ones which are damaged."""
    found = in_order(output / 'checkpoints')[::-1]
    checkpoint, damaged = None, []
    if resume == 'auto':
        for checkpoint in found:
            if not (reason := damage(checkpoint)):
                break
            damaged.append(checkpoint)
            say(f'warning: checkpoint {checkpoint} is damaged and not used: {reason}')
        else:
            if damaged:
                raise UserError(f'no checkpoint in {output} is whole; pass --overwrite without --resume to start anew')
            if (output / 'model').exists():
                raise UserError(
                    f'{output} holds a finished run without checkpoints; pass --overwrite without --resume '
                    'to start anew'
                )
    elif resume:
        checkpoint = Path(resume)
        if not checkpoint.is_dir():
            raise UserError(f'checkpoint {checkpoint} does not exist; --resume auto takes the newest, if any')
        if found and not checkpoint.samefile(found[0]):
            raise UserError(f'{output} holds other checkpoints; pass --resume auto or another --output')
        if reason := damage(checkpoint):
            raise UserError(
                f'cannot read checkpoint {checkpoint}: {reason}; --resume takes a folder in OUTPUT/checkpoints, '
                'or auto for the newest that is whole'
            )
    elif what_a_run_left(output) and not overwrite:
        raise UserError(f'{output} holds another run; pass --resume auto, --overwrite or another --output')
    return checkpoint, damaged


def in_order(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the newest last: by their numbers, which may have more digits than others."""
    names = ((NAME.fullmatch(path.name), path) for path in folder.glob('epoch_*'))
    return [path for _, path in sorted(((int(name[1]), int(name[2] or 0)), path) for name, path in names if name)]


def check_unchanged(
    config: dict[str, Any], setup: dict[str, Any], checkpoint: Path, say: Callable[[str], None]
) -> None:
    """Raises: UserError if the run of the checkpoint began with other options, but for those that MAY_CHANGE, or data.

    Files of other sizes under the same names may have been repaired, and other samples to validate on train nothing
    (without folds, which are of all samples): both are said.
    """
    with one_line_errors('read the options of that run', '--resume takes a folder in OUTPUT/checkpoints'):
        before = yaml.safe_load(options_file(checkpoint).read_text(encoding='utf-8'))
        before |= json.loads((checkpoint / 'setup.json').read_text(encoding='utf-8'))
    options, data = config | setup, setup.get('data', {})
    options.pop('data', None)
    if 'frames' in options and 'frames' not in before:  # of an earlier version
        del options['frames']
        if before.get('mean') is None:
            say(
                'warning: that run is of an earlier version, which may have normalised counts of events by the mean of '
                'images that its model came with; this one does not'
            )
    same = {key for key in options if key not in before and not options[key]}  # new since that run, and left off
    changed = [key for key in options if key not in {*MAY_CHANGE, *same} and options[key] != before.get(key)]
    if changed:
        now = ', '.join(f'{key} {before.get(key)!r} to {options[key]!r}' for key in changed)
        raise UserError(f'a run goes on with the options it began with, these changed: {now}')
    for split in data.keys() & before.get('data', {}).keys():  # earlier versions kept none
        other = difference(before['data'][split], data[split])
        if not other:
            continue
        trains = split == 'training' or config.get('fold')
        if other.is_of_classes or (other.is_of_samples and trains):
            raise UserError(
                f'a run goes on with the data it began with, and the {split} data {other.text}: --data-dir names its '
                f'folder; for a new run on this data pass --checkpoint {checkpoint}/model.safetensors and another '
                '--output'
            )
        say(f'warning: the {split} data {other.text}; the run goes on with it')


class Checkpoints:
    """Saves and loads the state of a run; keeps the newest `hist` checkpoints and the best epoch's."""

    def __init__(
        self,
        accelerator: Accelerator,
        output: Path,
        progress: Progress,
        config: dict[str, Any],
        setup: dict[str, Any],
        ema: ModelEmaV3 | None,
        hist: int,
        metric: str,
    ) -> None:
        self.accelerator = accelerator
        self.folder = output / 'checkpoints'
        self.progress = progress
        self.config = config
        self.setup = setup
        self.ema = ema
        self.hist = hist
        self.metric = metric  # column of the history in which the best epoch is highest
        self._buffers: list[torch.Tensor] = []
        self._copies: list[torch.Tensor] = []
        self._packed: list[Any] = []
        accelerator.register_save_state_pre_hook(contiguous)

    def begin(self, resume: str | None, overwrite: bool) -> None:
        """Make the output, and go on from a checkpoint if there is one to resume. Raises: as `prepare_output`."""
        found = prepare_output(
            self.folder.parent, self.config, self.setup, self.accelerator, resume=resume, overwrite=overwrite
        )
        if found and (warning := self.load(found)):
            say(warning)

    def save(self) -> Path:
        """All processes call it. Raises: UserError if the disk is full, or the weights are not finite; others stay."""
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
                    config = yaml.safe_dump(self.config, sort_keys=False)
                    (unfinished / 'config.yaml').write_text(config, encoding='utf-8')
                    if self.ema:
                        average = self.ema.module.state_dict()
                        contiguous([], [average], '')
                        save_file(average, unfinished / 'ema.safetensors')
                self.accelerator.wait_for_everyone()
                if main:
                    check_weights(unfinished)
                    write_manifest(unfinished)
                    unfinished.rename(target)
                    flush(self.folder)
        except UserError:
            shutil.rmtree(unfinished, ignore_errors=True)  # it may be what fills the disk
            raise
        if main:
            self._prune()
        return target

    def save_and_exit(self, stop: StopSignal) -> NoReturn:
        """End a run that was told to stop, or that cannot read a sample; all processes call it."""
        saved = self.save()
        if stop.unreadable:
            raise UserError(f'cannot evaluate: {stop.unreadable}; --resume auto goes on from {saved}')
        self.accelerator.end_training()
        if stop.ctrl_c is not None:
            raise KeyboardInterrupt(f'{saved} is saved')
        cause = 'SIGTERM' if stop.came else 'another process'
        say(f'stopped by {cause}; --resume auto goes on from {saved}')
        sys.exit(128 + signal.SIGTERM)

    def _prune(self) -> None:
        found = in_order(self.folder)
        best = self.best if self.progress.history else None
        for path in found[: -self.hist]:
            if path != best:
                shutil.rmtree(path)

    @property
    def best(self) -> Path:
        return self.folder / f'epoch_{self.progress.best_epoch(self.metric):04d}'

    def load(self, checkpoint: Path) -> str | None:
        """Go on from there: `progress` and the average as they were, random states too.

        Returns a warning if there are no random states of this process, as on other hardware: it keeps those of the
        seed.
        """
        random_states = checkpoint / f'random_states_{self.accelerator.process_index}.pkl'
        with one_line_errors(f'read checkpoint {checkpoint}'):
            check_weights(checkpoint)
            state = json.loads((checkpoint / 'progress.json').read_text(encoding='utf-8'))
            self.accelerator.load_state(str(checkpoint))
            if self.ema:
                self.ema.module.load_state_dict(load_file(checkpoint / 'ema.safetensors'))
            vars(self.progress).update(state)
            missing = not_restored(load(random_states)) if random_states.is_file() else 'all'
        if not missing:
            return None
        return (
            f'warning: checkpoint {checkpoint} has not the random states of process {self.accelerator.process_index} '
            f'({missing}), which go on from the seed: what is drawn for mixing and stochastic depth is not what it '
            'would have been'
        )

    def load_weights(self, checkpoint: Path, model: torch.nn.Module) -> None:
        """Load only the weights that `metric` is about: the average where there is one."""
        with one_line_errors(f'read checkpoint {checkpoint}'):
            model.load_state_dict(load_file(checkpoint / ('ema.safetensors' if self.ema else 'model.safetensors')))

    def keep_buffers(self, model: torch.nn.Module, has_failed: torch.Tensor | None = None) -> None:
        """Copy the buffers before an update, for `fail`: a forward pass changes the running statistics in them.

        What `keep_too` was given is copied with them. Where `has_failed`, which is on the device, says that an update
        before this one failed, the copies stay.
        """
        if not self._copies:
            self._buffers = list(model.buffers())
            self._copies = [buffer.clone() for buffer in self._buffers]
        elif has_failed is None:
            torch._foreach_copy_(self._copies, self._buffers)  # as optimizers do it: hundreds, in a few kernels
        else:
            self._keep_unless(has_failed)

    def keep_too(self, tensors: list[torch.Tensor]) -> None:
        """Copy these as the buffers from now on."""
        self._buffers += tensors
        self._copies += [tensor.clone() for tensor in tensors]
        self._packed = []

    def _keep_unless(self, has_failed: torch.Tensor) -> None:
        """Copy the buffers in a few kernels: all of a dtype lie in one tensor, whose parts the copies then are."""
        if not self._packed:
            for dtype in {buffer.dtype for buffer in self._buffers}:
                numbers = [i for i, buffer in enumerate(self._buffers) if buffer.dtype == dtype]
                kept = torch.cat([self._copies[i].flatten() for i in numbers])
                now = kept.clone()
                sizes = [self._copies[i].numel() for i in numbers]
                parts = zip(numbers, kept.split(sizes), now.split(sizes), strict=True)
                news = []
                for i, part, new in parts:
                    self._copies[i] = part.view(self._buffers[i].shape)
                    news.append(new.view(self._buffers[i].shape))
                self._packed.append((kept, now, news, [self._buffers[i] for i in numbers]))
        for kept, now, news, buffers in self._packed:
            torch._foreach_copy_(news, buffers)
            kept.copy_(torch.where(has_failed, kept, now))

    def fail(
        self,
        model: torch.nn.Module,
        batch: dict[str, torch.Tensor],
        loss: float,
        norm: float,
        broken: Sequence[str] = (),
    ) -> NoReturn:
        """Raise UserError for a loss or a norm of the gradient that is not finite; all processes call it.

        OUTPUT/failed keeps what is needed to look into it: the state before the update, the last batch of every
        process, and facts.json, with the names of the parameters whose gradients are `broken`, not finite. The buffers
        are those of `keep_buffers`; of the random states, what the batch drew is past.
        """
        folder, accelerator = self.folder.with_name('failed'), self.accelerator
        where = f'update {self.progress.updates + 1} of epoch {self.progress.epoch + 1}'
        for buffer, copy in zip(self._buffers, self._copies, strict=True):
            buffer.copy_(copy)
        state, unfinished = folder / 'state', folder / 'unfinished'
        with one_line_errors(f'write {folder}'):
            if accelerator.is_main_process:
                shutil.rmtree(unfinished, ignore_errors=True)
            accelerator.wait_for_everyone()
            accelerator.save_state(str(unfinished))
            tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in batch.items()}
            with write_whole(folder / f'batch_{accelerator.process_index}.safetensors') as file:
                save_file(tensors, file)
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                shutil.rmtree(state, ignore_errors=True)  # of an earlier failure
                unfinished.rename(state)
                facts = {
                    'where': where,
                    'loss': loss,
                    'gradient norm': norm,
                    'gradients that are not finite': [*broken],
                }
                write_whole_text(folder / 'facts.json', json.dumps(facts, indent=1))
        start_from = ''
        if accelerator.distributed_type != DistributedType.FSDP and is_finite(model):  # or it would be refused
            start_from = f' --checkpoint {state}/model.safetensors'
        raise UserError(
            f'loss {loss:g}, gradient norm {norm:g} in {where}; the state before it and its batch are in {folder}; a '
            f'lower --lr or --clip-grad may help, in a new run: pass --output NEW{start_from} too'
        )


def is_finite(model: torch.nn.Module) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())


def check_weights(folder: Path) -> None:
    """Raises: ValueError that names weights or buffers in a checkpoint, or averages, that are not finite."""
    for file in (folder / 'model.safetensors', folder / 'ema.safetensors'):
        if file.is_file():  # not where FSDP spreads them
            check_finite(load_file(file), file.name)


def not_restored(states: dict[str, Any]) -> str:
    """The generators that these states do not hold, by name. Accelerate leaves those as they are without a word."""
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
    """The reason why a checkpoint cannot be used, or None if it is whole."""
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


def free_name(path: Path) -> Path:
    number = 1
    candidate = path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f'{path.name}_{number}')
    return candidate
