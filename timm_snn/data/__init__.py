"""Data from event cameras. `import timm_snn` leaves it alone; it needs nothing but numpy and torch."""

from .events import EventFileError, Events, Trial, iter_events, read_events, read_gesture_labels

__all__ = ['EventFileError', 'Events', 'Trial', 'iter_events', 'read_events', 'read_gesture_labels']
