"""Data sets by name and the samples of them that a run uses."""

from typing import Any

import numpy as np

from timm_snn.training.data import Digits, choose_samples


def test_the_held_out_fifth_is_fixed_and_disjoint():
    held_out, kept = Digits(train=False), Digits(train=True)
    assert (len(held_out), len(kept)) == (360, 1437)
    assert np.bincount(held_out.labels).tolist() == [36, 36, 35, 37, 36, 37, 36, 36, 35, 36]
    pixels = {image.tobytes() for image in kept.images}
    assert not any(image.tobytes() in pixels for image in held_out.images)


def test_held_out_samples_and_folds_share_none():
    def choose(**options: Any) -> list[set[int]]:
        chosen = choose_samples(Digits(True), Digits(False), seed=0, **options)
        return [{int(i) for i in samples.indices} for samples in chosen if samples]

    train, held_out, test = choose(val_fraction=0.1)
    assert [len(train), len(held_out), len(test)] == [1293, 144, 360]
    assert not train & held_out and not (train | held_out) & test
    folds = [choose(fold=f'{i}/5') for i in range(1, 6)]
    assert all(not train & val and len(train | val) == 1797 for train, val in folds)
    assert len(set.union(*(val for _, val in folds))) == 1797
