"""What a user got wrong is one line. What goes wrong in the user's own code keeps its traceback."""

import pytest
import timm
import torch
from torch import nn

from tests.support.scripts import run
from tests.support.training import QUICK
from timm_snn.layers import attentions
from timm_snn.training.data import Samples, UnreadableSample
from timm_snn.training.errors import UserError, one_line_errors, script


class Broken(nn.Module):
    """A layer that somebody registered, and that raises what libraries raise for wrong arguments too."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ValueError('a bug in my layer')


class BrokenFromTheStart(Broken):
    def __init__(self, *args: object, **kwargs: object) -> None:
        raise TypeError('a bug in my constructor')


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setattr(attentions, '_layers', dict(attentions._layers))
    attentions.register('broken')(Broken)
    attentions.register('broken_from_the_start')(BrokenFromTheStart)


MODEL = ['--model', 'msvit_4_96', '--model-kwargs', 'attn=broken']


@pytest.mark.parametrize(
    ('name', 'arguments'),
    [
        ('train.py', [*QUICK, *MODEL, '--log-with', 'none']),
        ('train.py', [*QUICK, *MODEL, '--log-with', 'none', '--find-batch-size']),
        ('validate.py', MODEL),
        ('energy.py', [*MODEL, '-n', '2']),
    ],
)
def test_a_registered_layer_keeps_its_traceback(name, arguments, tmp_path):
    with pytest.raises(ValueError, match='a bug in my layer') as error:
        run(f'recipes/{name}', *arguments, '--output', tmp_path / 'out')
    assert error.traceback[-1].name == 'forward' and error.traceback[-1].path.name == 'test_errors.py'


@pytest.mark.parametrize('name', ['train.py', 'validate.py'])
def test_a_registered_layer_that_cannot_be_made_keeps_its_traceback(name, tmp_path):
    model = ['--model', 'msvit_4_96', '--model-kwargs', 'attn=broken_from_the_start']
    with pytest.raises(TypeError, match='a bug in my constructor'):
        run(f'recipes/{name}', *model, '--output', tmp_path / 'out')


def test_a_data_set_of_the_user_keeps_its_traceback_but_for_its_files():
    class Mine:
        def __init__(self, error: Exception) -> None:
            self.error = error

        def __getitem__(self, index: int) -> None:
            raise self.error

    with pytest.raises(AttributeError, match='a bug of mine'):
        Samples(Mine(AttributeError('a bug of mine')), [0])[0]
    with pytest.raises(UnreadableSample, match='sample 0 is unreadable, OSError: torn'):
        Samples(Mine(OSError('torn')), [0])[0]


def test_a_mistake_that_a_library_finds_is_one_line():
    with (
        pytest.raises(UserError, match=r"^cannot create model 'x': Unknown model \(no_such\); look again$") as error,
        one_line_errors("create model 'x'", 'look again'),
    ):
        timm.create_model('no_such')
    assert isinstance(error.value.__cause__, RuntimeError)


def test_code_of_another_folder_is_the_users_but_for_its_files(tmp_path):
    names: dict = {}
    code = 'def raises(error):\n    raise error'
    exec(compile(code, str(tmp_path / 'mine.py'), 'exec'), names)
    with pytest.raises(ValueError, match='mine'), one_line_errors('go on'):
        names['raises'](ValueError('mine'))
    with pytest.raises(UserError, match='cannot go on: no such file'), one_line_errors('go on'):
        names['raises'](OSError('no such file'))


def test_a_bad_file_is_one_line_and_its_traceback_can_be_seen(tmp_path, capsys, monkeypatch):
    (tmp_path / 'bad.safetensors').write_bytes(b'torn')
    arguments = ['--model', 'msvit_4_96', '--checkpoint', tmp_path / 'bad.safetensors', '--output', tmp_path / 'out']

    def ended(*more: str) -> tuple[str, str]:
        with pytest.raises(SystemExit, match=r"^error: cannot create model 'msvit_4_96': .*header") as stop:
            run('recipes/validate.py', *arguments, *more)
        return str(stop.value), capsys.readouterr().err

    line, shown = ended()
    assert '\n' not in line and 'Traceback' not in shown
    for more, environment in ((['--traceback'], '0'), ([], '1')):
        monkeypatch.setenv('TIMM_SNN_TRACEBACK', environment)
        assert ended(*more)[0] == line
        line, shown = ended(*more)
        assert 'SafetensorError' in shown and 'load_checkpoint' in shown and 'direct cause' in shown


@pytest.mark.parametrize(
    'name',
    [
        *('recipes/train.py', 'recipes/validate.py', 'recipes/predict.py', 'recipes/energy.py', 'recipes/pictures.py'),
        *('recipes/view_events.py', 'hub/push.py', 'hub/card.py', 'hub/convert.py', 'hub/table.py'),
        'hub/equal_terms.py',
    ],
)
def test_every_script_shows_the_traceback_on_demand(name, capsys):
    with pytest.raises(SystemExit, match=f'^error: .*; see {name} --help$'):
        run(name, '--no-such-option')
    assert 'Traceback' not in capsys.readouterr().err
    with pytest.raises(SystemExit, match=f'^error: .*; see {name} --help$'):
        run(name, '--no-such-option', '--traceback')
    assert 'Traceback' in capsys.readouterr().err


def test_only_our_own_error_is_a_line():
    @script
    def main(argv):
        raise argv[0]

    with pytest.raises(SystemExit, match=r'^error: wrong$'):
        main([UserError('wrong')])
    with pytest.raises(ValueError, match='a bug'):
        main([ValueError('a bug')])
