"""hub/convert.py: files in the authors' layouts become folders, and everything else is refused in one line."""

import argparse
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

from tests.support.scripts import load

convert = load('hub/convert.py')
folders = load('hub/model_folder.py')
GOLDEN = Path(__file__).parents[1] / 'golden'
CIFAR = 'msvit_4_384.cifar10'


def authors_weights(layout: str) -> dict[str, torch.Tensor]:
    shapes = json.loads((GOLDEN / f'{layout}.keys.json').read_text())
    generator = torch.Generator().manual_seed(0)
    return {
        k: torch.rand(s, generator=generator) if 'tracked' not in k else torch.tensor(7) for k, (s, _) in shapes.items()
    }


@pytest.fixture(scope='module')
def weights() -> dict[str, torch.Tensor]:
    return authors_weights('msvit_cifar10')


@pytest.fixture
def own() -> dict[str, torch.Tensor]:
    """A small model in our own layout, which converts as well."""
    return timm.create_model('msvit_4_96').state_dict()


def nested(weights: dict, container: str | None, prefix: str) -> dict:
    weights = {prefix + key: value for key, value in weights.items()}
    return {container: weights, 'epoch': 3} if container else weights


@pytest.mark.parametrize('container', [None, 'model', 'state_dict', 'model_ema', 'state_dict_ema'])
@pytest.mark.parametrize('prefix', ['', 'module.', '_orig_mod.module.'])
def test_containers_and_prefixes_are_taken_off(tmp_path, container, prefix):
    weights = {'a.weight': torch.rand(2)}
    torch.save(nested(weights, container, prefix), tmp_path / 'a.pth')
    found = convert.read_weights(tmp_path / 'a.pth', use_ema=True)
    assert torch.equal(found['a.weight'], weights['a.weight']) and (len(found) == 1 or container is None)


@pytest.mark.parametrize('container', ['net', 'model_state_dict', 'teacher', 'checkpoint.model'])
@pytest.mark.parametrize('prefix', ['net.', 'module.model.', 'backbone.'])
def test_whatever_the_part_with_the_weights_is_called_it_is_found(tmp_path, container, prefix):
    beside = {
        'best_acc': np.float64(95.5),
        'epoch': np.int64(3),
        'confusion': np.eye(3),
        'loss': torch.tensor(0.1),
        'optimizer': {'state': {0: {'exp_avg': torch.ones(2)}}, 'param_groups': [{'lr': 0.1}]},
        'args': argparse.Namespace(lr=0.1),
    }
    checkpoint = {prefix + 'a.weight': torch.rand(2), prefix + 'b': torch.ones(1)}
    for name in reversed(container.split('.')):
        checkpoint = {name: checkpoint} | beside
    torch.save(checkpoint, tmp_path / 'a.pth')
    found = convert.read_weights(tmp_path / 'a.pth', use_ema=True)
    assert set(found) == {'a.weight', 'b'}
    assert convert.read_weights(tmp_path / 'a.pth', True, container).keys() == found.keys()


def test_one_of_several_parts_is_named(command, refused, own, tmp_path):
    averaged = {key: value + 1 if value.is_floating_point() else value for key, value in own.items()}
    torch.save({'net': own, 'net_ema': averaged}, tmp_path / 'a.pth')
    line = refused('convert.py', tmp_path / 'a.pth', 'msvit_4_96', '--output', tmp_path / 'out')
    assert 'it holds 2 state dicts, net, net_ema: name one, by --key' in line
    command('convert.py', tmp_path / 'a.pth', 'msvit_4_96', '--output', tmp_path / 'out', '--key', 'net_ema')
    weights = safetensors.torch.load_file(tmp_path / 'out' / 'model.safetensors')
    assert torch.equal(weights['head.fc.bias'], averaged['head.fc.bias'])
    line = refused('convert.py', tmp_path / 'a.pth', 'msvit_4_96', '--output', tmp_path / 'other', '--key', 'ema')
    assert "it holds no state dict 'ema', but net, net_ema" in line


def test_weights_that_are_not_finite_are_refused(refused, own, tmp_path):
    torch.save(own | {'head.fc.bias': torch.full((10,), float('nan'))}, tmp_path / 'a.pth')
    line = refused('convert.py', tmp_path / 'a.pth', 'msvit_4_96', '--output', tmp_path / 'out')
    assert 'NaN or infinite values in head.fc.bias' in line and not (tmp_path / 'out').exists()


@pytest.mark.parametrize('suffix', ['safetensors', 'pth.tar'])
def test_the_authors_cifar_layout(command, weights, tmp_path, suffix):
    file, folder = tmp_path / f'authors.{suffix}', tmp_path / 'out'
    if suffix == 'safetensors':
        safetensors.torch.save_file(weights, file)
    else:
        torch.save(nested(weights, 'model', 'module.'), file)
    command('convert.py', file, CIFAR, '--output', folder, '--url', 'https://example.org/authors')
    assert sorted(path.name for path in folder.iterdir()) == ['README.md', 'config.json', 'model.safetensors']
    model = timm.create_model(f'local-dir:{folder}', pretrained=True)
    expected = timm.create_model(CIFAR, pretrained=True, pretrained_cfg_overlay=dict(file=str(file)))
    assert all(torch.equal(model.state_dict()[key], value) for key, value in expected.state_dict().items())
    assert torch.equal(model.head.fc.bias, weights['head.bias'])
    card = (folder / 'README.md').read_text()
    assert 'These weights were not evaluated here.' in card and 'model-index' not in card
    assert f'`authors.{suffix}` (SHA-256 `{hashlib.sha256(file.read_bytes()).hexdigest()}`)' in card
    assert 'https://example.org/authors' in card and 'license: unknown' in card


def test_the_authors_imagenet_layout():
    weights, model = authors_weights('msvit_10_384'), timm.create_model('msvit_10_384.in1k')
    assert convert.fit(weights, model) == {}
    assert torch.equal(model.stages[2].blocks[6].mlp.fc1.conv.weight, weights['stage3.6.mlp.fc1_conv.weight'])


def test_averaged_weights_win_unless_told_otherwise(command, own, tmp_path):
    averaged = {key: value + 1 for key, value in own.items()}
    torch.save({'model': own, 'model_ema': nested(averaged, None, 'module.')}, tmp_path / 'a.pth')
    command('convert.py', tmp_path / 'a.pth', 'msvit_4_96', '--output', tmp_path / 'ema')
    command('convert.py', tmp_path / 'a.pth', 'msvit_4_96', '--output', tmp_path / 'raw', '--no-ema')
    bias = [safetensors.torch.load_file(tmp_path / n / 'model.safetensors')['head.fc.bias'] for n in ('ema', 'raw')]
    assert torch.equal(bias[0], own['head.fc.bias'] + 1) and torch.equal(bias[1], own['head.fc.bias'])


def test_what_no_weight_shows_is_an_argument(command, own, tmp_path):
    torch.save(own, tmp_path / 'a.pth')
    arguments = ['--model-kwargs', 'num_steps=2', 'attn_v_threshold=0.5', '--license', 'mit']
    command('convert.py', tmp_path / 'a.pth', 'msvit_4_96', '--output', tmp_path / 'out', *arguments)
    config = json.loads((tmp_path / 'out' / 'config.json').read_text())
    assert config['model_args'].items() >= dict(num_steps=2, attn_v_threshold=0.5, in_chans=1).items()
    assert config['pretrained_cfg']['license'] == 'mit'
    model = timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True)
    assert model.num_steps == 2 and model.stages[0].blocks[0].attn.attn_lif.v_threshold == 0.5


@pytest.mark.parametrize(
    ('name', 'num_classes', 'names'), [(CIFAR, 10, 10), (CIFAR, 5, None), ('msvit_4_384', 10, None)]
)
def test_names_of_classes_are_those_of_the_tag_that_was_asked_for(name, num_classes, names):
    model = timm.create_model(name, num_classes=num_classes)
    folders.name_training(model, name)
    assert model.pretrained_cfg['tag'] == (name.partition('.')[2] or None)
    assert (model.pretrained_cfg['label_names'] and len(model.pretrained_cfg['label_names'])) == names


def without(key: str):
    return lambda weights: {k: v for k, v in weights.items() if k != key}


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (without('stage1.0.mlp.mlp1_bn.bias'), r'1 key missing \(stages.0.blocks.0.mlp.fc1.bn.bias\); pass'),
        (without('head.bias'), r'1 key missing \(head.fc.bias\); pass'),
        (lambda w: w | {'extra.weight': torch.ones(1)}, r'1 key unexpected \(extra.weight\); pass'),
        (lambda w: w | {'head.scale': torch.ones(1)}, r'1 key unexpected \(head.scale\); pass'),
        (lambda w: w | {'optimizer': 5}, r'1 key unexpected \(optimizer\); pass'),
        (
            lambda w: w | {'head.weight': torch.ones(100, 384), 'head.bias': torch.ones(100)},
            r'2 keys of another shape \(head.fc.weight, 100x384 instead of 10x384; head.fc.bias, 100 instead of 10\)',
        ),
        (
            lambda w: w | {'patch_embed1.proj_conv.weight': torch.ones(96, 1, 3, 3)},
            r'1 key of another shape \(stem.units.0.conv.weight, 96x1x3x3 instead of 96x3x3x3\); pass',
        ),
        (
            lambda w: {f'{k}.old': v for k, v in w.items()},
            r'\d+ keys missing \(.*; and \d+ more\), \d+ keys unexp',
        ),
    ],
)
def test_weights_that_do_not_fit_are_listed(refused, weights, tmp_path, change, message):
    torch.save(change(weights), tmp_path / 'a.pth')
    line = refused('convert.py', tmp_path / 'a.pth', CIFAR, '--output', tmp_path / 'out')
    assert re.search(f'a.pth does not fit {CIFAR}: {message}', line), line
    assert not (tmp_path / 'out').exists()


def test_a_second_classifier_of_another_shape_is_refused(refused, tmp_path):
    weights = authors_weights('metaspikformer_small')
    weights |= {'head_kd.weight': torch.ones(2, 3), 'head_kd.bias': weights['head.bias']}
    torch.save(weights, tmp_path / 'a.pth')
    line = refused('convert.py', tmp_path / 'a.pth', 'metaspikformer_8_256', '--output', tmp_path / 'out')
    assert f'cannot read weights from {tmp_path / "a.pth"}: ' in line


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_files_that_are_no_weights_are_refused_and_not_run(refused, tmp_path):
    ran = tmp_path / 'ran'
    torch.save({'state_dict': {'a': torch.ones(1)}, 'args': Evil(ran)}, tmp_path / 'evil.pth')
    torch.save([1, 2], tmp_path / 'list.pth')
    (tmp_path / 'noise.pth').write_bytes(b'noise' * 100)
    (tmp_path / 'noise.safetensors').write_bytes(b'noise' * 100)
    (tmp_path / 'empty.pth').touch()
    reasons = {
        'evil.pth': 'nothing of it was run, but asks for builtins.getattr, pathlib.Path',
        'list.pth': 'it holds no state dict',
        'noise.pth': 'it is no file of weights alone, and nothing of it was run; ',
        'noise.safetensors': '',
        'empty.pth': '',
        'missing.pth': 'there is no such file',
    }
    for name, reason in reasons.items():
        line = refused('convert.py', tmp_path / name, CIFAR, '--output', tmp_path / 'out')
        assert line.startswith(f'error: cannot read weights from {tmp_path / name}: ') and reason in line, line
    assert not ran.exists() and not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('name', 'arguments', 'message'),
    [
        ('msvit_9', [], "cannot create model 'msvit_9'"),
        ('resnet18', [], 'it is not of timm_snn'),
        (CIFAR, ['--model-kwargs', 'no_such=1'], 'no_such'),
        (CIFAR, ['--dtype', 'int8'], 'see hub/convert.py --help'),
    ],
)
def test_wrong_arguments_of_convert(refused, tmp_path, name, arguments, message):
    assert message in refused('convert.py', tmp_path / 'a.pth', name, '--output', tmp_path / 'out', *arguments)


def test_a_converted_folder_keeps_its_origin_when_it_is_published(command, own, tmp_path, hub):
    torch.save(own, tmp_path / 'a.pth')
    command('convert.py', tmp_path / 'a.pth', 'msvit_4_96', '--output', tmp_path / 'out')
    command('push.py', tmp_path / 'out', 'lab/theirs')
    files = hub.files('lab/theirs')
    assert files == {path.name: path.read_bytes() for path in (tmp_path / 'out').iterdir()}
    (tmp_path / 'out' / 'README.md').unlink()  # and so it does when the card is written anew
    command('push.py', tmp_path / 'out', 'lab/theirs')
    card = hub.files('lab/theirs')['README.md'].decode()
    assert 'Weights converted from `a.pth`' in card and 'not evaluated here' in card and 'hf-hub:lab/theirs' in card
    assert 'license: unknown' in card and 'LICENSE' not in hub.files('lab/theirs')
