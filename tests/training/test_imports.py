"""`--import` brings families and neurons of a user's own to the scripts, and saved folders name where they are from."""

import json
import subprocess
import sys

import pytest
import timm
import torch

import timm_snn
from timm_snn.layers import neurons
from timm_snn.models import pretrained, pretrained_cfgs, save_for_hf
from timm_snn.models.pretrained import missing_modules
from timm_snn.models.untrusted import WeightsMismatch
from timm_snn.training.errors import UserError
from timm_snn.training.imports import import_own
from timm_snn.training.models import key_map, open_model, open_to_train
from timm_snn.training.options import as_config, model_parser, training_options

PLUGIN = """
from functools import partial
import timm_snn

timm_snn.layers.neurons.register('slow_{name}')(type('Slow', (timm_snn.LIF,), {{'__module__': __name__}}))
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A file that registers a neuron, imported by nobody yet."""
    monkeypatch.setattr(neurons, '_layers', dict(neurons._layers))
    monkeypatch.setattr(sys, 'path', list(sys.path))
    monkeypatch.chdir(tmp_path)

    def write(name):
        monkeypatch.delitem(sys.modules, name, raising=False)
        (tmp_path / f'{name}.py').write_text(PLUGIN.format(name=name))
        return tmp_path / f'{name}.py'

    yield write
    for name in [name for name in sys.modules if name.startswith('own_')]:
        del sys.modules[name]


def test_a_file_is_imported_once(plugin):
    file = plugin('own_file')
    model_parser('x.py', None).parse_args(['--model', 'm', '--import', str(file)])
    assert 'slow_own_file' in neurons.names()
    import_own(str(file))  # a second time warns of nothing


def test_a_module_is_found_in_the_working_directory(plugin):
    plugin('own_module')
    import_own('own_module')
    assert 'slow_own_module' in neurons.names()


def test_configs_and_the_command_line_add_up(plugin, tmp_path):
    plugin('own_a'), plugin('own_b')
    (tmp_path / 'run.yaml').write_text('import: [own_a]\nmodel: msvit_4_96\n')
    args = training_options(['--config', str(tmp_path / 'run.yaml'), '--import', 'own_b.py'])
    assert as_config(args)['import'] == ['own_a', 'own_b.py']
    assert {'slow_own_a', 'slow_own_b'} <= set(neurons.names())


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('own_missing', "there is no module 'own_missing': install it"),
        ('own_missing.py', 'there is no file own_missing.py'),
        ('json.py', "a module 'json' is there already"),
    ],
)
def test_what_is_not_there_is_one_line(plugin, tmp_path, name, message):
    (tmp_path / 'json.py').write_text('')
    with pytest.raises(UserError, match=message):
        import_own(name)


def test_a_mistake_in_the_file_keeps_its_traceback(plugin, tmp_path):
    (tmp_path / 'own_broken.py').write_text('import timm_snn\nimport no_such_library\n')
    for name in ('own_broken.py', 'own_broken'):
        with pytest.raises(ModuleNotFoundError, match='no_such_library') as error:
            model_parser('x.py', None).parse_args(['--model', 'm', '--import', name])
        assert error.traceback[-1].path == tmp_path / 'own_broken.py'
        assert 'own_broken' not in sys.modules


def test_a_saved_folder_names_the_module_that_it_needs(plugin, tmp_path, monkeypatch):
    plugin('own_saved')
    import_own('own_saved')
    settings = dict(num_classes=3, in_chans=1, num_steps=2)
    model = timm.create_model('msvit_4_96', lif_layer='slow_own_saved', **settings).eval()
    save_for_hf(model, tmp_path / 'model')
    assert json.loads((tmp_path / 'model' / 'config.json').read_text())['pretrained_cfg']['modules'] == ['own_saved']
    name = f'local-dir:{tmp_path / "model"}'
    x = torch.rand(1, 1, 32, 32)
    assert torch.equal(open_model(name)(x), model(x))

    del neurons._layers['slow_own_saved'], sys.modules['own_saved']
    with pytest.raises(UserError, match='it was saved with layers of own_saved: install that and import it first'):
        open_model(name)
    assert 'own_saved' not in sys.modules  # a file does not choose what is imported
    import_own('own_saved')
    assert torch.equal(open_model(name)(x), model(x))


def test_a_saved_model_of_an_unknown_family_names_its_module(tmp_path):
    save_for_hf(timm.create_model('msvit_4_96', num_classes=2), tmp_path)
    file = tmp_path / 'config.json'
    config = json.loads(file.read_text())
    assert config['pretrained_cfg'].get('modules') is None  # of our own layers alone
    config['architecture'], config['pretrained_cfg']['modules'] = 'own_former_1', ['own_former.model']
    file.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r'own_former_1.*saved with layers of own_former\.model'):
        open_model(f'local-dir:{tmp_path}')


def test_a_setting_of_ours_by_a_name_of_theirs_needs_their_module(plugin, tmp_path):
    """A partial of a class of ours has no module of its own."""
    plugin('own_partial').write_text(
        'import functools, timm_snn\n'
        "timm_snn.layers.neurons.register('own_lif')(functools.partial(timm_snn.LIF, tau=4.0))\n"
    )
    import_own('own_partial')
    save_for_hf(timm.create_model('msvit_4_96', lif_layer='own_lif', num_classes=2), tmp_path / 'model')
    assert json.loads((tmp_path / 'model' / 'config.json').read_text())['pretrained_cfg']['modules'] == ['own_partial']
    assert missing_modules({'modules': ['__main__']}).startswith('it was saved with layers of the script or notebook')


def test_a_checkpoint_of_a_run_names_what_the_run_imported(tmp_path):
    folder = tmp_path / 'checkpoints' / 'epoch_0001'
    folder.mkdir(parents=True)
    (folder / 'config.yaml').write_text('{model: own_former_1, model_kwargs: {}, import: [own_former.py]}')
    (folder / 'model.safetensors').write_bytes(b'')
    with pytest.raises(UserError, match=r'Unknown model .*its run had --import own_former\.py: pass that too'):
        open_model('own_former_1', checkpoint=folder)


def test_to_train_on_from_a_folder_needs_its_module_too(tmp_path):
    save_for_hf(timm.create_model('msvit_4_96', num_classes=2), tmp_path)
    file = tmp_path / 'config.json'
    config = json.loads(file.read_text())
    config['architecture'], config['pretrained_cfg']['modules'] = 'own_former_1', ['own_former.model']
    file.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r'own_former_1.*saved with layers of own_former\.model'):
        open_to_train(f'local-dir:{tmp_path}', pretrained=True)


def test_a_family_of_ones_own_is_converted_and_published_by_its_own_keys():
    class OwnFormer(timm_snn.MSViT):
        """In a module without a key map."""

    model = OwnFormer(embed_dims=(8, 8, 8), depths=(1, 1, 1), num_heads=2)
    model.pretrained_cfg = dict(classifier='head.fc', first_conv='stem.units.0.conv')
    weights = model.state_dict()
    assert key_map(model)(weights, model) is weights
    with pytest.raises(WeightsMismatch, match=r'not of this OwnFormer: .*expected its own keys \(stem'):
        key_map(model)({'conv.weight': weights['stem.units.0.conv.weight']}, model)


def test_a_model_of_another_package_is_not_sought_in_our_organisation(monkeypatch):
    """Even if its config says so, as one by our own `tagged_cfgs` would."""
    cfg = dict(architecture='own_former', tag='cifar10', hf_hub_id=f'{pretrained.HUB_ORG}/own_former.cifar10')
    monkeypatch.setitem(pretrained._recipes, 'own_former.cifar10', 'msvit/cifar10')
    with pytest.raises(RuntimeError, match=r"names no source.* an hf_hub_id='USER/NAME'"):
        pretrained.refuse_untrained(cfg)
    pretrained.refuse_untrained(cfg | {'hf_hub_id': 'somebody/own_former.cifar10'})


def test_configs_by_data_set_have_their_owners_address():
    cfgs = pretrained_cfgs({'own_former': 'cifar10 dvs128_gesture'}, hub_org='somebody', paper_ids='arXiv:2505.14719')
    assert [cfg.hf_hub_id for cfg in cfgs.values()] == [f'somebody/{name}' for name in cfgs]
    assert (
        cfgs['own_former.dvs128_gesture'].input_size == (2, 128, 128) and cfgs['own_former.cifar10'].num_classes == 10
    )
    assert not pretrained_cfgs({'own_former': 'in1k'})['own_former.in1k'].has_weights
    with pytest.raises(ValueError, match=r"expected tags among in1k, .*got 'svhn'"):
        pretrained_cfgs({'own_former': 'cifar10 svhn'})


def test_pretrained_without_a_source_says_where_one_would_be_set(tmp_path):
    code = (
        'import timm, timm_snn.scaffold, pathlib, sys\n'
        f'timm_snn.scaffold.write_package("family", "own_former", pathlib.Path({str(tmp_path / "own")!r}))\n'
        f'sys.path.insert(0, {str(tmp_path / "own")!r})\n'
        'import own_former\n'
        'timm.create_model("own_former_3_32", pretrained=True)\n'
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert (
        "its pretrained config names no source. Give its entry in default_cfgs an hf_hub_id='USER/NAME'"
        in (result.stderr.splitlines()[-1])
    )
    assert 'own_former.model' in result.stderr.splitlines()[-1]
    assert timm_snn.models.pretrained.HUB_ORG not in result.stderr.splitlines()[-1]
