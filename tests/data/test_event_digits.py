"""Recordings made from scikit-learn's digits: a seed gives the same events, which are those of what moved."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from timm_snn.data import EventDigits, to_frames
from timm_snn.data.event_digits import HOT_PIXELS, record_digit, split_digits

ROOT = Path(__file__).parents[2]
RING = np.zeros((8, 8))
RING[2:6, 2:6] = 16
RING[3:5, 3:5] = 0


def test_the_same_seed_gives_the_same_events():
    first, again, other = record_digit(RING, 3), record_digit(RING, 3), record_digit(RING, 4)
    assert all(np.array_equal(*columns) for columns in zip(first, again, strict=True))
    assert len(first.t) != len(other.t) or not np.array_equal(first.t, other.t)


def test_events_are_in_order_and_on_the_sensor():
    events = record_digit(RING, 0)
    assert (np.diff(events.t) >= 0).all() and events.t[0] >= 0 and events.t[-1] < 300_000
    assert to_frames(events, 3, sensor_size=(128, 128)).sum() == len(events.t)
    assert [column.dtype for column in events] == [np.int64, np.int16, np.int16, np.uint8]


def test_edges_fire_in_both_polarities_and_the_rest_is_noise():
    moving, still = record_digit(RING, 1), record_digit(np.zeros((8, 8)), 1)
    expected = 0.3 * (128 * 128 * 0.5 + HOT_PIXELS * 200)
    assert abs(len(still.t) - expected) < 5 * expected**0.5
    assert len(moving.t) > 2 * len(still.t)
    assert 0.4 < moving.p.mean() < 0.6  # what becomes bright becomes dark again


def test_a_brighter_step_gives_more_events():
    faint = record_digit(RING / 8, 2)
    assert len(faint.t) < len(record_digit(RING, 2).t)


def test_the_parts_are_those_of_the_still_digits():
    train, test = EventDigits(True, num_steps=2), EventDigits(False, num_steps=2)
    assert (len(train), len(test)) == (1_437, 360)
    assert test.targets == list(split_digits(False)[1])
    assert not {image.tobytes() for image in train.images} & {image.tobytes() for image in test.images}


def test_samples_are_frames_of_their_recording():
    data = EventDigits(False, num_steps=4, split_by='time', size=32, transform=lambda frames: frames / 2)
    frames, label = data[5]
    events = data.recording(5)
    assert label == data.targets[5] and frames.shape == (4, 2, 32, 32)
    torch.testing.assert_close(
        2 * frames, torch.from_numpy(to_frames(events, 4, sensor_size=(128, 128), split_by='time', size=32))
    )
    kept = data.recording(5)  # which is read from memory now
    assert all(
        np.array_equal(*columns) and columns[0].dtype == columns[1].dtype for columns in zip(events, kept, strict=True)
    )


def test_the_lines_in_the_documentation_run():
    section = (ROOT / 'docs' / 'events.md').read_text().split('\n## Moving digits, without a download\n')[1]
    names: dict[str, Any] = {}
    exec(re.search(r'```python\n(.*?)```', section, re.DOTALL)[1], names)
    assert names['digit'].tolist() == [EventDigits(False, num_steps=1).targets[0]]
