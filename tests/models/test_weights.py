"""Weight files, ours and the authors', good and bad, through timm.create_model."""

import argparse
import json
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

GOLDEN = Path(__file__).parents[1] / 'golden'


def load(name: str, path: Path, **kwargs):
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=dict(file=str(path)), **kwargs)


@pytest.fixture(scope='module')
def authors_file() -> dict[str, torch.Tensor]:
    shapes = json.loads((GOLDEN / 'msvit_cifar10.keys.json').read_text())
    torch.manual_seed(0)
    return {k: torch.rand(s) if 'tracked' not in k else torch.tensor(0) for k, (s, _) in shapes.items()}


@pytest.mark.parametrize('container', [None, 'model', 'state_dict'])
@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_authors_pth_files_load(authors_file, tmp_path, container, prefix):
    weights = {prefix + key: value for key, value in authors_file.items()}
    torch.save({container: weights} if container else weights, tmp_path / 'a.pth')
    model = load('msvit_4_384.cifar10', tmp_path / 'a.pth')
    assert torch.equal(model.stem.units[0].conv.weight, authors_file['patch_embed1.proj_conv.weight'])
    assert torch.equal(model.stages[2].blocks[1].mlp.fc2.bn.bias, authors_file['stage3.1.mlp.mlp2_bn.bias'])
    assert torch.equal(model.head.fc.weight, authors_file['head.weight'])


def test_authors_safetensors_and_the_arguments_that_come_with_some_files(authors_file, tmp_path):
    safetensors.torch.save_file(authors_file, tmp_path / 'a.safetensors')
    torch.save({'model': authors_file, 'args': argparse.Namespace(lr=1)}, tmp_path / 'a.pth')
    one, two = (load('msvit_4_384.cifar10', tmp_path / name) for name in ('a.safetensors', 'a.pth'))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.fixture
def own_file(tmp_path) -> Path:
    model = timm.create_model('msvit_4_96')
    safetensors.torch.save_file(model.state_dict(), tmp_path / 'own.safetensors')
    return tmp_path / 'own.safetensors'


def test_our_files_load_for_other_classes_and_channels(own_file):
    model = load('msvit_4_96', own_file, num_classes=3, in_chans=3, num_steps=6)
    weights = safetensors.torch.load_file(own_file)
    assert model.head.fc.out_features == 3
    assert torch.equal(model.stages[1].blocks[0].attn.k.conv.weight, weights['stages.1.blocks.0.attn.k.conv.weight'])
    assert model.stem.units[0].conv.weight.shape == (24, 3, 3, 3)


class Evil:
    def __reduce__(self):
        return (print, ('code from the file ran',))


def test_unreadable_files_are_refused_in_one_line(own_file, tmp_path, capsys):
    whole = own_file.read_bytes()
    (tmp_path / 'torn.safetensors').write_bytes(whole[: len(whole) // 2])
    (tmp_path / 'noise.safetensors').write_bytes(b'noise' * 100)
    (tmp_path / 'noise.pth').write_bytes(b'noise' * 100)
    (tmp_path / 'empty.pth').write_bytes(b'')
    torch.save({'model': Evil()}, tmp_path / 'evil.pth')
    files = ['torn.safetensors', 'noise.safetensors', 'noise.pth', 'empty.pth', 'evil.pth', 'missing.pth']
    for name in files:
        with pytest.raises(RuntimeError) as error:
            load('msvit_4_96', tmp_path / name)
        message = str(error.value)
        assert message.startswith(f'cannot read weights for msvit_4_96 from {tmp_path / name}: '), message
        assert 'expected a .safetensors file' in message and '\n' not in message
    assert 'code from the file ran' not in capsys.readouterr().out


@pytest.mark.parametrize(
    ('name', 'kwargs', 'message'),
    [
        ('msvit_4_96', dict(attn='ssa'), 'keys missing .first: stages.0.blocks.0.attn.v'),
        ('msvit_4_96', dict(depths=(1, 1, 1)), 'keys unexpected .first: stages.2.blocks.1'),
        ('msvit_4_384', dict(), 'of another shape'),
    ],
)
def test_weights_of_another_model_are_refused_in_one_line(own_file, name, kwargs, message):
    with pytest.raises(RuntimeError, match=message) as error:
        load(name, own_file, **kwargs)
    assert 'create_model with the arguments that the weights were trained with' in str(error.value)
    assert '\n' not in str(error.value)


def test_foreign_weights_are_refused(tmp_path):
    safetensors.torch.save_file({'conv1.weight': torch.rand(2, 2)}, tmp_path / 'resnet.safetensors')
    with pytest.raises(RuntimeError, match=r"not of this MSViT.*our keys .* or the authors'"):
        load('msvit_4_96', tmp_path / 'resnet.safetensors')
