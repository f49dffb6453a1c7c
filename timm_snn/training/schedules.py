"""What changes in a run: the learning rate, and between epochs the time steps of the model and the size of its images.

A spiking network shares its weights over time, and none of them depends on the size of an image. So most epochs can be
trained with few steps and small images, for a fraction of the cost, and the last ones as the model will be used.
"""

import copy
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from timm.scheduler import create_scheduler_v2

from ..profiling import profile
from .errors import UserError, one_line_errors
from .models import steps_of

__all__ = ['Phase', 'Phases', 'make_schedule']


def make_schedule(
    optimizer: Any, updates_per_epoch: int, max_steps: int | None, **options: Any
) -> tuple[Any, int, int, int]:
    """timm's schedule of the learning rate, the epochs it has, the updates of the run and the epochs these begin.

    Args:
        max_steps: The most updates.
        options: Of `create_scheduler_v2`.

    Raises: UserError for options that make no schedule.
    """
    with one_line_errors('set up the schedule'):
        scheduler, epochs = create_scheduler_v2(
            optimizer, step_on_epochs=False, updates_per_epoch=updates_per_epoch, **options
        )
    total_updates = min(epochs * updates_per_epoch, max_steps or sys.maxsize)
    return scheduler, epochs, total_updates, math.ceil(total_updates / updates_per_epoch)


class Phase(NamedTuple):
    """How a model is run: T, and height and width of its images."""

    num_steps: int
    size: tuple[int, int]

    def __str__(self) -> str:
        return f'T={self.num_steps}, {self.size[1]} x {self.size[0]} px'


class Phases:
    """The phase of every epoch. What is validated and saved is the model as it was made, in the phase `full`.

    Args:
        model: Its T is the largest.
        shape: Of its input without the batch, [C, H, W] or [T, C, H, W]; H and W are the largest.
        device: That it will run on.
        epochs: Of the run, which shares refer to.
        num_steps, heights: By the first epoch that they hold for, see `options.EpochNumbers`.

    Raises: UserError for what the model cannot run.
    """

    def __init__(
        self,
        model: Any,
        shape: Sequence[int],
        device: torch.device,
        epochs: int,
        num_steps: Mapping[float, int],
        heights: Mapping[float, int],
    ) -> None:
        self.epochs = epochs
        self.full = Phase(steps_of(model), (shape[-2], shape[-1]))
        if num_steps and not hasattr(model, 'num_steps'):
            raise UserError('--num-steps-schedule: the model has no time steps: leave it out')
        for option, numbers, largest, name in (
            ('--num-steps-schedule', num_steps, self.full.num_steps, 'T of the model, --model-kwargs num_steps='),
            ('--img-size-schedule', heights, self.full.size[0], 'the size that is validated, --img-size '),
        ):
            if numbers and max(numbers.values()) > largest:
                raise UserError(
                    f'{option}: {max(numbers.values())} is more than {name}{largest}: raise that, or pass '
                    f'{option} 0={largest}'
                )
        self._num_steps, self._heights = num_steps, heights
        twin = copy.deepcopy(model).to(device)  # which leaves nothing on the device that FSDP would have to shard
        self._flop = {phase: _flop(twin, phase, shape, device) for phase in {self.full, *map(self.of, range(epochs))}}

    def of(self, epoch: int) -> Phase:
        num_steps, (height, width) = self.full
        wanted = held(self._heights, epoch, self.epochs, height)
        return Phase(held(self._num_steps, epoch, self.epochs, num_steps), (wanted, round(wanted * width / height)))

    def flop(self, phase: Phase) -> float:
        """Floating-point operations of one sample in training, two per multiply-accumulate."""
        return self._flop[phase]

    def __str__(self) -> str:
        """In words, or empty if all epochs are trained as the model is validated."""
        phases = [self.of(epoch) for epoch in range(self.epochs)]
        begins = [i for i in range(self.epochs) if i == 0 or phases[i] != phases[i - 1]]
        if phases == [self.full] * self.epochs:
            return ''
        parts = [f'from epoch {i + 1} with {phases[i]}' for i in begins]
        return f'trained {", ".join(parts)}; validated and saved with {self.full}'


def held(numbers: Mapping[float, int], epoch: int, epochs: int, before: int) -> int:
    """What `numbers`, see `options.EpochNumbers`, say for an epoch of so many; `before` if none has begun."""
    first = {round(key * epochs) if key < 1 else int(key): number for key, number in numbers.items()}
    return first[max(begun)] if (begun := [start for start in first if start <= epoch]) else before


def _flop(model: Any, phase: Phase, shape: Sequence[int], device: torch.device) -> float:
    """Three times a forward pass: the backward pass has the gradients of the input and of the weights."""
    with one_line_errors(f'run the model with {phase}'):
        if hasattr(model, 'num_steps'):
            model.num_steps = phase.num_steps
        image = torch.zeros(1, *shape[:-2], *phase.size, device=device)
        return 3 * 2 * profile(model, image, progress=False).total.dense_macs
