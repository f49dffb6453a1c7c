"""Models for other runtimes, in files of four formats, each checked against the model before it is there.

| format         | file  | runs in                                | metadata                |
|----------------|-------|----------------------------------------|-------------------------|
| `onnx`         | .onnx | ONNX Runtime and others                | in the file             |
| `torch_export` | .pt2  | `torch.export.load`, without this package | in the file          |
| `aoti`         | .pt2  | Python and C++ with libtorch           | in FILE.json            |
| `executorch`   | .pte  | ExecuTorch, on phones and boards       | in FILE.json            |
"""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files import write_whole
from ..modes import evaluating
from ..wrappers import unwrapped
from .capture import example_input, flat, prepared
from .metadata import describe

__all__ = ['FORMATS', 'Exported', 'export', 'read_metadata']

# Of each format, the suffix that its files have.
FORMATS = {'onnx': '.onnx', 'torch_export': '.pt2', 'aoti': '.pt2', 'executorch': '.pte'}


@dataclass(frozen=True)
class Exported:
    """A file that `export` has written.

    `difference` is the largest absolute difference between an output of the file and of the model, on `checked` inputs,
    of which `same_class` have the same class; None where that was not looked at.
    """

    file: Path
    format: str
    metadata: dict[str, Any]
    checked: int = 0
    difference: float | None = None
    same_class: int | None = None

    def __str__(self) -> str:
        text = f'{self.file}: {self.format}, {self.file.stat().st_size / 1e6:.1f} MB'
        if self.difference is None:
            return f'{text}, not checked'
        text += f'; on {self.checked} inputs, outputs differ from those of the model by at most {self.difference:.2g}'
        return text if self.same_class is None else f'{text}, and {self.same_class} have the same class'


def export(
    model: nn.Module,
    file: str | Path,
    *,
    format: str | None = None,
    example: Tensor | None = None,
    labels: Sequence[str] | None = None,
    check: bool = True,
) -> Exported:
    """Write a model for another runtime."""
    file = Path(file)
    name = _format_of(file, format)
    writer = _writer(name)
    model = unwrapped(model)
    example = example_input(model) if example is None else example
    copy = prepared(model)
    with torch.no_grad():
        outputs = flat(copy(example.cpu()))
    names = ['logits'] if len(outputs) == 1 else [f'features_{i}' for i in range(len(outputs))]
    metadata = describe(model, example, names, labels)
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / file.name
        writer.write(copy, example.cpu(), names, metadata, written)
        compared = _compare(model, writer.load(written), example) if check else {}
        with write_whole(file) as unfinished:
            shutil.copyfile(written, unfinished)
    return Exported(file, name, metadata, **compared)


def read_metadata(file: str | Path) -> dict[str, Any]:
    return _writer(_format_of(Path(file), None)).read_metadata(Path(file))


def _format_of(file: Path, format: str | None) -> str:
    found = format or next((name for name, suffix in FORMATS.items() if suffix == file.suffix), None)
    if found not in FORMATS:
        raise ValueError(f'unknown format {found!r}')
    return found


def _writer(name: str) -> Any:
    writer = import_module(f'{__name__}.{name}')
    return writer


def _compare(model: Any, run: Any, example: Tensor) -> dict[str, Any]:
    largest, same, count = 0.0, 0, 0
    with evaluating(model), torch.no_grad():
        for x in (example, example[:1], torch.cat([example, example[:1]])):
            expected = flat(model(x))
            got = run(x.cpu())
            for a, b in zip(expected, got, strict=True):
                largest = max(largest, (a.cpu() - b).abs().max().item())
            same += int((expected[0].argmax(1).cpu() == got[0].argmax(1)).sum())
            count += len(x)
    return dict(checked=count, difference=largest, same_class=same)
