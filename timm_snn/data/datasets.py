"""DVS128 Gesture, CIFAR10-DVS and N-MNIST from a local folder, in the layouts in which they are published."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..labels import CIFAR10, DIGITS, DVS128_GESTURE
from .cache import FrameCache
from .events import Events, iter_events, read_events, read_gesture_labels
from .frames import check_frame_options, count_events, frames_of_counts

__all__ = ['CIFAR10DVS', 'NMNIST', 'DVS128Gesture', 'EventDataset']


class EventDataset(Dataset):
    """Recordings as frames: `dataset[i]` is (frames [T, C, H, W] float32, label).

    `num_steps`, `split_by`, `bin_us`, `events_per_bin`, `channels` and `size` are those of `to_frames`, which begins
    with the first event. `filter` is called with the events of each recording and returns those to count; with one
    nothing is kept on disk. `transform` is called with the frames.
    `cache` keeps counts on disk: True for the folder `frames` in `root`, or another folder, one for each `root`; None
    or False reads every recording anew. Channels and size are made from the same files.

    Raises FileNotFoundError if `root` is not laid out as the subclass says, and warns if published recordings are
    missing.
    """

    classes: tuple[str, ...]
    sensor_size: tuple[int, int]
    kind: str
    """Format of the recordings, for `read_events`."""
    layout: ClassVar[str]
    """What is expected below the root, as error messages say it."""
    download: ClassVar[str]
    archives: ClassVar[dict[str, str]]
    """MD5 of what is to be downloaded, by name."""
    official_sizes: ClassVar[tuple[int, int] | None] = None
    """Number of samples for training and testing, of a published data set."""

    def __init__(
        self,
        root: str | Path,
        train: bool = True,
        *,
        num_steps: int = 16,
        split_by: str | None = None,
        bin_us: int | None = None,
        events_per_bin: int | None = None,
        channels: int = 2,
        size: int | tuple[int, int] | None = None,
        cache: bool | str | Path | None = True,
        filter: Callable[[Events], Events] | None = None,
        transform: Callable[[Tensor], Any] | None = None,
    ) -> None:
        self.bins = {name: n for name, n in dict(bin_us=bin_us, events_per_bin=events_per_bin).items() if n is not None}
        self.split_by = check_frame_options(num_steps, split_by, channels, size, **self.bins)
        self.root, self.train = Path(root), train
        self.num_steps, self.channels, self.size = num_steps, channels, size
        self.filter, self.transform = filter, transform
        self.samples = self.find_samples()
        expected = self.official_sizes and self.official_sizes[not train]
        if expected and len(self.samples) != expected:
            warnings.warn(
                f'{self.root} has {len(self.samples)} of the {expected} {"training" if train else "test"} samples of '
                f'{type(self).__name__}: results on it are not comparable with published ones',
                stacklevel=2,
            )
        self.cache: FrameCache | None = None
        if cache is not None and cache is not False and filter is None:  # a function does not tell what it does
            folder = self.root / 'frames' if cache is True else Path(cache)
            made = '-'.join(map(str, (type(self).__name__, self.split_by, num_steps, *sum(self.bins.items(), ()))))
            self.cache = FrameCache(folder / made, self.cache_settings())

    def cache_settings(self) -> dict[str, Any]:
        """What counts depend on, besides the recording."""
        return {'dataset': type(self).__name__, 'split_by': self.split_by, 'num_steps': self.num_steps, **self.bins}

    def find_samples(self) -> list[tuple[str, int]]:
        """Name and label of each; the name is that of its file below the root, or says where in the file it is."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def targets(self) -> list[int]:
        return [label for _, label in self.samples]

    def __getitem__(self, index: int) -> tuple[Any, int]:
        frames = torch.from_numpy(frames_of_counts(self.counts(index), channels=self.channels, size=self.size))
        return self.transform(frames) if self.transform else frames, self.samples[index][1]

    def counts(self, index: int) -> np.ndarray:
        """The counts of both polarities at the sensor's size, as `count_events` gives them, from the cache if there."""
        if self.cache is None:
            return self.count(self.events(index))
        name, stamp = self.samples[index][0], self.cache.stamp(self.sources(index))
        counts = self.cache.load(name, stamp)
        if counts is None:
            counts = self.count(self.events(index))
            self.cache.store(name, stamp, counts)
        return counts

    def uncached(self) -> int:
        """How many samples have no counts on disk yet; 0 without a cache. Old counts are not told from new ones."""
        return 0 if self.cache is None else sum(not self.cache.path(name).is_file() for name, _ in self.samples)

    def events(self, index: int) -> Events:
        """The events of one sample that are counted."""
        events = self.recording(index)
        return events if self.filter is None else self.filter(events)

    def recording(self, index: int) -> Events:
        """The events of one sample as they were recorded."""
        return self.read(self.root / self.samples[index][0])

    def sources(self, index: int) -> list[Path]:
        """The files that a sample is made from."""
        return [self.root / self.samples[index][0]]

    def read(self, file: Path) -> Events:
        return read_events(file, kind=self.kind)

    def count(self, events: Events) -> np.ndarray:
        return count_events(events, self.num_steps, sensor_size=self.sensor_size, split_by=self.split_by, **self.bins)

    def not_found(self, what: str) -> FileNotFoundError:
        inside = sorted(path.name for path in self.root.iterdir()) if self.root.is_dir() else None
        found = 'there is no such folder' if inside is None else f'it holds {", ".join(inside[:5]) or "nothing"}'
        if inside and len(inside) > 5:
            found += f' and {len(inside) - 5} more'
        return FileNotFoundError(
            f'{type(self).__name__} in {self.root}: {what}. Expected {self.layout}; {found}. '
            f'Download {", ".join(self.archives)} by hand from {self.download} and unpack there; docs/events.md has '
            'checksums'
        )


class NMNIST(EventDataset):
    """N-MNIST, 34 x 34 pixels: 60,000 recordings for training and 10,000 for testing.

    `root` holds the folders Train and Test. A part of the recordings is enough, with at least one of each class. They
    are so short that a cache would not be faster than reading them: by default there is none.
    """

    classes = DIGITS
    sensor_size = (34, 34)
    kind = 'nmnist'
    layout = 'Train/<digit>/<id>.bin and Test/<digit>/<id>.bin for the digits 0 to 9'
    download = 'https://www.garrickorchard.com/datasets/n-mnist'
    archives: ClassVar = {
        'Train.zip': '20959b8e626244a1b502305a9e6e2031',
        'Test.zip': '69ca8762b2fe404d9b9bad1103e97832',
    }
    official_sizes = (60_000, 10_000)

    def __init__(
        self, root: str | Path, train: bool = True, *, cache: bool | str | Path | None = None, **options: Any
    ) -> None:
        super().__init__(root, train, cache=cache, **options)

    def find_samples(self) -> list[tuple[str, int]]:
        split = 'Train' if self.train else 'Test'
        samples = []
        for label, name in enumerate(self.classes):
            files = sorted(path.name for path in (self.root / split / name).glob('[!.]*.bin'))  # ._ files are of macOS
            if not files:
                raise self.not_found(f'no recordings {split}/{name}/*.bin')
            samples += [(f'{split}/{name}/{file}', label) for file in files]
        return samples


class CIFAR10DVS(EventDataset):
    """CIFAR10-DVS, 128 x 128 pixels: 1,000 recordings of each class.

    There is no official split. This is the one of published results, which SpikingJelly's `split_to_train_test_set`
    makes: of each class the first 90 % of the files in the order of their names, in which 10 comes before 2, are for
    training. `root` holds a folder for each class. A part of the recordings is enough, with at least ten of each class,
    but is split differently.
    """

    classes = CIFAR10
    sensor_size = (128, 128)
    kind = 'aedat2'
    layout = '<class>/cifar10_<class>_<number>.aedat for the classes ' + ', '.join(classes)
    download = 'https://figshare.com/articles/dataset/CIFAR10-DVS_New/4724671'
    archives: ClassVar = {
        'airplane.zip': '0afd5c4bf9ae06af762a77b180354fdd',
        'automobile.zip': '8438dfeba3bc970c94962d995b1b9bdd',
        'bird.zip': 'a9c207c91c55b9dc2002dc21c684d785',
        'cat.zip': '52c63c677c2b15fa5146a8daf4d56687',
        'deer.zip': 'b6bf21f6c04d21ba4e23fc3e36c8a4a3',
        'dog.zip': 'f379ebdf6703d16e0a690782e62639c3',
        'frog.zip': 'cad6ed91214b1c7388a5f6ee56d08803',
        'horse.zip': 'e7cbbf77bec584ffbf913f00e682782a',
        'ship.zip': '41c7bd7d6b251be82557c6cce9a7d5c9',
        'truck.zip': '89f3922fd147d9aeff89e76a2b0b70a7',
    }
    official_sizes = (9_000, 1_000)

    def find_samples(self) -> list[tuple[str, int]]:
        samples = []
        for label, name in enumerate(self.classes):
            files = sorted(path.name for path in (self.root / name).glob(f'cifar10_{name}_*.aedat'))
            if len(files) < 10:
                raise self.not_found(f'{len(files)} recordings {name}/cifar10_{name}_*.aedat, which is less than ten')
            border = -(-len(files) * 9 // 10)  # rounded up, as there
            samples += [(f'{name}/{file}', label) for file in (files[:border] if self.train else files[border:])]
        return samples


class DVS128Gesture(EventDataset):
    """DVS128 Gesture, 128 x 128 pixels: 1,176 gestures for training and 288 for testing, by other people.

    `root` is the unpacked folder DvsGesture or the one that holds it. Every recording that trials_to_train.txt or
    trials_to_test.txt names must be there: for a part of the data, shorten these lists. A recording holds some twelve
    gestures one after the other, and is read once for all of them; without a cache, once for each.
    """

    classes = DVS128_GESTURE
    sensor_size = (128, 128)
    kind = 'aedat3'
    layout = (
        'trials_to_train.txt, trials_to_test.txt and for each recording that they name <name>.aedat and '
        '<name>_labels.csv, in this folder or in DvsGesture'
    )
    download = 'https://ibm.ent.box.com/s/3hiq58ww1pbbjrinh367ykfdf60xsfm8/folder/50167556794'
    archives: ClassVar = {'DvsGesture.tar.gz': '8a5c71fb11e24e5ca5b11866ca6c00a1'}
    official_sizes = (1_176, 288)

    def find_samples(self) -> list[tuple[str, int]]:
        self.folder = self.root / 'DvsGesture' if (self.root / 'DvsGesture').is_dir() else self.root
        trials = self.folder / f'trials_to_{"train" if self.train else "test"}.txt'
        if not trials.is_file():
            raise self.not_found(f'no {trials.name}')
        recordings = [Path(line.strip()).stem for line in trials.read_text().splitlines() if line.strip()]
        if not recordings:
            raise self.not_found(f'{trials.name} is empty')
        samples = []
        for recording in recordings:
            for file in (f'{recording}.aedat', f'{recording}_labels.csv'):
                if not (self.folder / file).is_file():
                    raise self.not_found(f'no {file}, which {trials.name} names')
            gestures = read_gesture_labels(self.folder / f'{recording}_labels.csv')
            samples += [(f'{recording}/{number}', gesture.label) for number, gesture in enumerate(gestures)]
        return samples

    def recording(self, index: int) -> Events:
        return self.gestures(*self.sources(index))[int(self.samples[index][0].split('/')[1])]

    def sources(self, index: int) -> list[Path]:
        recording = self.samples[index][0].split('/')[0]
        return [self.folder / f'{recording}.aedat', self.folder / f'{recording}_labels.csv']

    def counts(self, index: int) -> np.ndarray:
        if self.cache is None:
            return super().counts(index)
        name, sources = self.samples[index][0], self.sources(index)
        stamp = self.cache.stamp(sources)
        counts = self.cache.load(name, stamp)
        if counts is None:
            recording, number = name.split('/')
            every = [self.count(events) for events in self.gestures(*sources)]
            for other, counts_of_other in enumerate(every):
                self.cache.store(f'{recording}/{other}', stamp, counts_of_other)
            counts = every[int(number)]
        return counts

    def gestures(self, recording: Path, labels: Path) -> list[Events]:
        """The events of each gesture, from its start until before its end; gestures may overlap."""
        gestures = read_gesture_labels(labels)
        pieces: list[list[Events]] = [[] for _ in gestures]
        for events in iter_events(recording, kind=self.kind):
            for gesture, found in zip(gestures, pieces, strict=True):
                inside = (gesture.start <= events.t) & (events.t < gesture.end)
                if inside.any():
                    found.append(events[inside])
        for gesture, found in zip(gestures, pieces, strict=True):
            if not found:
                raise ValueError(
                    f'{recording} has no events from {gesture.start} to {gesture.end} us, where {labels.name} has a '
                    f'gesture {gesture.label + 1}: is one of the two files damaged?'
                )
        return [Events.concatenate(found) for found in pieces]
