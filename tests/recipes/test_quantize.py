"""recipes/quantize.py as users run it: on the digits, with the weights in the package."""

import json

import pytest
import torch

import timm_snn
from tests.support.scripts import run

WEIGHTS = ['--model', 'msvit_4_96.digits', '--dataset', 'digits', '--num-threads', 1, '--workers', 0]


def test_both_networks_are_measured_and_the_whole_numbers_saved(tmp_path, capsys):
    run('recipes/quantize.py', *WEIGHTS, '--calibration', 32, '-n', 40, '-b', 40, '--output', tmp_path)
    rows = json.loads((tmp_path / 'results.json').read_text())
    assert rows['float32']['samples'] == rows['quantised']['samples'] == 40
    assert rows['quantised']['top1_correct'] >= 37
    assert rows['quantised']['megabytes'] < 0.3 * rows['float32']['megabytes']
    assert f'({rows["quantised"]["top1_correct"]} of 40)' in capsys.readouterr().out
    assert timm_snn.load_quantized(tmp_path / 'model')(torch.zeros(1, 1, 32, 32)).shape == (1, 10)

    run(
        'recipes/validate.py',
        '--model',
        f'local-dir:{tmp_path / "model"}',
        *WEIGHTS[2:],
        '-n',
        40,
        '--output',
        tmp_path,
    )
    validated = json.loads((tmp_path / 'results.json').read_text())
    assert str(rows['quantised']['top1_correct']) in json.dumps(validated)


def test_a_model_without_a_form_in_whole_numbers_is_refused_in_one_line(tmp_path):
    model = ['--model', 'msvit_4_96', '--model-kwargs', 'lif_layer=psn', *WEIGHTS[2:]]
    with pytest.raises(SystemExit, match=r'^error: cannot quantise .*stem\.units\.0\.lif: PSN') as stop:
        run('recipes/quantize.py', *model, '--calibration', 4, '-n', 4, '--output', tmp_path / 'out')
    assert '\n' not in str(stop.value) and not (tmp_path / 'out').exists()
