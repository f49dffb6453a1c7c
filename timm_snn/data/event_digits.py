"""scikit-learn's digits, moved in front of a simulated event camera: recordings without a download."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ..labels import DIGITS
from .datasets import EventDataset
from .recording import Events

__all__ = ['EventDigits', 'record_digit', 'split_digits']

SENSOR = 128  # pixels, both ways
DURATION = 300_000  # us: three movements of 100 ms, as in N-MNIST
STEP = 2_000  # us between two images of the simulation, in which brightness is taken to change linearly
PER_PIXEL = 4  # places of the digit between two pixels of the sensor
MARGIN = 32  # pixels that the digit may leave the sensor by
WIDTH = 48  # pixels of the digit, both ways
DIM, BRIGHT = 0.25, 1.0  # brightness of the ground and of full ink
THRESHOLD, MISMATCH = 0.4, 0.04  # change of log brightness for an event, and its spread over the pixels
KEPT = np.dtype([('t', 'u4'), ('x', 'u1'), ('y', 'u1'), ('p', 'u1')])  # in half the memory of `Events`
NOISE, HOT, HOT_PIXELS = 0.5, 200.0, 5  # events a second of every pixel, of a hot one, and the number of those


class EventDigits(EventDataset):
    """Synthetic recordings of 128 x 128 pixels and 300 ms, one of each of scikit-learn's 1,797 digits.

    They are made from a seed when they are first asked for and kept in memory, about 0.1 MB each, so that
    nothing is downloaded. The split is that of the still digits: 1,437 for training and 360, a fixed fifth of each
    class, for testing. `dataset.recording(i)` gives the events, `dataset[i]` frames and a label. The camera is
    `record_digit`'s; results say nothing about recordings of a real one.

    Frame options are those of `EventDataset`. `cache` is off: frames are as fast to make as to read.
    Raises ModuleNotFoundError without scikit-learn, which `pip install 'timm-snn[train]'` brings.
    """

    classes = DIGITS
    sensor_size = (SENSOR, SENSOR)
    official_sizes = (1_437, 360)

    def __init__(self, train: bool = True, *, transform: Callable[[Tensor], Any] | None = None, **options: Any) -> None:
        self.images, self.labels = split_digits(train)
        self._recordings: dict[int, np.ndarray] = {}
        super().__init__(Path(), train, cache=None, transform=transform, **options)

    def find_samples(self) -> list[tuple[str, int]]:
        part = 'train' if self.train else 'test'
        return [(f'{part}/{index}', int(label)) for index, label in enumerate(self.labels)]

    def recording(self, index: int) -> Events:
        """The events of one recording, in the order of time."""
        if index not in self._recordings:
            events = record_digit(self.images[index].reshape(8, 8), seed=(int(self.train), index))
            kept = self._recordings[index] = np.empty(len(events.t), KEPT)
            for name, column in zip('txyp', events, strict=True):
                kept[name] = column
        return Events.from_structured(self._recordings[index])


def split_digits(train: bool) -> tuple[np.ndarray, np.ndarray]:
    """Images [N, 64] of values 0 to 16, and labels [N], of one part of scikit-learn's bundled 1,797 digits.

    360 of them, a fixed fifth per class, are for testing. The split does not depend on a run's seed, so that accuracies
    of several seeds are of the same samples.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, test_size=0.2, stratify=labels, random_state=0
    )
    return (train_images, train_labels) if train else (test_images, test_labels)


def record_digit(image: np.ndarray, seed: int | tuple[int, ...]) -> Events:
    """Events of an image, values 0 to 16, that moves in front of an ideal camera with noise; sorted by time.

    The image, 48 pixels wide, moves along a triangle of random place, size and direction, 100 ms a side. A pixel
    fires whenever its log brightness has changed by its threshold since its last event, as in the ESIM model (CoRL
    2018), at the time of the crossing. Thresholds differ from pixel to pixel and for the two polarities; every pixel
    fires by chance as well, and a few do so all the time.

    Shape: image [H, W]. The same seed gives the same events with one version of NumPy and Pillow.
    """
    random = np.random.default_rng(seed)
    scene = paint(image)
    places = PER_PIXEL * (MARGIN + path_of(random))
    threshold = np.maximum(random.normal(THRESHOLD, MISMATCH, (2, SENSOR, SENSOR)), THRESHOLD / 2).astype(np.float32)
    found: list[tuple[np.ndarray, ...]] = [noise(random)]
    before = seen_from(scene, places[0])
    level = before + threshold.min(0) * random.uniform(-1, 1, before.shape).astype(np.float32)  # of the last event
    for number, place in enumerate(places[1:]):
        now = seen_from(scene, place)
        where = rows, columns = around_digit(place)
        for t, x, y, p in crossings(
            before[where], now[where], level[where], threshold[:, rows, columns], number * STEP
        ):
            found.append((t, x + columns.start, y + rows.start, p))
        before = now
    t, x, y, p = (np.concatenate(columns) for columns in zip(*found, strict=True))
    order = np.argsort(t, kind='stable')
    return Events(t[order], x[order].astype(np.int16), y[order].astype(np.int16), p[order].astype(np.uint8))


def paint(image: np.ndarray) -> np.ndarray:
    """Log brightness of the digit in the middle of a dim ground, finer than the sensor."""
    ink = Image.fromarray((image * (255 / 16)).astype(np.uint8))
    width = WIDTH * PER_PIXEL
    ink_values = np.asarray(ink.resize((width, width), Image.Resampling.BICUBIC), np.float32) / 255
    side = (SENSOR + 2 * MARGIN) * PER_PIXEL
    scene = np.full((side, side), np.log(DIM), np.float32)
    start = (side - width) // 2
    scene[start : start + width, start : start + width] = np.log(DIM + (BRIGHT - DIM) * ink_values)
    return scene


def path_of(random: np.random.Generator) -> np.ndarray:
    """Where the sensor looks, in pixels from the middle (row, column), along a triangle: [steps + 1, 2]."""
    centre = random.uniform(-12, 12, 2)
    radius, angle = random.uniform(8, 14), random.uniform(0, 2 * np.pi)
    turns = angle + random.choice([-1, 1]) * 2 * np.pi / 3 * np.arange(4)
    corners = centre + radius * np.stack([np.sin(turns), np.cos(turns)], 1)
    along = np.linspace(0, 3, DURATION // STEP + 1)
    return np.stack([np.interp(along, np.arange(4), corners[:, axis]) for axis in (0, 1)], 1)


def seen_from(scene: np.ndarray, place: np.ndarray) -> np.ndarray:
    row, column = np.rint(place).astype(int)
    stop = SENSOR * PER_PIXEL
    return scene[row : row + stop : PER_PIXEL, column : column + stop : PER_PIXEL]


def around_digit(place: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of the sensor that see the digit or have just done so: the ground gives no events."""
    top_left = np.rint((SENSOR - WIDTH) / 2 + MARGIN - place / PER_PIXEL).astype(int)
    start, stop = (top_left - 2).clip(0, SENSOR), (top_left + WIDTH + 2).clip(0, SENSOR)
    return slice(start[0], stop[0]), slice(start[1], stop[1])


def crossings(
    before: np.ndarray, now: np.ndarray, level: np.ndarray, threshold: np.ndarray, start: int
) -> list[tuple[np.ndarray, ...]]:
    """The events, t, x, y, p, of a step that begins at `start`; `level` becomes that of each pixel's last event."""
    found: list[tuple[np.ndarray, ...]] = []
    for polarity, sign in ((0, -1), (1, 1)):
        height = threshold[polarity]
        y, x = np.nonzero((now - level) * sign >= height)
        while len(y):  # several events of one pixel in a step, one after the other
            level[y, x] += sign * height[y, x]
            passed = (level[y, x] - before[y, x]) / (now[y, x] - before[y, x])
            t = start + (np.clip(passed, 0, 1) * (STEP - 1)).astype(np.int64)
            found.append((t, x, y, np.full(len(y), polarity)))
            again = (now[y, x] - level[y, x]) * sign >= height[y, x]
            y, x = y[again], x[again]
    return found


def noise(random: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Events without a cause, in no order."""
    seconds = DURATION / 1e6
    rate = np.full(SENSOR * SENSOR, NOISE)
    rate[random.choice(SENSOR * SENSOR, HOT_PIXELS, replace=False)] = HOT
    pixel = np.repeat(np.arange(SENSOR * SENSOR), random.poisson(rate * seconds))
    t = random.integers(0, DURATION, len(pixel))
    return t, pixel % SENSOR, pixel // SENSOR, random.integers(0, 2, len(pixel))
