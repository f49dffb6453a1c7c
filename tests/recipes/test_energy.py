"""recipes/energy.py and recipes/pictures.py as users run them."""

import json
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from timm.models import save_for_hf

from tests.conftest import lively
from tests.support import scripts

pytest.importorskip('rich')
pytest.importorskip('sklearn')

SMALL = ('--model', 'msvit_4_96', '-n', '2')


@pytest.fixture(scope='module')
def saved(tmp_path_factory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp('model')
    save_for_hf(lively(timm.create_model('msvit_4_96')), folder, safe_serialization=True)
    return f'local-dir:{folder}'


@pytest.fixture
def run(capsys):
    def run_it(name: str, *arguments: object) -> str:
        scripts.run(f'recipes/{name}', *arguments)
        return capsys.readouterr().out

    return run_it


def test_a_report_of_a_saved_model_and_of_others(run, saved, tmp_path):
    first = run('energy.py', '--model', saved, '-n', 40, '--num-threads', 1, '--output', tmp_path / 'a')
    assert 'energy per sample (estimate, arithmetic only): A ' in first and 'stages.2.blocks.1.attn.attn_lif' in first
    report = json.loads((tmp_path / 'a' / 'report.json').read_text())
    assert report['num_samples'] == 40 and report['num_steps'] == 4 and report['top1'] is not None
    assert report['data'] == 'digits, validation split, 40 of 360, evenly spread'

    others = [tmp_path / 'a' / 'report.json', 'resnet10t']
    arguments = ['--num-steps', 2, '-n', 9, '--compare', *others, '--output', tmp_path / 'b']
    printed = run('energy.py', '--model', saved, *arguments)
    report = json.loads((tmp_path / 'b' / 'report.json').read_text())
    assert (report['num_steps'], report['num_samples']) == (2, 9)
    page = (tmp_path / 'b' / 'report.html').read_text()
    assert 'Against other models' in page and 'resnet10t (random weights)' in page
    assert 'do not look at the same size of input' in page and '<td>1 x 176 x 176</td>' in page
    assert 'note: resnet10t looks at 1 x 176 x 176 and local-dir:' in printed
    assert sorted(path.suffix for path in (tmp_path / 'b').iterdir()) == ['.csv', '.html', '.json', '.md']
    with pytest.raises(SystemExit, match=r'cannot compare with the report .* was priced at 4\.6 and 0\.9 pJ'):
        run('energy.py', '--model', saved, *arguments, '--mac-pj', 1.5)


def test_weights_by_name_and_checkpoint(run, saved, tmp_path, capsys):
    file = Path(saved.removeprefix('local-dir:')) / 'model.safetensors'
    run('energy.py', '--model', 'msvit_4_96', '--checkpoint', file, '-n', 4, '--output', tmp_path / 'a')
    run('energy.py', '--model', saved, '-n', 4, '--output', tmp_path / 'b')
    one, other = (json.loads((tmp_path / name / 'report.json').read_text()) for name in 'ab')
    assert one['layers'] == other['layers']
    run('energy.py', '--model', 'msvit_4_96', '-n', 2, '--mac-pj', 1.5, '--output', tmp_path / 'c')
    random = json.loads((tmp_path / 'c' / 'report.json').read_text())
    assert one['layers'] != random['layers'] and (random['mac_pj'], random['ac_pj']) == (1.5, 0.9)


def test_accuracy_is_that_of_a_folder_without_some_classes(run, tmp_path):
    """Which timm numbers anew, from 0; and none for classes that are not the model's."""
    load_digits = pytest.importorskip('sklearn.datasets').load_digits
    names = [f'digit {i}' for i in range(10)]
    torch.manual_seed(0)
    # always answers with class 7
    model = timm.create_model('msvit_4_96', num_steps=1)
    torch.nn.init.zeros_(model.head.fc.weight)
    model.head.fc.bias.data = torch.eye(10)[7]
    save_for_hf(model, tmp_path / 'model', model_config={'label_names': names}, safe_serialization=True)
    images, labels = load_digits(return_X_y=True)
    for i, label in enumerate(labels[:20]):
        if label >= 5:
            path = tmp_path / 'data' / 'validation' / names[label] / f'{i}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[i].reshape(8, 8).astype('uint8')).save(path)

    def accuracy(*arguments: object) -> float | None:
        run('energy.py', '--dataset', '', '--data-dir', tmp_path / 'data', *arguments, '--output', tmp_path / 'out')
        return json.loads((tmp_path / 'out' / 'report.json').read_text())['top1']

    assert accuracy('--model', f'local-dir:{tmp_path / "model"}') == 20.0
    assert accuracy('--model', 'resnet10t', '--model-kwargs', 'in_chans=1') is None


def test_four_pictures(run, saved, tmp_path):
    layers = ('stem.units.0', 'stages.0.blocks.0.attn.attn_lif')
    out = run(
        'pictures.py',
        '--model',
        saved,
        '-n',
        6,
        '--steps',
        1,
        2,
        '--sample',
        3,
        '--layers',
        *layers,
        '--output',
        tmp_path,
    )
    assert '4 pictures of digits, validation split, 6 of 360, evenly spread' in out
    names = ('accuracy_and_energy', 'attention_maps', 'membrane_traces', 'spike_raster')
    for name in names:
        image = Image.open(tmp_path / f'{name}.png')
        assert min(image.size) > 200 and len(image.convert('RGB').getcolors(10**7)) > 20
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize(
    ('name', 'arguments', 'message'),
    [
        ('energy.py', ['--model', 'msvit_nope'], "cannot create model 'msvit_nope'"),
        ('energy.py', ['--model', 'msvit_4_96', '--checkpoint', 'none.pth'], 'there is no file none.pth'),
        (
            'energy.py',
            ['--model', 'msvit_4_96', '--compare', 'none.json', '-n', '1'],
            'cannot compare with the report none.json',
        ),
        ('energy.py', ['--model', 'msvit_4_96', '-n', '0'], r'0 is less than 1; see recipes/energy.py --help'),
        ('pictures.py', [*SMALL, '--sample', '2'], 'not one of the 2 samples'),
        ('pictures.py', [*SMALL, '--layers', 'stem.units.0', '--trace', 'x'], 'cannot make membrane_traces.png'),
        ('pictures.py', [], 'the following arguments are required: --model'),
    ],
)
def test_mistakes_are_one_line(run, tmp_path, name, arguments, message):
    if arguments:
        arguments = [*arguments, '--output', tmp_path]
    with pytest.raises(SystemExit, match=f'error: .*{message}') as error:
        run(name, *arguments)
    assert '\n' not in str(error.value)
