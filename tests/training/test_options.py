"""Command lines and configs: what they say, and what they refuse."""

import pytest
import torch
import yaml
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2

from timm_snn.training.options import as_config, optimizer_options, schedule_options, training_options


def test_the_options_of_a_run_are_a_config_that_says_the_same(finished, tmp_path):
    saved = yaml.safe_load((finished / 'config.yaml').read_text())
    assert as_config(training_options(['--config', str(finished / 'config.yaml')])) == saved
    assert saved['img_size'] == 16 and saved['hflip'] == 0.0 and saved['overwrite'] is True
    kwargs = ['--model-kwargs', 'query_kernels=((1,3),(1,),None)', 'attn=ssa', '--mean', '-0.5']
    config = as_config(training_options(kwargs))
    (tmp_path / 'other.yaml').write_text(yaml.safe_dump(config))
    assert as_config(training_options(['--config', str(tmp_path / 'other.yaml')])) == config
    assert config['model_kwargs'] == {'query_kernels': [[1, 3], [1], None], 'attn': 'ssa'}


def test_a_child_inherits_and_overrides(tmp_path):
    (tmp_path / 'parent.yaml').write_text('epochs: 7\nlr: 0.5\nmodel_kwargs: {num_steps: 2}')
    (tmp_path / 'sub').mkdir()
    (tmp_path / 'sub' / 'child.yaml').write_text('config: ../parent.yaml\nlr: 0.25')
    args = training_options(['-c', str(tmp_path / 'sub' / 'child.yaml'), '--epochs', '9'])
    assert (args.epochs, args.lr, args.model_kwargs) == (9, 0.25, {'num_steps': 2})


def test_a_no_without_quotes_is_the_choice_of_that_name(tmp_path):
    (tmp_path / 'config.yaml').write_text('mixed_precision: no')
    assert training_options(['-c', str(tmp_path / 'config.yaml')]).mixed_precision == 'no'


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('config: child.yaml', 'is its own parent'),
        ('config: nobody.yaml', r'there is no such config \(in .*nobody.yaml\)'),
        ('config: [a]', r"key 'config': expected the path of a parent, got \['a'\]"),
    ],
)
def test_parents_that_cannot_be(train, tmp_path, text, message):
    (tmp_path / 'child.yaml').write_text(text)
    with pytest.raises(SystemExit, match=message):
        train('--config', tmp_path / 'child.yaml')


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('epoch: 3', "unknown key 'epoch': did you mean 'epochs'?"),
        ('zzz: 3', "unknown key 'zzz'; see recipes/train.py --help (in {path})"),
        ('- a\n- b', 'a config is a YAML mapping'),
        ('', 'a config is a YAML mapping'),
        ('model: [a\nb: }', 'cannot read the config: while parsing'),
        ('epochs: 2.5', "argument --epochs: invalid positive_int value: '2.5'"),
        ('lr: [1, 2]', "key 'lr': expected one value, got [1, 2]"),
        ('resume: true', "key 'resume': expected one value, got True"),
        ('overwrite: "false"', "key 'overwrite': expected true or false, got 'false'"),
        ('scale: 0.5', "key 'scale': expected a list, got 0.5"),
        ('scale: [0.5]', 'argument --scale: expected 2 arguments'),
        ('model_kwargs: num_steps=2', "key 'model_kwargs': expected a mapping"),
    ],
)
def test_wrong_configs_end_in_one_line(train, tmp_path, text, message):
    path = tmp_path / 'config.yaml'
    path.write_text(text)
    with pytest.raises(SystemExit) as stop:
        train('--config', path)
    assert message.format(path=path) in str(stop.value) and '\n' not in str(stop.value)
    assert str(stop.value).endswith(f'(in {path})')


def rates(*arguments):
    """The learning rate of every update, of 10 an epoch."""
    args = training_options(['--lr', '1', '--warmup-lr', '0', '--min-lr', '0', *arguments])
    optimizer = create_optimizer_v2(torch.nn.Linear(2, 2), lr=args.lr, **optimizer_options(args))
    schedule = dict(step_on_epochs=False, updates_per_epoch=10)
    scheduler, epochs = create_scheduler_v2(optimizer, **schedule, **schedule_options(args))
    found = []
    for number in range(10 * epochs):
        scheduler.step_update(number)
        found.append(optimizer.param_groups[0]['lr'])
    return found


def test_schedules_that_hold_the_rate_or_go_up_and_down():
    stable = rates('--sched', 'wsd', '--epochs', '5', '--warmup-epochs', '1', '--decay-epochs', '0.5')
    assert len(stable) == 50 and stable[5] == pytest.approx(0.5) and stable[10:31] == [1.0] * 21
    assert stable[35] == pytest.approx(1 - (5 / 20) ** 0.5)
    triangle = ('--sched', 'wsd', '--epochs', '5', '--warmup-epochs', '2', '--decay-epochs', '3')
    up_and_down = rates(*triangle, '--lr-decay-fn', 'linear')
    assert up_and_down == pytest.approx([i / 20 for i in range(20)] + [1 - i / 30 for i in range(30)])
    line = rates('--sched', 'poly', '--decay-rate', '1', '--epochs', '5', '--warmup-epochs', '0')
    assert line == pytest.approx([1 - i / 50 for i in range(50)])


def test_arguments_of_the_optimizer(tmp_path):
    path = tmp_path / 'config.yaml'
    path.write_text('opt: muon\nmomentum: 0.95\nopt_kwargs: {fallback_list: [bias], betas: [0.9, 0.99], ns_steps: 3}')
    args = training_options(['--config', str(path)])
    optimizer = create_optimizer_v2(torch.nn.Linear(4, 4), lr=1.0, **optimizer_options(args))
    (main, fallback) = optimizer.param_groups
    assert fallback['use_fallback'] and main['ns_steps'] == 3 and main['momentum'] == 0.95
    assert main['betas'] == [0.9, 0.99]


def test_the_command_line_wins_over_the_config(train, tmp_path):
    path = tmp_path / 'config.yaml'
    path.write_text('model: no_such_model\nnum_classes: 3')
    with pytest.raises(SystemExit, match="cannot create model 'another_model'"):
        train('--config', path, '--model', 'another_model')
