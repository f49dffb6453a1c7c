"""`timm-snn new` writes packages that pass their own tests, and overwrites nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import timm_snn
from timm_snn import cli, testing
from timm_snn.layers import neurons
from timm_snn.scaffold import write_package

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize('kind', ['family', 'neuron'])
def test_a_new_package_passes_its_own_tests(kind, tmp_path, capsys):
    cli.main(['new', kind, f'my_{kind}', str(tmp_path / 'own')])
    assert 'pip install -e' in capsys.readouterr().out
    environment = {**os.environ, 'PYTHONPATH': f'{ROOT}{os.pathsep}{tmp_path / "own"}', 'OMP_NUM_THREADS': '1'}
    command = [sys.executable, '-m', 'pytest', '-q', '-n0', '-p', 'no:cacheprovider', '.']
    result = subprocess.run(command, cwd=tmp_path / 'own', env=environment, capture_output=True, text=True, check=False)
    checks = testing.FAMILY_CHECKS if kind == 'family' else testing.NEURON_CHECKS
    assert f'{len(checks)} passed' in result.stdout, result.stdout[-3000:]


def test_its_neuron_streams(tmp_path, monkeypatch):
    monkeypatch.setattr(neurons, '_layers', dict(neurons._layers))
    monkeypatch.syspath_prepend(tmp_path)
    write_package('neuron', 'half_lif', tmp_path)
    import half_lif

    x, neuron = torch.rand(4, 2, 3), half_lif.HalfLif()
    first, state = neuron.stream(x[:1])
    rest, _ = neuron.stream(x[1:], state)
    assert torch.equal(torch.cat([first, rest]), neuron(x)) and neuron(2 * x).any()
    assert torch.equal(neuron(x), timm_snn.lif(x, tau=2.0, decay_input=False, v_reset=None))


@pytest.mark.parametrize('name', ['2x', 'My_Former', 'my-former', '../up', 'class', 'json', 'timm', ''])
def test_bad_names_are_refused(name, tmp_path):
    with pytest.raises(SystemExit, match=r'error: .*(expected a name|is the name of a library)'):
        cli.main(['new', 'family', name, str(tmp_path / 'own')])
    assert not (tmp_path / 'own').exists()


def test_names_of_something_else_are_refused(tmp_path):
    for kind, name in (('neuron', 'plif'), ('family', 'numpy')):
        with pytest.raises(ValueError, match=f"'{name}' is (registered already|the name of a library)"):
            write_package(kind, name, tmp_path / name)


def test_a_folder_with_anything_in_it_is_left_alone(tmp_path):
    (tmp_path / 'notes.txt').write_text('mine')
    with pytest.raises(SystemExit, match='is there already'):
        cli.main(['new', 'neuron', 'my_neuron', str(tmp_path)])
    assert [file.name for file in tmp_path.iterdir()] == ['notes.txt']


def test_other_words_are_refused_with_what_there_is():
    with pytest.raises(SystemExit, match=r"no command 'nwe': use one of .*new"):
        cli.main(['nwe'])
    with pytest.raises(SystemExit, match="expected family or neuron, a name and perhaps a folder, got 'loss x'"):
        cli.main(['new', 'loss', 'x'])


def test_every_command_says_what_it_is_for(capsys):
    cli.main([])
    listed = capsys.readouterr().out
    for name, (_, what) in cli.COMMANDS.items():
        assert name in listed and what in listed
    cli.main(['--version'])
    assert capsys.readouterr().out == f'{timm_snn.__version__}\n'
