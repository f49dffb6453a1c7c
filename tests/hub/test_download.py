"""Weights from the Hub: huggingface_hub's own download path against the loopback server, through timm.create_model."""

import json
import re
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub import errors
from huggingface_hub.utils import _http
from timm.models import save_for_hf

import timm_snn
from timm_snn.models import pretrained

REPO = 'lab/msvit_small'
FILE = 'model.safetensors'


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> tuple[timm_snn.MSViT, dict[str, bytes]]:
    """A model and the files of its folder in the Hub's format."""
    folder = tmp_path_factory.mktemp('trained')
    torch.manual_seed(1)
    model = timm.create_model('msvit_4_96', num_steps=3)
    save_for_hf(model, folder, safe_serialization=True)
    return model, {path.name: path.read_bytes() for path in folder.iterdir()}


def is_equal(model: torch.nn.Module, other: torch.nn.Module) -> bool:
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def from_repo(repo_id: str = REPO, **overlay) -> timm_snn.MSViT:
    """A model that timm knows, with weights from another repository."""
    return timm.create_model('msvit_4_96', pretrained=True, pretrained_cfg_overlay=dict(hf_hub_id=repo_id, **overlay))


def one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert '\n' not in message and error.value.__cause__ is not None
    return message


class TestLoading:
    def test_a_repository_loads_with_its_arguments(self, hub, trained):
        model, files = trained
        hub.add(REPO, files)
        loaded = timm.create_model(f'hf-hub:{REPO}', pretrained=True)
        assert is_equal(loaded, model) and loaded.num_steps == 3
        assert [r for r in hub.requests if '/resolve/' in r] == [
            f'{method} /{REPO}/resolve/main/{name}'
            for name, methods in (('config.json', ('HEAD', 'GET')), (FILE, ('HEAD',)))
            for method in methods
        ]

    def test_weights_for_other_classes_and_channels_and_for_features(self, hub, trained):
        hub.add(REPO, trained[1])
        model = timm.create_model(f'hf-hub:{REPO}', pretrained=True, num_classes=3, in_chans=3)
        assert model(torch.rand(1, 3, 28, 28)).shape == (1, 3)
        features = timm.create_model(f'hf-hub:{REPO}', pretrained=True, features_only=True)
        assert [f.shape[1] for f in features(torch.rand(1, 1, 28, 28))] == [48, 48, 96]

    def test_a_tag_loads_from_the_organisation(self, hub, trained, monkeypatch):
        """Once its name is in PUBLISHED."""
        name = 'msvit_4_96.fashion_mnist'
        hub.add(f'timm-snn/{name}', trained[1])
        monkeypatch.setattr(pretrained, 'PUBLISHED', frozenset({name}))
        overlay = dict(file=None)  # not the one that ships
        assert is_equal(timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay), trained[0])
        assert name in timm_snn.list_pretrained() and pretrained.weights_status(name) != 'not yet trained'

    def test_revisions(self, hub, trained):
        old = hub.add(REPO, trained[1])
        changed = {key: tensor + 1 for key, tensor in trained[0].state_dict().items()}
        hub.add(REPO, {**trained[1], FILE: safetensors.torch.save(changed)})
        assert is_equal(timm.create_model(f'hf-hub:{REPO}@{old}', pretrained=True), trained[0])
        assert not is_equal(timm.create_model(f'hf-hub:{REPO}', pretrained=True), trained[0])
        with pytest.raises(errors.RevisionNotFoundError) as error:
            from_repo(f'{REPO}@v9')
        assert "it has no revision 'v9'" in one_line(error)

    def test_the_cache_serves_without_the_hub(self, hub, trained, monkeypatch):
        hub.add(REPO, trained[1])
        timm.create_model(f'hf-hub:{REPO}', pretrained=True)
        asked = len(hub.requests)
        monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
        assert is_equal(timm.create_model(f'hf-hub:{REPO}', pretrained=True), trained[0])
        assert len(hub.requests) == asked
        monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', False)
        hub.stop()
        assert is_equal(timm.create_model(f'hf-hub:{REPO}', pretrained=True), trained[0])

    def test_a_source_that_is_named_is_the_one_that_is_used(self, hub, trained, tmp_path):
        """timm would prefer a file to the Hub, and the repository of an hf-hub: name to a file."""
        changed = {key: tensor + 1 for key, tensor in trained[0].state_dict().items()}
        safetensors.torch.save_file(changed, tmp_path / 'other.safetensors')
        hub.add(REPO, trained[1])
        overlay = dict(file=str(tmp_path / 'other.safetensors'))
        model = timm.create_model(f'hf-hub:{REPO}', pretrained=True, pretrained_cfg_overlay=overlay)
        assert torch.equal(model.head.fc.bias, changed['head.fc.bias'])
        cfg = dict(hf_hub_id=REPO, num_classes=10, input_size=(1, 28, 28))
        assert is_equal(timm.create_model('msvit_4_96', pretrained=True, pretrained_cfg=cfg), trained[0])
        cfg = timm.get_pretrained_cfg('msvit_4_96').to_dict() | overlay
        overlay = dict(hf_hub_id=REPO)
        model = timm.create_model('msvit_4_96', pretrained=True, pretrained_cfg=cfg, pretrained_cfg_overlay=overlay)
        assert is_equal(model, trained[0])


class TestFailures:
    @pytest.mark.parametrize(
        ('exists', 'kind', 'message'),
        [
            ([], errors.RepositoryNotFoundError, 'there is no such repository, or it is private: log in with `hf auth'),
            (['config.json'], errors.EntryNotFoundError, 'it has no such file; pretrained_cfg_overlay=dict(hf_hub_fil'),
        ],
    )
    def test_what_is_not_there(self, hub, trained, exists, kind, message):
        if exists:
            hub.add(REPO, {name: trained[1][name] for name in exists})
        with pytest.raises(kind, match=re.escape(message)) as error:
            from_repo()
        assert one_line(error).startswith(
            f'cannot load weights for msvit_4_96 from the Hugging Face Hub, repository {REPO}, file {FILE}: '
        )
        assert 'dict(file=...) loads a local file' in str(error.value) and error.value.response.status_code in (
            401,
            404,
        )

    def test_gated(self, hub, trained):
        hub.add(REPO, trained[1])
        hub.gated.add(REPO)
        with pytest.raises(errors.GatedRepoError, match='ask for access on its page') as error:
            from_repo()
        one_line(error)

    @pytest.mark.parametrize('status', [500, 503, 429])
    def test_a_hub_in_trouble(self, hub, trained, status):
        hub.add(REPO, trained[1])
        with hub.fault(FILE, status=status), pytest.raises(errors.LocalEntryNotFoundError, match=str(status)) as error:
            from_repo()
        assert 'it is not in the cache and the Hub cannot be reached' in one_line(error)
        assert is_equal(from_repo(), trained[0])

    def test_no_hub(self, hub):
        hub.stop()
        with pytest.raises(errors.LocalEntryNotFoundError, match=r'the Hub cannot be reached, .*refused') as error:
            from_repo()
        assert 'model.safetensors' in one_line(error)

    def test_offline(self, hub, monkeypatch):
        monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
        with pytest.raises(errors.LocalEntryNotFoundError, match='not in the cache and HF_HUB_OFFLINE is set') as error:
            from_repo()
        assert one_line(error) and not hub.requests

    def test_a_cut_download_goes_on_and_at_last_fails(self, hub, trained):
        hub.add(REPO, trained[1])
        with hub.fault('/cdn/', times=3, cut_after=100_000):
            assert is_equal(from_repo(), trained[0])
        hub.add('lab/other', trained[1])
        with hub.fault('/cdn/', cut_after=0), pytest.raises(errors.HTTPError, match='the download failed') as error:
            from_repo('lab/other')
        one_line(error)
        assert is_equal(from_repo('lab/other'), trained[0])

    def test_another_content_than_the_hub_says(self, hub, trained):
        hub.add(REPO, trained[1])
        with hub.fault('/cdn/', corrupt=True), pytest.raises(RuntimeError, match='SHA-256 is not that of the') as error:
            from_repo()
        blob = Path(re.search(r'delete (\S+) to download it again', one_line(error))[1])
        blob.unlink()
        assert is_equal(from_repo(), trained[0])

    @pytest.mark.parametrize('size', [0, 7, 1000])
    def test_torn_files(self, hub, trained, size):
        hub.add(REPO, {FILE: trained[1][FILE][:size]})
        message = f'cannot read weights for msvit_4_96 from {REPO} on the Hugging Face Hub, file {FILE}: '
        with pytest.raises(RuntimeError, match=message) as error:
            from_repo()
        one_line(error)


class Evil:
    def __reduce__(self):
        return (print, ('code from the file ran',))


class TestPickles:
    """A repository may hold nothing else; it is not read instead of what was expected."""

    @pytest.fixture
    def repo(self, hub, trained, tmp_path):
        torch.save(trained[0].state_dict(), tmp_path / 'good.bin')
        torch.save({'head.fc.weight': Evil()}, tmp_path / 'evil.bin')
        good, evil = ((tmp_path / name).read_bytes() for name in ('good.bin', 'evil.bin'))
        hub.add(REPO, {'config.json': trained[1]['config.json'], 'pytorch_model.bin': good, 'evil.bin': evil})
        return REPO

    def test_a_pickle_is_not_read_unless_it_is_named(self, repo, trained):
        for name in (f'hf-hub:{repo}', 'msvit_4_96'):
            overlay = None if ':' in name else dict(hf_hub_id=repo)
            with pytest.raises(errors.EntryNotFoundError, match=r'file model\.safetensors: it has no such file'):
                timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
        assert is_equal(from_repo(hf_hub_filename='pytorch_model.bin'), trained[0])

    def test_code_in_a_pickle_never_runs(self, repo, capsys):
        with pytest.raises(RuntimeError, match=r'cannot read weights for msvit_4_96 from .* file evil\.bin: ') as error:
            from_repo(hf_hub_filename='evil.bin')
        assert one_line(error) and 'code from the file ran' not in capsys.readouterr().out


class TestHostileRepositories:
    @pytest.mark.parametrize('filename', ['../../evil.safetensors', '/etc/passwd', '..'])
    def test_no_name_leads_out_of_the_cache(self, hub, tmp_path, filename):
        hub.add(REPO, {filename: b'x'})
        before = set(tmp_path.rglob('*'))
        with pytest.raises((ValueError, RuntimeError, errors.HTTPError)) as error:
            from_repo(hf_hub_filename=filename)
        assert '\n' not in str(error.value) and set(tmp_path.rglob('*')) == before
        with pytest.raises(errors.HFValidationError, match='cannot load weights for msvit_4_96') as error:
            from_repo('../..')
        one_line(error)

    @pytest.mark.parametrize('name', ['ETag', 'X-Linked-ETag', 'X-Repo-Commit'])
    @pytest.mark.parametrize('value', ['"../../evil"', '/tmp/evil', '..', 'a\\\\b'])
    def test_no_answer_names_a_file_outside_of_the_cache(self, hub, trained, tmp_path, name, value):
        hub.add(REPO, trained[1])
        with hub.fault(FILE, headers={name: value}), pytest.raises((RuntimeError, ValueError)) as error:
            from_repo(REPO)
        assert 'names a file outside of the cache' in str(error.value) and '\n' not in str(error.value)
        assert not [path for path in tmp_path.rglob('*evil*')]

    @pytest.mark.parametrize('name', ['ETag', 'X-Linked-ETag', 'X-Repo-Commit'])
    def test_nor_in_the_scripts_does_one_for_the_config_that_timm_reads(self, hub, trained, tmp_path, name):
        pytest.importorskip('sklearn')
        from timm_snn.training.errors import UserError
        from timm_snn.training.models import open_model

        hub.add(REPO, trained[1])
        headers = {name: str(tmp_path / 'evil')}
        with hub.fault('config.json', headers=headers), pytest.raises(UserError, match='outside of the cache'):
            open_model(f'hf-hub:{REPO}')
        assert not [path for path in tmp_path.rglob('*evil*')]

    @pytest.mark.parametrize('headers', [{'Retry-After': '9' * 12}, {'RateLimit': '"api";r=0;t=999999'}])
    def test_no_server_has_us_wait_for_long(self, hub, trained, monkeypatch, headers):
        waited = []
        monkeypatch.setattr(_http.time, 'sleep', waited.append)
        hub.add(REPO, trained[1])
        with hub.fault('/cdn/', times=2, status=429, headers=headers):
            assert is_equal(from_repo(REPO), trained[0])
        assert waited and max(waited) <= 61

    @pytest.mark.parametrize(
        ('change', 'message'),
        [
            (dict(model_args=dict(evil=1)), "unknown model_args ['evil']; expected some of ['act', 'attn', "),
            (dict(model_args=dict(pretrained_strict=False)), "unknown model_args ['pretrained_strict']"),
            (dict(model_args=dict(device='meta')), "unknown model_args ['device']"),
            (dict(model_args=dict(backend='triton')), "unknown model_args ['backend']"),
            (
                dict(model_args=dict(num_steps=10**9)),
                'num_steps=1000000000 among its model_args; expected at most 1,000',
            ),
            (dict(model_args=dict(embed_dims=[48, 48, 10**12])), 'expected at most 100,000'),
            (dict(model_args=dict(embed_dims=[48, 48, 96_000])), 'parameters; expected at most a billion'),
            (dict(num_classes='ten'), "num_classes='ten'; expected a whole number"),
            (dict(label_names=5), 'label_names=5; expected a list of names'),
            (
                dict(model_args=dict(depths=[1, 1, 10**4])),
                'depths=[1, 1, 10000] among its model_args; expected at most',
            ),
            (dict(model_args=dict(global_pool='evil')), 'config.json of lab/msvit_small: Invalid pool type: evil'),
            (dict(model_args=dict(drop_rate=1e999)), 'drop_rate=inf among its model_args'),
            (
                dict(model_args=dict(num_steps='four')),
                'model_args of the config.json of lab/msvit_small: num_steps must be a whole number',
            ),
            (
                dict(model_args=dict(embed_dims='wide')),
                'cannot make msvit_4_96 with the model_args of the config.json of lab/msvit_small',
            ),
            (
                dict(model_args=dict(depths=None)),
                'cannot make msvit_4_96 with the model_args of the config.json of lab/msvit_small',
            ),
            (dict(model_args=dict(lif_layer='os.system')), "unknown neuron 'os.system': use one of"),
            (dict(pretrained_cfg=dict(evil=1)), "unknown keys ['evil'] in its pretrained_cfg"),
            (dict(pretrained_cfg=dict(input_size=[1, 28])), 'input_size=(1, 28); expected channels, height and width'),
            (dict(pretrained_cfg=dict(input_size=[1, -28, 28])), 'input_size='),
            (dict(architecture='BertModel'), 'Unknown model (BertModel)'),
        ],
    )
    def test_settings_that_are_not_ours(self, hub, trained, change, message):
        config = json.loads(trained[1]['config.json'])
        for key, value in change.items():
            config[key] = {**config[key], **value} if isinstance(value, dict) else value
        hub.add(REPO, {**trained[1], 'config.json': json.dumps(config).encode()})
        with pytest.raises((ValueError, RuntimeError), match=re.escape(message)) as error:
            timm.create_model(f'hf-hub:{REPO}', pretrained=True)
        assert '\n' not in str(error.value)

    @pytest.mark.parametrize(
        'change',
        [
            dict(hf_hub_filename='evil.bin', file='evil.bin', url='http://127.0.0.1:9/evil.bin', custom_load='hf'),
            dict(first_conv='head.fc', classifier='stem'),
            dict(fixed_input_size=True, label_offset=3, custom_load=True),
        ],
    )
    def test_settings_that_change_nothing(self, hub, trained, change):
        """A config.json says neither where the weights are nor which layers are which."""
        config = json.loads(trained[1]['config.json'])
        config['pretrained_cfg'].update(change)
        hub.add(REPO, {**trained[1], 'config.json': json.dumps(config).encode()})
        assert is_equal(timm.create_model(f'hf-hub:{REPO}', pretrained=True), trained[0])


def test_what_the_caller_got_wrong_is_not_blamed_on_the_repository(hub, trained):
    hub.add(REPO, trained[1])
    with pytest.raises(TypeError, match="unexpected keyword argument 'atn'"):
        timm.create_model(f'hf-hub:{REPO}', pretrained=True, atn='ssa')
