"""What the host has to know of the updates of a run, and when it asks the device for it."""

import math
import time
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from timm.optim import Muon
from torch import Tensor, nn

from .checkpoints import Checkpoints
from .progress import StopSignal

__all__ = ['Watch', 'can_defer']

LOSS, HITS, NORM, STOP, SECONDS = range(5)  # of an update, as sums over processes
PATIENCE = 2.0  # seconds for which a signal to stop waits until the host looks, if an update is not longer
FINITE = 'gradients that are finite'
CAN_SKIP = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)  # an update, by themselves
NEEDS_NO_HOST = (*CAN_SKIP, Muon)


def can_defer(accelerator: Accelerator, optimizer: torch.optim.Optimizer) -> bool:
    """True if updates can follow each other without the host: on a GPU, where waiting costs, with these optimizers.

    FSDP spreads what would be looked at, and a scaler has its own idea of what is left out.
    """
    is_whole = accelerator.distributed_type != DistributedType.FSDP and accelerator.scaler is None
    return accelerator.device.type == 'cuda' and is_whole and type(optimizer) in NEEDS_NO_HOST


class Watch:
    """Numbers of the updates since the last look, and the look at them, which waits for the device.

    Where it `defers` (see `can_defer`), updates follow each other without a look. The device itself notes the first
    loss or gradient that is not finite. From that update on a fused optimizer changes neither weights nor its state; of
    others, weights and state before it are kept. What `Checkpoints.fail` needs of that update is kept until the look
    finds it. Elsewhere the host reads the numbers of every update before the optimizer goes on.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        prepared: nn.Module,
        optimizer: torch.optim.Optimizer,
        checkpoints: Checkpoints,
        stop: StopSignal,
        samples: int,
    ) -> None:
        self.accelerator, self.optimizer = accelerator, optimizer
        self.model, self.prepared = model, prepared  # the same parameters, for one process and for all
        self.checkpoints, self.progress, self.stop = checkpoints, checkpoints.progress, stop
        self.samples = samples  # of an update
        self.numbers = torch.zeros(5, dtype=torch.float64, device=accelerator.device)
        self.failed = torch.zeros((), device=accelerator.device)  # 1 from the first update that is not finite
        self.interval = 1  # updates from look to look
        self.loss = self.gradient_norm = math.nan  # of the last update that was looked at
        self._pending: list[Any] = []  # numbers of the updates since the last look: tensors, or lists if read already
        self._kept: dict[str, Tensor] = {}  # of the first update that is not finite, or else of the last one
        self._names: list[str] = []  # of the parameters with gradients
        self._last_look = time.perf_counter()
        self._seconds = 0.0  # of an update up to the last look, the waiting included; 0 is not known yet
        self.defers = False  # not in the first update, in which the optimizer makes its state
        self._will_defer = can_defer(accelerator, optimizer)
        if type(optimizer) in NEEDS_NO_HOST:
            keep_on_device(optimizer, accelerator.device, self._will_defer)

    @property
    def updates(self) -> int:
        """How many were made since the last look."""
        return len(self._pending)

    @property
    def is_due(self) -> bool:
        return self.updates >= self.interval

    def tell(self) -> None:
        """Give the device the numbers that the host knows, for the next update."""
        self.numbers[STOP].fill_(float(self.stop.came))
        self.numbers[SECONDS].fill_(self._seconds)

    def begin(self) -> None:
        self.numbers[: NORM + 1].zero_()
        self.checkpoints.keep_buffers(self.prepared, self.failed > 0 if self.defers else None)

    def add(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Add the loss and the hits of a batch."""
        labels = targets.argmax(1) if targets.ndim == 2 else targets  # of mixed samples
        self.add_loss(loss, len(logits))
        self.numbers[HITS] += (logits.argmax(1) == labels).sum()

    def add_loss(self, loss: Tensor, samples: int) -> None:
        self.numbers[LOSS] += loss.detach() * samples

    def clip(self, max_norm: float, batch: dict[str, Tensor]) -> None:
        """Clip the gradients and judge them, before the optimizer goes on. `batch` is the last one.

        Raises: UserError if loss or gradients are not finite; where it defers, the next look does.
        """
        if self.defers:  # before clipping, which makes NaN of all
            gradients = self._gradients()
            self._names = list(gradients)
            largest = torch._foreach_norm(list(gradients.values()), math.inf)
            batch = batch | {FINITE: torch.stack(largest).isfinite()}
        self.numbers[NORM] = self._clipped(max_norm)
        self.numbers.copy_(self.accelerator.reduce(self.numbers))
        if self.defers:
            had_failed = self.failed > 0
            for name, tensor in batch.items():
                kept = self._kept.get(name)
                if kept is None or kept.shape != tensor.shape:  # the size of the images may change between epochs
                    kept = self._kept[name] = torch.zeros_like(tensor)
                kept.copy_(torch.where(had_failed, kept, tensor.detach()))
            self.failed.copy_(had_failed | ~(self.numbers[LOSS] + self.numbers[NORM]).isfinite())
        else:
            self.row = self.numbers.tolist()
            if not math.isfinite(self.row[LOSS]) or not (math.isfinite(self.row[NORM]) or self._tries_again()):
                self._fail(self.row, batch)

    def _clipped(self, max_norm: float) -> Any:
        """The norm of the gradients before they are clipped; where they are not, it is all that is computed."""
        if math.isinf(max_norm) and self.accelerator.distributed_type != DistributedType.FSDP:
            self.accelerator.unscale_gradients()
            return torch.stack(torch._foreach_norm(list(self._gradients().values()))).norm()
        norm = self.accelerator.clip_grad_norm_(self.prepared.parameters(), max_norm)
        return norm.full_tensor() if hasattr(norm, 'full_tensor') else norm  # of what FSDP spreads

    def _tries_again(self) -> bool:
        """True if a scaler halves the gradients, which are too large for float16, and skips this update."""
        scaler = self.accelerator.scaler
        return scaler is not None and scaler.get_scale() >= 1

    def end(self) -> None:
        """Count the update."""
        self._pending.append(self.numbers.clone() if self.defers else self.row)
        if self._will_defer and not self.defers:
            self.defers = True
            if type(self.optimizer) in CAN_SKIP:
                self.optimizer.found_inf = self.failed  # type: ignore[attr-defined]
            else:
                self.checkpoints.keep_too(changed_by(self.optimizer))

    def look(self) -> bool:
        """Wait for the updates since the last look and add them to the progress. Returns whether to stop.

        All processes look after the same updates and find the same. Raises: UserError for one that was not finite.
        """
        late = [row for row in self._pending if isinstance(row, Tensor)]
        early = self._pending[: len(self._pending) - len(late)]  # judged already
        rows = early + (torch.stack(late).tolist() if late else [])
        self._pending = []
        for number, row in enumerate(rows):
            if number >= len(early) and not (math.isfinite(row[LOSS]) and math.isfinite(row[NORM])):
                self._fail(row, self._kept)
            self.progress.add_update(row[LOSS], row[HITS], self.samples)
        self.loss, self.gradient_norm = row[LOSS] / self.samples, row[NORM] / self.accelerator.num_processes
        now = time.perf_counter()
        self._seconds, self._last_look = (now - self._last_look) / len(rows), now
        seconds = row[SECONDS] / self.accelerator.num_processes  # of the look before, for all processes must agree
        self.interval = max(1, int(PATIENCE / seconds)) if self.defers and seconds else 1
        return row[STOP] > 0

    def _gradients(self) -> dict[str, Tensor]:
        return {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}

    def _fail(self, row: list[float], batch: dict[str, Tensor]) -> None:
        if FINITE in batch:
            are_finite = dict(zip(self._names, batch.pop(FINITE).tolist(), strict=True))
        else:
            are_finite = {name: bool(gradient.isfinite().all()) for name, gradient in self._gradients().items()}
        broken = [name for name, is_finite in are_finite.items() if not is_finite]
        norm = row[NORM] / self.accelerator.num_processes
        self.checkpoints.fail(self.model, batch, row[LOSS] / self.samples, norm, broken)


def changed_by(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The weights and the state of an optimizer that has made an update."""
    weights = [weight.detach() for group in optimizer.param_groups for weight in group['params']]
    return weights + [x for state in optimizer.state.values() for x in state.values() if isinstance(x, Tensor)]


def keep_on_device(optimizer: torch.optim.Optimizer, device: torch.device, on: bool) -> None:
    """Let an optimizer run without the host or not, whatever the checkpoint that it was loaded from says."""
    option, off = ('fused', None) if type(optimizer) in CAN_SKIP else ('capturable', False)
    for group in optimizer.param_groups:
        group[option] = on or off
    for state in optimizer.state.values():
        if on and 'step' in state:
            state['step'] = state['step'].to(device, torch.float32)
