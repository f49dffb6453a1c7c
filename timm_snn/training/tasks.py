"""Losses as timm's tasks: of the labels alone, at every time step, or with a teacher.

A new loss is one function of the logits of every time step and its row in LOSSES; a config names it, `loss: NAME`.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.task import ClassificationTask, LogitDistillationTask, TrainingTask
from torch import Tensor, nn

from .errors import UserError, one_line_errors

__all__ = ['LOSSES', 'StepLogits', 'make_learner', 'make_task', 'temporal_efficient_training']

Criterion = Callable[[Tensor, Tensor], Tensor]
StepLoss = Callable[[Tensor, Tensor, Criterion], Tensor]


def temporal_efficient_training(logits: Tensor, target: Tensor, criterion: Criterion, weight: float = 0.05) -> Tensor:
    """(1 - weight) * loss + weight * mean((logits - 1)^2): the mean over time steps of the loss at each.

    The second term pulls the logits to the threshold, 1.
    Shape: logits [B, T, classes], target [B] or [B, classes] -> [].  Source: arXiv 2202.11946, Eq. 10 to 12.
    """
    loss = criterion(logits.reshape(-1, logits.shape[-1]), target.repeat_interleave(logits.shape[1], 0))
    return (1 - weight) * loss + weight * (logits - 1).square().mean()


# Losses by the name that a config gives: of logits [B, T, classes] and targets, [B] or [B, classes] where samples are
# mixed. The criterion is the cross-entropy that a run has without them, with its label smoothing.
LOSSES: dict[str, StepLoss] = {'tet': temporal_efficient_training}


class StepLogits(nn.Module):
    """A model that answers with the logits of every time step, [B, T, classes]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        if not hasattr(model, 'forward_steps'):
            raise ValueError(f'{type(model).__name__} has no forward_steps, which gives the logits of every time step')
        self.module = model

    def forward(self, x: Tensor) -> Tensor:
        return self.module.forward_steps(x)


class StepTask(ClassificationTask):
    """A loss of the logits of every time step."""

    def __init__(self, model: nn.Module, criterion: nn.Module, loss: StepLoss) -> None:
        super().__init__(model, criterion, verbose=False)
        self.loss = loss

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        logits = self.trainable_module(input)
        return {'loss': self.loss(logits, target, self.criterion), 'output': logits.mean(1)}


def make_learner(model: nn.Module, by_step: bool) -> nn.Module:
    """The model, or with `by_step` one that answers at every time step. Raises: UserError if it has none."""
    if not by_step:
        return model
    with one_line_errors('set up the loss at every time step'):
        return StepLogits(model)


def make_task(
    learner: nn.Module,
    criterion: nn.Module,
    device: torch.device,
    *,
    loss: str | None = None,
    tet: float | None = None,
    teacher: str | None = None,
    teacher_checkpoint: Path | None = None,
    teacher_temperature: float = 1.0,
    task_weight: float = 0.5,
) -> TrainingTask:
    """The task by its options: `loss` in LOSSES, or 'tet' with this weight, or a teacher by name, or the labels alone.

    The first two want a learner that answers at every time step.
    """
    if tet is not None:
        return StepTask(learner, criterion, partial(temporal_efficient_training, weight=tet))
    if loss is not None:
        if loss not in LOSSES:
            raise UserError(f'there is no loss {loss!r}: use one of {", ".join(LOSSES)}')
        return StepTask(learner, criterion, LOSSES[loss])
    if teacher is None:
        return ClassificationTask(learner, criterion, verbose=False)
    with one_line_errors(f'create the teacher {teacher!r}'):
        task = LogitDistillationTask(
            learner,
            teacher,
            criterion,
            teacher_pretrained_path=str(teacher_checkpoint) if teacher_checkpoint else None,
            task_loss_weight=task_weight,
            temperature=teacher_temperature,
            device=device,
            verbose=False,
        )
    task.teacher.requires_grad_(False)
    return task
