"""Weight files, ours and the authors', good and bad, through timm.create_model."""

import argparse
import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from timm.models import save_for_hf

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
    for i, no_state_dict in enumerate(([1, 2], torch.ones(2), {'state_dict': None}, {0: torch.ones(2)})):
        torch.save(no_state_dict, tmp_path / f'none{i}.pth')
    (tmp_path / 'folder').mkdir()
    files = [path.name for path in tmp_path.iterdir() if path != own_file] + ['missing.pth']
    assert len(files) == 11
    for name in files:
        with pytest.raises(RuntimeError) as error:
            load('msvit_4_96', tmp_path / name)
        message = str(error.value)
        assert message.startswith(f'cannot read weights for msvit_4_96 from {tmp_path / name}: '), message
        assert 'expected a .safetensors file' in message and '\n' not in message
        reason = {'none': 'it holds no state dict', 'missi': 'there is no such file', 'folder': 'it is a folder'}
        assert all(text in message for start, text in reason.items() if name.startswith(start)), message
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


def test_saved_folders_with_a_torn_or_foreign_file_are_refused_in_one_line(own_file, tmp_path):
    folder = tmp_path / 'model'
    save_for_hf(timm.create_model('msvit_4_96'), folder, safe_serialization=True)
    file = folder / 'model.safetensors'

    def refused(match: str) -> None:
        with pytest.raises(RuntimeError, match=match) as error:
            timm.create_model(f'local-dir:{folder}', pretrained=True)
        assert '\n' not in str(error.value)

    shutil.copy(of_classes(7, tmp_path), file)
    refused('these weights have num_classes=7 and the model num_classes=10')
    file.write_bytes(own_file.read_bytes()[:1000])
    refused(f'cannot read weights for msvit_4_96 from {folder}: ')
    file.unlink()
    refused(f'cannot read weights for msvit_4_96 from {folder}: ')


def test_errors_that_the_file_has_no_part_in_do_not_blame_it(own_file):
    with pytest.raises(RuntimeError) as error:
        load('msvit_4_96', own_file, device='no_such_device')
    assert 'own.safetensors' not in str(error.value)


def of_classes(num_classes: int, folder: Path, **kwargs) -> Path:
    path = folder / f'classes{num_classes}.safetensors'
    safetensors.torch.save_file(timm.create_model('msvit_4_96', num_classes=num_classes, **kwargs).state_dict(), path)
    return path


class TestClassesAndChannels:
    """timm goes by the config of the name, which says 10 classes and 1 channel; the file may hold others."""

    def test_a_file_with_the_classes_asked_for_keeps_its_classifier(self, tmp_path):
        path = of_classes(7, tmp_path)
        weight = safetensors.torch.load_file(path)['head.fc.weight']
        assert torch.equal(load('msvit_4_96', path, num_classes=7).head.fc.weight, weight)
        overlay = dict(file=str(path), num_classes=7)
        model = timm.create_model('msvit_4_96', pretrained=True, pretrained_cfg_overlay=overlay)
        assert torch.equal(model.head.fc.weight, weight)
        assert model.pretrained_cfg['num_classes'] == 7

    @pytest.mark.parametrize('num_classes', [3, 10, 0])
    def test_other_classes_get_a_new_classifier_if_asked_for(self, tmp_path, num_classes):
        path = of_classes(7, tmp_path)
        model = load('msvit_4_96', path, num_classes=num_classes)
        assert model.num_classes == num_classes
        key = 'stages.2.blocks.1.mlp.fc2.conv.weight'
        assert torch.equal(model.state_dict()[key], safetensors.torch.load_file(path)[key])

    def test_features_need_no_classifier(self, tmp_path):
        assert load('msvit_4_96', of_classes(7, tmp_path), features_only=True).feature_info.channels() == [48, 48, 96]

    @pytest.mark.parametrize('num_classes', [7, 0])
    def test_other_classes_that_nobody_asked_for_are_refused(self, tmp_path, num_classes):
        message = f'these weights have num_classes={num_classes} and the model num_classes=10: pass num_classes='
        with pytest.raises(RuntimeError, match=message):
            load('msvit_4_96', of_classes(num_classes, tmp_path))

    def test_channels_are_those_of_the_file(self, tmp_path):
        path = of_classes(10, tmp_path, in_chans=3)
        weight = safetensors.torch.load_file(path)['stem.units.0.conv.weight']
        with pytest.raises(RuntimeError, match='these weights have in_chans=3 and the model in_chans=1'):
            load('msvit_4_96', path)
        assert torch.equal(load('msvit_4_96', path, in_chans=3).stem.units[0].conv.weight, weight)
        gray = load('msvit_4_96', path, in_chans=1)
        torch.testing.assert_close(gray.stem.units[0].conv.weight, weight.sum(1, keepdim=True))
        assert gray.pretrained_cfg['input_size'] == (3, 28, 28)  # of the weights


def test_values_that_are_no_tensors_are_refused(tmp_path):
    weights = {**timm.create_model('msvit_4_96').state_dict(), 'stem.units.0.conv.weight': 5}
    torch.save(weights, tmp_path / 'number.pth')
    with pytest.raises(RuntimeError, match=r'1 keys of another shape \(first: stem\.units\.0\.conv\.weight'):
        load('msvit_4_96', tmp_path / 'number.pth')


def test_foreign_weights_are_refused(tmp_path):
    safetensors.torch.save_file({'conv1.weight': torch.rand(2, 2)}, tmp_path / 'resnet.safetensors')
    with pytest.raises(RuntimeError, match=r"not of this MSViT.*our keys .* or the authors'"):
        load('msvit_4_96', tmp_path / 'resnet.safetensors')
