"""Saved segmenters and detectors come back as they were."""

import json
import shutil

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import timm_snn
from timm_snn import dense
from timm_snn.models import save_for_hf


@pytest.mark.parametrize(
    ('backbone', 'arguments'),
    [
        ('msvit_4_96', dict(num_steps=2, lif_layer='plif', decoder_channels=(32, 16, 8), in_chans=2)),
        ('resnet18', dict(decoder='unet', decoder_channels=(32, 16, 16, 8, 8))),
    ],
)
def test_a_segmenter_comes_back(backbone, arguments, tmp_path):
    model = dense.create_segmenter(backbone, 3, **arguments).eval()
    config = dict(input_size=(model.in_chans, 64, 48), mean=(0.5,) * model.in_chans)
    dense.save(model, tmp_path, class_names=['sky', 'road', 'tree'], data_config=config)
    again = dense.load(tmp_path)
    images = torch.rand(1, model.in_chans, 40, 33)
    assert torch.equal(again(images), model(images))
    assert again.arguments == model.arguments and again.label_names == ['sky', 'road', 'tree']
    assert tuple(again.pretrained_cfg['input_size']) == config['input_size']
    dense.save(again, tmp_path)
    saved = json.loads((tmp_path / 'config.json').read_text())
    assert saved['label_names'] == ['sky', 'road', 'tree']
    assert saved['task'] == 'segmentation' and saved['mean'] == [0.5] * model.in_chans


def test_a_detector_comes_back_with_its_statistics(tmp_path):
    arguments = dict(detector='faster_rcnn', min_size=(48, 64), max_size=80, freeze_norms=True, pool=False)
    model = dense.create_detector('msvit_4_96', 2, num_steps=1, out_channels=8, neck='spiking_fpn', **arguments).eval()
    dense.save(model, tmp_path, class_names=['cell', 'dust'], data_config={'mean': (0.2,) * 3})
    again = dense.load(tmp_path)
    assert again.arguments == model.arguments and again.label_names == ['cell', 'dust']
    images = [torch.rand(3, 40, 56)]
    model.pretrained_cfg['mean'] = (0.2,) * 3
    torch.testing.assert_close(again(images), model(images), rtol=0, atol=0)


@pytest.fixture
def folder(tmp_path):
    dense.save(dense.create_segmenter('msvit_4_96', 3), tmp_path)
    return tmp_path


def test_weights_are_read_strictly(folder):
    weights = load_file(folder / 'model.safetensors')
    name = 'decoder.readout.conv.weight'
    save_file({**weights, name: weights[name] * torch.nan}, folder / 'model.safetensors')
    with pytest.raises(ValueError, match='NaN'):
        dense.load(folder)
    del weights[name]
    save_file(weights, folder / 'model.safetensors')
    with pytest.raises(ValueError, match='does not hold the weights of its config'):
        dense.load(folder)
    (folder / 'model.safetensors').write_bytes(b'no weights')
    with pytest.raises(ValueError, match='does not hold the weights of its config'):
        dense.load(folder)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'task': 'classification'}, 'that timm_snn.dense.save wrote'),
        ({'arguments': {'backbone': 'hf-hub:someone/model', 'num_classes': 3}}, 'expected the name of a model'),
        ({'label_names': [1, 2, 3]}, 'expected a list of names'),
        ({'mean': 'grey'}, 'expected a number for each channel'),
        ({'input_size': [3, 0, 32]}, 'expected channels, height and width'),
        ({'arguments': []}, 'that timm_snn.dense.save wrote'),
        ({'arguments': {'backbone': 'no_model', 'num_classes': 3}}, 'cannot make a model with the arguments of'),
        ({'arguments': {'backbone': 'msvit_4_96', 'num_classes': 3, 'depths': [9**9] * 3}}, 'expected at most 1,000'),
        ({'arguments': {'backbone': 'msvit_4_96', 'num_classes': 9**9}}, 'expected at most 100,000'),
        ({'arguments': {'backbone': 'msvit_4_96', 'num_classes': 3, 'embed_dims': [96_000] * 3}}, 'at most a billion'),
    ],
)
def test_a_config_of_something_else_is_refused(folder, change, message):
    file = folder / 'config.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        dense.load(folder)


def test_the_folder_of_a_backbone_is_needed_once(tmp_path):
    trained = timm.create_model('msvit_4_96', num_classes=7, in_chans=3, num_steps=2, lif_layer='plif')
    save_for_hf(trained, tmp_path / 'classifier')
    model = dense.create_segmenter(f'local-dir:{tmp_path}/classifier', 3, pretrained=True)
    assert torch.equal(model.backbone.model.stem.units[0].conv.weight, trained.stem.units[0].conv.weight)
    assert model.num_steps == 2 and model.arguments['lif_layer'] == 'plif'
    dense.save(model.eval(), tmp_path / 'segmenter')
    shutil.rmtree(tmp_path / 'classifier')
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(dense.load(tmp_path / 'segmenter')(images), model(images))


def test_layers_without_a_name_cannot_be_saved(tmp_path):
    class Mine(timm_snn.LIF): ...

    with pytest.raises(ValueError, match='register'):
        dense.save(dense.create_segmenter('msvit_4_96', 3, lif_layer=Mine), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_names_are_as_many_as_classes(tmp_path):
    with pytest.raises(ValueError, match='expected 3 class_names, got 1'):
        dense.save(dense.create_segmenter('msvit_4_96', 3), tmp_path, class_names=['sky'])
