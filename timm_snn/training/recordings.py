"""Recordings of event cameras for a trained model: how their frames are made."""

from pathlib import Path
from typing import Any

from torch import Tensor

from ..data import FrameSettings, frame_settings, has_frame_settings, read_events, recording_info
from .data import DataSource, config_to_evaluate, note_on_frames
from .errors import UserError, one_line_errors
from .models import channels

__all__ = ['open_frames', 'settings_for']


def settings_for(model: Any, source: DataSource, **image: Any) -> tuple[FrameSettings, str | None]:
    """How a model's frames are made, where `source` and `image` do not say otherwise, and a note if they do.

    Raises: UserError if nobody knows the size of the sensor, or it has another shape than the model's.
    """
    if source.sensor_size is None and not has_frame_settings(model):
        raise UserError(
            f'{type(model).__name__} with {channels(model)} channels does not say how its frames are made, as models '
            'of images and of earlier versions: pass --sensor-size H W, of the camera that it was trained with'
        )
    given: dict[str, Any] = {name: tuple(image[name]) for name in ('mean', 'std') if name in image}
    if not has_frame_settings(model):
        config = config_to_evaluate(source, model, **image)
        given = {name: config[name] for name in ('mean', 'std')}
    if 'img_size' in image:
        given['size'] = (image['img_size'], image['img_size'])
    if source.sensor_size:
        given['sensor_size'] = source.sensor_size
    if any(source.bins.values()):  # all of them, or those that are left open would be the model's
        given |= source.bins
    with one_line_errors('make frames'):
        settings = frame_settings(model, **given)
    return settings, note_on_frames(model, settings)


def open_frames(file: Path, settings: FrameSettings, source: DataSource) -> Tensor:
    """The frames [T, C, H, W] of a recording. Where it says which sensor it is of, and nobody else does, that counts.

    Raises: what `read_events` and `FrameSettings.frames` raise.
    """
    reading = source.reading or {}
    sensor_size = None if source.sensor_size else recording_info(file, **reading).sensor_size
    return settings.frames(read_events(file, **reading), sensor_size)
