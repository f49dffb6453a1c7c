"""The loopback Hub, which other tests rely on, answers huggingface_hub as the Hub does."""

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

WEIGHTS = bytes(range(256)) * 400


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / 'config.json').write_text('{}')
    (tmp_path / 'README.md').write_text('---\nlicense: apache-2.0\n---\n# A model')
    (tmp_path / 'model.safetensors').write_bytes(WEIGHTS)
    return tmp_path


def test_a_folder_is_uploaded_once_and_read_back(hub, folder):
    api = HfApi()
    assert api.whoami()['name'] == 'lab'
    api.create_repo('lab/model')
    api.create_repo('lab/model', exist_ok=True)
    first = api.upload_folder(repo_id='lab/model', folder_path=folder)
    again = api.upload_folder(repo_id='lab/model', folder_path=folder)
    assert first.oid == again.oid and len(hub.repos['lab/model'].commits) == 2  # that of create_repo, and ours
    assert hub.files('lab/model') == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sum('/lfs/' in request for request in hub.requests if request.startswith('PUT')) == 1

    info = api.model_info('lab/model', files_metadata=True)
    assert info.sha == first.oid and {f.rfilename: f.size for f in info.siblings}['model.safetensors'] == len(WEIGHTS)
    assert {f.path for f in api.list_repo_tree('lab/model')} == {'config.json', 'README.md', 'model.safetensors'}
    assert [m.id for m in api.list_models(author='lab')] == ['lab/model']
    downloaded = Path(hf_hub_download('lab/model', 'model.safetensors'))
    assert downloaded.read_bytes() == WEIGHTS and downloaded.parent.name == first.oid


def test_writing_needs_the_token(hub, folder, monkeypatch):
    monkeypatch.setenv('HF_TOKEN', 'hf_other')
    with pytest.raises(HfHubHTTPError, match='401'):
        HfApi().create_repo('lab/model')
    assert not hub.repos


def test_revisions_are_pinned(hub):
    old = hub.add('lab/model', {'a.txt': b'old'})
    hub.add('lab/model', {'a.txt': b'new'})
    assert Path(hf_hub_download('lab/model', 'a.txt')).read_bytes() == b'new'
    assert Path(hf_hub_download('lab/model', 'a.txt', revision=old)).read_bytes() == b'old'
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download('lab/model', 'a.txt', revision='v9')


def test_what_is_not_there_is_named(hub):
    hub.add('lab/model', {'a.txt': b''})
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download('lab/model', 'b.txt')
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download('lab/other', 'a.txt')
    hub.gated.add('lab/model')
    with pytest.raises(GatedRepoError):
        HfApi().model_info('lab/model')


def test_a_cut_download_is_resumed(hub):
    hub.add('lab/model', {'model.safetensors': WEIGHTS})
    with hub.fault('/cdn/', times=1, cut_after=1000) as fault:
        path = hf_hub_download('lab/model', 'model.safetensors')
    assert Path(path).read_bytes() == WEIGHTS and fault.times == 0
    assert sum('/cdn/' in request for request in hub.requests) == 2


def test_faults_are_switched_on_and_off(hub):
    hub.add('lab/model', {'model.safetensors': WEIGHTS})
    with hub.fault('model.safetensors', status=503), pytest.raises(huggingface_hub.errors.LocalEntryNotFoundError):
        hf_hub_download('lab/model', 'model.safetensors')
    with hub.fault('/cdn/', corrupt=True):
        path = Path(hf_hub_download('lab/model', 'model.safetensors'))
    assert len(path.read_bytes()) == len(WEIGHTS) and path.read_bytes() != WEIGHTS
