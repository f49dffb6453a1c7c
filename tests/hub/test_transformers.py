"""transformers loads our folders once timm_snn has been imported."""

import copy
import json
import shutil

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.conftest import lively
from timm_snn.models import save_for_hf

transformers = pytest.importorskip('transformers')

NAMES = [f'class {i}' for i in range(5)]


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """Models of three channels and of one, with their folders."""

    def save(in_chans: int):
        torch.manual_seed(4)
        folder = tmp_path_factory.mktemp(f'model{in_chans}')
        model = lively(timm.create_model('msvit_4_96', in_chans=in_chans, num_classes=5, num_steps=2)).eval()
        save_for_hf(model, folder, model_config=dict(label_names=NAMES))
        return model, folder

    return {in_chans: save(in_chans) for in_chans in (1, 3)}


@pytest.mark.parametrize('in_chans', [1, 3])
def test_the_model_is_the_same(saved, in_chans, tmp_path):
    model, folder = saved[in_chans]
    loaded = transformers.AutoModelForImageClassification.from_pretrained(folder)
    images = torch.rand(2, in_chans, 28, 28, dtype=torch.float64)  # in float32, weights elsewhere in memory round apart
    expected = copy.deepcopy(model).double()(images)
    assert torch.equal(loaded.double()(images).logits, expected) and expected.std() > 0
    assert loaded.config.id2label == dict(enumerate(NAMES))
    loaded.float().save_pretrained(tmp_path)
    again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(again.double()(images).logits, expected)


def test_the_pipeline_classifies_pictures_with_a_model_of_three_channels(saved):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8))
    classify = transformers.pipeline('image-classification', model=str(saved[3][1]))
    answers = classify(picture, top_k=5)
    assert {answer['label'] for answer in answers} == set(NAMES)
    assert sum(answer['score'] for answer in answers) == pytest.approx(1)
    with pytest.raises(ValueError, match=r'expected images \[B, 1, H, W\]'):  # it makes three channels of any picture
        transformers.pipeline('image-classification', model=str(saved[1][1]))(picture.convert('L'))


def test_weights_that_are_not_finite_are_refused(saved, tmp_path):
    shutil.copytree(saved[1][1], tmp_path / 'model')
    file = tmp_path / 'model' / 'model.safetensors'
    weights = load_file(file)
    weights['stem.units.0.bn.running_var'][0] = float('nan')
    save_file(weights, file, {'format': 'pt'})
    with pytest.raises(ValueError, match=r'MSViT has NaN or infinite values in stem\.units\.0\.bn\.running_var'):
        transformers.AutoModelForImageClassification.from_pretrained(tmp_path / 'model')


def test_the_hub_serves_transformers_too(saved, hub):
    hub.add('lab/model', saved[3][1])
    loaded = transformers.AutoModelForImageClassification.from_pretrained('lab/model')
    assert torch.equal(loaded.timm_model.head.fc.weight, saved[3][0].head.fc.weight)


def test_folders_load_with_timm_alone_as_before(saved):
    model, folder = saved[3]
    assert 'num_classes' not in json.loads((folder / 'config.json').read_text())['model_args']
    assert sorted(path.name for path in folder.iterdir()) == ['config.json', 'model.safetensors']
    loaded = timm.create_model(f'local-dir:{folder}', pretrained=True)
    assert (loaded.num_classes, loaded.num_steps, loaded.in_chans) == (5, 2, 3)
    assert torch.equal(loaded.head.fc.weight, model.head.fc.weight)
    assert timm.create_model(f'local-dir:{folder}', pretrained=True, num_classes=2).num_classes == 2
