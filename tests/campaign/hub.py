"""A Hub that is broken or hostile, through huggingface_hub and timm.create_model: the weights, or an error; no file
outside of the cache."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
import timm
import torch
from huggingface_hub.errors import HTTPError
from timm.models import save_for_hf

import timm_snn  # noqa: F401  registers the models
from tests.campaign.folders import CONFIG, TEXTS, WEIGHTS, refused
from tests.data.test_fuzz import damaged
from tests.support.hub_server import LoopbackHub
from timm_snn.models.pretrained import bounded_hub

REPO = 'lab/msvit_small'
ABSOLUTE = Path(tempfile.gettempdir()) / 'outside-of-the-cache'  # which answers name
STATUSES = [*(201, 204, 206, 301, 302, 307, 400, 401, 403, 404), *(408, 416, 418, 429, 500, 502, 503, 504, 599)]
CODES = [None, 'RepoNotFound', 'RevisionNotFound', 'EntryNotFound', 'GatedRepo', '\x1b[2J']
PATHS = ['', '/cdn/', '/resolve/', CONFIG, WEIGHTS]
OUTSIDE = [
    '../../../../outside',
    str(ABSOLUTE),
    '..',
    'a/../../../outside',
    'C:\\outside',
    '%2e%2e%2foutside',
]
HEADERS = {
    'ETag': [*OUTSIDE, '"../../../outside"', '', '"' + 'a' * 5000 + '"', 'W/"5"', '0' * 64],
    'X-Linked-ETag': [*OUTSIDE, '"../../../outside"', '', '0' * 64],
    'X-Repo-Commit': [*OUTSIDE, '', 'main', '0' * 40, 'x' * 5000],
    'X-Linked-Size': ['-1', '0', '1', str(10**18), 'x', ''],
    'Content-Length': ['0', '1', str(10**7), 'x', '-5'],
    'Content-Range': ['bytes 5-1/0', 'x'],
    'Content-Encoding': ['gzip', 'deflate', 'br', 'x'],
    'Content-Type': ['text/html', 'application/json', 'x'],
    'Location': ['/', 'file:///etc/passwd', 'http://127.0.0.1:1/x', 'x://y', '//', f'/{REPO}/resolve/main/{CONFIG}'],
    'Retry-After': ['1000000000', '-1', 'x', 'Wed, 21 Oct 2099 07:28:00 GMT'],
    'Transfer-Encoding': ['chunked', 'x'],
    'X-Error-Message': ['\x1b[2J', 'x' * 5000],
    'Link': [f'<http://127.0.0.1:1/{REPO}>; rel="xet-auth"'],
    'X-Xet-Hash': ['0' * 64, '../../outside'],
}


@contextmanager
def trials(folder: Path) -> Iterator[Callable[[Random], str]]:
    model = timm.create_model('msvit_4_96')
    save_for_hf(model, folder / 'whole', safe_serialization=True)
    files = {path.name: path.read_bytes() for path in (folder / 'whole').iterdir()}
    expected = model.state_dict()
    place = folder / 'place' / 'for' / 'the' / 'cache'

    def trial(random: Random) -> str:
        for path in (folder / 'place', ABSOLUTE):
            shutil.rmtree(path, ignore_errors=True)
        place.mkdir(parents=True)
        with LoopbackHub() as hub, pytest.MonkeyPatch.context() as patch:
            hub.use_in_process(patch, place)
            hub.add(REPO, files)
            times = random.choice([1, 2, 1000])
            what, names_config = _hostile_answer(files, random), random.choice([True, False])
            with hub.fault(random.choice(PATHS), times, random.choice([(), ('GET',), ('HEAD',)]), **what):
                word = _load(names_config, expected)
        around = [*(folder / 'place').rglob('*'), *ABSOLUTE.rglob('*')]
        outside = [path for path in around if path.is_file() and not path.is_relative_to(place)]
        assert not outside, f'written outside of the cache: {outside}'
        return word

    yield trial


def _load(names_config: bool, expected: dict[str, torch.Tensor]) -> str:
    """By the name of a repository, as the scripts do, or of a model with weights from there."""
    try:
        if names_config:
            with bounded_hub():  # for the config.json, which timm reads
                model = timm.create_model(f'hf-hub:{REPO}', pretrained=True)
        else:
            model = timm.create_model('msvit_4_96', pretrained=True, pretrained_cfg_overlay=dict(hf_hub_id=REPO))
    except Exception as error:
        return refused(error, (ValueError, RuntimeError, OSError, HTTPError))
    loaded = model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items()), 'other weights are loaded'
    return 'loaded'


def _hostile_answer(files: dict[str, bytes], random: Random) -> dict[str, Any]:
    match random.choice(['status', 'cut', 'corrupt', 'content', 'headers', 'headers', 'headers']):
        case 'status':
            code = random.choice(CODES)
            return {'status': random.choice(STATUSES), 'error_code': code, 'headers': _hostile_headers(random)}
        case 'cut':
            return {'cut_after': random.choice([0, 1, 100, 10_000])}
        case 'corrupt':
            return {'corrupt': True}
        case 'content':
            file = random.choice([CONFIG, WEIGHTS])
            return {'content': random.choice([*TEXTS, damaged(files[file], random), b'<html>' * 1000])}
        case _:
            return {'headers': _hostile_headers(random)}


def _hostile_headers(random: Random) -> dict[str, str]:
    return {name: random.choice(HEADERS[name]) for name in random.sample(list(HEADERS), random.randint(1, 2))}
