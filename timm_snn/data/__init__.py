"""Data from event cameras. `import timm_snn` leaves it alone; it needs numpy, torch and timm."""

from .augment import EventAugment, EventMixup
from .datasets import CIFAR10DVS, NMNIST, DVS128Gesture, EventDataset
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
from .frames import to_frames
from .rows import EventRows, write_rows

__all__ = [
    'CIFAR10DVS',
    'NMNIST',
    'DVS128Gesture',
    'EventAugment',
    'EventDataset',
    'EventFileError',
    'EventMixup',
    'EventRows',
    'Events',
    'RecordingInfo',
    'Trial',
    'iter_events',
    'read_events',
    'read_gesture_labels',
    'recording_info',
    'to_frames',
    'write_rows',
]
