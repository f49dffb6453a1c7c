"""Models on labelled data: means over all processes while one is trained, or the outcome of every sample."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import timm_snn

from ..files import printable
from ..progress import track
from .data import Samples, UnreadableSample, make_transform
from .models import input_config
from .progress import StopSignal

_logger = logging.getLogger(__name__)

__all__ = [
    'averaged_weights',
    'by_class',
    'by_sample',
    'evaluate',
    'mean_metrics',
    'predict_first',
    'summarize',
]


@torch.inference_mode()
def mean_metrics(
    learner: nn.Module,
    loader: Iterable[Any],
    accelerator: Accelerator,
    stop: StopSignal,
    watched: Any = None,
    first: Callable[[str], AbstractContextManager[Any]] = nullcontext,
) -> dict[str, float]:
    """Mean loss and top-1 accuracy in percent over every sample once, however many processes share them.

    The firing rates by stage over the first batch are added for a model to be watched. Ends early when told to stop,
    and for a sample that cannot be read or has no finite logits, which the other processes learn of through `stop`;
    what it returns is then no result. Each forward pass is made inside first('evaluation').
    """
    learner.eval()
    losses: list[Tensor] = []
    hits: list[Tensor] = []
    flaws: list[Tensor] = []
    answer: Tensor | None = None
    differ = torch.zeros((), dtype=torch.bool, device=accelerator.device)  # whether two samples get two answers
    rates: dict[str, float] = {}
    total = len(loader) if isinstance(loader, Sized) else None
    with closing(stop.readable(loader)) as batches:  # ends the processes that load data
        for images, labels in track(batches, 'validate', total, unit='batches'):
            if stop.came_to(accelerator):
                return {}
            with first('evaluation'):
                logits = learner(images)
            if logits.ndim == 3:  # of every time step
                logits = logits.mean(1)
            flaw = flaws_of(images, logits)
            if watched and not losses and not flaw.any():
                stages = timm_snn.profile(watched, images, progress=False).stages
                rates = {f'rate_{stage.name}': stage.firing_rate for stage in stages if stage.firing_rate is not None}
            answer = logits[:1] if answer is None else answer
            differ |= (logits != answer).any()
            loss = cross_entropy(logits, labels, reduction='none')
            measured = loss, logits.argmax(1) == labels, flaw
            loss, hit, flaw = accelerator.gather_for_metrics(measured)  # in the order of the samples
            losses.append(loss)
            hits.append(hit)
            flaws.append(flaw)
    if stop.came_to(accelerator):
        return {}
    if wrong := describe_first(torch.cat(flaws), getattr(loader, 'dataset', None)):
        stop.unreadable = UnreadableSample(wrong)
        return {}
    loss, hit = torch.cat(losses).cpu().double(), torch.cat(hits).cpu().double()
    if len(loss) > 1 and not differ and accelerator.is_main_process:
        _logger.warning(
            'note: the network gives the same answer to every sample. In eval mode, with the running statistics of its '
            'batch norms, its last neurons are silent or always fire: look at the rates in summary.csv, train for '
            'longer, or check the learning rate and --mean and --std'
        )
    return {'loss': loss.mean().item(), 'top1': 100 * hit.mean().item(), **rates}


@contextmanager
def averaged_weights(model: nn.Module, ema: ModelEmaV3) -> Iterator[None]:
    """The model has the averaged weights inside, in the same tensors: what wraps or compiled it need not know."""
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(ema.module.state_dict())
    yield
    model.load_state_dict(weights)


def predict_first(folder: Path, samples: Samples, is_events: bool) -> str:
    """The answer of a saved model, loaded as a user would, to the first sample, in words."""
    model: Any = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    transform = make_transform(input_config(model, is_events), is_events)
    image, label = Samples(samples.source, samples.indices, transform)[0]
    with torch.inference_mode():
        probabilities = model(image.unsqueeze(0)).softmax(1)[0]
    names = model.pretrained_cfg.get('label_names') or range(model.num_classes)
    guess = int(probabilities.argmax())
    return f'validation sample 0 is {names[guess]!r} with {probabilities[guess]:.1%}, its label is {names[label]!r}'


@torch.inference_mode()
def evaluate(
    model: Any,
    loader: Iterable[Any],
    *,
    numbers: list[int] | None = None,
    amp: torch.dtype | None = None,
    channels_last: bool = False,
) -> dict[str, Tensor]:
    """The outcome of every sample, in the order of the loader.

    `numbers` translates its labels into the model's. Returns label, prediction and probability [N], and for 1 to T
    steps loss, top1 and top5 [N, T]. Raises: ValueError for labels out of range, and for the first sample whose pixels
    or logits are not finite.
    """
    device = next(model.parameters()).device
    table = None if numbers is None else torch.tensor(numbers)
    parts: list[dict[str, Tensor]] = []
    seen = 0
    for images, labels in track(loader, 'validate', unit='batches'):
        labels = check_labels(labels, model.num_classes if table is None else len(table))
        labels = (labels if table is None else table[labels]).to(device)
        images = images.to(device)
        if channels_last and images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype=amp, enabled=amp is not None):
            logits = running_logits(model, images)
        if wrong := describe_first(flaws_of(images, logits), getattr(loader, 'dataset', None), seen):
            raise ValueError(wrong)
        seen += len(labels)
        probability, prediction = logits[:, -1].softmax(1).max(1)
        top5 = logits.topk(min(5, model.num_classes), dim=2).indices
        losses = cross_entropy(logits.transpose(1, 2), labels[:, None].expand(-1, logits.shape[1]), reduction='none')
        part = {
            'label': labels,
            'prediction': prediction,
            'probability': probability,
            'loss': losses.double(),
            'top1': logits.argmax(2) == labels[:, None],
            'top5': (top5 == labels[:, None, None]).any(2),
        }
        parts.append({key: value.cpu() for key, value in part.items()})
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def flaws_of(images: Tensor, logits: Tensor) -> Tensor:
    """Of each sample: 2 if a pixel is not finite, 1 if only a logit is not, 0 if all are."""
    pixels, answers = (tensor.flatten(1).isfinite().all(1) for tensor in (images, logits))
    return torch.where(pixels, (~answers).long(), 2)


def describe_first(flaws: Tensor, samples: Any, offset: int = 0) -> str | None:
    """The first sample with a flaw, in words, of those from `offset` on; None if there is none."""
    found = flaws.nonzero().flatten().tolist()
    if not found:
        return None
    number = offset + found[0]
    name = printable(samples.name(number), 500) if isinstance(samples, Samples) else number
    has_bad_pixels = flaws[found[0]] == 2
    others = f', and {len(found) - 1} more of {len(flaws)}' if len(found) > 1 else ''
    what = 'has pixels that are' if has_bad_pixels else 'gets an answer of the model that is'
    return f'sample {name} {what} not finite (NaN or infinite){others}'


def running_logits(model: Any, images: Tensor) -> Tensor:
    """Answers [B, T, num_classes] after 1 to T time steps; a model without time steps has one."""
    logits = model.forward_steps(images) if hasattr(model, 'forward_steps') else model(images).unsqueeze(1)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    counts = torch.arange(1, logits.shape[1] + 1, device=logits.device)
    return logits.cumsum(1) / counts[:, None]


def check_labels(labels: Any, num_classes: int) -> Tensor:
    """Raises: ValueError if these are not numbers of classes."""
    if not isinstance(labels, Tensor) or labels.ndim != 1 or labels.is_floating_point():
        raise ValueError(f'labels must be whole numbers, one a sample, got {labels!r}: --target-key names their column')
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if len(wrong):
        raise ValueError(
            f'labels must be 0 to {num_classes - 1}, as the model has {num_classes} classes, got {wrong[0]}: it is for '
            'other classes, or the split has no labels'
        )
    return labels


def summarize(outcome: dict[str, Tensor], num_classes: int) -> list[dict[str, Any]]:
    """Accuracies in percent, the counts behind them and the mean loss, after 1 to T steps; top-5 of over 5 classes."""
    rows = []
    total = len(outcome['label'])
    for t in range(outcome['loss'].shape[1]):
        row: dict[str, Any] = {'num_steps': t + 1, 'samples': total}
        for metric in ('top1', 'top5') if num_classes > 5 else ('top1',):
            correct = int(outcome[metric][:, t].sum())
            row |= {metric: 100 * correct / total, f'{metric}_correct': correct}
        rows.append(row | {'loss': outcome['loss'][:, t].mean().item()})
    return rows


def by_class(outcome: dict[str, Tensor], names: Sequence[str]) -> list[dict[str, Any]]:
    """Samples, hits and accuracy of every class; one that the data lacks has no accuracy."""
    label, hit = outcome['label'], outcome['top1'][:, -1]
    totals = label.bincount(minlength=len(names)).tolist()
    hits = label[hit].bincount(minlength=len(names)).tolist()
    return [
        {'class': i, 'name': name, 'samples': n, 'top1_correct': k, 'top1': 100 * k / n if n else None}
        for i, (name, n, k) in enumerate(zip(names, totals, hits, strict=True))
    ]


def by_sample(outcome: dict[str, Tensor], samples: Samples, names: Sequence[str]) -> list[dict[str, Any]]:
    """The label and the answer of every sample, with its name."""
    columns = [outcome[key].tolist() for key in ('label', 'prediction', 'probability')]
    return [
        {
            'sample': samples.name(i),
            'class': label,
            'name': names[label],
            'predicted_class': guess,
            'predicted_name': names[guess],
            'probability': probability,
        }
        for i, (label, guess, probability) in enumerate(zip(*columns, strict=True))
    ]
