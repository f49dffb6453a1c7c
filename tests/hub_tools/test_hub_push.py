"""hub/push.py, against a Hub on the loopback address."""

import json
import re
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
import yaml

from timm_snn.hub import push
from timm_snn.layers import neurons
from timm_snn.training.options import as_config, training_options

RUN_FILES = ['LICENSE', 'README.md', 'config.json', 'model.safetensors', 'summary.csv', 'training.yaml']


def logits(name: str, **kwargs) -> torch.Tensor:
    model = timm.create_model(name, pretrained=True, **kwargs).eval()
    x = torch.rand(2, model.in_chans, 28, 28, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return model(x)


def test_a_dry_run_writes_what_a_run_left_and_asks_the_hub_nothing(command, run_folder, tmp_path, hub):
    out = command('push.py', run_folder, 'lab/digits', '--dry-run', tmp_path / 'dry')
    assert 'nothing uploaded' in out and not hub.requests
    assert sorted(path.name for path in (tmp_path / 'dry').iterdir()) == RUN_FILES
    saved, written = (
        safetensors.torch.load_file(f / 'model.safetensors') for f in (run_folder / 'model', tmp_path / 'dry')
    )
    assert saved.keys() == written.keys() and all(torch.equal(saved[key], written[key]) for key in saved)
    config = json.loads((tmp_path / 'dry' / 'config.json').read_text())
    assert config['label_names'] == [str(digit) for digit in range(10)]
    assert config['pretrained_cfg']['input_size'] == [1, 16, 16] and config['pretrained_cfg']['mean'] == [0.305]


def test_the_training_options_are_a_config_without_local_paths(command, run_folder, tmp_path):
    command('push.py', run_folder, 'lab/digits', '--dry-run', tmp_path / 'dry')
    file = tmp_path / 'dry' / 'training.yaml'
    assert str(run_folder.parent) not in file.read_text()
    args = as_config(training_options(['--config', str(file)]))
    run = yaml.safe_load((run_folder / 'config.yaml').read_text())
    assert {key for key in run if args[key] != run[key]} == {
        'output',
        'num_threads',
        'log_with',
        'overwrite',
        'workers',
    }


def test_steps_channels_and_thresholds_are_pinned_in_the_config(command, model_folder, tmp_path):
    command('push.py', model_folder, 'lab/model', '--dry-run', tmp_path / 'dry')
    args = json.loads((tmp_path / 'dry' / 'config.json').read_text())['model_args']
    assert (args['num_steps'], args['in_chans'], args['attn_v_threshold']) == (3, 1, 0.75)


@pytest.mark.parametrize(
    ('name', 'threshold'),
    [
        ('msvit_2_256', {'attn_v_threshold': 0.5}),
        ('qkformer_2_256', {'attn_v_threshold': 0.5}),
        ('espikeformer_5m', {'attn_v_threshold': 1.0}),
        ('spikingresformer_gesture', {'attn_v_threshold': 1.0}),
    ],
)
def test_thresholds_that_are_defaults_are_pinned_too(name, threshold):
    pinned = push.pinned_args(timm.create_model(name, num_steps=2, in_chans=2))
    assert pinned == {'in_chans': 2, 'num_steps': 2, **threshold}


@pytest.mark.parametrize('name', neurons.names())
def test_the_threshold_of_any_neuron_is_pinned_and_relu_has_none(name):
    steps = 1 if name == 'relu' else 2
    pinned = push.pinned_args(timm.create_model('msvit_4_96', lif_layer=name, num_steps=steps, attn_v_threshold=0.75))
    threshold = {} if name == 'relu' else {'attn_v_threshold': 0.75}
    assert pinned == {'in_chans': 1, 'num_steps': steps, **threshold}


def test_an_upload_loads_and_a_second_one_does_nothing(command, hub, model_folder, tmp_path):
    expected = logits(f'local-dir:{model_folder}')
    assert expected.abs().sum() > 0
    assert command('push.py', model_folder, 'lab/model').startswith('uploaded: ')
    assert sorted(hub.files('lab/model')) == ['LICENSE', 'README.md', 'config.json', 'model.safetensors']
    assert torch.equal(logits('hf-hub:lab/model', cache_dir=tmp_path / 'cache'), expected)
    commits = len(hub.repos['lab/model'].commits)
    assert command('push.py', model_folder, 'lab/model').startswith('has all of it already: ')
    assert len(hub.repos['lab/model'].commits) == commits
    assert sum(request.startswith('PUT /lfs/') for request in hub.requests) == 1


def test_an_upload_goes_on_after_a_failure(command, refused, hub, model_folder):
    with hub.fault('/commit/', status=503):
        line = refused('push.py', model_folder, 'lab/model')
    assert line.startswith("error: cannot upload to 'lab/model': ") and 'run the same command again' in line
    assert hub.files('lab/model') == {} and len(hub.lfs) == 1
    command('push.py', model_folder, 'lab/model')
    assert len(hub.files('lab/model')) == 4
    assert sum(request.startswith('PUT /lfs/') for request in hub.requests) == 1  # the weights went up the first time


def test_weights_that_come_back_changed_are_found_out(refused, hub, model_folder):
    with hub.fault('/cdn/', corrupt=True):
        assert "cannot get the model back from 'lab/model'" in refused('push.py', model_folder, 'lab/model')


def test_models_that_differ_in_a_bit_or_in_their_answers_are_told_apart(model_folder):
    one, other = (timm.create_model(f'local-dir:{model_folder}', pretrained=True) for _ in range(2))
    push.check_same(one, other, 'here')
    other.num_steps = 1
    with pytest.raises(ValueError, match='the model from here answers differently'):
        push.check_same(one, other, 'here')
    other.head.fc.bias.data[0].add_(1e-7)
    with pytest.raises(ValueError, match=r'here has other weights .*first: head\.fc\.bias'):
        push.check_same(one, other, 'here')


@pytest.mark.parametrize(
    ('fault', 'message'),
    [
        (dict(path='/api/repos/create', status=403), 'use a token that may write there'),
        (dict(path='/preupload/', status=403), 'use a token that may write there'),
        (dict(path='/api/repos/create', status=500), 'run the same command again'),
        (dict(path='/lfs/', status=500), 'run the same command again'),
    ],
)
def test_answers_of_the_hub_end_it_in_one_line(refused, hub, model_folder, fault, message):
    with hub.fault(**fault):
        assert message in refused('push.py', model_folder, 'lab/model')


def test_a_hub_that_is_not_there(refused, hub, model_folder):
    hub.stop()
    assert "cannot upload to 'lab/model'" in refused('push.py', model_folder, 'lab/model')


@pytest.mark.parametrize(('token', 'message'), [('', 'nobody is logged in'), ('hf_other', 'a token that is valid')])
def test_tokens(refused, hub, model_folder, monkeypatch, token, message):
    monkeypatch.setenv('HF_TOKEN', token)
    line = refused('push.py', model_folder, 'lab/model')
    assert message in line and 'hf_other' not in line and not hub.repos


@pytest.mark.parametrize(
    ('source', 'repo', 'message'),
    [
        ('model', 'a b/c', "Repo id must use alphanumeric chars.*'a b/c'"),
        ('model', 'name', "expected USER/NAME, got 'name'"),
        ('nothing', 'lab/x', 'there is no .*nothing: expected a training run, a checkpoint'),
        ('.', 'lab/x', 'is no training run that has ended, no checkpoint and no model'),
        ('model/model.safetensors', 'lab/x', 'is a file: hub/convert.py makes a model folder of it'),
    ],
)
def test_wrong_arguments(refused, hub, model_folder, source, repo, message):
    line = refused('push.py', model_folder.parent / source, repo)
    assert re.search(message, line), line
    assert not hub.requests


def test_a_name_is_no_source_of_weights(refused, hub):
    assert 'is the name of a model' in refused('push.py', 'msvit_4_96', 'lab/x')


def test_float16_halves_the_file_and_loads_back(command, hub, model_folder):
    command('push.py', model_folder, 'lab/half', '--dtype', 'float16')
    files = hub.files('lab/half')
    weights = safetensors.torch.load(files['model.safetensors'])
    assert {w.dtype for key, w in weights.items() if w.ndim > 1} == {torch.float16}
    assert {w.dtype for key, w in weights.items() if w.ndim == 1} == {torch.float32}
    assert len(files['model.safetensors']) < 0.55 * (model_folder / 'model.safetensors').stat().st_size
    assert b'Stored in float16' in files['README.md']


@pytest.mark.parametrize(
    ('value', 'dtype', 'message'),
    [(1e5, 'float16', 'too large for float16 in 1 tensors'), (float('nan'), 'float32', 'NaN or infinite values')],
)
def test_weights_that_cannot_be_stored(refused, model_folder, tmp_path, value, dtype, message):
    weights = safetensors.torch.load_file(model_folder / 'model.safetensors')
    weights['head.fc.weight'][0, 0] = value
    safetensors.torch.save_file(weights, model_folder / 'model.safetensors')
    line = refused('push.py', model_folder, 'lab/x', '--dry-run', tmp_path / 'dry', '--dtype', dtype)
    assert message in line and 'head.fc.weight' in line and not (tmp_path / 'dry').exists()


def test_files_written_by_hand_are_not_lost(command, refused, hub, model_folder, tmp_path, capsys):
    dry = tmp_path / 'dry'
    command('push.py', model_folder, 'lab/model', '--dry-run', dry)
    (dry / 'README.md').write_text((dry / 'README.md').read_text() + '\nA word by hand.\n')
    (dry / 'notes.txt').write_text('mine')
    assert 'is not empty' in refused('push.py', model_folder, 'lab/model', '--dry-run', dry)
    for option in (['--dtype', 'float16'], ['--license', 'mit']):
        assert 'has a card, so its files are taken as they are' in refused('push.py', dry, 'lab/model', *option)
    capsys.readouterr()
    command('push.py', dry, 'lab/model')
    assert hub.files('lab/model') == {
        path.name: path.read_bytes() for path in dry.iterdir() if path.name != 'notes.txt'
    }


def test_pickles_stay_at_home(command, hub, model_folder, refused):
    torch.save({}, model_folder / 'pytorch_model.bin')
    command('push.py', model_folder, 'lab/model')
    assert 'pytorch_model.bin' not in hub.files('lab/model')
    (model_folder / 'model.safetensors').unlink()
    assert 'has no model.safetensors' in refused('push.py', model_folder, 'lab/model')


def test_a_checkpoint_has_the_result_of_its_epoch(command, run_folder, tmp_path):
    command('push.py', run_folder / 'checkpoints' / 'epoch_0001', 'lab/x', '--dry-run', tmp_path / 'dry')
    assert len((tmp_path / 'dry' / 'summary.csv').read_text().splitlines()) == 2
    card = (tmp_path / 'dry' / 'README.md').read_text()
    assert '| 42 | 1 |' in card and '`msvit_4_96`, trained' in card  # no tag, which would name another training
    config = json.loads((tmp_path / 'dry' / 'config.json').read_text())
    assert config['label_names'] == [str(digit) for digit in range(10)]  # and not the ten of that tag


def test_a_checkpoint_of_a_fine_tuning_run(command, run_folder, tmp_path):
    run = Path(shutil.copytree(run_folder, tmp_path / 'run'))
    base = f'local-dir:{run_folder / "model"}'
    checkpoint = run / 'checkpoints' / 'epoch_0001'
    options = yaml.safe_load((run / 'config.yaml').read_text()) | {'model': base, 'model_kwargs': {}}
    for folder in (run, checkpoint):
        (folder / 'config.yaml').write_text(yaml.safe_dump(options))
    command('push.py', checkpoint, 'lab/x', '--dry-run', tmp_path / 'dry')
    trained, written = (safetensors.torch.load_file(f / 'model.safetensors') for f in (checkpoint, tmp_path / 'dry'))
    assert trained.keys() == written.keys() and all(torch.equal(trained[key], written[key]) for key in trained)
    config = json.loads((tmp_path / 'dry' / 'config.json').read_text())
    assert config['label_names'] == [str(digit) for digit in range(10)] and 'tag' not in config['pretrained_cfg']


def test_a_folder_with_a_broken_origin_is_refused(refused, model_folder, tmp_path):
    config = json.loads((model_folder / 'config.json').read_text()) | {'converted_from': ['x']}
    (model_folder / 'config.json').write_text(json.dumps(config))
    line = refused('push.py', model_folder, 'lab/x', '--dry-run', tmp_path / 'dry')
    assert "converted_from is ['x'], expected the file and its sha256" in line


def test_names_of_classes_and_licence_can_be_given(command, refused, model_folder, tmp_path):
    labels = tmp_path / 'labels.txt'
    labels.write_text('cat\ndog\n')
    dry = ['--dry-run', tmp_path / 'dry', '--labels', labels, '--license', 'mit']
    assert 'has 2 names for 3 classes' in refused('push.py', model_folder, 'lab/x', *dry)
    labels.write_text('cat\ndog\ncow\n')
    command('push.py', model_folder, 'lab/x', *dry)
    config = json.loads((tmp_path / 'dry' / 'config.json').read_text())
    assert config['label_names'] == ['cat', 'dog', 'cow'] and config['pretrained_cfg']['license'] == 'mit'
    assert 'license: mit' in (tmp_path / 'dry' / 'README.md').read_text()
    assert not (tmp_path / 'dry' / 'LICENSE').exists()
