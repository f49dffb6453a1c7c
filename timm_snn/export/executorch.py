"""ExecuTorch programs, for phones and boards: convolutions and products by XNNPACK, the rest by portable kernels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .capture import capture
from .metadata import read_beside

__all__ = ['INSTALL', 'METADATA_BESIDE', 'NEEDS', 'load', 'read_metadata', 'write']

NEEDS, INSTALL = ('executorch',), 'executorch'
METADATA_BESIDE = True

read_metadata = read_beside


def write(model: nn.Module, example: Tensor, names: list[str], metadata: dict[str, Any], file: Path) -> None:
    """Lower a prepared model."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    lowered = to_edge_transform_and_lower(capture(model, example), partitioner=[XnnpackPartitioner()])
    file.write_bytes(lowered.to_executorch().buffer)


def load(file: Path) -> Callable[[Tensor], list[Tensor]]:
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(str(file)).load_method('forward')
    return lambda x: method.execute([x.contiguous()])
