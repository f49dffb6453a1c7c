"""One's own recordings, in folders with the names of their classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from timm.utils.misc import natural_key

from ..files import printable
from ..folders import Found, as_text, find_below, folder_of_split, in_words, is_hidden
from .datasets import EventDataset
from .detect import KNOWN, suffix_of
from .events import Events, read_events, recording_info
from .settings import height_and_width

__all__ = ['EventFolder', 'SensorSizeError', 'find_recordings']


class SensorSizeError(ValueError):
    """A sensor that is smaller than a recording needs, or not known; the message has the file and the size needed."""


class EventFolder(EventDataset):
    """Recordings in `root`/`split`/CLASS/, of all formats of `read_events`: `dataset[i]` is (frames, label).

    The class is the folder below the split; recordings may lie deeper in it. Classes are numbered in the order of their
    names, 2 before 10, unless `classes` gives names in an order of their own, as those that a model was trained on.
    Hidden files and those of other suffixes are left out, which `left_out` says. `split` is 'train', 'validation' or
    another folder; as of pictures, 'val' stands for 'validation' too. `sensor_size` is the (height, width) of the
    camera, None what the first recording says of it. `reading` holds arguments of `read_events`, as the `kind` of files
    whose suffix says nothing. Other options are those of `EventDataset`.

    Raises: FileNotFoundError for folders that are missing or empty, ValueError for classes that are not among
    `classes`, SensorSizeError where `sensor_size` is needed; with a sample, SensorSizeError for an event outside of the
    sensor, and what `read_events` raises.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = 'train',
        *,
        sensor_size: tuple[int, int] | None = None,
        classes: Sequence[str] | None = None,
        reading: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.split, self.classes, self.reading = split, tuple(classes or ()), dict(reading or {})
        if sensor_size is not None:
            self.sensor_size = height_and_width('sensor_size', sensor_size)
        super().__init__(root, split in ('train', 'training'), **options)

    def cache_settings(self) -> dict[str, Any]:
        return super().cache_settings() | {'sensor_size': list(self.sensor_size), **self.reading}

    def find_samples(self) -> list[tuple[str, int]]:
        if not self.root.is_dir():
            raise FileNotFoundError(
                f'there is no folder {self.root}: expected {self.root}/{self.split}/CLASS/recording'
            )
        try:
            folder = folder_of_split(self.root, self.split, 'recordings')
        except FileNotFoundError as error:
            raise FileNotFoundError(f'{self.root}: {error}') from None
        entries = [path for path in sorted(folder.iterdir()) if not is_hidden(path.name)]
        by_class: dict[str, list[Path]] = {}
        for path in entries:
            if path.is_dir():
                by_class.setdefault(as_text(path.name), []).append(path)
        if not by_class:
            there = f'files, as {printable(entries[0].name)}' if entries else 'nothing at all'
            raise FileNotFoundError(
                f'{folder} has no folders of classes, but {there}: put recordings in {folder}/CLASS/'
            )
        names = sorted(by_class, key=natural_key)
        if not self.classes:
            self.classes = tuple(names)
        elif unknown := sorted(set(names) - set(self.classes)):
            raise ValueError(
                f'{folder} has the classes {printable(", ".join(unknown))}, which are not among '
                f'{printable(", ".join(self.classes))}'
            )
        left_out: Counter[str] = Counter()
        samples = []
        for name in names:  # which may be spelled in several ways
            found = find_recordings(by_class[name], self.reading)
            if not found.files:
                raise FileNotFoundError(
                    f'class folder {by_class[name][0]} has no recordings, which are files named {", ".join(KNOWN)}; it '
                    f'holds {found.note() or "nothing"}: add recordings or remove the folder, or say what they are by '
                    'reading'
                )
            samples += [(file.relative_to(self.root).as_posix(), self.classes.index(name)) for file in found.files]
            left_out += found.left_out
        self.left_out = in_words(left_out)
        if not hasattr(self, 'sensor_size'):
            first = self.root / samples[0][0]
            if (said := recording_info(first, **self.reading).sensor_size) is None:
                raise SensorSizeError(f'{first} does not say of which sensor it is: pass sensor_size=(height, width)')
            self.sensor_size = said
        return samples

    def read(self, file: Path) -> Events:
        events = read_events(file, **self.reading)
        height, width = self.sensor_size
        rows, columns = int(events.y.max()) + 1, int(events.x.max()) + 1
        if rows > height or columns > width:
            raise SensorSizeError(
                f'{file} has events in row {rows - 1} and column {columns - 1}, outside of a sensor of {height} x '
                f'{width} pixels (height x width): the sensor_size must be at least {max(rows, height)} '
                f'{max(columns, width)}'
            )
        return events


def find_recordings(folders: Iterable[Path], reading: Mapping[str, Any]) -> Found:
    """Files named like recordings, see `folders.find_below`; all if the arguments of `read_events` give their kind."""
    return find_below(folders, lambda file: 'kind' in reading or suffix_of(file) in KNOWN)
