"""Command lines and configs: what they say, and what they refuse."""

import pytest
import yaml

from timm_snn.training.options import as_config, training_options


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


def test_the_command_line_wins_over_the_config(train, tmp_path):
    path = tmp_path / 'config.yaml'
    path.write_text('model: no_such_model\nnum_classes: 3')
    with pytest.raises(SystemExit, match="cannot create model 'another_model'"):
        train('--config', path, '--model', 'another_model')
