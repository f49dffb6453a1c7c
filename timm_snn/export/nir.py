"""Graphs of NIR, for simulators and neuromorphic chips; `timm_snn.to_nir` makes them and says what they hold.

A file is checked by NIR's own equations, integrated by Euler's rule, as its readers do.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..files import check_regular_file
from ..models import to_nir
from .metadata import decode, encode

__all__ = ['INSTALL', 'METADATA_BESIDE', 'NEEDS', 'load', 'read_metadata', 'run', 'write']

NEEDS, INSTALL = ('nir',), "'timm-snn[nir]'"
METADATA_BESIDE = False


def write(model: nn.Module, example: Tensor, names: list[str], metadata: dict[str, Any], file: Path) -> None:
    """Write the graph of a prepared model. Raises: ValueError as `to_nir`."""
    import nir

    graph = to_nir(model, example.shape[-3:])
    graph.metadata |= encode(metadata)
    nir.write(file, graph)


def load(file: Path) -> Callable[[Tensor], list[Tensor]]:
    """The file, for images [B, C, H, W] or frames [B, T, C, H, W], as a function that answers logits [B, classes]."""
    graph = _read(file)
    num_steps = int(graph.metadata['num_steps'])

    def answer(x: Tensor) -> list[Tensor]:
        frames = x if x.ndim == 5 else x.unsqueeze(1).expand(-1, num_steps, -1, -1, -1)
        return [run(graph, frames)['output'].mean(1).flatten(1)]

    return answer


def read_metadata(file: Path) -> dict[str, Any]:
    check_regular_file(file)
    texts = {key: text for key, text in _read(file).metadata.items() if isinstance(text, str)}
    return decode({key: text for key, text in texts.items() if key != 'made_by'}, file)


def _read(file: Path) -> Any:
    import nir

    return nir.read(file)


def run(graph: Any, frames: Tensor) -> dict[str, Tensor]:
    """What every node of a `nir.NIRGraph` puts out, [B, T, ...], by name, for frames [B, T, C, H, W].

    It knows the nodes that `to_nir` writes, in graphs without cycles. A step is as long as the graph's metadata say.
    """
    steps: dict[str, list[Tensor]] = {name: [] for name in graph.nodes}
    membranes: dict[str, Tensor] = {}
    sources = {name: [source for source, target in graph.edges if target == name] for name in graph.nodes}
    for frame in frames.unbind(1):
        values: dict[str, Tensor] = {}
        waiting = list(graph.nodes)
        while waiting:
            name = next(name for name in waiting if all(source in values for source in sources[name]))
            waiting.remove(name)
            x = (
                sum((values[source] for source in sources[name][1:]), values[sources[name][0]])
                if sources[name]
                else frame
            )
            values[name] = _evaluate(name, graph.nodes[name], x, membranes, float(graph.metadata['dt']))
            steps[name].append(values[name])
    return {name: torch.stack(values, 1) for name, values in steps.items()}


def _evaluate(name: str, node: Any, x: Tensor, membranes: dict[str, Tensor], dt: float) -> Tensor:
    def tensor(array: Any) -> Tensor:
        return torch.from_numpy(np.array(array))

    kind = type(node).__name__
    if kind == 'Conv2d':
        return F.conv2d(x, tensor(node.weight), tensor(node.bias), tuple(node.stride), tuple(node.padding))
    if kind == 'AvgPool2d':
        return F.avg_pool2d(x, tuple(node.kernel_size), tuple(node.stride))
    if kind in ('Input', 'Output'):
        return x
    v = membranes.get(name, torch.zeros_like(x))
    if kind == 'IF':
        h = v + dt * tensor(node.r) * x
    else:
        h = v + dt / tensor(node.tau) * (tensor(node.v_leak) - v + tensor(node.r) * x)
    fires = h > tensor(node.v_threshold)
    membranes[name] = torch.where(fires, tensor(node.v_reset), h)
    return fires.to(x.dtype)
