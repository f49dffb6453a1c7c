"""How a model's frames are made of events: what config.json says of it, and frames that are ready for the model."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..files import printable
from ..wrappers import unwrapped
from .frames import check_frame_options, to_frames
from .recording import Events

__all__ = ['FrameSettings', 'frame_settings', 'has_frame_settings', 'height_and_width', 'set_frame_settings']

KEY = 'frames'  # in the pretrained_cfg of a model and of its config.json
MOST_STEPS = 10_000
MOST_PIXELS = 2**28  # of all steps and channels together: a gigabyte of float32
ASPECT_TOLERANCE = 0.05  # by which the shape of another sensor may differ; 260 x 346 and 480 x 640 differ by 0.002


@dataclass(frozen=True)
class FrameSettings:
    """What turns the events of a recording into the input of a model, and the model's config.json keeps under `frames`.

    Args:
        num_steps: T, the number of bins.
        sensor_size: (height, width) of the camera, in pixels.
        split_by, bin_us, events_per_bin: What bins are made by, as in `to_frames`: T equal numbers of events, T equal
            spans of time, or bins of so many microseconds or events from the first event on.
        channels: 2 for (negative, positive), or 3 for (positive, negative, sum).
        size: (height, width) that the counts of the sensor are resized to by area; None is the sensor's.
        mean, std: What is subtracted from the counts of each channel, and what they are divided by then.

    Raises: ValueError for what is none of these.
    """

    num_steps: int
    sensor_size: tuple[int, int]
    split_by: str | None = None
    bin_us: int | None = None
    events_per_bin: int | None = None
    channels: int = 2
    size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if type(self.num_steps) is not int or not 1 <= self.num_steps <= MOST_STEPS:
            raise ValueError(f'num_steps must be a whole number from 1 to {MOST_STEPS:,}, not {self.num_steps!r}')
        set_field = object.__setattr__  # of a frozen dataclass
        set_field(self, 'sensor_size', height_and_width('sensor_size', self.sensor_size))
        set_field(self, 'size', height_and_width('size', self.sensor_size if self.size is None else self.size))
        split_by = check_frame_options(
            self.num_steps,
            self.split_by,
            self.channels,
            self.size,
            bin_us=self.bin_us,
            events_per_bin=self.events_per_bin,
        )
        set_field(self, 'split_by', split_by)
        for name, default in (('mean', 0.0), ('std', 1.0)):
            set_field(self, name, _per_channel(name, getattr(self, name), default, self.channels))
        if not all(self.std or ()):
            raise ValueError(f'std must not be 0, got {self.std}')
        if (pixels := self.num_steps * self.channels * math.prod(self.size or ())) > MOST_PIXELS:
            raise ValueError(
                f'expected frames of at most {MOST_PIXELS:,} values, got {pixels:,}: lower size or num_steps'
            )

    def frames(
        self,
        events: Events,
        sensor_size: tuple[int, int] | None = None,
        *,
        start: int | None = None,
        end: int | None = None,
    ) -> Tensor:
        """Float32 [T, C, H, W], ready for the model, which takes a batch of them: `frames.unsqueeze(0)`.

        `sensor_size` is that of the camera that recorded the events, where it is another one: counts are resized. The
        bins are of the events from `start` until before `end`, in microseconds, as in `to_frames`.
        Raises: ValueError as `to_frames` does, and for a sensor of another shape than the model's (`check_sensor`).
        """
        counts = to_frames(
            events,
            self.num_steps,
            sensor_size=self.sensor_size if sensor_size is None else self.check_sensor(sensor_size),
            split_by=self.split_by,
            start=start,
            end=end,
            bin_us=self.bin_us,
            events_per_bin=self.events_per_bin,
            channels=self.channels,
            size=self.size,
        )
        return self.normalize(torch.from_numpy(counts))

    def normalize(self, counts: Tensor) -> Tensor:
        """(counts - mean) / std of each channel; shape: [..., C, H, W] -> the same."""
        mean, std = (torch.tensor(values, dtype=counts.dtype).view(-1, 1, 1) for values in (self.mean, self.std))
        return (counts - mean) / std

    def check_sensor(self, sensor_size: tuple[int, int]) -> tuple[int, int]:
        """`sensor_size`, whose frames can be resized to the model's.

        Raises: ValueError where height and width are in another proportion, which would squeeze what is seen.
        """
        (height, width), (own_height, own_width) = height_and_width('sensor_size', sensor_size), self.sensor_size
        if abs(height * own_width / (width * own_height) - 1) > ASPECT_TOLERANCE:
            scale = min(height / own_height, width / own_width)
            region = f'{round(own_height * scale)} x {round(own_width * scale)}'
            raise ValueError(
                f'a sensor of {height} x {width} pixels has another shape than the {own_height} x {own_width} of the '
                f"model's, and resizing would squeeze what it sees: crop the events to {region} pixels first"
            )
        return height, width

    def to_dict(self) -> dict[str, Any]:
        """The settings for JSON, without those that are None."""
        settings = {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}
        return {name: value for name, value in settings.items() if value is not None}


def frame_settings(model: Any, **given: Any) -> FrameSettings:
    """The settings that a model carries, whatever it is wrapped in; T is the model's `num_steps` now.

    `given` settings win. With `sensor_size` among them a model without settings, as one that an earlier version saved,
    has the size, mean and std that it was saved with, and bins by number unless `split_by` says otherwise.

    Raises: ValueError for a model without settings, and for settings that are wrong or do not fit the model.
    """
    found = saved_frames(model)
    model = unwrapped(model)
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    if found is None:
        if 'sensor_size' not in given:
            raise ValueError(
                f'this {type(model).__name__} does not say how its frames are made: it sees images, or was saved by an '
                'earlier version; pass sensor_size=(height, width), and split_by where it is not by number'
            )
        found = dict(size=tuple(cfg['input_size'][1:]), channels=getattr(model, 'in_chans', cfg['input_size'][0]))
        if cfg.get('source'):  # others have the mean of the images that they are named after
            found |= dict(mean=cfg.get('mean'), std=cfg.get('std'))
    settings = {**found, 'num_steps': getattr(model, 'num_steps', found.get('num_steps', 1)), **given}
    try:
        made = FrameSettings(**settings)
    except (TypeError, ValueError) as error:  # TypeError: of unknown settings, or values of wrong types
        place = cfg.get('hf_hub_id') or cfg.get('file')
        whose = f'the config.json of {printable(place)}' if cfg.get('source') else f'this {type(model).__name__}'
        raise ValueError(f'cannot make frames as {whose} says: {printable(error, 300)}') from error
    if (channels := getattr(model, 'in_chans', made.channels)) != made.channels:
        raise ValueError(
            f'this {type(model).__name__} takes {channels} channels, and its frames have {made.channels}: it was made '
            'with another in_chans than it was trained with; pass channels'
        )
    return made


def difference(model: Any, frames: FrameSettings) -> str:
    """In what these settings differ from those that a model carries, '' for nothing.

    Raises: ValueError for settings of the model that are wrong, and for a sensor of another shape.
    """
    own = frame_settings(model)
    own.check_sensor(frames.sensor_size)
    if saved := saved_frames(model).get('num_steps'):
        own = dataclasses.replace(own, num_steps=saved)
    mine, theirs = dataclasses.asdict(own), dataclasses.asdict(frames)
    return ', '.join(f'{name} {theirs[name]} instead of {mine[name]}' for name in theirs if theirs[name] != mine[name])


def has_frame_settings(model: Any) -> bool:
    """Whether a model says how its frames are made, as those for event cameras do; a model for images does not."""
    return saved_frames(model) is not None


def saved_frames(model: Any) -> Any:
    """What a model says of its frames, as its config.json has it, unchecked; None if it says nothing."""
    return (getattr(unwrapped(model), 'pretrained_cfg', None) or {}).get(KEY)


def set_frame_settings(model: Any, settings: FrameSettings | None) -> None:
    """Let a model carry these settings, into its config.json too; with None it says nothing of frames."""
    unwrapped(model).pretrained_cfg[KEY] = settings and settings.to_dict()


def height_and_width(name: str, size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        size = (size, size)
    if not (isinstance(size, (list, tuple)) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)):
        raise ValueError(f'{name} must be (height, width) in pixels, not {printable(repr(size))}')
    return size[0], size[1]


def _per_channel(name: str, values: Any, default: float, channels: int) -> tuple[float, ...]:
    if values is None:
        values = (default,)
    if not isinstance(values, (list, tuple)) or len(values) not in (1, channels):
        raise ValueError(f'{name} must have a number for each of {channels} channels, not {printable(repr(values))}')
    numbers = tuple(float(value) for value in values)
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f'{name} must be finite, not {numbers}')
    return numbers if len(numbers) == channels else numbers * channels
