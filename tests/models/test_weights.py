"""Weights that are not finite: refused by name, on every way in."""

import copy
import pickle

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

import timm_snn  # noqa: F401
from timm_snn.models import save_for_hf
from timm_snn.models.weights import check_finite

BAD = 'stem.units.0.bn.running_var'


@pytest.fixture(scope='module')
def model():
    return timm.create_model('msvit_4_96')


@pytest.fixture(params=[float('nan'), float('inf'), float('-inf')])
def damaged(request, model):
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    weights[BAD][3] = request.param
    return weights


def test_a_folder_a_file_and_a_state_dict_are_refused_by_their_name(model, damaged, tmp_path):
    save_for_hf(model, tmp_path / 'model')
    file = tmp_path / 'model' / 'model.safetensors'
    safetensors.torch.save_file(damaged, file)
    torch.save(damaged, tmp_path / 'a.pth')
    for name, overlay, place in (
        (f'local-dir:{tmp_path / "model"}', {}, str(tmp_path / 'model')),
        ('msvit_4_96', dict(file=str(file)), str(file)),
        ('msvit_4_96', dict(file=str(tmp_path / 'a.pth')), str(tmp_path / 'a.pth')),
        ('msvit_4_96', dict(state_dict=damaged), 'the state dict given'),
    ):
        with pytest.raises(ValueError, match='NaN or infinite values in') as error:
            timm.create_model(name, pretrained=True, **(dict(pretrained_cfg_overlay=overlay) if overlay else {}))
        assert str(error.value).startswith(place) and BAD in str(error.value)
    with pytest.raises(ValueError, match='NaN or infinite values in'):
        timm.create_model('msvit_4_96', checkpoint_path=str(file))


def test_a_model_takes_no_such_state_dict_inside_a_wrapper_either(model, damaged):
    taker, before = copy.deepcopy(model), model.state_dict()
    for module, prefix in ((taker, ''), (torch.nn.ModuleDict({'module': taker}), 'module.')):
        with pytest.raises(ValueError, match=f'MSViT has NaN or infinite values in .*{BAD}'):
            module.load_state_dict({prefix + key: value for key, value in damaged.items()})
    assert all(torch.equal(value, before[key]) for key, value in taker.state_dict().items())


def test_a_classifier_that_is_replaced_is_looked_at_too(model):
    weights = {**model.state_dict(), 'head.fc.bias': torch.full((10,), float('nan'))}
    with pytest.raises(ValueError, match=r'values in head\.fc\.bias:'):
        timm.create_model('msvit_4_96', pretrained=True, num_classes=3, pretrained_cfg_overlay=dict(state_dict=weights))


def test_the_message_names_a_few_and_shows_no_escapes():
    bad = torch.tensor([float('nan')])
    with pytest.raises(ValueError, match='and 6 more') as error:
        check_finite({f'\x1b[31m{i}\n' + 'a' * 1000: bad for i in range(9)}, 'x' * 10**6)
    assert str(error.value).isprintable() and len(str(error.value)) < 1000


def test_every_dtype_is_looked_at():
    dtypes = (torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2)
    for dtype in dtypes:
        check_finite({'a': torch.ones(2).to(dtype)}, 'it')
        with pytest.raises(ValueError, match='values in a:'):
            check_finite({'a': torch.tensor([1, float('nan')]).to(dtype)}, 'it')
    check_finite({'n': torch.tensor(3), 'b': torch.tensor(True), 's': 'text', 'm': torch.ones(1, device='meta')}, 'it')


@pytest.mark.parametrize('container', ['net', 'model_state_dict', 'checkpoint'])
def test_authors_files_load_by_any_name_and_with_numpy_values_beside(model, tmp_path, container):
    weights = {f'module.{key}': value for key, value in model.state_dict().items()}
    torch.save({container: weights, 'acc': np.float64(90.2), 'classes': np.arange(3)}, tmp_path / 'a.pth')
    loaded = timm.create_model('msvit_4_96', pretrained=True, pretrained_cfg_overlay=dict(file=tmp_path / 'a.pth'))
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in loaded.state_dict().items())
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / 'a.pth', weights_only=True)  # the types are known to our loading alone


def test_a_file_of_several_is_refused_with_their_names(model, tmp_path):
    torch.save({'net': model.state_dict(), 'teacher': model.state_dict()}, tmp_path / 'a.pth')
    with pytest.raises(RuntimeError, match=r'it holds 2 state dicts, net, teacher: name one, by .*state_dict='):
        timm.create_model('msvit_4_96', pretrained=True, pretrained_cfg_overlay=dict(file=tmp_path / 'a.pth'))


class Evil:
    def __reduce__(self):
        return (print, ('code from the file ran',))


def test_the_advice_about_a_pickle_can_be_followed(model, tmp_path, capsys):
    torch.save({'state_dict': model.state_dict(), 'args': Evil()}, tmp_path / 'a.pth')
    overlay = dict(file=tmp_path / 'a.pth')
    with pytest.raises(RuntimeError, match=r"asks for .*print; .*\['state_dict'\], 'weights.pth'\)") as error:
        timm.create_model('msvit_4_96', pretrained=True, pretrained_cfg_overlay=overlay)
    assert 'ran' not in capsys.readouterr().out
    advice = str(error.value).partition('save the weights alone: ')[2].partition(';')[0]
    saved = tmp_path / 'weights.pth'
    exec(advice.replace("'weights.pth'", 'saved'), {'torch': torch, 'FILE': overlay['file'], 'saved': saved})
    timm.create_model('msvit_4_96', pretrained=True, pretrained_cfg_overlay=dict(file=saved))
