"""Models for other runtimes, in files that are checked against the model before they are there.

| format         | file  | runs in                                                     | metadata     |
|----------------|-------|-------------------------------------------------------------|--------------|
| `onnx`         | .onnx | ONNX Runtime, and what else reads ONNX                      | in the file  |
| `torch_export` | .pt2  | torch, without timm and this package                        | in the file  |
| `aoti`         | .pt2  | torch or libtorch, in Python or C++, on processors as here  | in the file  |
| `executorch`   | .pte  | ExecuTorch, on phones and boards                            | in FILE.json |
| `nir`          | .nir  | simulators and neuromorphic chips, as a graph of neurons    | in the file  |
"""

import shutil
import tempfile
from collections.abc import Callable, Sequence
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
from .metadata import describe, write_beside

__all__ = ['FORMATS', 'Exported', 'export', 'read_metadata']

# Of each format, which is a file of this folder, the suffix that its files have.
FORMATS = {'onnx': '.onnx', 'torch_export': '.pt2', 'aoti': '.pt2', 'executorch': '.pte', 'nir': '.nir'}


@dataclass(frozen=True)
class Exported:
    """A file that `export` has written.

    On `checked` inputs its outputs differed from those of the model by at most `difference`, and `same_class` of them
    have the same class; None where nothing was checked, or outputs are no logits.
    """

    file: Path
    format: str
    metadata: dict[str, Any]
    checked: int = 0
    difference: float | None = None
    same_class: int | None = None

    def __str__(self) -> str:
        text = f'{self.file}: {self.format}, {self.file.stat().st_size / 1e6:.2f} MB'
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
    """Write a trained model for another runtime: fused, in eval mode, for images or frames in batches of any size.

        timm_snn.export(model, 'model.onnx')
        session = onnxruntime.InferenceSession('model.onnx')
        logits, = session.run(None, {'images': images})

    Neurons are unrolled over the model's T steps, as plain operators. The dtype is that of the model; T and the size of
    the images are fixed. The model is left as it is. What a program needs to know besides is in the file, or for a
    format that cannot hold it in FILE.json, and `timm_snn.export.read_metadata` reads it.

    Args:
        file: Its suffix is that of the format: .onnx, .pt2, .pte or .nir.
        format: 'onnx', 'torch_export', 'aoti', 'executorch' or 'nir'; None goes by the suffix, where .pt2 is
            'torch_export'.
        example: A batch of at least two, which says what the input looks like and is what the file is checked on; by
            default random numbers of the size in the model's config, frames for a model of events.
        labels: Names of the classes; by default those saved with the model, or ImageNet's.
        check: Load the file, run it on three sizes of batch, and compare. In float32 a sum in another order may flip a
            spike, so that small differences are said and large ones refused; in float64 the limit is 1e-9.

    Raises: ValueError for a model that cannot be fused or traced, or that the format cannot take, with the layer and
    the reason; RuntimeError for a library that is not installed, or a file that does not answer as the model; OSError
    from the disk. There is no file then, or the old one.
    """
    file = Path(file)
    format = _format_of(file, format)
    writer = _writer_of(format)
    if not file.parent.is_dir():
        raise FileNotFoundError(f'there is no folder {file.parent} to write {file.name} to')
    model = unwrapped(model)
    example = example_input(model) if example is None else example
    if len(example) < 2:
        raise ValueError(f'example is a batch of at least two, got one of {len(example)}: of one, the size is fixed')
    num_classes = getattr(model, 'num_classes', None)
    if labels is not None and len(labels) != num_classes:
        raise ValueError(f'got {len(labels)} labels for {num_classes} classes')
    inference = prepared(model)
    with torch.no_grad():
        num_outputs = len(flat(inference(example.cpu())))
    names = ['logits'] if num_outputs == 1 else [f'features_{i}' for i in range(num_outputs)]
    metadata = describe(model, example, names, labels)
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / file.name  # loaders look at the suffix
        writer.write(inference, example.cpu(), names, metadata, written)
        found = _compared(model, writer.load(written), example) if check else {}
        with write_whole(file) as unfinished:
            shutil.copyfile(written, unfinished)
    if writer.METADATA_BESIDE:
        write_beside(file, metadata)
    return Exported(file, format, metadata, **found)


def read_metadata(file: str | Path) -> dict[str, Any]:
    """What `export` has written about the model: the keys of `timm_snn.export.metadata.describe`.

    Nothing in the file is run. Raises: ValueError for a file that `export` has not written; OSError from the disk;
    RuntimeError where onnx, which reads .onnx files, is not installed.
    """
    file = Path(file)
    return _writer_of(_format_of(file, None)).read_metadata(file)


def _format_of(file: Path, format: str | None) -> str:
    if format is None:
        format = next((name for name, suffix in FORMATS.items() if suffix == file.suffix), None)
        if format is None:
            raise ValueError(f'expected a file that ends in one of {sorted(set(FORMATS.values()))}, got {file.name!r}')
    if format not in FORMATS:
        raise ValueError(f'unknown format {format!r}: use one of {", ".join(FORMATS)}')
    if file.suffix != FORMATS[format]:
        raise ValueError(f'a file of format {format!r} ends in {FORMATS[format]}, got {file.name!r}')
    return format


def _writer_of(format: str) -> Any:
    """The module of this format. Raises: RuntimeError for a library that it needs and that is not installed."""
    writer = import_module(f'{__name__}.{format}')
    if missing := [name for name in writer.NEEDS if find_spec(name) is None]:
        raise RuntimeError(f'format {format!r} needs {", ".join(missing)}: pip install {writer.INSTALL}')
    return writer


def _compared(model: Any, run: Callable[[Tensor], list[Tensor]], example: Tensor) -> dict[str, Any]:
    """The fields of `Exported` that say how the file answers. Raises: RuntimeError if it is not as the model does."""
    checked, same_class, difference, largest = 0, 0, 0.0, 0.0
    with evaluating(model), torch.no_grad():
        for x in (example, example[:1], torch.cat([example, example[:1]])):
            expected = [y.cpu() for y in flat(model(x))]
            outputs = run(x.cpu())
            for y, wanted in zip(outputs, expected, strict=True):
                if y.shape != wanted.shape:
                    raise RuntimeError(
                        f'the file answers {list(x.shape)} with {list(y.shape)}, the model with {list(wanted.shape)}'
                    )
                difference = max(difference, (y.double() - wanted.double()).abs().max().item())
                largest = max(largest, wanted.abs().max().item())
            checked += len(x)
            same_class += int((outputs[0].argmax(1) == expected[0].argmax(1)).sum()) if expected[0].ndim == 2 else 0
    limit = 1e-9 * max(1.0, largest) if example.dtype == torch.float64 else 0.25 * largest
    if not difference <= limit:
        raise RuntimeError(
            f'the file does not answer as the model: outputs differ by {difference:.3g}, and the largest is '
            f'{largest:.3g}. No file was written; check=False writes it for a closer look'
        )
    return dict(checked=checked, difference=difference, same_class=same_class if expected[0].ndim == 2 else None)
