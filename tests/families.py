"""The registered families, found by their files: what a family's tests get without naming it."""

import pkgutil
from typing import Any

import pytest
import timm

import timm_snn


def _parameters(name: str) -> int:
    return sum(p.numel() for p in timm.create_model(name, device='meta').parameters())


FAMILIES = {
    module.name: sorted(set(timm.list_models(module=module.name)), key=_parameters)
    for module in pkgutil.iter_modules(timm_snn.models.__path__)
    if timm.list_models(module=module.name)
}
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
