"""What a model is trained to do."""

import sys
from functools import partial

import pytest
import timm
import torch
import torch.nn.functional as F
import yaml
from timm.task import LogitDistillationTask
from torch import nn

import timm_snn
from tests.conftest import lively
from tests.support.training import DIGITS, QUICK, assert_same_weights, weights
from timm_snn.training.tasks import (
    LOSSES,
    FiringRateTask,
    StepDistillationTask,
    StepLogits,
    StepTask,
    distillation,
    firing_rate_loss,
    make_task,
    membrane_loss,
    temporal_efficient_training,
)

SHORT = [*QUICK[2:], '--config', str(DIGITS), '--max-train-samples', '128', '--max-val-samples', '8', '--epochs', '1']
SHORT += ['--warmup-epochs', '0', '--log-with', 'none']
CPU = torch.device('cpu')


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
    for options, message in (
        (['--loss', 'tet', '--tet', '0.1'], 'arguments --loss and --tet: one of them'),
        (['--task', 'a:B', '--kd-model-name', 'resnet10t'], 'a task of your own is the whole loss'),
        (['--rate-weight', '1', '--compile'], 'compiled blocks do not show their spikes'),
        (['--rate-target', '0.1'], 'argument --rate-target: it needs --rate-weight'),
        (['--task-kwargs', 'a=1'], 'argument --task-kwargs: it needs --task'),
        (['--rate-weight', '1', '--rate-target', '2'], "expected a rate from 0 to 1, or NAME=RATE ..., got '2'"),
        (['--rate-weight', '1', '--rate-target', 'nobody=0.1'], "no layer is left for the target of 'nobody'; there"),
        (['--task', 'mine'], '--task mine: expected PACKAGE:NAME'),
        (['--task', 'nobodys_package.sub:Task'], "there is no module 'nobodys_package': install it, run where"),
        (['--task', 'timm_snn.ops:Task'], "__init__.py has no class 'Task'"),
        (['--task', 'torch.nn:Softmax'], "cannot make the task 'torch.nn:Softmax': Softmax"),
        (['--task', 'functools:partial'], 'expected a timm.task.TrainingTask, got partial'),
    ):
        with pytest.raises(SystemExit, match='error: .*' + message):
            train(*SHORT, *options, '--output', tmp_path)


def test_tet_by_name_has_the_weight_of_its_default(small):
    steps, labels = torch.rand(3, 4, 10), torch.tensor([1, 2, 3])
    criterion = nn.CrossEntropyLoss()
    by_name, by_weight = (
        make_task(StepLogits(small), criterion, torch.device('cpu'), **option).loss(steps, labels, criterion)
        for option in (dict(loss='tet'), dict(tet=0.05))
    )
    assert torch.equal(by_name, by_weight)


def test_firing_rates_are_pulled_to_the_target_of_the_first_pattern_that_matches():
    spikes = {'stem.lif': torch.tensor([[1.0, 0.0]]), 'a.lif': torch.ones(2, 3), 'b.lif': torch.zeros(2, 3)}
    assert firing_rate_loss(spikes).item() == pytest.approx((0.25 + 1 + 0) / 3)
    assert firing_rate_loss(spikes, {'stem.*': 0.3, '*': 0.1}).item() == pytest.approx((0.04 + 0.81 + 0.01) / 3)
    assert firing_rate_loss(spikes, {'[ab].*': 0.5}).item() == pytest.approx(0.25)
    for targets in ({'c.*': 0.1}, {'*': 0.1, 'a.*': 0.2}):
        with pytest.raises(ValueError, match='no layer is left for the target'):
            firing_rate_loss(spikes, targets)
    with pytest.raises(ValueError, match='there are no spikes'):
        firing_rate_loss({})
    half = {'a': torch.ones(300, 300, dtype=torch.bfloat16)}
    assert firing_rate_loss(half, 0.5).dtype == torch.float32


def test_membranes_are_pulled_into_an_interval():
    assert membrane_loss({'a': torch.tensor([[-3.0, 0.0, 4.0]]), 'b': torch.zeros(2, 2)}).item() == pytest.approx(4 / 3)
    with pytest.raises(ValueError, match='there are no membranes'):
        membrane_loss({})


def test_distillation_is_that_of_timm_at_every_step():
    steps, taught = torch.randn(3, 4, 10), torch.randn(3, 10)
    expected = [
        F.kl_div((x / 2).log_softmax(1), (taught / 2).log_softmax(1), reduction='batchmean', log_target=True) * 4
        for x in steps.unbind(1)
    ]
    torch.testing.assert_close(distillation(steps, taught, 2.0), torch.stack(expected).mean())
    torch.testing.assert_close(distillation(steps[:, 0], taught, 2.0), expected[0])


def test_losses_add_up(small):
    """TET, a teacher and firing rates in one task are the weighted sum of the three."""
    images, labels = torch.rand(3, 1, 28, 28).double(), torch.tensor([1, 2, 3])
    criterion = nn.CrossEntropyLoss()
    teacher = lively(timm.create_model('msvit_4_96', num_steps=2).double().eval())
    small.pretrained_cfg = teacher.pretrained_cfg
    tet = partial(temporal_efficient_training, weight=0.25)
    learner = StepLogits(small)
    inner = StepDistillationTask(learner, teacher, criterion, tet, task_loss_weight=0.7, temperature=2.0, verbose=False)
    result = FiringRateTask(inner, weight=5.0, target=0.1)(images, labels)
    with torch.no_grad(), timm_snn.record(small) as r:
        steps = small.forward_steps(images)
    expected = 0.7 * tet(steps, labels, criterion) + 0.3 * distillation(steps, teacher(images), 2.0)
    torch.testing.assert_close(result['loss'], expected + 5.0 * firing_rate_loss(r.spikes, 0.1))
    assert result['output'].shape == (3, 10) and torch.autograd.grad(result['loss'], small.stem.units[0].conv.weight)


def test_a_teacher_alone_and_labels_alone_are_timms(small):
    teacher = timm.create_model('msvit_4_96')
    make = partial(make_task, criterion=nn.CrossEntropyLoss(), device=CPU)
    assert type(make(small, teacher=teacher)) is LogitDistillationTask
    assert type(make(StepLogits(small), teacher=teacher, tet=0.1)) is StepDistillationTask


@pytest.mark.parametrize('backend', ['torch', 'auto'])
def test_regularised_training_lowers_the_firing_rates(backend):
    torch.manual_seed(0)
    model = lively(timm.create_model('msvit_4_96', num_steps=2, backend=backend)).train()
    model.set_grad_checkpointing()
    task = make_task(model, nn.CrossEntropyLoss(), CPU, rate_weight=1000.0, rate_target={'stages.*': 0.05})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    images, labels, losses = torch.rand(4, 1, 28, 28), torch.tensor([1, 2, 3, 4]), []
    for _ in range(4):
        result = task(images, labels)
        optimizer.zero_grad()
        result['loss'].backward()
        optimizer.step()
        losses.append(result['rate_loss'].item())
    assert losses[-1] < 0.8 * losses[0]


def test_a_run_with_rates_by_layer_a_teacher_and_steps_is_saved_and_resumed(train, finished, tmp_path):
    mine = {'tet': 0.05, 'rate_weight': 10, 'rate_target': {'stem.*': 0.2, '*': 0.05}}
    (tmp_path / 'mine.yaml').write_text(yaml.safe_dump({'config': str(DIGITS), **mine}, sort_keys=False))
    options = [*SHORT, '--config', tmp_path / 'mine.yaml', '--no-overwrite']
    options += ['--kd-model-name', f'local-dir:{finished / "model"}', '--grad-checkpointing']
    train(*options, '--epochs', '2', '--output', tmp_path / 'whole')
    train(*options, '--epochs', '2', '--max-steps', '3', '--output', tmp_path / 'parts')
    train(*options, '--epochs', '2', '--resume', 'auto', '--output', tmp_path / 'parts')
    assert_same_weights(tmp_path / 'whole', tmp_path / 'parts')
    saved = yaml.safe_load((tmp_path / 'whole' / 'config.yaml').read_text())
    assert {name: saved[name] for name in mine} == mine


MODULE = """
import timm_snn
from timm.task import ClassificationTask
from timm_snn.training.tasks import membrane_loss

seen = []

class Task(ClassificationTask):
    def __init__(self, model, criterion, weight=0.01):
        super().__init__(model, criterion)
        self.weight = weight
        seen.append(weight)

    def forward(self, input, target):
        with timm_snn.record(self.trainable_module, membranes=True) as r:
            logits = self.trainable_module(input)
        loss = self.criterion(logits, target) + self.weight * membrane_loss(r.membranes)
        return {'loss': loss, 'output': logits}

class Broken(Task):
    by_step = True

    def forward(self, input, target):
        assert self.trainable_module(input).ndim == 3
        return {}['my mistake']
"""


@pytest.fixture
def my_package(tmp_path, monkeypatch):
    (tmp_path / 'path').mkdir()
    (tmp_path / 'path' / 'my_losses.py').write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path / 'path')
    yield 'my_losses'
    sys.modules.pop('my_losses', None)


def test_a_task_of_ones_own_is_used_saved_and_used_again(train, my_package, tmp_path):
    task = [
        '--task',
        f'{my_package}:Task',
        '--task-kwargs',
        'weight=0.5',
        '--no-overwrite',
        '--output',
        tmp_path / 'out',
    ]
    train(*SHORT, *task)
    train('--config', tmp_path / 'out' / 'config.yaml', '--resume', 'auto', '--epochs', '2')
    assert sys.modules[my_package].seen == [0.5, 0.5]
    with pytest.raises(SystemExit, match='these changed: task'):
        train(*SHORT, '--no-overwrite', '--resume', 'auto', '--epochs', '3', '--output', tmp_path / 'out')
    assert weights(tmp_path / 'out').keys() == timm.create_model('msvit_4_96').state_dict().keys()


def test_mistakes_in_a_task_of_ones_own_keep_their_traceback(train, my_package, tmp_path):
    with pytest.raises(KeyError, match='my mistake'):
        train(*SHORT, '--task', f'{my_package}:Broken', '--output', tmp_path / 'out')
    (tmp_path / 'path' / 'lacking.py').write_text('import nobodys_package')
    with pytest.raises(ModuleNotFoundError, match='nobodys_package'):
        train(*SHORT, '--task', 'lacking:Task', '--output', tmp_path / 'out')
    with pytest.raises(SystemExit, match=r"cannot make the task 'my_losses:Task': .* unexpected .*'size'"):
        train(*SHORT, '--task', f'{my_package}:Task', '--task-kwargs', 'size=1', '--output', tmp_path / 'out')
