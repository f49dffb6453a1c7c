"""Frames as rows of Hugging Face `datasets`: written as parquet, read back the same."""

from __future__ import annotations

import bisect
import importlib
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset

from ..files import printable
from .datasets import EventDataset
from .frames import check_frame_options, frames_of_counts

__all__ = ['EventRows', 'write_rows']

SHARD_BYTES = 2**29  # of frames in one file; as parquet a fraction of it
PARTS: dict[Any, str] = {True: 'train', False: 'test'}  # of published data sets
GROUP_BYTES = 2**26  # of frames in one row group, which is what is held in memory


def write_rows(
    dataset: Any,
    folder: str | Path,
    split: str | None = None,
    *,
    dtype: str = 'uint16',
    classes: Sequence[str] | None = None,
) -> list[Path]:
    """Write `folder`/`split`-00000-of-00001.parquet and so on, which `load_dataset` and the Hub know how to open.

    A row has `frames`, an Array4D [T, 2, H, W] of the counts of negative and positive events, and `label`, a
    ClassLabel. Of an `EventDataset`, and of subsets and concatenations of some, counts are those at the sensor's size:
    channels, size and transform are left to the reader of the rows. Any other data set of (frames, label) is written
    as it is. `split` is that of the data set, or 'train' or 'test' of a published one, unless given; files of the same
    split that are there already are replaced. `classes` are the names where the data set has none.

    Raises ValueError where `dtype`, 'uint8' or 'uint16', cannot hold a count, for frames that are no counts or differ
    in shape, for a data set without names of classes or a split, and for a split that is no word.
    """
    datasets = import_datasets()
    if dtype not in ('uint8', 'uint16'):
        raise ValueError(f"dtype must be 'uint8' or 'uint16', not {dtype!r}")
    if not len(dataset):
        raise ValueError('expected a data set with samples, got an empty one')
    folder, split = Path(folder), split_of(dataset) if split is None else split
    if not re.fullmatch(r'\w+([.-]\w+)*', split):
        raise ValueError(f'split must be letters, digits and _, with single dots or hyphens between, not {split!r}')
    names = list(classes or classes_of(dataset))
    shape = counts_and_label(dataset, 0)[0].shape
    features = datasets.Features(frames=datasets.Array4D(shape, dtype), label=datasets.ClassLabel(names=names))

    def rows() -> Iterator[dict[str, Any]]:
        for index in range(len(dataset)):
            counts, label = counts_and_label(dataset, index)
            if counts.shape != shape:
                raise ValueError(
                    f'sample {index} has frames of the shape {counts.shape} and sample 0 of {shape}: rows are alike'
                )
            yield {'frames': frames_of_counts(counts, dtype=dtype), 'label': label}

    bytes_per_row = int(np.prod(shape)) * np.dtype(dtype).itemsize
    rows_per_group = max(1, GROUP_BYTES // bytes_per_row)
    shards = -(-len(dataset) * bytes_per_row // SHARD_BYTES)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix='.unfinished-') as unfinished:
        try:
            table = datasets.Dataset.from_generator(
                rows, features=features, cache_dir=unfinished, writer_batch_size=rows_per_group
            )
        except datasets.exceptions.DatasetGenerationError as error:
            raise error.__cause__ or error from None  # ours says which count or file is wrong
        names = shard_names(split, shards)
        for shard, name in enumerate(names):
            part = table.shard(shards, shard, contiguous=True)
            part.to_parquet(Path(unfinished) / name, batch_size=rows_per_group)
        for name in names:
            (Path(unfinished) / name).replace(folder / name)
    for old in find_shards(folder, split):
        if old.name not in names:
            old.unlink()
    return [folder / name for name in names]


def locate(dataset: Any, index: int) -> tuple[Any, int]:
    """The data set that a sample of subsets and concatenations is in, and its index there."""
    while isinstance(dataset, (Subset, ConcatDataset)):
        if isinstance(dataset, Subset):
            dataset, index = dataset.dataset, int(dataset.indices[index])
        else:
            part = bisect.bisect_right(dataset.cumulative_sizes, index)
            end, dataset = dataset.cumulative_sizes[part], dataset.datasets[part]
            index += len(dataset) - end
    return dataset, index


def parts(dataset: Any) -> list[Any]:
    """The data sets in subsets and concatenations."""
    if isinstance(dataset, Subset):
        return parts(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        return [part for inner in dataset.datasets for part in parts(inner)]
    return [dataset]


def counts_and_label(dataset: Any, index: int) -> tuple[np.ndarray, int]:
    """The counts of a sample, whole numbers [T, 2, H, W]."""
    dataset, inside = locate(dataset, index)
    if isinstance(dataset, EventDataset):
        return dataset.counts(inside), dataset.samples[inside][1]
    frames, label = dataset[inside]
    counts = np.asarray(frames)
    if counts.ndim != 4 or counts.shape[1] != 2:
        raise ValueError(f'sample {index} must have frames [T, 2, H, W], not {list(counts.shape)}')
    if counts.dtype.kind not in 'iu':
        whole = counts.astype(np.int64)
        if not (whole == counts).all():
            raise ValueError(f'sample {index} must have counts, and has a frame that is no whole number')
        counts = whole
    if counts.min(initial=0) < 0:
        raise ValueError(f'sample {index} must have counts, and has {counts.min()}')
    return counts, int(label)


def split_of(dataset: Any) -> str:
    found = {str(getattr(part, 'split', PARTS.get(getattr(part, 'train', None), ''))) for part in parts(dataset)}
    if len(found) != 1 or '' in found:
        raise ValueError("this data set does not say of which split its samples are: pass split='train', for one")
    return found.pop()


def classes_of(dataset: Any) -> tuple[str, ...]:
    found = {tuple(getattr(part, 'classes', ())) for part in parts(dataset)}
    if len(found) != 1 or () in found:
        several = 'the parts of this data set have different classes' if any(found) else 'this data set has no classes'
        raise ValueError(f'{several}: pass classes=[...], the names in the order of the labels')
    return found.pop()


def shard_names(split: str, shards: int) -> list[str]:
    return [f'{split}-{shard:05d}-of-{shards:05d}.parquet' for shard in range(shards)]


def find_shards(folder: Path, split: str | None) -> list[Path]:
    """Files of one split, or of all."""
    name = re.compile((r'[\w.-]+' if split is None else re.escape(split)) + r'-\d{5,}-of-\d{5,}\.parquet')
    return sorted(path for path in folder.glob('*.parquet') if name.fullmatch(path.name))


class EventRows(Dataset):
    """Rows of frames, as `write_rows` makes them: `rows[i]` is (frames [T, C, H, W] float32, label).

    `source` is a folder of parquet files named after their split, or a `datasets.Dataset`, from the Hub for one.
    `channels`, `size` and `transform` are those of `EventDataset`, and give the same tensors, bit for bit.

    Raises ValueError if the rows have no such columns.
    """

    def __init__(
        self,
        source: Any,
        split: str = 'train',
        *,
        channels: int = 2,
        size: int | tuple[int, int] | None = None,
        transform: Callable[[Tensor], Any] | None = None,
    ) -> None:
        datasets = import_datasets()
        if isinstance(source, (str, Path)):
            files = find_shards(Path(source), split)
            names = [file.name for file in files]
            if not files or names != shard_names(split, len(files)):
                others = ', '.join(sorted({file.name.rsplit('-', 3)[0] for file in find_shards(Path(source), None)}))
                raise FileNotFoundError(
                    f'{source} must hold all files {split}-00000-of-<count>.parquet and so on that write_rows made, '
                    f'and has {", ".join(names) or "none of them"}; its splits are {others or "none"}'
                )
            try:
                source = datasets.Dataset.from_parquet([str(file) for file in files])
            except (datasets.exceptions.DatasetGenerationError, OSError, ValueError) as error:
                reason = printable(error.__cause__ or error)
                raise ValueError(
                    f'cannot read rows of frames from {printable(source)}, split {printable(split)}: {reason}; '
                    'write them again by write_rows'
                ) from error
        if not isinstance(source, datasets.Dataset):
            raise ValueError(f'source must be a folder or one split, a datasets.Dataset, not a {type(source).__name__}')
        frames, label = source.features.get('frames'), source.features.get('label')
        if not isinstance(frames, datasets.Array4D) or frames.shape[1] != 2 or frames.dtype not in ('uint8', 'uint16'):
            raise ValueError(f"column 'frames' must be an Array4D [T, 2, H, W] of uint8 or uint16, not {frames}")
        if not isinstance(label, datasets.ClassLabel):
            raise ValueError(f"column 'label' must be a ClassLabel, not {label}")
        self.rows = source.select_columns(['frames', 'label']).with_format('numpy')
        self.num_steps, self.sensor_size, self.classes = frames.shape[0], frames.shape[2:], tuple(label.names)
        check_frame_options(self.num_steps, 'number', channels, size)
        self.channels, self.size, self.transform = channels, size, transform

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def targets(self) -> list[int]:
        return self.rows.with_format(None)['label'][:]

    def __getitem__(self, index: int) -> tuple[Any, int]:
        row = self.rows[index]
        frames = torch.from_numpy(frames_of_counts(row['frames'], channels=self.channels, size=self.size))
        return self.transform(frames) if self.transform else frames, int(row['label'])


def import_datasets() -> ModuleType:
    try:
        return importlib.import_module('datasets')
    except ImportError as error:
        raise ImportError("rows of frames need Hugging Face's library: pip install datasets") from error
