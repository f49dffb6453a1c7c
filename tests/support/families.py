"""The registered families, found by their classes, so that tests of all families name none."""

from collections.abc import Iterator
from typing import Any

import pytest
import timm

from timm_snn.models import SpikingTransformer


def _parameters(name: str) -> int:
    return sum(p.numel() for p in timm.create_model(name, device='meta').parameters())


def _files(family: type[SpikingTransformer] = SpikingTransformer) -> Iterator[str]:
    for subclass in family.__subclasses__():
        yield subclass.__module__.rpartition('.')[2]
        yield from _files(subclass)


def _is_artificial(name: str) -> bool:
    return timm.create_model(name, device='meta').act is not None


_BY_FILE = {
    file: sorted(set(timm.list_models(module=file)), key=_parameters)
    for file in sorted(set(_files()))
    if timm.list_models(module=file)
}
ARTIFICIAL = [name for models in _BY_FILE.values() for name in models if _is_artificial(name)]
FAMILIES = {file: [name for name in models if name not in ARTIFICIAL] for file, models in _BY_FILE.items()}
MODELS = [name for models in FAMILIES.values() for name in models]
SMALLEST = [models[0] for models in FAMILIES.values()]

# The smallest member of every family; the others are slow.
MEMBERS = [name if name in SMALLEST else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]


def shallow(model: Any) -> Any:
    """The model with the first and the last block of every stage alone: all kinds of blocks, in less time."""
    for stage in model.stages:
        while len(stage.blocks) > 2:
            del stage.blocks[1]
    return model
