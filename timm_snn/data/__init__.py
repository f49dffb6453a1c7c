"""Data from event cameras. `import timm_snn` leaves it alone; it needs numpy, torch and timm."""

from .augment import EventAugment, EventMixup
from .datasets import CIFAR10DVS, NMNIST, DVS128Gesture, EventDataset
from .event_digits import EventDigits
from .events import EventFileError, Events, Trial, iter_events, read_events, read_gesture_labels
from .frames import to_frames
from .rows import EventRows, write_rows

__all__ = [
    'CIFAR10DVS',
    'NMNIST',
    'DVS128Gesture',
    'EventAugment',
    'EventDataset',
    'EventDigits',
    'EventFileError',
    'EventMixup',
    'EventRows',
    'Events',
    'Trial',
    'iter_events',
    'read_events',
    'read_gesture_labels',
    'to_frames',
    'write_rows',
]
