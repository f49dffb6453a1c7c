"""Data from event cameras. `import timm_snn` leaves it alone; it needs numpy, torch and timm."""

from .augment import EventAugment, EventMixup
from .datasets import CIFAR10DVS, NMNIST, DVS128Gesture, EventDataset
from .event_digits import EventDigits
from .event_folder import EventFolder, SensorSizeError
from .events import (
    EventFileError,
    Events,
    RecordingInfo,
    Trial,
    iter_events,
    read_events,
    read_gesture_labels,
    recording_info,
)
from .filters import crop_events, drop_pixels, drop_refractory, find_hot_pixels
from .frames import to_frames
from .rows import EventRows, write_rows
from .settings import FrameSettings, frame_settings, has_frame_settings, set_frame_settings
from .windows import WindowDataset, iter_frames, iter_windows

__all__ = [
    'CIFAR10DVS',
    'NMNIST',
    'DVS128Gesture',
    'EventAugment',
    'EventDataset',
    'EventDigits',
    'EventFileError',
    'EventFolder',
    'EventMixup',
    'EventRows',
    'Events',
    'FrameSettings',
    'RecordingInfo',
    'SensorSizeError',
    'Trial',
    'WindowDataset',
    'crop_events',
    'drop_pixels',
    'drop_refractory',
    'find_hot_pixels',
    'frame_settings',
    'has_frame_settings',
    'iter_events',
    'iter_frames',
    'iter_windows',
    'read_events',
    'read_gesture_labels',
    'recording_info',
    'set_frame_settings',
    'to_frames',
    'write_rows',
]
