"""recipes/configs: every config is what its header says, and trains."""

import re
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import accelerate
import datasets
import numpy as np
import pytest
import timm
import torch
from accelerate.commands.config.config_args import load_config_from_file
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits, load_sample_images
from timm.models import save_for_hf
from torch.utils.flop_counter import FlopCounterMode

from tests.support import writers
from tests.support.scripts import ROOT
from tests.support.training import weights
from timm_snn.data import CIFAR10DVS
from timm_snn.training import console
from timm_snn.training.data import BUNDLED
from timm_snn.training.options import as_config, phase_options, training_options
from timm_snn.training.schedules import Phases

FOLDER = ROOT / 'recipes' / 'configs' / 'msvit'
ALL = sorted(str(path.relative_to(FOLDER).with_suffix('')) for path in FOLDER.rglob('*.yaml'))
OURS = {'digits', 'event_digits', 'fashion_mnist', 'nmnist_small', 'finetune'}
OURS |= {'imagenet_10_768_288px', 'imagenet_10_768_384px'}
TUNED = 'local-dir:output/imagenet_10_384/model'  # what finetune.yaml starts from
# What is in the folders that configs start from.
TRAINED = {TUNED: 'msvit_10_384', 'local-dir:output/cifar10_cpu/model': 'msvit_3_192.cifar10'}

PAPERS = [name for name in ALL if name not in OURS]
# Like another one but for the model, the number of classes or steps, or the size of the images.
ALIKE = {'imagenet_10_512', 'imagenet_10_768', 'imagenet_10_768_384px', 'cifar100', 'cifar10_dvs_t10'}
ALIKE |= {'dvs128_gesture_t10', *(name for name in ALL if name.startswith('table_3/'))} - {'table_3/mssa_pp_ssa'}
DRY_RUNS = [pytest.param(name, marks=[pytest.mark.slow] if name in ALIKE else []) for name in ALL]
# A small member of each family, by one recipe.
FAMILY = sorted(path.stem for path in (FOLDER.parent / 'family').glob('*.yaml'))


# The least time to an accuracy.
SPEEDRUN = sorted(path.stem for path in (FOLDER.parent / 'speedrun').glob('*.yaml'))


def options_of(name: str) -> dict:
    """All options of a config: its own, those of its parents, and the defaults."""
    return as_config(training_options(['--config', str(FOLDER / f'{name}.yaml')]))


@pytest.fixture
def quick_train(train, tmp_path):
    """Run train.py into tmp_path / 'out'; afterwards that is removed, for checkpoints of big models are big."""
    common = ['--workers', '0', '--num-threads', '1', '--log-with', 'none', '--output', tmp_path / 'out']
    yield lambda *arguments: train(*arguments, *common)
    shutil.rmtree(tmp_path / 'out', ignore_errors=True)


@pytest.fixture(scope='module')
def photos(tmp_path_factory) -> Path:
    """Crops of scikit-learn's two photographs: as an image folder, and as parquet files with CIFAR's columns."""
    root = tmp_path_factory.mktemp('photos')
    for split, number in (('train', 256), ('test', 2), ('val', 2)):
        rows = []
        for label, photo in enumerate(load_sample_images().images):
            (root / 'folder' / split / f'photo{label}').mkdir(parents=True)
            for i in range(number):
                row, column = divmod(i, 16)
                crop = Image.fromarray(photo[24 * row :, 36 * column :][:48, :48])
                crop.save(root / 'folder' / split / f'photo{label}' / f'{i}.png')
                rows.append({'img': crop, 'label': label, 'fine_label': label})
        datasets.Dataset.from_list(rows).to_parquet(root / 'parquet' / f'{split}-00000-of-00001.parquet')
    return root


@pytest.fixture(scope='module')
def garments(tmp_path_factory) -> Path:
    """Digits in the files of Fashion-MNIST."""
    images, labels = load_digits(return_X_y=True)
    images = np.kron(images.reshape(-1, 8, 8), np.ones((3, 3))).astype(np.uint8) * 15
    images = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    folder = tmp_path_factory.mktemp('garments')
    (folder / 'FashionMNIST' / 'raw').mkdir(parents=True)
    for split in ('train', 't10k'):
        for kind, array in (('images-idx3', images), ('labels-idx1', labels.astype(np.uint8))):
            numbers = np.array([0x800 + array.ndim, *array.shape], '>u4')
            path = folder / 'FashionMNIST' / 'raw' / f'{split}-{kind}-ubyte'
            path.write_bytes(numbers.tobytes() + array.tobytes())
    return folder


@pytest.fixture(scope='module')
def recordings(tmp_path_factory) -> Path:
    """Random events in the layouts of N-MNIST, CIFAR10-DVS and DVS128 Gesture."""
    root = tmp_path_factory.mktemp('recordings')
    for name in CIFAR10DVS.classes:
        (root / 'cifar10_dvs' / name).mkdir(parents=True)
        for i in range(10):
            events = writers.random_events(500, seed=i)
            writers.aedat2(root / 'cifar10_dvs' / name / f'cifar10_{name}_{i}.aedat', events)
    for split in ('Train', 'Test'):
        for digit in range(10):
            (root / 'nmnist' / split / str(digit)).mkdir(parents=True)
            writers.nmnist(root / 'nmnist' / split / str(digit) / '1.bin', writers.random_events(500, 34))
    folder = root / 'dvs128_gesture' / 'DvsGesture'
    folder.mkdir(parents=True)
    for split, users in (('train', (1, 2)), ('test', (24,))):
        names = [f'user{user:02d}_led' for user in users]
        (folder / f'trials_to_{split}.txt').write_text('\n'.join(f'{name}.aedat' for name in names))
        for name in names:
            writers.aedat3(folder / f'{name}.aedat', writers.random_events(5_000, last=1_100_000))
            trials = [f'{label},{100_000 * label - 90_000},{100_000 * label}' for label in range(1, 12)]
            (folder / f'{name}_labels.csv').write_text('\n'.join(['class,startTime_usec,endTime_usec', *trials]))
    return root


@pytest.fixture
def data_of(request):
    """Arguments that replace the data of a config by small real data in the same format."""

    def arguments(options: dict) -> list:
        dataset = options['dataset']
        if dataset == '':
            folder = request.getfixturevalue('photos') / 'folder'
            return ['--data-dir', folder, '--num-classes', 2, '--img-size', 32]
        if dataset.startswith('hfds/'):
            photos = request.getfixturevalue('photos')
            return ['--dataset', f'hfds/{photos}/parquet', '--data-dir', photos / 'cache', '--img-size', 16]
        if dataset == 'torch/fashion_mnist':
            return ['--data-dir', request.getfixturevalue('garments')]
        if dataset in BUNDLED:
            return []
        smaller = [] if dataset == 'nmnist' else ['--img-size', 32]  # which data sets and models take at any size
        return ['--data-dir', request.getfixturevalue('recordings') / dataset, *smaller]

    return arguments


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> Path:
    """The model/ of a run: msvit_10_384 with two classes."""
    folder = tmp_path_factory.mktemp('trained')
    save_for_hf(timm.create_model('msvit_10_384.in1k', num_classes=2), folder, safe_serialization=True)
    return folder


def header(name: str) -> str:
    lines = (FOLDER / f'{name}.yaml').read_text().splitlines()
    return '\n'.join(line for line in lines if line.startswith('#'))


def model_of(options: dict, **kwargs: object) -> Any:
    name = TRAINED.get(options['model'], options['model'])
    kwargs = {
        'num_classes': options['num_classes'],
        'in_chans': options['in_chans'],
        **options['model_kwargs'],
        **kwargs,
    }
    return timm.create_model(name, **{'device': 'meta', **kwargs})


@pytest.mark.parametrize('name', ALL)
def test_the_header_states_parameters_result_and_command(name):
    options, text = options_of(name), header(name)
    (stated,) = re.findall(r'\(([\d,]+) parameters', text)
    assert sum(p.numel() for p in model_of(options).parameters()) == int(stated.replace(',', ''))
    assert ('Not run here.' in text) != ('# Measured' in text)
    assert ('Published: ' in text) == (name not in OURS)
    assert f'--config recipes/configs/msvit/{name}.yaml' in text
    assert all((ROOT / path).is_file() for path in re.findall(r'--config_file (\S+)', text))
    assert options['output'] == f'output/{name}'


# Training samples.
SIZES = {'': 1_281_167, 'hfds/uoft-cs/cifar10': 50_000, 'hfds/uoft-cs/cifar100': 50_000}  # '' is ImageNet-1k
SIZES |= {'cifar10_dvs': 9_000, 'dvs128_gesture': 1_176}


@pytest.mark.parametrize('name', [name for name in ALL if 'Estimated' in header(name)])
def test_the_cost_is_three_forward_passes_of_every_sample(name):
    options = options_of(name)
    model = model_of(options, lif_layer=lambda **_: torch.nn.Identity())  # neurons are not counted, and take time
    size = options['img_size'] or model.pretrained_cfg['input_size'][-1]
    shape = [1, model.in_chans, size, size]
    if 'dvs' in name:
        shape.insert(1, model.num_steps)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.eval()(torch.empty(shape, device='meta'))
    samples = SIZES[options['dataset']] * (options['epochs'] + options['cooldown_epochs'])
    flop = 3 * counter.get_total_flops() * samples
    stated, hours = re.findall(r'# Estimated: (\S+) FLOP, (\S+) GPU-hours at 50 TFLOP/s', header(name))[0]
    assert float(stated) == pytest.approx(flop, rel=0.05)
    assert float(hours) == pytest.approx(flop / 50e12 / 3600, rel=0.05, abs=0.05)


def test_the_readme_lists_every_config_with_what_its_header_says():
    readme = (ROOT / 'recipes' / 'README.md').read_text()
    rows = re.findall(r'^\| `([\w/]+)` \|(.*)\|$', readme, re.MULTILINE)
    listed = {name: [cell.strip() for cell in cells.split('|')] for name, cells in rows if name in ALL}
    assert sorted(listed) == ALL
    for name, (_, model, published, measured, flop, launcher) in listed.items():
        text = header(name)
        assert re.findall(r'Published: ([\d.]+) %', text) == ([published] if published else [])
        assert measured == 'not run' if 'Not run here.' in text else measured in text
        assert re.findall(r'# Estimated: (\S+) FLOP', text) == ([flop] if flop else [])
        assert re.findall(r'accelerate_configs/(\w+)\.yaml', text) in ([], [launcher.strip('`')])
        assert model.startswith('`msvit_')


# Of the paper, by the beginning of a config's name: effective batch, learning rate, epochs with cool-down.
PAPER = {
    'imagenet': (512, 1.2e-3, 200),
    'cifar10': (128, 1e-3, 410),
    'table_3': (128, 1e-3, 410),
    'cifar10_dvs': (16, 5e-3, 106),
    'dvs128_gesture': (16, 1e-3, 202),
}


class Printed(Exception):
    """Ends a run at the line about its batch, before it trains."""


@pytest.mark.parametrize('name', PAPERS)
def test_batch_learning_rate_and_epochs_are_the_papers(quick_train, data_of, monkeypatch, name):
    """As train.py prints them with the processes of the Accelerate file in the header."""
    (launcher,) = re.findall(r'--config_file (\S+)', header(name))

    def stop(line, stream):
        if 'effective batch' in line:
            raise Printed(line)

    monkeypatch.setattr(console, 'write_line', stop)
    processes = load_config_from_file(str(ROOT / launcher)).num_processes
    monkeypatch.setattr(accelerate.Accelerator, 'num_processes', processes)
    monkeypatch.setenv('WORLD_SIZE', str(processes))
    options = options_of(name)
    small = ['--model', 'msvit_4_96', '--num-classes', model_of(options).num_classes]
    small += ['--in-chans', 2 if 'dvs' in name else 3]
    with pytest.raises(Printed) as printed:
        quick_train('--config', FOLDER / f'{name}.yaml', *small, *data_of(options))
    batch, lr, epochs = PAPER[max((key for key in PAPER if name.startswith(key)), key=len)]
    assert f'effective batch {batch} (' in str(printed.value)
    assert f' lr {lr:g}, epochs 1 to {epochs},' in str(printed.value)


@pytest.mark.parametrize('name', DRY_RUNS)
def test_a_dry_run(quick_train, data_of, trained, tmp_path, name):
    """One update on real images: train, evaluate, save, load, predict."""
    options = options_of(name)
    accumulated = min(2, options['grad_accum_steps'] or 1)
    arguments = ['--max-steps', 1, '--batch-size', 2, '--grad-accum-steps', accumulated, '--max-val-samples', 2]
    if options['model'] == TUNED:
        arguments += ['--model', f'local-dir:{trained}']
    elif options['checkpoint']:  # of another member, as the header says
        arguments += ['--model', 'msvit_10_384.in1k', '--checkpoint', trained / 'model.safetensors']
    printed = quick_train('--config', FOLDER / f'{name}.yaml', *arguments, *data_of(options))
    batch = 2 * accumulated
    lr = options['lr'] if options['lr_base'] is None else options['lr_base'] * batch / options['lr_base_size']
    assert f'effective batch {batch} (2 x 1 processes x {accumulated} accumulated), lr {lr:g}, ' in printed
    assert 'prediction by' in printed and printed.splitlines()[-1].startswith('top-1: ')

    saved = weights(tmp_path / 'out')
    assert all(tensor.isfinite().all() for tensor in saved.values())
    if options['freeze']:
        before = load_file(trained / 'model.safetensors')
        changed = {key.split('.')[0] for key in saved if not torch.equal(saved[key], before[key])}
        assert changed == {'stages', 'head'} and options['freeze'] == ['stem']


@pytest.mark.parametrize('name', FAMILY)
def test_the_families_are_trained_on_equal_terms(quick_train, photos, name):
    path = f'../family/{name}'
    options, recipe = options_of(path), options_of('../family/msvit')
    differ = {key for key in options if options[key] != recipe[key]}
    assert differ <= {'config', 'model', 'model_kwargs', 'output'} and options['output'] == f'output/family/{name}'
    (stated,) = re.findall(r'\(([\d,]+) parameters', header(path))
    count = sum(p.numel() for p in model_of(options).parameters())
    assert f'{count:,}' == stated and 4.4e5 < count < 5.5e5
    assert f'--config recipes/configs/family/{name}.yaml' in header(path)
    small = ['--max-steps', 1, '--batch-size', 2, '--max-train-samples', 60, '--max-val-samples', 2]
    data = ['--dataset', f'hfds/{photos}/parquet', '--data-dir', photos / 'cache']
    printed = quick_train('--config', FOLDER / f'{path}.yaml', *small, *data)
    assert printed.splitlines()[-1].startswith('top-1: ')


@pytest.mark.parametrize('name', SPEEDRUN)
def test_a_fast_recipe_is_what_its_header_says_and_trains(quick_train, photos, name):
    path = f'../speedrun/{name}'
    options, text = options_of(path), header(path)
    model = model_of(options, device='cpu')
    (stated,) = re.findall(r'\(([\d,]+) parameters', text)
    assert f'{sum(p.numel() for p in model.parameters()):,}' == stated
    assert ('Not run here.' in text) != ('# Measured' in text) and options['output'] == f'output/{name}'
    assert f'--config recipes/configs/speedrun/{name}.yaml' in text
    phases = Phases(model, (3, 32, 32), torch.device('cpu'), **phase_options(Namespace(**options)))
    flop = SIZES[options['dataset']] * sum(phases.flop(phases.of(epoch)) for epoch in range(phases.epochs))
    rows = re.findall(rf'^\| `{name}` \|.*', (ROOT / 'recipes' / 'README.md').read_text(), re.MULTILINE)
    assert len(rows) == 1 and ('not run' in rows[0]) == ('Not run here.' in text)
    stated = re.findall(r'# Estimated: (\S+) FLOP', text) + re.findall(r' (\d\.\de\d\d) ', rows[0])
    assert [float(number) for number in stated] == pytest.approx([flop] * len(stated), rel=0.05) and stated
    small = ['--max-steps', 1, '--batch-size', 2, '--max-train-samples', 120, '--max-val-samples', 2]
    small += ['--model', TRAINED.get(options['model'], options['model'])]
    data = ['--dataset', f'hfds/{photos}/parquet', '--data-dir', photos / 'cache', '--no-cuda-graph']
    assert quick_train('--config', FOLDER / f'{path}.yaml', *small, *data).splitlines()[-1].startswith('top-1: ')
