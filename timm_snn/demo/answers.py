"""What a model does with one picture or recording, step by step: evidence, spikes, energy, where it could stop."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

import timm_snn

from ..profiling import CONVENTIONS, Report
from ..profiling.pictures import profile_steps
from ..training.errors import UserError
from ..training.evaluation import running_logits
from ..training.models import early_exits

__all__ = ['Answer', 'Stage', 'play', 'watch']


@dataclass(frozen=True)
class Stage:
    """A stage of the model, and where in its maps the neurons fired."""

    name: str
    neurons: int
    rates: Tensor  # [T, H, W], of the neurons at a place the share that fires at a step


@dataclass(frozen=True)
class Answer:
    """What `watch` found. Steps count from 1."""

    probabilities: Tensor  # [T, classes], by the mean of the logits of the first 1 to T steps
    stages: list[Stage]
    reports: dict[int, Report]  # of the first so many steps, for all after which the model can stop

    @property
    def num_steps(self) -> int:
        return len(self.probabilities)

    @property
    def report(self) -> Report:
        """Of all steps."""
        return self.reports[self.num_steps]

    def guess(self, step: int) -> int:
        """The class after so many steps."""
        return int(self.probabilities[step - 1].argmax())

    def confidence(self, step: int) -> float:
        """The probability of the likeliest class less that of the next."""
        best = self.probabilities[step - 1].topk(min(2, self.probabilities.shape[1])).values.tolist()
        return best[0] - sum(best[1:])

    def decided(self) -> int:
        """The step from which on the class is the last one."""
        others = [t for t in range(1, self.num_steps) if self.guess(t) != self.guess(self.num_steps)]
        return max(others, default=0) + 1

    def stop(self, threshold: float) -> int:
        """The step after which the model stops that waits for this confidence; the last one if it never comes."""
        return next((step for step in self.reports if self.confidence(step) >= threshold), self.num_steps)

    def saved(self, step: int) -> list[float]:
        """Of the energy of all steps, the shares that stopping after this one saves, by the conventions A, B and C."""
        return [1 - self.reports[step].energy[name].mj / self.report.energy[name].mj for name in CONVENTIONS]


@torch.no_grad()
def watch(model: nn.Module, x: Tensor) -> Answer:
    """The answer to one image [C, H, W] or the frames [T, C, H, W] of a recording, by a model in eval mode.

    Raises: UserError for an answer that is not finite.
    """
    batch = x.unsqueeze(0)
    with timm_snn.record(model) as recording:
        probabilities = running_logits(model, batch)[0].softmax(1)
    if not probabilities.isfinite().all():
        raise UserError('the model answers with numbers that are not finite: its weights are of a training that failed')
    reports = {
        step: profile_steps(model, batch[:, :step] if x.ndim == 4 else batch, [step], progress=False)[0]
        for step in early_exits(model)
    }
    return Answer(probabilities, stages_of(dict(recording.spikes)), reports)


def stages_of(spikes: dict[str, Tensor]) -> list[Stage]:
    """The stages of neurons in maps [T, B, C, H, W], by the first parts of their names; of the first sample.

    Attention sees tokens and heads, which are no maps, and is left out. Smaller maps of a stage are enlarged.
    """
    maps: dict[str, list[Tensor]] = {}
    for name, fired in spikes.items():
        if fired.ndim == 5 and '.attn_lif' not in name:
            first, second = [*name.split('.'), ''][:2]
            maps.setdefault(f'stage {second}' if second.isdigit() else first, []).append(fired[:, 0].ne(0).float())
    stages = []
    for name, of_stage in maps.items():
        size = max((fired.shape[-2:] for fired in of_stage), key=lambda size: size.numel())
        channels = sum(fired.shape[1] for fired in of_stage)
        rates = sum(interpolate(fired.sum(1, keepdim=True), size)[:, 0] for fired in of_stage) / channels
        stages.append(Stage(name, sum(fired[0].numel() for fired in of_stage), torch.as_tensor(rates)))
    return stages


def play(model: nn.Module, frames: Tensor) -> Iterator[Tensor]:
    """The probabilities after each of the frames [T, C, H, W], which the model sees one by one as they come.

    Raises: ValueError for a model that cannot be streamed.
    """
    stream = timm_snn.stream(model)
    for frame in frames:
        yield stream(frame.unsqueeze(0))[0].float().softmax(0)
