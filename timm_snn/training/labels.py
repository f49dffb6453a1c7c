"""Names of classes: those of a model, and which of them a data set means by its numbers."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.data import CustomDatasetInfo, ImageNetInfo, infer_imagenet_subset
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from ..files import check_regular_file
from .data import Samples, class_names, summary
from .errors import UserError, one_line_errors

__all__ = ['descriptions_of', 'labelled_batches', 'match_labels', 'open_labels', 'renew_classifier']

_logger = logging.getLogger(__name__)


class UnmatchedClasses(UserError):
    """Nobody knows which class of the model a class of the data is."""


def open_labels(model: Any, file: Path | None = None) -> Any:
    """A timm DatasetInfo with the names of the model's classes, or None if nobody knows them.

    In this order: the lines of the file, the names saved with the model, those of ImageNet where it has a subset of as
    many classes.
    """
    cfg: Any = model.pretrained_cfg
    names, descriptions = cfg.get('label_names'), cfg.get('label_descriptions')
    with one_line_errors('name the classes', '--labels takes a file with a name in each line, in the order of classes'):
        if not model.num_classes:
            raise ValueError(f'{cfg["architecture"]} has no classifier')
        if file:
            check_regular_file(file)
            names, descriptions = file.read_text(encoding='utf-8-sig').splitlines(), None
        if names:
            if isinstance(names, dict):
                numbered = {int(number): name for number, name in names.items()}  # JSON makes strings of numbers
                names = [numbered.get(i, str(i)) for i in range(model.num_classes)]
            if len(names) != model.num_classes:
                raise ValueError(f'{file or "the model"} has {len(names)} names for {model.num_classes} classes')
            return CustomDatasetInfo(list(names), descriptions)
        subset = infer_imagenet_subset({'num_classes': model.num_classes})
        return ImageNetInfo(subset) if subset else None


def renew_classifier(model: Any, names: list[str] | None) -> str | None:
    """Give a pretrained model a new classifier if its own, of as many classes, is of others; returns a note.

    names: Of the classes of the data. Where the model or the data has none, the classifier is kept.
    """
    if not model.num_classes or model.pretrained_cfg.get('num_classes') != model.num_classes:
        return None  # timm has made a new one
    labels = open_labels(model)
    known = list(labels.label_names()) if isinstance(labels, CustomDatasetInfo) else None
    if known == names and names:
        return None
    if not known or not names:
        who = 'the model' if not known else 'the data'
        return (
            f'note: the classifier of the pretrained weights is kept, since it has {model.num_classes} classes too; '
            f'{who} does not name them'
        )
    model.reset_classifier(model.num_classes)
    return f'note: new classifier, as the data has other classes, {summary(names)}, than the weights, {summary(known)}'


def descriptions_of(labels: Any, num_classes: int) -> list[str]:
    """A description of each class: its number where nobody knows a name."""
    return [labels.index_to_description(i) if labels else str(i) for i in range(num_classes)]


def match_labels(
    model: Any, dataset: Any, *, is_folder: bool, file: Path | None = None
) -> tuple[list[str], list[int] | None]:
    """Names to show for the model's classes, and its number of each class of the data, None if they agree.

    A data set may number a part of the classes, or all in another order, as a folder without one of them does. They
    are matched by name where the names are the same. `is_folder`: the classes of the data are numbered by the order of
    their names. Raises: UnmatchedClasses.
    """
    labels = open_labels(model, file)
    known = list(labels.label_names()) if labels else None
    shown = descriptions_of(labels, model.num_classes)
    found = class_names(dataset)
    if found is None or found == known:
        return shown, None
    if known and len(set(known)) == len(known) and set(found) <= set(known):
        return shown, [known.index(name) for name in found]
    own_names = isinstance(labels, CustomDatasetInfo)
    if len(found) != model.num_classes or (is_folder and own_names):
        raise UnmatchedClasses(
            f'cannot match the classes of the data, {summary(found)}, with those of the model, '
            f'{summary(known) if own_names else model.num_classes}: pass --labels FILE with the {model.num_classes} '
            'names that the data uses, one in each line, in the order of the model'
        )
    if own_names:
        _logger.warning(
            'note: the classes of the data, %s, and of the model, %s, are matched by number, as their names differ',
            summary(found),
            summary(known),
        )
    return found, None


def labelled_batches(
    model: Any, samples: Samples, batch_size: int, workers: int, *, is_folder: bool, file: Path | None = None
) -> DataLoader:
    """Batches for the profiler, labelled by the model's numbers of their classes.

    Without labels, and with a note, where the classes cannot be matched.
    """
    numbers: Tensor | None = None
    if model.num_classes:
        try:
            _, found = match_labels(model, samples.source, is_folder=is_folder, file=file)
            numbers = torch.arange(model.num_classes) if found is None else torch.tensor(found)
        except UnmatchedClasses as error:
            _logger.warning('note: no accuracy, %s', error)
    collate = partial(collate_labelled, numbers)
    return DataLoader(samples, batch_size, num_workers=workers, collate_fn=collate)


def collate_labelled(numbers: Tensor | None, samples: list[tuple[Any, Any]]) -> Any:
    images, labels = default_collate(samples)
    if numbers is None or not isinstance(labels, Tensor) or labels.is_floating_point() or (labels < 0).any():
        return images  # timm's label of a sample that has none is -1
    return images, numbers[labels]
