"""The list of pretrained weights, and those that ship with the package."""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from importlib import metadata
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torchvision.datasets import FashionMNIST

import timm_snn
from tests.conftest import lively
from tests.support.families import SMALLEST
from timm_snn import labels
from timm_snn.data import CIFAR10DVS, DVS128Gesture
from timm_snn.models import pretrained, save_for_hf
from timm_snn.training.options import training_options

ROOT = Path(timm_snn.__file__).parents[1]
GOLDEN = ROOT / 'tests' / 'golden'
SHIPPED = 'msvit_4_96.fashion_mnist'
TAGS = [
    name
    for name in timm.list_models(include_tags=True)
    if timm.model_entrypoint(name.split('.')[0]).__module__.startswith('timm_snn.')
    and not name.startswith('mst_')  # whose weights come of a conversion, and have no place on the Hub
]


@pytest.mark.parametrize('name', TAGS)
def test_every_tag_has_a_complete_config(name):
    cfg = timm.get_pretrained_cfg(name)
    assert cfg.hf_hub_id == f'timm-snn/{name}' and cfg.hf_hub_filename == 'model.safetensors'
    assert cfg.license and cfg.paper_ids and cfg.first_conv and cfg.classifier
    channels = cfg.input_size[0]
    assert len(cfg.input_size) == 3 and len(cfg.mean) == len(cfg.std) == channels
    if cfg.num_classes != 1000:  # those of ImageNet timm knows
        assert len(set(cfg.label_names)) == cfg.num_classes


def test_classes_have_the_names_of_the_data_sets():
    assert tuple(FashionMNIST.classes) == labels.FASHION_MNIST
    assert len(labels.CIFAR100) == 100 and list(labels.CIFAR100) == sorted(labels.CIFAR100)
    for name, data in (('msvit_2_256.cifar10_dvs', CIFAR10DVS), ('msvit_2_256.dvs128_gesture', DVS128Gesture)):
        assert timm.get_pretrained_cfg(name).label_names == data.classes


@pytest.mark.parametrize(
    ('name', 'kwargs', 'known'),
    [
        ('msvit_4_384', {}, False),  # cifar10 or cifar100, or what it will be trained on
        ('msvit_4_384.cifar10', {}, True),
        ('msvit_4_384.cifar10', dict(num_classes=7), False),
    ],
)
def test_classes_have_no_names_that_are_not_theirs(name, kwargs, known):
    cfg = timm.create_model(name, device='meta', **kwargs).pretrained_cfg
    assert cfg.get('label_names') == (labels.CIFAR10 if known else None)


def test_only_what_can_be_loaded_is_listed():
    assert timm_snn.list_pretrained() == [tag for tag in TAGS if pretrained.weights_status(tag) != 'not yet trained']
    assert timm_snn.list_pretrained('resnet*') == []
    assert [tag for tag in timm.list_pretrained() if tag in TAGS] == timm_snn.list_pretrained()


@pytest.mark.parametrize('name', [tag for tag in TAGS if pretrained.weights_status(tag) == 'not yet trained'])
def test_what_cannot_be_loaded_says_so_at_once(hub, name):
    with pytest.raises(RuntimeError, match=f'No pretrained weights exist for {name}: ') as error:
        timm.create_model(name, pretrained=True)
    message = str(error.value)
    assert f'would be at https://huggingface.co/timm-snn/{name}' in message
    assert 'dict(file=' in message and '\n' not in message and not hub.requests

    arguments = re.search(r'timm-snn train (.*?)`', message)[1].split()
    args = training_options(arguments, folder=ROOT)
    assert args.model == name and (args.dataset.rpartition('/')[2] or 'in1k') == name.partition('.')[2]


@pytest.fixture(scope='module')
def installed(tmp_path_factory) -> Path:
    """A copy of the package with weights, as the wheel that a user installs; a plain copy without setuptools."""
    source, target = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('site')
    shutil.copytree(ROOT / 'timm_snn', source / 'timm_snn', ignore=shutil.ignore_patterns('__pycache__'))
    torch.manual_seed(2)
    (source / 'timm_snn' / 'weights').mkdir(exist_ok=True)
    safetensors.torch.save_file(
        timm.create_model('msvit_4_96').state_dict(), source / 'timm_snn' / 'weights' / f'{SHIPPED}.safetensors'
    )
    try:
        can_build = int(metadata.version('setuptools').split('.')[0]) >= 77  # as pyproject.toml asks
    except metadata.PackageNotFoundError:
        can_build = False
    if not can_build:
        shutil.copytree(source / 'timm_snn', target / 'timm_snn')
        return target
    for name in ('pyproject.toml', 'README.md', 'LICENSE', 'MANIFEST.in'):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '--no-index']
    subprocess.run([*command, '-w', str(source / 'dist'), str(source)], check=True)
    (wheel,) = (source / 'dist').glob('*.whl')
    shutil.unpack_archive(wheel, target, 'zip')
    return target


def run(code: str, site: Path, **environment: str) -> subprocess.CompletedProcess:
    """The output of code that a user runs who has the package there."""
    head = 'import timm, timm_snn, torch\n'
    variables = {**os.environ, 'PYTHONPATH': str(site), 'OMP_NUM_THREADS': '1', **environment}
    return subprocess.run(
        [sys.executable, '-c', head + code], env=variables, cwd=site, capture_output=True, text=True, check=False
    )


def test_a_file_in_the_package_is_all_that_a_tag_needs(installed, tmp_path):
    """Without a network: the Hub's address leads nowhere."""
    code = f"""
from safetensors.torch import load_file, save_file
from pathlib import Path
file = Path(timm_snn.__file__).parent / 'weights' / '{SHIPPED}.safetensors'
weights = load_file(file)
assert '{SHIPPED}' in timm_snn.list_pretrained(), timm_snn.list_pretrained()
for name in ('msvit_4_96', '{SHIPPED}'):
    model = timm.create_model(name, pretrained=True)
    assert all(torch.equal(weights[key], tensor) for key, tensor in model.state_dict().items())
assert model.pretrained_cfg['label_names'][9] == 'Ankle boot'
other = timm.create_model('msvit_4_96', pretrained=True, num_classes=3, in_chans=3)
assert other(torch.rand(1, 3, 28, 28)).shape == (1, 3) and not other.pretrained_cfg['label_names']
assert torch.equal(other.state_dict()['stem.units.0.bn.bias'], weights['stem.units.0.bn.bias'])
features = timm.create_model('msvit_4_96', pretrained=True, features_only=True)
assert len(features(torch.rand(1, 1, 28, 28))) == 3
overlay = dict(file={str(tmp_path / 'mine.safetensors')!r})
save_file({{key: tensor + 1 for key, tensor in weights.items()}}, overlay['file'])
mine = timm.create_model('msvit_4_96', pretrained=True, pretrained_cfg_overlay=overlay)
assert torch.equal(mine.head.fc.bias, weights['head.fc.bias'] + 1)
try:
    timm.create_model('msvit_4_96', pretrained=True, pretrained_cfg_overlay=dict(hf_hub_id='lab/another'))
except FileNotFoundError as error:
    assert 'lab/another' in str(error)
else:
    raise AssertionError('the file of the package was read instead of the repository that was named')
"""
    result = run(code, installed, HF_HUB_OFFLINE='1', HF_ENDPOINT='http://127.0.0.1:9', HF_HOME=str(tmp_path))
    assert result.returncode == 0, result.stderr[-2000:]


def test_an_organisation_serves_its_own_weights(installed, hub, tmp_path):
    """In the place of ours, those in the package too."""
    torch.manual_seed(3)
    model = timm.create_model('msvit_4_96')
    save_for_hf(model, tmp_path / 'model')
    hub.add(f'lab/{SHIPPED}', tmp_path / 'model')
    hub.add('lab/other', {})
    code = f"""
import os
assert timm_snn.list_pretrained() == ['{SHIPPED}'], timm_snn.list_pretrained()
model = timm.create_model('{SHIPPED}', pretrained=True)
print(model.head.fc.weight.sum().item())
try:
    timm.create_model('msvit_4_384.cifar10', pretrained=True)
except OSError as error:
    assert 'repository lab/msvit_4_384.cifar10, ' in str(error) and 'no such repository' in str(error), error
else:
    raise AssertionError('not an error')
"""
    result = run(code, installed, TIMM_SNN_HUB_ORG='lab', **hub.environment(tmp_path / 'home'))
    assert result.returncode == 0, result.stderr[-2000:]
    assert float(result.stdout) == model.head.fc.weight.sum().item()


def test_what_ships_is_small_and_has_a_tag():
    files = {file.stem: file.stat().st_size for file in pretrained.WEIGHTS.glob('*.safetensors')}
    assert SHIPPED in files and set(files) <= set(TAGS) and max(files.values()) <= 4e6


def test_the_weights_in_the_package_give_the_logits_that_they_were_measured_with():
    """Of two pictures made by arithmetic, in float64, where the number of threads cannot flip a spike."""
    expected = json.loads((GOLDEN / f'{SHIPPED}.json').read_text())
    model = timm.create_model(SHIPPED, pretrained=True).eval().double()
    pixel = torch.arange(28 * 28, dtype=torch.float64)
    pictures = torch.stack([(pixel * step + pixel**2 * 3) % 251 / 250 for step in expected['steps']])
    mean, std = (model.pretrained_cfg[key][0] for key in ('mean', 'std'))
    with torch.no_grad():
        logits = model(((pictures - mean) / std).reshape(-1, 1, 28, 28))
    torch.testing.assert_close(logits, torch.tensor(expected['logits'], dtype=torch.float64), rtol=0, atol=1e-4)
    assert logits.argmax(1).tolist() == expected['classes'] and len(set(expected['classes'])) > 1


class TestSaving:
    @pytest.fixture(autouse=True)
    def _own_registry(self, monkeypatch):
        neurons = timm_snn.layers.neurons
        monkeypatch.setattr(neurons, '_layers', dict(neurons._layers))

    @pytest.mark.parametrize('name', SMALLEST)
    def test_every_family_loads_as_it_was_saved(self, name, tmp_path):
        model = lively(timm.create_model(name, in_chans=3, num_classes=5, num_steps=2)).eval()
        save_for_hf(model, tmp_path)
        config = json.loads((tmp_path / 'config.json').read_text())
        assert {'num_steps': 2, 'in_chans': 3}.items() <= config['model_args'].items()
        loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
        images = torch.rand(1, 3, 64, 64)
        assert torch.equal(loaded(images), model(images)) and model(images).std() > 0

    def test_layers_are_saved_by_their_names(self, tmp_path):
        slow = partial(timm_snn.LIF, tau=4.0)
        timm_snn.layers.neurons.register('slow_to_save')(slow)
        ssa = timm_snn.layers.attentions.get('ssa')
        model = timm.create_model('msvit_4_96', lif_layer=slow, attn=['mssa', 'mssa', ssa])
        save_for_hf(model, tmp_path)
        saved = json.loads((tmp_path / 'config.json').read_text())['model_args']
        assert (saved['lif_layer'], saved['attn']) == ('slow_to_save', ['mssa', 'mssa', 'ssa'])
        loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True)
        assert loaded.stem.units[0].lif.tau == 4.0

    def test_a_layer_without_a_name_cannot_be_saved(self, tmp_path):
        slow = lambda **settings: timm_snn.LIF(tau=4.0, **settings)  # noqa: E731
        model = timm.create_model('msvit_4_96', lif_layer=slow)
        with pytest.raises(
            ValueError, match=r"lif_layer=.* is a layer without a name, .*register\('my_neuron'\)\(layer"
        ):
            save_for_hf(model, tmp_path / 'model')
        assert not (tmp_path / 'model').exists()
        with pytest.raises(ValueError, match="'lif_layer' is not serializable"):
            timm.models.save_for_hf(model, tmp_path / 'model')
        timm_snn.layers.neurons.register('named_later')(slow)
        save_for_hf(model, tmp_path / 'model')
