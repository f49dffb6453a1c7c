"""What a model is trained to do."""

from functools import partial

import pytest
import torch
from torch import nn

from tests.support.training import QUICK
from timm_snn.training.tasks import LOSSES, StepLogits, StepTask, make_task, temporal_efficient_training


def test_tet_is_the_mean_over_steps_and_a_pull_to_the_threshold(small):
    images, labels = torch.rand(3, 1, 28, 28).double(), torch.tensor([1, 2, 3])
    loss = partial(temporal_efficient_training, weight=0.25)
    task = StepTask(StepLogits(small), nn.CrossEntropyLoss(), loss)
    steps = small.forward_steps(images)
    mean = sum(nn.functional.cross_entropy(steps[:, t], labels) for t in range(4)) / 4
    result = task(images, labels)
    torch.testing.assert_close(result['loss'], 0.75 * mean + 0.25 * ((steps - 1) ** 2).mean())
    torch.testing.assert_close(result['output'], small(images))
    soft = nn.functional.one_hot(labels, 10).double()
    torch.testing.assert_close(task(images, soft)['loss'], result['loss'])


def test_a_new_loss_is_one_function_that_a_config_names(train, tmp_path, monkeypatch):
    seen = []

    def last_step(logits, target, criterion):
        seen.append((logits.shape, target.shape))
        return criterion(logits[:, -1], target)

    monkeypatch.setitem(LOSSES, 'last_step', last_step)
    (tmp_path / 'mine.yaml').write_text('loss: last_step')
    sizes = ['--max-steps', '1', '--max-val-samples', '8', '--log-with', 'none', '--model-kwargs', 'num_steps=3']
    printed = train(*QUICK[2:], '--config', tmp_path / 'mine.yaml', *sizes, '--output', tmp_path / 'out')
    assert seen == [((64, 3, 10), (64,))] and 'top-1: ' in printed


def test_losses_that_cannot_be_are_refused(train, tmp_path):
    with pytest.raises(SystemExit, match="error: there is no loss 'mine': use one of tet"):
        train(*QUICK, '--loss', 'mine', '--output', tmp_path)
    with pytest.raises(SystemExit, match='arguments --loss, --tet and --kd-model-name: one of them'):
        train(*QUICK, '--loss', 'tet', '--tet', '0.1', '--output', tmp_path)


def test_tet_by_name_has_the_weight_of_its_default(small):
    steps, labels = torch.rand(3, 4, 10), torch.tensor([1, 2, 3])
    criterion = nn.CrossEntropyLoss()
    by_name, by_weight = (
        make_task(StepLogits(small), criterion, torch.device('cpu'), **option).loss(steps, labels, criterion)
        for option in (dict(loss='tet'), dict(tet=0.05))
    )
    assert torch.equal(by_name, by_weight)
