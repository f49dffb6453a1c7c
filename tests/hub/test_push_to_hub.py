"""timm_snn.push_to_hub, against a Hub on the loopback address."""

import json

import pytest
import timm
import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from torch import nn

import timm_snn
from tests.conftest import lively
from timm_snn.layers import neurons


@pytest.fixture
def model():
    return lively(timm.create_model('msvit_4_96', num_steps=2, num_classes=3, attn_v_threshold=0.75))


def test_what_is_uploaded_comes_back_the_same(hub, model, tmp_path):
    wrapped = torch.nn.DataParallel(model.train())
    url = timm_snn.push_to_hub(wrapped, 'lab/cats', label_names=['cat', 'dog', 'cow'], license='mit', private=True)
    assert url.startswith(f'{hub.endpoint}/lab/cats/commit/') and model.training  # it stays as it is
    files = hub.files('lab/cats')
    assert sorted(files) == ['README.md', 'config.json', 'model.safetensors']
    assert b'license: mit' in files['README.md'] and b"'hf-hub:lab/cats'" in files['README.md']
    loaded = timm.create_model('hf-hub:lab/cats', pretrained=True, cache_dir=tmp_path).eval()
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(loaded(x), model.eval()(x)) and loaded.pretrained_cfg['label_names'] == ['cat', 'dog', 'cow']
    commits = len(hub.repos['lab/cats'].commits)
    timm_snn.push_to_hub(model, 'lab/cats', label_names=['cat', 'dog', 'cow'], license='mit')
    assert len(hub.repos['lab/cats'].commits) == commits  # nothing is sent twice


def test_a_profile_and_a_card_of_ones_own_go_with_it(hub, model):
    report = timm_snn.profile(model.eval(), torch.rand(4, 1, 28, 28), data_name='noise', progress=False)
    timm_snn.push_to_hub(model, 'lab/cats', report=report)
    files = hub.files('lab/cats')
    assert report.to_markdown().strip() in files['README.md'].decode()
    assert json.loads(files['energy.json']) == json.loads(report.to_json())
    timm_snn.push_to_hub(model, 'lab/cats', card='---\nlicense: mit\n---\n\nMine.\n')
    assert hub.files('lab/cats')['README.md'] == b'---\nlicense: mit\n---\n\nMine.\n'
    other = timm.create_model('msvit_4_96', num_steps=4, num_classes=3)
    with pytest.raises(ValueError, match=r'the report is about another model, .* T = 2 .* instead of .* 4 '):
        timm_snn.push_to_hub(other, 'lab/cats', report=report)


def test_branches_and_pull_requests(hub, model):
    timm_snn.push_to_hub(model, 'lab/cats', revision='trial')
    assert hub.files('lab/cats') == {} and len(hub.files('lab/cats', 'trial')) == 3
    url = timm_snn.push_to_hub(model, 'lab/cats', create_pr=True, token='hf_loopback', commit_message='Mine')
    assert url == f'{hub.endpoint}/lab/cats/discussions/1'
    assert hub.files('lab/cats') == {} and len(hub.files('lab/cats', 'refs/pr/1')) == 3


@pytest.mark.parametrize('name', ['cats', 'a b/c', 'a/b/c'])
def test_wrong_names_are_refused(hub, model, name):
    with pytest.raises(HFValidationError):
        timm_snn.push_to_hub(model, name)
    assert not hub.requests


def test_missing_and_wrong_tokens_are_refused(hub, model, monkeypatch):
    with pytest.raises(HfHubHTTPError, match=r"cannot upload to 'lab/cats': .*a token that is valid"):
        timm_snn.push_to_hub(model, 'lab/cats', token='hf_other')
    monkeypatch.setenv('HF_TOKEN', '')
    with pytest.raises(LocalTokenNotFoundError, match='nobody is logged in; run `hf auth login`'):
        timm_snn.push_to_hub(model, 'lab/cats')
    assert not hub.repos


def test_models_that_nobody_else_could_load_are_refused(hub, model, monkeypatch):
    class Mine(timm_snn.LIF):
        pass

    Mine.__module__ = '__main__'
    monkeypatch.setattr(neurons, '_layers', dict(neurons._layers))
    neurons.register('mine')(Mine)
    with pytest.raises(ValueError, match='layers that a script or notebook defines'):
        timm_snn.push_to_hub(timm.create_model('msvit_4_96', lif_layer='mine'), 'lab/x')
    with pytest.raises(ValueError, match=r'Linear is no model .*push_to_hf_hub publishes those of timm'):
        timm_snn.push_to_hub(nn.Linear(2, 2), 'lab/x')
    with pytest.raises(ValueError, match='expected 3 label_names, one for each class, got 2'):
        timm_snn.push_to_hub(model, 'lab/x', label_names=['cat', 'dog'])
    with torch.no_grad():
        model.head.fc.bias[0] = float('nan')
    with pytest.raises(ValueError, match='NaN'):
        timm_snn.push_to_hub(model, 'lab/x')
    assert not hub.repos
