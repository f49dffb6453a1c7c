"""The machine of a run: processes, threads, precision, and a batch that fits into memory."""

import copy
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import (
    DataLoaderConfiguration,
    GradientAccumulationPlugin,
    ProjectConfiguration,
    find_executable_batch_size,
)
from timm.task import TrainingTask
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from ..ops import keep_freed_memory
from .console import note
from .errors import UserError, one_line_errors

__all__ = ['device_and_precision', 'largest_batch_size', 'make_accelerator']


def make_accelerator(
    output: Path,
    *,
    log_with: str,
    seed: int,
    grad_accum_steps: int | None = None,
    num_threads: int | None = None,
    mixed_precision: str | None = None,
) -> Accelerator:
    """Processes and devices as `accelerate launch` says, and the precision too unless it is given.

    `mixed_precision` 'auto' is what was launched, or else bf16 where the device multiplies bfloat16.
    Raises: UserError for what cannot be.
    """
    steps = grad_accum_steps or int(os.environ.get('ACCELERATE_GRADIENT_ACCUMULATION_STEPS', 1))
    with one_line_errors(f'log with {log_with!r}', 'install it, or pass --log-with none'):
        accelerator = Accelerator(
            mixed_precision=_best_precision() if mixed_precision == 'auto' else mixed_precision,
            gradient_accumulation_plugin=GradientAccumulationPlugin(
                num_steps=steps, sync_with_dataloader=False
            ),  # epochs are of whole updates
            # The order of the images is that of the seed alone: the processes share one order and take turns in it.
            dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=seed),
            step_scheduler_with_optimizer=False,
            log_with=None if log_with == 'none' else log_with,
            project_config=ProjectConfiguration(str(output), logging_dir=str(output / 'logs')),
        )
        if log_with != 'none' and not accelerator.log_with:  # Accelerate leaves out what is not installed
            raise ValueError('it is not installed')
    if accelerator.mixed_precision == 'fp16' and accelerator.device.type == 'cpu':  # Accelerate would use float32
        raise UserError('mixed precision fp16 needs a GPU: pass --mixed-precision bf16 or no')
    if (launched := int(os.environ.get('WORLD_SIZE', 1))) != accelerator.num_processes:
        raise UserError(
            f'{launched} processes were launched, and each would train alone: without CUDA they need '
            'ACCELERATE_USE_CPU=1'
        )
    if accelerator.device.type == 'cpu':
        if mixed_precision is None and accelerator.mixed_precision == 'no' and multiplies_bfloat16():
            note('note: this CPU multiplies bfloat16: --mixed-precision auto trains 1.4 to 2 times as fast')
        keep_freed_memory()
        # accelerate launch gives every process one thread unless it is told otherwise
        cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
        torch.set_num_threads(num_threads or max(1, cores // accelerator.num_processes))
    return accelerator


def device_and_precision(accelerator: Accelerator) -> str:
    """What a run says of them: 'cpu', or 'cpu, bf16'."""
    precision = '' if accelerator.mixed_precision == 'no' else f', {accelerator.mixed_precision}'
    return f'{accelerator.device}{precision}'


def _best_precision() -> str | None:
    """What 'auto' is here; None for what was launched."""
    if os.environ.get('ACCELERATE_MIXED_PRECISION', 'no') != 'no':
        return None
    device = PartialState().device
    if device.type == 'cuda':
        return 'bf16' if torch.cuda.is_bf16_supported(including_emulation=False) else None
    return 'bf16' if device.type == 'cpu' and multiplies_bfloat16() else None


def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for it that are faster than those for float32.

    Those of Intel without AMX are not: a training step of msvit_3_192 took 1.2 to 1.4 times as long with them.
    """
    has: Mapping[str, Any] = getattr(torch.cpu, 'get_capabilities', dict)()  # newer than the oldest torch we support
    is_intel = str(has.get('cpu_name', '')).startswith('Intel')
    return bool(has.get('amx_bf16') or (has.get('avx512_bf16') and not is_intel))


def largest_batch_size(
    batch_size: int,
    model: nn.Module,
    image: Tensor,
    accelerator: Accelerator,
    *,
    make_task: Callable[[nn.Module], TrainingTask],
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    keeps_average: bool,
    only_even: bool,
    channels_last: bool,
) -> int:
    """`batch_size`, or the first of its halves with which a copy of the model makes an update in the memory there is.

    The update has the loss, the teacher, the average and the buckets of the gradients of DDP as the run will, but is
    not compiled. Of all processes, that with the least memory decides. Raises: UserError if no size fits.
    """
    device = accelerator.device

    def update(batch_size: int) -> int:
        twin = copy.deepcopy(model).to(device)
        kept: list[Any] = [ModelEmaV3(twin)] if keeps_average else []
        kept += [torch.empty_like(p) for p in twin.parameters() if p.requires_grad and accelerator.num_processes > 1]
        task, optimizer = make_task(twin).train(), make_optimizer(twin)
        images = image.to(device).expand(batch_size, *image.shape).clone()
        if channels_last and images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        with accelerator.autocast():
            loss = task(images, torch.zeros(batch_size, dtype=torch.long, device=device))['loss']
        loss.backward()
        optimizer.step()
        return batch_size

    sizes = [batch_size >> i for i in range(batch_size.bit_length()) if batch_size % (1 << i) == 0]
    smaller = iter([*(size for size in sizes[1:] if size % 2 == 0 or not only_even), 0])
    try:
        fitting = find_executable_batch_size(update, batch_size, lambda: next(smaller))()
    except RuntimeError as error:
        if 'No executable batch size' not in str(error):
            raise
        raise UserError(f'cannot find a batch size: {error}') from error
    return int(accelerator.gather(torch.tensor([fitting], device=device)).min())
