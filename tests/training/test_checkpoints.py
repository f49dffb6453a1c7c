"""Checkpoints: which are whole, and which are kept."""

import math
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch
import yaml
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from tests.support.damage import cut, flip_a_bit
from timm_snn.training.checkpoints import Checkpoints, check_unchanged, damage, in_order, is_finite
from timm_snn.training.errors import UserError
from timm_snn.training.models import options_file
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


def test_a_run_goes_on_from_a_version_that_had_fewer_options(output):
    """One that is new and left off changes nothing; one that is on does."""
    checkpoint = output / 'checkpoints' / 'epoch_0001'
    options = yaml.safe_load(options_file(checkpoint).read_text())
    setup = {'mixed_precision': 'no'}  # what the option of this name came to
    check_unchanged(options | {'brand_new': False}, setup, checkpoint, print)
    with pytest.raises(UserError, match='these changed: brand_new None to True'):
        check_unchanged(options | {'brand_new': True}, setup, checkpoint, print)


def test_the_newest_checkpoints_and_the_best_are_kept(tmp_path):
    progress = Progress([{'eval_top1': top1} for top1 in (1.0, 5.0, 2.0, 5.0, 3.0)])
    names = [f'epoch_{i:04d}' for i in range(1, 6)]
    for name in (*names, 'epoch_0005_step_000010'):
        (tmp_path / 'checkpoints' / name).mkdir(parents=True)
    keeper = Checkpoints(MagicMock(), tmp_path, progress, {}, {}, None, 2, 'eval_top1')
    keeper._prune()
    kept = sorted(path.name for path in (tmp_path / 'checkpoints').iterdir())
    assert kept == ['epoch_0002', 'epoch_0005', 'epoch_0005_step_000010'] and keeper.best.name == 'epoch_0002'


def test_checkpoints_are_in_the_order_of_their_numbers(tmp_path):
    names = ['epoch_9999', 'epoch_10000', 'epoch_10000_step_999999', 'epoch_10000_step_1000000', 'epoch_10001']
    for name in (*names, 'epoch_2_copy', 'damaged_epoch_20000'):
        (tmp_path / name).mkdir()
    assert [path.name for path in in_order(tmp_path)] == names


def keeper_of(model, folder):
    accelerator = Accelerator(cpu=True)
    prepared = accelerator.prepare(model)
    return Checkpoints(accelerator, folder, Progress(), {'model': 'x'}, {}, None, 2, 'eval_top1'), prepared


def test_the_state_kept_of_a_failure_has_the_statistics_from_before(tmp_path):
    keeper, model = keeper_of(torch.nn.BatchNorm1d(2), tmp_path)
    for _ in range(2):
        keeper.keep_buffers(model)
        model(torch.rand(4, 2))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    keeper.keep_buffers(model)
    model(torch.full((4, 2), math.nan))
    assert not is_finite(model)
    with pytest.raises(UserError, match=r'--checkpoint .*/failed/state/model.safetensors'):
        keeper.fail(model, {}, math.nan, 1.0)
    saved = load_file(tmp_path / 'failed' / 'state' / 'model.safetensors')
    assert all(torch.equal(saved[name], buffer) for name, buffer in before.items())


def test_statistics_that_have_overflowed_are_not_advised_to_start_from(tmp_path):
    keeper, model = keeper_of(torch.nn.BatchNorm1d(2), tmp_path)
    model.running_var.fill_(math.inf)
    keeper.keep_buffers(model)
    with pytest.raises(UserError, match='pass --output NEW too'):
        keeper.fail(model, {}, math.nan, 1.0)


def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(tmp_path):
    keeper, model = keeper_of(torch.nn.BatchNorm1d(2), tmp_path)
    saved = keeper.save()
    keeper.progress.updates = 1
    model.running_mean.fill_(math.nan)
    with pytest.raises(UserError, match=r'cannot write checkpoint .* NaN or infinite values in running_mean'):
        keeper.save()
    assert [path.name for path in (tmp_path / 'checkpoints').iterdir()] == ['epoch_0000']
    save_file(model.state_dict(), saved / 'model.safetensors')
    with pytest.raises(UserError, match='NaN or infinite values in running_mean'):
        keeper.load(saved)
