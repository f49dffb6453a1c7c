"""What a model is trained to do, as timm's tasks: the labels alone, at every time step, or with a teacher."""

from pathlib import Path
from typing import Any

import torch
from timm.task import ClassificationTask, LogitDistillationTask, TrainingTask
from torch import Tensor, nn

from .errors import one_line_errors

__all__ = ['StepLogits', 'make_task']


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
    """Temporal efficient training (arXiv 2202.11946, Eq. 10 to 12): the mean over time steps of the loss at each.

    (1 - weight) * loss + weight * mean((logits - 1)^2), as the logits are pulled to the threshold, 1.
    """

    def __init__(self, model: nn.Module, criterion: nn.Module, weight: float) -> None:
        super().__init__(model, criterion, verbose=False)
        self.weight = weight

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        logits = self.trainable_module(input)
        loss = self.criterion(logits.flatten(0, 1), target.repeat_interleave(logits.shape[1], 0))
        loss = (1 - self.weight) * loss + self.weight * (logits - 1).square().mean()
        return {'loss': loss, 'output': logits.mean(1)}


def make_task(
    model: nn.Module,
    criterion: nn.Module,
    device: torch.device,
    *,
    tet: float | None = None,
    teacher: str | None = None,
    teacher_checkpoint: Path | None = None,
    teacher_temperature: float = 1.0,
    task_weight: float = 0.5,
) -> TrainingTask:
    """The task by its options: `tet` of a StepLogits model, or the name of a teacher, or the labels alone."""
    if tet is not None:
        return StepTask(model, criterion, tet)
    if teacher is None:
        return ClassificationTask(model, criterion, verbose=False)
    with one_line_errors(f'create the teacher {teacher!r}'):
        task = LogitDistillationTask(
            model,
            teacher,
            criterion,
            teacher_pretrained_path=teacher_checkpoint and str(teacher_checkpoint),
            task_loss_weight=task_weight,
            temperature=teacher_temperature,
            device=device,
            verbose=False,
        )
    task.teacher.requires_grad_(False)
    return task
