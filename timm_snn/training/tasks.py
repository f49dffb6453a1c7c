"""Losses, and what a model is trained to do, as timm's tasks.

Losses of logits, of a teacher, of spikes and of membranes are functions; they add up as one writes it:

    with timm_snn.record(model, membranes=True) as r:
        logits = model.forward_steps(images)  # [B, T, classes]
    loss = temporal_efficient_training(logits, labels, criterion) + 0.5 * firing_rate_loss(r.spikes, target=0.1)
    loss = loss + 0.01 * membrane_loss(r.membranes)

`recipes/train.py` makes one task of its options by `make_task`. A new loss of the labels is one function of the logits
of every time step and its row in LOSSES; a config names it, `loss: NAME`. Anything else is a task of one's own,
`--task my_package:MyTask`: a class, or another callable, that is called as `MyTask(model, criterion, **task_kwargs)`
and makes a `timm.task.TrainingTask`, most simply a subclass of `timm.task.ClassificationTask`:

    class MyTask(ClassificationTask):
        by_step = False  # True: the model answers with the logits of every time step, [B, T, classes]

        def __init__(self, model, criterion, weight=0.01):
            super().__init__(model, criterion)
            self.weight = weight

        def forward(self, input, target):
            with timm_snn.record(self.trainable_module, membranes=True) as r:
                logits = self.trainable_module(input)
            loss = self.criterion(logits, target) + self.weight * membrane_loss(r.membranes)
            return {'loss': loss, 'output': logits}  # what is differentiated, and logits [B, classes] to count hits

The model is called once in an update, since DistributedDataParallel wants it so; `criterion` is the cross-entropy of
the run, for targets [B] or, where samples are mixed, [B, classes].
"""

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.task import ClassificationTask, LogitDistillationTask, TrainingTask
from torch import Tensor, nn

from ..ops.neuron import membrane_dtype
from ..profiling import record
from .errors import UserError, one_line_errors
from .imports import import_own

__all__ = [
    'LOSSES',
    'FiringRateTask',
    'StepDistillationTask',
    'StepLogits',
    'StepTask',
    'answers_by_step',
    'distillation',
    'find_task',
    'firing_rate_loss',
    'make_learner',
    'make_task',
    'membrane_loss',
    'temporal_efficient_training',
]

Criterion = Callable[[Tensor, Tensor], Tensor]
StepLoss = Callable[[Tensor, Tensor, Criterion], Tensor]
Targets = float | Mapping[str, float]


def temporal_efficient_training(logits: Tensor, target: Tensor, criterion: Criterion, weight: float = 0.05) -> Tensor:
    """(1 - weight) * loss + weight * mean((logits - 1)^2): the mean over time steps of the loss at each.

    The second term pulls the logits to the threshold, 1.
    Shape: logits [B, T, classes], target [B] or [B, classes] -> [].  Source: arXiv 2202.11946, Eq. 10 to 12.
    """
    loss = criterion(logits.reshape(-1, logits.shape[-1]), target.repeat_interleave(logits.shape[1], 0))
    return (1 - weight) * loss + weight * (logits - 1).square().mean()


def distillation(logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence from the teacher's classes to the model's, times temperature^2.

    With logits of every time step it is the mean over the steps, each of which learns from the same teacher (arXiv
    2501.15925). Shape: logits [B, classes] or [B, T, classes], teacher_logits [B, classes] -> [].
    """
    if logits.ndim == 3:
        teacher_logits = teacher_logits.repeat_interleave(logits.shape[1], 0)
        logits = logits.reshape(-1, logits.shape[-1])
    ours, taught = (F.log_softmax(x / temperature, -1) for x in (logits, teacher_logits))
    return F.kl_div(ours, taught, reduction='batchmean', log_target=True) * temperature**2


def firing_rate_loss(spikes: Mapping[str, Tensor], target: Targets = 0.0) -> Tensor:
    """mean((rate - target)^2) over layers: a rate is the mean of a layer's spikes, over neurons, steps and samples.

    All layers count the same, however many neurons they have. `target` is one rate, or rates by patterns of names as
    the shell's, `{'stem.*': 0.2, '*': 0.05}`: the first that matches is a layer's, and layers that none matches are
    left alone. Shape: `spikes` of `timm_snn.record`, by name [T, B, ...] -> [].
    Raises: ValueError where there are no spikes, and for a pattern that no layer matches first.
    """
    if not spikes:
        raise ValueError('there are no spikes: record a model whose neurons are known, or register them')
    patterns = target if isinstance(target, Mapping) else {'*': target}
    matched = {name: next((p for p in patterns if fnmatchcase(name, p)), None) for name in spikes}
    if idle := [pattern for pattern in patterns if pattern not in matched.values()]:
        raise ValueError(f'no layer is left for the target of {idle[0]!r}; there are {", ".join(spikes)}')
    rates = {name: spikes[name].mean(dtype=membrane_dtype(spikes[name].dtype)) for name, p in matched.items() if p}
    return torch.stack([(rate - patterns[matched[name]]).square() for name, rate in rates.items()]).mean()  # type: ignore[index]


def membrane_loss(membranes: Mapping[str, Tensor], low: float = -1.0, high: float = 2.0) -> Tensor:
    """The mean squared distance of membranes to the interval from `low` to `high`, averaged over layers.

    A membrane far from its threshold has a surrogate gradient of next to nothing. With a threshold of 1 the defaults
    are twice as wide on either side of it. Shape: `membranes` of `timm_snn.record`, by name [T, B, ...] -> [].
    Raises: ValueError where there are none.
    """
    if not membranes:
        raise ValueError('there are no membranes: record(model, membranes=True) has those of LIF neurons')
    outside = [F.relu(v - high) + F.relu(low - v) for v in membranes.values()]
    return torch.stack([x.square().mean() for x in outside]).mean()


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


class StepDistillationTask(LogitDistillationTask):
    """A loss of the logits of every time step, and a teacher for each of them. Takes timm's arguments besides."""

    def __init__(self, model: nn.Module, teacher: Any, criterion: nn.Module, loss: StepLoss, **settings: Any) -> None:
        super().__init__(model, teacher, criterion, **settings)
        self.loss = loss

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        logits = self.trainable_module(input)
        with torch.no_grad():
            statistics: Any = (self.student_mean, self.student_std)
            taught = self.teacher(self.teacher.normalize_input(input, *statistics))
        task_loss = self.loss(logits, target, self.criterion)
        kd_loss = distillation(logits, taught, self.temperature)
        loss = self.task_loss_weight * task_loss + self.distill_loss_weight * kd_loss
        return {'loss': loss, 'output': logits.mean(1), 'task_loss': task_loss, 'kd_loss': kd_loss}


class FiringRateTask(TrainingTask):
    """Another task, and `weight` times the `firing_rate_loss` of the model that it trains."""

    def __init__(self, task: TrainingTask, weight: float, target: Targets = 0.0) -> None:
        super().__init__(task.device, task.dtype, verbose=False)
        self.task, self.weight, self.target = task, weight, target

    @property
    def trainable_module(self) -> Any:
        return self.task.get_trainable_module()

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        with record(self.trainable_module) as recorded:
            result = self.task(input, target)
        with one_line_errors('regularise firing rates'):
            rate_loss = firing_rate_loss(recorded.spikes, self.target)
        return {**result, 'loss': result['loss'] + self.weight * rate_loss, 'rate_loss': rate_loss}


def find_task(path: str) -> Callable[..., Any]:
    """What 'my_package:MyTask', or 'my_file.py:MyTask', names.

    Raises: UserError if it is not there; what its module raises passes as it is.
    """
    name, _, attribute = path.rpartition(':')
    if not name or not attribute:
        raise UserError(f'--task {path}: expected PACKAGE:NAME, such as my_package:MyTask')
    found = import_own(name, '--task')
    if not callable(task := getattr(found, attribute, None)):
        raise UserError(f'--task {path}: {found.__file__} has no class {attribute!r}')
    return task


def make_learner(model: nn.Module, by_step: bool) -> nn.Module:
    """The model, or with `by_step` one that answers at every time step. Raises: UserError if it has none."""
    if not by_step:
        return model
    with one_line_errors('set up the loss at every time step'):
        return StepLogits(model)


def answers_by_step(*, loss: str | None, tet: float | None, task: str | None, **_: Any) -> bool:
    """Whether the task of these options wants the logits of every time step."""
    return getattr(find_task(task), 'by_step', False) if task else loss is not None or tet is not None


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
    task: str | None = None,
    task_kwargs: Mapping[str, Any] | None = None,
    rate_weight: float = 0.0,
    rate_target: Targets = 0.0,
) -> TrainingTask:
    """The task by its options.

    That is `task`, 'my_package:MyTask', or the loss of the labels: `loss` in LOSSES, or 'tet' with this weight, or
    plain; with a teacher by name, and with a target of firing rates. For a loss of every time step, and where
    `answers_by_step` says so, the learner answers at every time step.
    """
    if task is not None:
        with one_line_errors(f'make the task {task!r}', 'it is called as MyTask(model, criterion, **task_kwargs)'):
            made = find_task(task)(learner, criterion, **(task_kwargs or {}))
        if not isinstance(made, TrainingTask):
            raise UserError(f'--task {task}: expected a timm.task.TrainingTask, got {type(made).__name__}')
        made = made.to(device)
    else:
        step_loss = _step_loss(loss, tet)
        if teacher is not None:
            settings = dict(
                teacher_pretrained_path=str(teacher_checkpoint) if teacher_checkpoint else None,
                task_loss_weight=task_weight,
                temperature=teacher_temperature,
                device=device,
                verbose=False,
            )
            with one_line_errors(f'create the teacher {teacher!r}'):
                made = _with_teacher(learner, teacher, criterion, step_loss, settings)
        elif step_loss is not None:
            made = StepTask(learner, criterion, step_loss)
        else:
            made = ClassificationTask(learner, criterion, verbose=False)
    return FiringRateTask(made, rate_weight, rate_target) if rate_weight else made


def _step_loss(loss: str | None, tet: float | None) -> StepLoss | None:
    if tet is not None:
        return partial(temporal_efficient_training, weight=tet)
    if loss is not None and loss not in LOSSES:
        raise UserError(f'there is no loss {loss!r}: use one of {", ".join(LOSSES)}')
    return None if loss is None else LOSSES[loss]


def _with_teacher(
    learner: nn.Module, teacher: str, criterion: nn.Module, step_loss: StepLoss | None, settings: dict[str, Any]
) -> LogitDistillationTask:
    if step_loss is None:
        task = LogitDistillationTask(learner, teacher, criterion, **settings)
    else:
        task = StepDistillationTask(learner, teacher, criterion, step_loss, **settings)
    task.teacher.requires_grad_(False)
    return task
