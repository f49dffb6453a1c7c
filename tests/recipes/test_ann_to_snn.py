"""recipes/ann_to_snn.py, on real digits."""

import csv
import json

import pytest
import timm

from tests.support.scripts import ROOT, run
from timm_snn.training.options import training_options

pytest.importorskip('matplotlib')

SMALL = ['img_size=16', 'window_size=2', 'embed_dim=8', 'depths=(2,)', 'num_heads=(1,)', 'num_classes=10', 'in_chans=1']
DATA = ['--dataset', 'digits', '--img-size', 16, '-n', 6, '--mean', 0.305, '--std', 0.376]


def test_a_network_is_converted_and_drawn(tmp_path, capsys):
    model = ['--model', 'mst_tiny_ann', '--model-kwargs', *SMALL]
    run('recipes/ann_to_snn.py', *model, *DATA, '--num-steps', 3, '--within', 100, '--output', tmp_path)
    result = json.loads((tmp_path / 'results.json').read_text())
    rows = list(csv.DictReader((tmp_path / 'steps.csv').open()))
    assert [row['num_steps'] for row in rows] == ['1', '2', '3'] and result['smallest_num_steps'] == 1
    assert float(rows[-1]['top1']) == result['top1'] and result['samples'] == 6
    assert 'attend: calls matmul' in (tmp_path / 'report.txt').read_text()
    assert (tmp_path / 'accuracy.png').read_bytes()[:4] == b'\x89PNG'
    assert 'within 100 points from T = 1' in capsys.readouterr().out


def test_activations_are_replaced_with_levels(tmp_path):
    model = ['--model', 'test_resnet', '--model-kwargs', 'num_classes=10', 'in_chans=1']
    run('recipes/ann_to_snn.py', *model, *DATA, '--levels', 4, '--num-steps', 2, '--output', tmp_path)
    assert json.loads((tmp_path / 'results.json').read_text())['levels'] == 4


def test_the_config_says_how_large_its_network_is():
    config = ROOT / 'recipes' / 'configs' / 'mst' / 'cifar10.yaml'
    options = training_options(['--config', str(config)])
    model = timm.create_model(options.model, num_classes=options.num_classes, device='meta', **options.model_kwargs)
    assert f'({sum(p.numel() for p in model.parameters()):,} parameters)' in config.read_text()


def test_a_spiking_network_is_refused(tmp_path):
    with pytest.raises(SystemExit, match='has time steps already'):
        run('recipes/ann_to_snn.py', '--model', 'msvit_4_96', *DATA, '--output', tmp_path)
