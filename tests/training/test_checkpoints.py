"""Checkpoints: which are whole, and which are kept."""

from pathlib import Path
from unittest.mock import MagicMock

import pytest

from tests.support.damage import cut, flip_a_bit
from timm_snn.training.checkpoints import Checkpoints, damage
from timm_snn.training.progress import Progress


@pytest.mark.parametrize('name', ['model.safetensors', 'optimizer.bin', 'random_states_0.pkl', 'progress.json'])
@pytest.mark.parametrize('harm', [cut, flip_a_bit, Path.unlink])
def test_damage_is_noticed(output, name, harm):
    checkpoint = output / 'checkpoints' / 'epoch_0001'
    assert damage(checkpoint) is None
    harm(checkpoint / name)
    assert name in damage(checkpoint)
    (checkpoint / 'manifest.json').write_text('[]')
    assert 'AttributeError' in damage(checkpoint)


def test_the_newest_checkpoints_and_the_best_are_kept(tmp_path):
    progress = Progress([{'eval_top1': top1} for top1 in (1.0, 5.0, 2.0, 5.0, 3.0)])
    names = [f'epoch_{i:04d}' for i in range(1, 6)]
    for name in (*names, 'epoch_0005_step_000010'):
        (tmp_path / 'checkpoints' / name).mkdir(parents=True)
    keeper = Checkpoints(MagicMock(), tmp_path, progress, {}, {}, None, 2, 'eval_top1')
    keeper._prune()
    kept = sorted(path.name for path in (tmp_path / 'checkpoints').iterdir())
    assert kept == ['epoch_0002', 'epoch_0005', 'epoch_0005_step_000010'] and keeper.best.name == 'epoch_0002'
