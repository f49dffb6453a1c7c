"""What tests of recordings share: a file gives these events, or is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from timm_snn.data import EventFileError, Events, iter_events, read_events


def same(one: Events, other: Events) -> bool:
    """In values and types."""
    return all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(one, other, strict=True))


def gives(events: Events, path: Path, **options: Any) -> bool:
    """Read whole and in parts."""
    parts = Events.concatenate(list(iter_events(path, chunk_events=700, **options)))
    whole = read_events(path, **options)
    return all(np.array_equal(a, b) and np.array_equal(a, c) for a, b, c in zip(events, whole, parts, strict=True))


def refused(path: Path, text: str, **options: Any) -> None:
    with pytest.raises(EventFileError, match=text):
        read_events(path, **options)
