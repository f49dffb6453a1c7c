"""--quiet, --json and Ctrl-C mean the same in every command."""

import json
import logging
import math
import signal
import sys
import warnings
from pathlib import Path

import pytest

from tests.support.scripts import load
from timm_snn import progress
from timm_snn.training.console import give, note, say
from timm_snn.training.errors import UserError, script
from timm_snn.training.tables import make_table

SCRIPTS = ['recipes/train.py', 'recipes/validate.py', 'recipes/predict.py', 'recipes/energy.py', 'recipes/quantize.py']
SCRIPTS += ['recipes/tradeoff.py', 'recipes/ann_to_snn.py', 'recipes/pictures.py', 'recipes/view_events.py']
SCRIPTS += ['recipes/report.py', 'hub/push.py', 'hub/card.py', 'hub/convert.py', 'hub/table.py', 'hub/equal_terms.py']


@script
def tell(argv):
    """Prints in every way that a command does."""
    say('on the way')
    note('note: look')
    logging.getLogger('timm_snn.ops').warning('note: of the library')
    warnings.warn('of Python', stacklevel=1)
    print('of another library')
    give({'top1': math.nan, 'file': Path('a'), 'rows': [{'T': 1}]}, make_table(['T'], [[1]]), 'top-1: 50.00')


def printed(capsys, *options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        tell([*options])
    out, err = capsys.readouterr()
    return out, err + ''.join(str(warning.message) for warning in caught)


def test_results_and_the_way_there_are_on_stdout_and_notes_on_stderr(capsys):
    out, err = printed(capsys)
    assert out.startswith('on the way\nof another library\n') and out.endswith('top-1: 50.00\n') and 'T' in out
    assert err == 'note: look\nnote: of the library\nof Python'


def test_json_is_all_of_stdout(capsys):
    out, err = printed(capsys, '--json')
    assert json.loads(out) == {'top1': None, 'file': 'a', 'rows': [{'T': 1}]}
    assert err == 'on the way\nnote: look\nnote: of the library\nof another library\nof Python'


def test_quiet_leaves_the_result(capsys):
    out, err = printed(capsys, '--quiet')
    assert 'on the way' not in out and out.endswith('top-1: 50.00\n') and err == ''
    out, err = printed(capsys, '--quiet', '--json')
    assert json.loads(out)['file'] == 'a' and err == 'of another library\n'


def test_quiet_is_over_with_the_command(capsys):
    printed(capsys, '--quiet')
    assert printed(capsys)[1].startswith('note: look') and not progress.is_quiet()
    assert logging.root.manager.disable == logging.NOTSET


def test_options_behind_two_dashes_are_not_ours(capsys):
    assert printed(capsys, '--', '--json', '--quiet')[0].startswith('on the way')


def test_other_processes_than_the_main_one_say_nothing(capsys, monkeypatch):
    monkeypatch.setenv('RANK', '1')
    out, err = printed(capsys)
    assert out == 'of another library\n' and 'look' not in err


def test_errors_are_shown_to_the_end():
    @script
    def main(argv):
        raise UserError('wrong')

    with pytest.raises(SystemExit, match=r'^error: wrong$'):
        main(['--quiet', '--json'])


@pytest.mark.parametrize('name', SCRIPTS)
def test_every_script_has_the_options(name, capsys):
    with pytest.raises(SystemExit) as stop:
        load(name).main(['--help'])
    shown = capsys.readouterr().out
    assert stop.value.code == 0 and '--quiet' in shown and '--json' in shown


@pytest.fixture
def interrupted(capsys, monkeypatch):
    """What a command says when Ctrl-C comes, called with `argv` by a program with this `sys.argv`."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def run(program, argv, kept=None, **options):
        @script(**options)
        def main(argv):
            if kept:
                raise KeyboardInterrupt(kept)
            signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(sys, 'argv', program)
        with pytest.raises(SystemExit) as stop:
            main(argv)
        assert stop.value.code == 130
        return capsys.readouterr().err

    yield run
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_is_a_line_with_the_command_to_go_on(interrupted):
    said = interrupted(['recipes/energy.py', '--model', 'a b'], None)
    assert said == "stopped: what was written is whole; go on with: python recipes/energy.py --model 'a b'\n"
    said = interrupted(['timm-snn export', 'm'], ['m'], kept='half of it is there')
    assert said == 'stopped: half of it is there; go on with: timm-snn export m\n'
    assert interrupted(['pytest'], ['m']).endswith(f'go on with: python {__file__} m\n')


def test_ctrl_c_says_which_options_go_on(interrupted, monkeypatch):
    go_on = dict(to_go_on=('--resume', 'auto'))
    once = 'go on with: python train.py --epochs 2 --resume auto\n'
    assert interrupted(['train.py', '--epochs', '2'], None, **go_on).endswith(once)
    assert interrupted(['train.py', '--epochs', '2', '--resume', 'auto'], None, **go_on).endswith(once)
    monkeypatch.setenv('ACCELERATE_MIXED_PRECISION', 'no')
    assert 'go on with: accelerate launch ... train.py --resume auto\n' in interrupted(['train.py'], None, **go_on)
