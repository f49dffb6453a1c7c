"""What a program needs to know of an exported model to feed it and to read its answers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_model_data_config
from torch import Tensor

from ..files import check_regular_file, printable, write_whole_text
from ..version import __version__

__all__ = ['beside', 'decode', 'describe', 'encode', 'read_beside', 'write_beside']


def describe(model: Any, example: Tensor, names: Sequence[str], labels: Sequence[str] | None) -> dict[str, Any]:
    """The metadata of a model; values are plain data for JSON.

    Keys: 'timm_snn_version'; 'model', its name with the tag; 'num_steps', T; 'input', the axes of the input, and
    'input_size', these without the batch; 'dtype'; 'outputs', their names; 'num_classes' and 'labels', the names of the
    classes or None; 'mean', 'std', 'interpolation' and 'crop_pct' as in timm, of models with a config; 'frames', of
    models of events, how these are made (`timm_snn.data.FrameSettings`).
    """
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    data = resolve_model_data_config(model) if cfg else {}
    name = '.'.join(filter(None, (cfg.get('architecture'), cfg.get('tag')))) or type(model).__name__
    num_classes = getattr(model, 'num_classes', None)
    return {
        'timm_snn_version': __version__,
        'model': name,
        'num_steps': getattr(model, 'num_steps', 1),
        'input': 'BTCHW' if example.ndim == 5 else 'BCHW',
        'input_size': list(example.shape[1:]),
        'dtype': str(example.dtype).removeprefix('torch.'),
        'outputs': list(names),
        'num_classes': num_classes,
        'labels': list(labels) if labels is not None else _labels(cfg, num_classes),
        **{key: data[key] for key in ('mean', 'std', 'interpolation', 'crop_pct') if key in data},
        'frames': cfg.get('frames'),
    }


def _labels(cfg: dict[str, Any], num_classes: int | None) -> list[str] | None:
    """Names saved with the model, or those of ImageNet where it has a subset of as many classes."""
    names = cfg.get('label_names')
    if isinstance(names, dict):  # by number, which JSON makes a string
        names = [names.get(i, names.get(str(i), str(i))) for i in range(num_classes or 0)]
    if names and len(names) == num_classes:
        return list(names)
    subset = infer_imagenet_subset({'num_classes': num_classes}) if num_classes else None
    return list(ImageNetInfo(subset).label_descriptions()) if subset else None


def encode(metadata: dict[str, Any]) -> dict[str, str]:
    """Every value as JSON, for formats that keep strings."""
    return {key: json.dumps(value) for key, value in metadata.items()}


def decode(texts: dict[str, str], file: Path) -> dict[str, Any]:
    """The inverse of `encode`. Raises: ValueError for a file that export has not written."""
    if 'timm_snn_version' not in texts:
        raise ValueError(f'{printable(str(file))} has no metadata of timm_snn: timm_snn.export writes files that have')
    try:
        return {key: json.loads(value) for key, value in texts.items()}
    except ValueError as error:
        raise ValueError(f'the metadata of {printable(str(file))} is not JSON: export the model again') from error


def beside(file: Path) -> Path:
    """The file for the metadata of a format that cannot hold it."""
    return file.with_name(f'{file.name}.json')


def write_beside(file: Path, metadata: dict[str, Any]) -> None:
    write_whole_text(beside(file), json.dumps(metadata, indent=2) + '\n')


def read_beside(file: Path) -> dict[str, Any]:
    """Raises: OSError if it is not there; ValueError if it is not JSON."""
    check_regular_file(beside(file))
    try:
        return dict(json.loads(beside(file).read_text(encoding='utf-8')))
    except ValueError as error:
        raise ValueError(f'{printable(str(beside(file)))} is not JSON: export the model again') from error
