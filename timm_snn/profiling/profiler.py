"""`profile`: a model and real data in, a `Report` out."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from timm.data import create_transform, resolve_input_data_config
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from ..layers.fixed import FixedConv
from ..progress import bar
from ..wrappers import unwrapped
from .energy import AC_PJ, INT8_AC_PJ, INT8_MAC_PJ, MAC_PJ
from .recorder import Recorder
from .report import Report
from .summary import summarize

__all__ = ['batches', 'eager', 'profile']


def profile(
    model: nn.Module,
    data: Any,
    *,
    num_samples: int | None = None,
    batch_size: int = 32,
    num_steps: int | None = None,
    mac_pj: float | None = None,
    ac_pj: float | None = None,
    progress: bool = True,
    model_name: str | None = None,
    data_name: str | None = None,
) -> Report:
    """Firing rates, synaptic operations, memory and energy estimates of a model on data, by layer and stage.

    Works on any model, spiking or not, fused or not, with any backend; nothing in it changes and no hook stays. A
    network that keeps membranes between calls is at rest before every batch, and has its own back in the end.

    Args:
        model: Runs in eval mode, eagerly, without gradients, on its own device. Of a model from `torch.compile` the
            module that was compiled runs, of one in DistributedDataParallel, an average of weights or transformers'
            wrapper the model inside; scripted ones cannot be watched and are refused.
        data: Images [B, C, H, W] or frames [B, T, C, H, W]; or batches of them, as a data loader gives: tensors, tuples
            (images, labels, ...) or dicts with 'image' and perhaps 'label'; or a data set, timm's or torch's, whose
            images get the model's own evaluation transform where they are not tensors yet. With labels the report has
            the top-1 accuracy.
        num_samples: Stop after so many; None takes all.
        batch_size: For data sets. No number in the report depends on it.
        num_steps: T, for networks whose neurons are not known; else it is measured, and compared with this. Those known
            are ours, `timm_snn.lif`, SpikingJelly's, snnTorch's and modules that say they have a `v_threshold`.
        mac_pj: Price of a multiply-accumulate in pJ; None for 4.6, or 0.23 in a network that `timm_snn.quantize` made.
        ac_pj: Price of an accumulate in pJ; None for 0.9, or 0.03. These are 32-bit floats at 45 nm (Horowitz, ISSCC
            2014), and 8-bit integers (SpikingJelly 2.0).
        progress: Whether to show on stderr how far it is: a bar on a terminal, else a line now and then.
        model_name: For the report; by default the name and tag timm knows it by, or its class, and if it is quantised.
        data_name: For the report: say data set and split.

    What is counted is defined in `timm_snn.profiling.counts`, the conventions A, B and C in `.energy` beside it.
    All counts are means per sample; intervals are 95 % for the mean over samples, by the normal approximation.
    Raises: ValueError for data and models that cannot be profiled, and where T cannot be measured or is another one.
    """
    model = eager(model)
    is_fixed = any(isinstance(module, FixedConv) for module in model.modules())
    if mac_pj is None:
        mac_pj = INT8_MAC_PJ if is_fixed else MAC_PJ
    if ac_pj is None:
        ac_pj = INT8_AC_PJ if is_fixed else AC_PJ
    if not (mac_pj >= 0 and ac_pj >= 0):
        raise ValueError(f'expected prices of at least 0 pJ, got mac_pj={mac_pj}, ac_pj={ac_pj}')
    if num_samples is not None and num_samples < 1:
        raise ValueError(f'num_samples must be at least 1, or None for all, got {num_samples}')
    if num_steps is not None and (type(num_steps) is not int or num_steps < 1):
        raise ValueError(f'num_steps must be a whole number of at least 1, or None to measure it, got {num_steps!r}')
    hits = labelled = 0
    shape: tuple[int, ...] = ()
    with Recorder(model, num_steps=num_steps) as recorder:
        for images, labels in _with_bar(batches(model, data, batch_size, num_samples), data, num_samples, progress):
            output = recorder.run(images)
            shape = tuple(images.shape[1:])
            if labels is not None and isinstance(output, Tensor) and output.ndim == 2:
                hits += int((output.argmax(1).cpu() == labels.cpu()).sum())
                labelled += len(labels)
    if not recorder.record.batch_sizes:
        raise ValueError('there is nothing to profile on: the data has no samples')
    return summarize(
        recorder,
        mac_pj=mac_pj,
        ac_pj=ac_pj,
        model_name=model_name or _name_of(model) + (', quantised' if is_fixed else ''),
        data_name=data_name or 'unnamed data',
        input_shape=shape,
        top1=100 * hits / labelled if labelled else None,
    )


def eager(model: nn.Module) -> nn.Module:
    """The model inside `torch.compile` and other wrappers. Raises: ValueError for what has no modules to watch."""
    model = unwrapped(model)
    if not isinstance(model, nn.Module):
        raise ValueError(f'expected a model, an nn.Module, got {type(model).__name__}')
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError('a scripted or traced model cannot be watched: profile the model that it was made from')
    return model


def batches(
    model: nn.Module, data: Any, batch_size: int = 32, num_samples: int | None = None
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """(images, labels or None) in the dtype and on the device of the model, at most `num_samples` of them."""
    device = next(model.parameters(), torch.empty(0)).device
    weight = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0, device=device))
    if isinstance(data, (Dataset, IterableDataset)):
        data = DataLoader(data, batch_size, collate_fn=_collate_for(model))
    elif isinstance(data, Tensor) or _is_labelled_batch(data):
        data = [data]
    elif not isinstance(data, Iterable) or isinstance(data, (str, bytes, Mapping)):
        raise ValueError(
            f'expected images, batches of them or a data set, got {type(data).__name__}: '
            'timm.data.create_dataset opens a data set by name'
        )
    left = num_samples
    for batch in data:
        images, labels = _images_and_labels(batch)
        if left is not None:
            images, labels = images[:left], labels if labels is None else labels[:left]
            left -= len(images)
        if len(images):
            yield images.to(weight) if images.is_floating_point() else images.to(weight.device), labels
        if left == 0:
            return


def _is_labelled_batch(data: Any) -> bool:
    return (
        isinstance(data, (tuple, list))
        and len(data) == 2
        and all(isinstance(part, Tensor) for part in data)
        and data[0].ndim >= 4
        and data[1].ndim == 1
    )


def _images_and_labels(batch: Any) -> tuple[Tensor, Tensor | None]:
    if isinstance(batch, Mapping):
        images, labels = batch.get('image'), batch.get('label')
    elif isinstance(batch, (tuple, list)):
        images, labels = (*batch, None, None)[:2]
    else:
        images, labels = batch, None
    if not isinstance(images, Tensor) or images.ndim not in (4, 5):
        found = f'shape {tuple(images.shape)}' if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(
            'expected batches of images [B, C, H, W] or frames [B, T, C, H, W], alone, first in a tuple, or as '
            f"'image' in a dict; got {found}"
        )
    is_label = isinstance(labels, Tensor) and labels.shape == images.shape[:1] and not labels.is_floating_point()
    return images, labels if is_label else None


def _collate_for(model: nn.Module) -> Callable[[list[Any]], Any]:
    """Stack samples; images that are not tensors yet get the transform that the model is evaluated with."""
    transform: Any = None

    def prepare(sample: Any) -> Any:
        nonlocal transform
        if isinstance(sample, Mapping):
            return {key: prepare(value) if key == 'image' else value for key, value in sample.items()}
        if isinstance(sample, tuple):
            return (prepare(sample[0]), *sample[1:])
        if isinstance(sample, Tensor) or not hasattr(sample, 'convert'):
            return sample
        if transform is None:
            transform = create_transform(**resolve_input_data_config(model))
        return transform(sample)

    return lambda samples: default_collate([prepare(sample) for sample in samples])


def _with_bar(steps: Iterator[tuple[Tensor, Any]], data: Any, num_samples: int | None, progress: bool) -> Iterator[Any]:
    known = data.dataset if isinstance(data, DataLoader) else data
    total = len(known) if isinstance(data, (DataLoader, Dataset, Tensor)) and hasattr(known, '__len__') else None
    if num_samples is not None:
        total = num_samples if total is None else min(total, num_samples)
    with bar('profile', total, unit='samples', shown=progress) as shows:
        for images, labels in steps:
            yield images, labels
            shows.update(len(images))


def _name_of(model: nn.Module) -> str:
    cfg: Any = getattr(model, 'pretrained_cfg', None) or {}
    name = cfg.get('architecture') if isinstance(cfg, Mapping) else None
    return '.'.join(filter(None, (name, cfg.get('tag')))) if name else type(model).__name__
