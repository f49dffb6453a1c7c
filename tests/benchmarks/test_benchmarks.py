"""The benchmarks run, and leave the tables that they promise."""

import csv
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.processes import run_script
from timm_snn.ops.native.build import why_not_here

pytest.importorskip('rich')
pytest.importorskip('matplotlib')
pytest.importorskip('spikingjelly')
pytest.importorskip('sklearn')
BENCHMARKS = Path(__file__).parents[2] / 'benchmarks'


@pytest.fixture
def run(tmp_path) -> Callable[..., subprocess.CompletedProcess[str]]:
    return lambda script, *arguments: run_script([BENCHMARKS / script, *arguments], tmp_path)


def rows(path: Path) -> list[dict[str, str]]:
    """Of a table whose head is in lines that begin with #."""
    with open(path, newline='') as file:
        return list(csv.DictReader(line for line in file if not line.startswith('#')))


def test_the_neurons_are_timed_and_saved(run, tmp_path):
    args = ['--device', 'cpu', '--quick', '--sweep', '--skip', 'compile', '--dtype', 'float32', '--out', tmp_path]
    result = run('lif.py', *args)
    assert result.returncode == 0, result.stderr
    assert 'without timm_snn cupy' in result.stdout and 'load average' in result.stdout
    table = rows(tmp_path / 'lif-float32.csv')
    ours = [row for row in table if row['variant'] == 'timm_snn torch']
    assert [row['pass'] for row in ours] == ['forward', 'forward + backward']
    assert all(float(row['ms']) > 0 and float(row['differing spikes']) == 0 for row in table)
    assert float(ours[1]['saved bytes']) > 0
    for axis in ('steps', 'batch', 'resolution'):
        assert len({row[axis] for row in rows(tmp_path / f'lif-sweep-{axis}.csv')}) == 2
        assert (tmp_path / f'lif-sweep-{axis}.png').stat().st_size > 0


def test_a_folder_without_the_old_spikingjelly_is_refused(run, tmp_path):
    result = run('lif.py', '--device', 'cpu', '--quick', '--skip', 'compile', '--spikingjelly-14', tmp_path)
    assert result.returncode == 1 and 'spikingjelly' in result.stderr and str(tmp_path) in result.stderr


def test_integer_inference_is_timed_and_saved(run, tmp_path):
    size = ['--model', 'msvit_4_96', '--size', 28, '--batch', 2, '--steps', 2, '--rounds', 1]
    result = run('int8.py', *size, '--out', tmp_path)
    assert result.returncode == 0, result.stderr
    table = rows(tmp_path / 'int8-msvit_4_96.csv')
    assert [row['variant'] for row in table] == ['float32', 'int8']
    assert all(float(row['ms']) > 0 and float(row['nonzero inputs']) > 0 for row in table)


@pytest.mark.skipif(why_not_here() is not None, reason='nothing skips zeros here')
def test_break_even_of_convolutions_is_measured_and_saved(run, tmp_path):
    few = ['--dtype', 'float32', '--density', 0.5, 0.1, '--batch', 1, '--rounds', 1]
    result = run('sparse_conv.py', *few, '--out', tmp_path)
    assert result.returncode == 0, result.stderr
    table = rows(tmp_path / 'sparse_conv.csv')
    assert {row['pass'] for row in table} == {'forward', 'weight gradient'} and len(table) == 16
    for row in table:
        low, high = float(row['at 0.1']), float(row['at 0.5'])
        expected = 0 if low < 1 else 1 if high >= 1 else 0.1 + 0.4 * (low - 1) / (low - high)
        assert float(row['break-even']) == pytest.approx(expected, abs=0.02)


def test_models_are_timed_and_saved(run, tmp_path):
    size = [
        '--model',
        'msvit_4_96',
        '--size',
        28,
        '--batch',
        2,
        '--steps',
        2,
        '--rounds',
        1,
        '--dtype',
        'float32',
        '--threads',
        1,
    ]
    result = run('model.py', '--device', 'cpu', *size, '--skip', 'compile', '--out', tmp_path)
    assert result.returncode == 0, result.stderr
    table = rows(tmp_path / 'model-msvit_4_96.csv')
    timed = [(row['variant'], row['pass']) for row in table]
    if why_not_here() is not None:
        assert 'without timm_snn torch, sparse' in result.stdout
        pytest.skip('no compiler')
    assert timed == [
        ('spikingjelly 2', 'inference'),
        ('timm_snn', 'inference'),
        ('timm_snn fused, cpp', 'inference'),
        ('timm_snn fused, cpp, sparse', 'inference'),
        ('timm_snn fused, torch', 'inference'),
        ('timm_snn fused, torch, sparse', 'inference'),
        ('spikingjelly 2', 'training'),
        ('timm_snn', 'training'),
        ('timm_snn cpp', 'training'),
        ('timm_snn cpp, sparse', 'training'),
        ('timm_snn torch', 'training'),
        ('timm_snn torch, sparse', 'training'),
    ]
    dense = [row for row in table if row['variant'] != 'timm_snn' and 'sparse' not in row['variant']]
    assert all(float(row['convolutions ms']) > 0 for row in dense)
    assert all(float(row['saved MB']) < float(table[6]['saved MB']) for row in table[7:])
    assert all(float(row['peak MB'] or 1) >= 0 for row in table)
    assert (tmp_path / 'model-msvit_4_96.png').stat().st_size > 0


def test_families_are_measured_and_saved(run, tmp_path):
    result = run('family.py', '--model', 'maxformer_4_384.cifar10', '--rounds', 1, '--out', tmp_path)
    assert result.returncode == 0, result.stderr
    (row,) = rows(tmp_path / 'family.csv')
    assert (row['model'], row['input'], row['T']) == ('maxformer_4_384.cifar10', '3 x 32 x 32', '4')
    assert 0 < float(row['firing rate']) < 1 and float(row['ACs']) > float(row['MACs']) > 0
    assert float(row['images/s']) > 0 and float(row['peak MB'] or 1) > 0


def test_what_takes_no_photographs_is_refused(run, tmp_path):
    others = ['msvit_4_96', 'spikingresformer_gesture', 'resnet18', 'msvit_5']
    result = run('family.py', '--model', 'qkformer_4_384', *others, '--out', tmp_path)
    assert result.returncode == 2 and f'got {" ".join(others)}\n' in result.stderr


def test_readers_are_timed_and_saved(run, tmp_path):
    result = run('events.py', '--events', 3000, '--files', 3, '--file-events', 100, '--rounds', 1, '--out', tmp_path)
    assert result.returncode == 0, result.stderr
    table = rows(tmp_path / 'events.csv')
    ours = [row['format'] for row in table if row['variant'] == 'timm_snn']
    assert ours == ['nmnist', 'aedat2', 'aedat3', 'npy', 'npz', 'evt2', 'evt21', 'evt3', 'dat', 'aedat4', 'text']
    theirs = [row['format'] for row in table if row['variant'] == 'spikingjelly 2']
    assert theirs == ['nmnist', 'aedat2', 'aedat3']
    assert all(float(row['M events/s']) > 0 for row in table)
    assert (tmp_path / 'events.png').stat().st_size > 0


def test_the_host_starts_a_unit_with_few_frames(run):
    """The Triton kernels took 241 before what depends on shapes alone was kept."""
    result = run('host_work.py', '--backend', 'triton')
    assert result.returncode == 0, result.stderr
    cells = {cells[2]: cells[3:6] for line in result.stdout.splitlines() if len(cells := line.split('│')) > 6}
    unit = {name.strip(): [int(n) for n in numbers] for name, numbers in cells.items()}['conv, batch norm, neuron']
    assert 0 < unit[0] <= 120 and unit[1:] == [5, 7]


@pytest.mark.parametrize('data', ['digits', 'cifar'])
def test_the_recipe_is_timed_beside_the_bare_step(run, tmp_path, data):
    small = ['--batch-size', 4, '--img-size', 16, '--model', 'msvit_4_96', '--workers', 0, '--num-threads', 1]
    result = run('recipe.py', '--data', data, '--rounds', 1, '--updates', 2, '--out', tmp_path / 'out', '--', *small)
    assert result.returncode == 0, result.stderr
    bare, recipe = rows(tmp_path / 'out' / 'recipe.csv')
    assert (bare['variant'], recipe['variant']) == ('bare step', 'recipe')
    assert float(bare['share']) == 1 and float(recipe['images/s']) > 0


def test_every_neuron_is_timed_beside_lif(run, tmp_path):
    small = ['--shape', 4, 1, 2, 3, 3, '--rounds', 1, '--device', 'cpu', '--skip', 'compiled', '--out', tmp_path]
    result = run('neurons.py', *small)
    assert result.returncode == 0, result.stderr
    table = rows(tmp_path / 'neurons.csv')
    ours = {row['neuron']: row for row in table if row['variant'] == 'timm_snn' and row['pass'] != 'forward'}
    assert float(ours['lif']['of lif']) == 1 and all(float(row['saved bytes']) > 0 for row in ours.values())
    assert [name for name, row in ours.items() if not row['of spikingjelly']] == ['integer', 'alif']


def test_frames_are_timed_and_saved(run, tmp_path):
    result = run('frames.py', '--events', 400, '--steps', 2, '--long-steps', 4, '--rounds', 1, '--out', tmp_path)
    assert result.returncode == 0, result.stderr
    table = rows(tmp_path / 'frames.csv')
    variants = [(row['frames'], row['variant']) for row in table if row['variant'] != 'tonic']
    assert variants == [
        ('2 x 2 x 480 x 640', 'timm_snn'),
        ('2 x 2 x 480 x 640', 'spikingjelly 2'),
        ('2 x 2 x 128 x 128', 'timm_snn'),
        ('2 x 2 x 128 x 128', 'counted, then resized'),
        ('2 x 2 x 128 x 128', 'timm_snn iter_frames, from a file'),
        ('4 x 2 x 480 x 640', 'timm_snn'),
        ('4 x 2 x 480 x 640', 'spikingjelly 2'),
    ]
    assert all(float(row['windows/s']) > 0 for row in table)
    assert all(float(row['peak / frames']) < 1.2 for row in table if row['variant'] == 'timm_snn')
    assert (tmp_path / 'frames.png').stat().st_size > 0


def test_answers_to_a_live_camera_are_timed_and_saved(run, tmp_path):
    result = run('stream.py', '--models', 'msvit_4_96', '--threads', 1, '--bins', 11, '--out', tmp_path)
    assert result.returncode == 0, result.stderr
    stream, again = rows(tmp_path / 'stream-msvit_4_96.csv')
    assert (stream['variant'], stream['bins']) == ('stream', '11')
    assert (again['variant'], again['bins']) == ('the last T frames again', '2')
    assert float(stream['frame']) < float(stream['median']) <= float(stream['p95'])


def test_forms_of_a_model_are_measured_and_those_that_cannot_be_are_named(run, tmp_path):
    forms = ['--forms', 'model', 'fused', 'executorch', '--rounds', 1]
    result = run('deploy.py', '--models', 'msvit_4_96.digits', *forms, '--out', tmp_path)
    assert result.returncode == 0, result.stderr
    table = {row['form']: row for row in rows(tmp_path / 'deploy.csv')}
    assert {'model', 'fused'} <= table.keys() and ('executorch' in table or 'executorch: ' in result.stdout)
    assert float(table['fused']['MB']) < float(table['model']['MB']) and float(table['model']['ms']) > 0
    assert table['model']['same class'] == '100'
