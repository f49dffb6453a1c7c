"""ExecuTorch programs, for phones and boards: convolutions and products by XNNPACK, the rest by portable kernels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .capture import capture
from .metadata import read_beside

__all__ = ['INSTALL', 'METADATA_BESIDE', 'NEEDS', 'load', 'read_metadata', 'write']

NEEDS, INSTALL = ('executorch',), 'executorch'
METADATA_BESIDE = True

read_metadata = read_beside

MAX_BATCH = 4  # memory is planned for the largest batch


def write(model: nn.Module, example: Tensor, names: list[str], metadata: dict[str, Any], file: Path) -> None:
    """Lower a prepared model."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = capture(model, example, max_batch=max(MAX_BATCH, len(example)))
    program = program.run_decompositions({torch.ops.aten.add.Tensor: _add})
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    file.write_bytes(lowered.to_executorch().buffer)


def load(file: Path) -> Callable[[Tensor], list[Tensor]]:
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(str(file)).load_method('forward')
    return lambda x: method.execute([x.contiguous()])


def _add(x: Tensor, y: Tensor, *, alpha: float = 1) -> Tensor:
    """x + alpha y in two steps: where x is one number, ExecuTorch's kernel multiplies that instead of y."""
    return NotImplemented if alpha == 1 else x + y * alpha
