"""Files of torch.export, which run with torch alone, without timm and this package."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .archive import METADATA, read_metadata, text_of
from .capture import capture, flat

__all__ = ['INSTALL', 'METADATA_BESIDE', 'NEEDS', 'load', 'read_metadata', 'write']

NEEDS, INSTALL = (), ''
METADATA_BESIDE = False


def write(model: nn.Module, example: Tensor, names: list[str], metadata: dict[str, Any], file: Path) -> None:
    """Write the traced program of a prepared model."""
    torch.export.save(capture(model, example), file, extra_files={METADATA: text_of(metadata)})


def load(file: Path) -> Callable[[Tensor], list[Tensor]]:
    program = torch.export.load(file).module()
    return lambda x: flat(program(x))
