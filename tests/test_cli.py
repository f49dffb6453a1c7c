"""The command `timm-snn`: the recipes' scripts by other names, and `python -m timm_snn.run`."""

import contextlib
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import timm

from timm_snn import cli, recipes, run
from timm_snn.training.errors import UserError
from timm_snn.training.options import as_commands, find_config, training_options

ROOT = Path(__file__).parents[1]


def test_the_scripts_of_the_recipes_are_commands():
    modules = {module for module, _ in cli.COMMANDS.values()}
    scripts = {f'timm_snn.recipes.{path.stem}' for path in (ROOT / 'recipes').glob('*.py')}
    assert scripts - {'timm_snn.recipes.finetune_with_trainer'} <= modules  # which is an example to read
    assert Path(str(import_module('timm_snn.recipes.train').__file__)) == ROOT / 'recipes' / 'train.py'


@pytest.mark.parametrize('command', sorted(cli.COMMANDS))
def test_help_names_the_command_as_it_was_called(command, capsys):
    with contextlib.suppress(SystemExit):
        cli.main([command, '--help'])
    text = capsys.readouterr().out
    assert f'usage: timm-snn {command}' in text
    assert 'recipes/' not in text.split('options:')[0]


def test_a_mistake_names_the_command_as_it_was_called():
    with pytest.raises(SystemExit, match='see timm-snn validate --help'):
        cli.main(['validate', '--model', 'msvit_4_96', '--no-such-option'])


def test_a_text_about_scripts_becomes_one_about_commands():
    text = 'accelerate launch recipes/train.py --config recipes/configs/msvit/table_3/mssa_p_ssa.yaml, recipes/other.py'
    assert as_commands(text) == 'timm-snn train --config msvit/table_3/mssa_p_ssa, recipes/other.py'
    assert as_commands('python recipes/ann_to_snn.py -n 3') == 'timm-snn convert -n 3'


def test_a_package_that_is_missing_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, 'rich.table', None)
    monkeypatch.delitem(sys.modules, 'timm_snn.recipes.predict', raising=False)
    with pytest.raises(SystemExit, match=r"error: predict needs rich.table: pip install 'timm-snn\[train\]'"):
        cli.main(['predict', '--model', 'msvit_4_96'])


def test_configs_have_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert {path.stem for path in (ROOT / 'recipes' / 'configs').rglob('*.yaml')} == {
        name.rpartition('/')[2] for name in recipes.configs()
    }
    assert training_options(['--config', 'msvit/digits']).output == Path('output/digits')
    own = tmp_path / 'msvit' / 'digits'  # a file of this path wins
    own.parent.mkdir()
    own.write_text('output: mine')
    assert training_options(['--config', 'msvit/digits']).output == Path('mine')


@pytest.mark.parametrize(
    ('name', 'advice'),
    [
        ('digits', "did you mean 'msvit/digits'"),
        ('msvit/digts', "did you mean 'msvit/digits'"),
        ('nothing at all', 'ours are dense/'),
    ],
)
def test_a_wrong_name_of_a_config_lists_what_is_near(name, advice):
    with pytest.raises(UserError, match=advice):
        find_config(Path(name), Path())


def test_no_config_outside_of_ours_is_found_by_a_name(tmp_path):
    with pytest.raises(UserError, match='there is no such config'):
        training_options(['--config', str(tmp_path / 'gone.yaml')])


def test_models_lists_those_with_weights(capsys):
    cli.main(['models', 'msvit_4_96', '--json'])
    rows = json.loads(capsys.readouterr().out)
    assert {row['model'] for row in rows} == {f'msvit_4_96.{timm.get_pretrained_cfg("msvit_4_96").tag}'} | {
        name for name in timm.list_models('msvit_4_96', include_tags=True)
    }
    assert {row['weights'] for row in rows} == {'shipped'} and {row['parameters'] for row in rows} <= {
        '500,050',
        '500,266',
    }
    cli.main(['models', 'msvit_4_*', '--pretrained'])
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ['model', 'parameters', 'T', 'input', 'classes', 'weights']
    assert lines and all(line.startswith('msvit_4_96.') and line.endswith('shipped') for line in lines)
    with pytest.raises(SystemExit, match="no model of ours is like 'resnet18'"):
        cli.main(['models', 'resnet18'])


def test_a_report_takes_the_data_of_the_tag(tmp_path, capsys):
    cli.main(['report', 'msvit_4_96.digits', '-n', '20', '--num-threads', '1', '--output', str(tmp_path)])
    assert 'report.html' in capsys.readouterr().out
    report = json.loads((tmp_path / 'report.json').read_text())
    assert report['data'].startswith('digits, validation split') and report['model'] == 'msvit_4_96.digits'


def test_a_program_is_run_as_python_would(tmp_path):
    (tmp_path / 'beside.py').write_text('known = 5')
    script = tmp_path / 'script.py'
    script.write_text(
        'import sys, timm\nimport beside\n'
        'print(__name__, beside.known, sys.argv[1:], timm.is_model("msvit_4_96"))\n'
        'class Own:\n    pass\n'
        'import pickle; print(pickle.loads(pickle.dumps(Own())).__class__ is Own)\n'
        '1 / 0\n'
    )
    command = [sys.executable, '-m', 'timm_snn.run', str(script), '--model', 'x']
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout.splitlines() == ["__main__ 5 ['--model', 'x'] True", 'True']
    assert done.returncode == 1 and 'line 7, in <module>\n    1 / 0' in done.stderr


def test_a_module_is_run_as_python_would(tmp_path, monkeypatch, capsys):
    (tmp_path / 'my_program.py').write_text('import sys\nprint(__name__, sys.argv[1:])')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', list(sys.path))
    monkeypatch.setattr(sys, 'argv', ['run'])
    run.main(['-m', 'my_program', '-x'])
    assert capsys.readouterr().out == "__main__ ['-x']\n"


def test_what_is_no_program_is_refused(capsys):
    with pytest.raises(SystemExit, match=r'there is no script gone\.py'):
        run.main(['gone.py'])
    for arguments, code in (([], 2), (['-m'], 2), (['--help'], 0)):
        with pytest.raises(SystemExit) as end:
            run.main(arguments)
        assert end.value.code == code and 'python -m timm_snn.run' in capsys.readouterr().out
