"""Event-camera recordings: read them, and what follows from there. Needs no more than numpy and torch."""

from .augment import EventAugment, EventMixup
from .events import EventFileError, Events, Trial, iter_events, read_events, read_gesture_labels
from .frames import to_frames

__all__ = [
    'EventAugment',
    'EventFileError',
    'EventMixup',
    'Events',
    'Trial',
    'iter_events',
    'read_events',
    'read_gesture_labels',
    'to_frames',
]
