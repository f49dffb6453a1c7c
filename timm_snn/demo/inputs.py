"""What a visitor draws, uploads or picks, as the input of a model."""

import os
from dataclasses import dataclass
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data import FrameSettings, frame_settings, has_frame_settings
from ..data.event_digits import SENSOR, record_digit, split_digits
from ..labels import DIGITS, FASHION_MNIST
from ..models.pretrained import list_pretrained, weights_status
from ..training.data import DataSource, make_transform
from ..training.errors import UserError, one_line_errors
from ..training.labels import descriptions_of, open_labels
from ..training.models import channels, input_config, open_model
from ..training.pictures import open_picture
from ..training.recordings import open_frames

__all__ = ['Subject', 'has_bright_ground', 'open_subject', 'shipped']


def shipped() -> list[str]:
    """The models whose weights came with the package."""
    return [name for name in list_pretrained() if weights_status(name) == 'shipped']


@dataclass(frozen=True)
class Subject:
    """A model on show.

    Args:
        names: Of its classes.
        frames: How recordings become its input; None for a model of images.
        transform: Of its images.
    """

    name: str
    model: Any
    names: list[str]
    frames: FrameSettings | None
    transform: Any

    @property
    def mode(self) -> str:
        """Pillow's, of the pictures that it takes."""
        return 'L' if channels(self.model) == 1 else 'RGB'

    @property
    def is_simulated(self) -> bool:
        """Whether the camera of its recordings is the simulated one, in front of which any digit can move."""
        return self.frames is not None and self.frames.sensor_size == (SENSOR, SENSOR) and tuple(self.names) == DIGITS

    @property
    def takes_drawings(self) -> bool:
        return self.frames is None or self.is_simulated

    def examples(self) -> list[tuple[Image.Image, str]]:
        """A picture of each example, with its label; none for models of other data than comes with the libraries."""
        names = tuple(self.names)
        if names == DIGITS and (self.frames is None or self.is_simulated):
            images, labels = split_digits(train=False)
            first = [int(np.flatnonzero(labels == digit)[0]) for digit in range(len(DIGITS))]
            pixels = (images[first].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
            return [(Image.fromarray(image), name) for image, name in zip(pixels, names, strict=True)]
        if names == FASHION_MNIST and self.frames is None:
            # one test image of each class, in their order: Fashion-MNIST, (c) 2017 Zalando SE, MIT licence
            strip = open_picture(BytesIO(files(__package__).joinpath('fashion_mnist.png').read_bytes()), 'L')
            side = strip.height
            return [(strip.crop((i * side, 0, (i + 1) * side, side)), name) for i, name in enumerate(names)]
        return []

    def example(self, number: int) -> Tensor:
        """The input that example is."""
        return self.from_picture(self.examples()[number][0], seed=number)

    def drawing(self, ink: Image.Image) -> Tensor:
        """The input that ink is, bright on black, in mode 'L'. Digits fill the picture, as in scikit-learn's data.

        Raises: UserError if there is none.
        """
        box = ink.getbbox()
        if box is None:
            raise UserError('there is nothing to classify: draw something first')
        if tuple(self.names) == DIGITS:
            ink = fill(ink.crop(box))
        return self.from_picture(ink)

    def upload(self, file: Path, invert: bool = False) -> Tensor:
        """The input that a file is, a picture or a recording. Raises: UserError if it cannot be read."""
        try:
            with one_line_errors(f'read {file.name} as a {"recording" if self.frames else "picture"}'):
                if self.frames:
                    return open_frames(file, self.frames, DataSource('event_folder'))
                picture = open_picture(file, self.mode)
                return self.from_picture(picture.point(lambda value: 255 - value) if invert else picture)
        except UserError as error:  # where the file was put tells a visitor nothing
            raise UserError(str(error).replace(f'{file.parent}{os.sep}', '')) from error

    def from_picture(self, picture: Image.Image, seed: int = 0) -> Tensor:
        """The input that a picture is: for a model of events one moves in front of the simulated camera."""
        if self.frames:
            return self.frames.frames(record_digit(np.asarray(picture) / 255 * 16, seed))
        return self.transform(picture.convert(self.mode))

    def seen(self, x: Tensor, step: int) -> Image.Image:
        """What the model sees at a step: its image, or the frame, with events that are positive blue, negative red."""
        if x.ndim == 3:
            pixels = (x - x.min()) / (x.max() - x.min()).clamp(min=1e-6)
            return Image.fromarray((255 * pixels.expand(3, -1, -1)).permute(1, 2, 0).byte().numpy())
        full = x.flatten(2).quantile(0.98).clamp(min=1e-6) if x.numel() < 2**24 else x.max()
        first, second = (x[step - 1, :2] / full).clamp(0, 1)
        positive, negative = (first, second) if x.shape[1] == 3 else (second, first)
        ink = torch.stack([positive, torch.maximum(negative, positive), negative])
        return Image.fromarray((255 * (1 - ink)).permute(1, 2, 0).byte().numpy())


def open_subject(name: str) -> Subject:
    """A model by the name of its weights, 'local-dir:FOLDER' or 'hf-hub:USER/NAME'.

    Raises: UserError if it cannot be made, and for one without time steps or of another number of channels.
    """
    model = open_model(name, pretrained=not name.startswith(('local-dir:', 'hf-hub:')))
    check_shown(name, model)
    frames = None
    if has_frame_settings(model):
        with one_line_errors(f'make frames for {name}'):
            frames = frame_settings(model)
    transform = None if frames else make_transform(input_config(model), is_events=False)
    return Subject(name, model, descriptions_of(open_labels(model), model.num_classes), frames, transform)


def check_shown(name: str, model: Any) -> None:
    """Raises: UserError for a model that has no time steps, or that takes neither pictures nor recordings."""
    if not hasattr(model, 'forward_steps'):
        raise UserError(f'{name} has no time steps to look at: expected a spiking model of this package')
    if channels(model) not in (1, 3) and not has_frame_settings(model):
        raise UserError(
            f'{name} takes {channels(model)} channels and does not say how its frames are made: expected a model of '
            'pictures, or one that was trained on recordings with this version'
        )


def fill(ink: Image.Image) -> Image.Image:
    """Ink of 8 x 8 pixels like scikit-learn's digits: as large as fits, in the middle, the darkest pixel full."""
    side = max(ink.size)
    square = Image.new('L', (side, side))
    square.paste(ink, ((side - ink.width) // 2, (side - ink.height) // 2))
    small = np.asarray(square.resize((8, 8), Image.Resampling.BOX), np.float32)
    return Image.fromarray((small * (255 / small.max())).round().astype(np.uint8))


def has_bright_ground(file: Path) -> bool:
    """Whether the border of a picture is bright, as of paper; False for what is no picture."""
    try:
        pixels = np.asarray(open_picture(file, 'L'))
    except Exception:  # which classifying it says
        return False
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return bool(np.median(border) > 127)
