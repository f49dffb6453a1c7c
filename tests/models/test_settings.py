"""A config.json of a stranger: refused in one line, before anything large is made of it."""

import json
import threading

import pytest
import timm
import torch

from timm_snn.models import save_for_hf, settings


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp('model')
    model = timm.create_model('msvit_4_96', embed_dims=(8, 8, 8), depths=(1, 1, 1), num_heads=2, num_steps=1)
    save_for_hf(model, folder)
    return folder


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(depths=[1000] * 3), 'more than 10,000 modules'),
        (dict(depths=[100] * 3, query_kernels=[[1] * 90] * 3), 'more than 10,000 modules'),
        (dict(stem_pools=[0] * 100_000), 'expected at most 1,000 values'),
        (dict(stem_pools=[0] * 900, embed_widths=[[50_000] * 300] * 3), 'cannot make msvit_4_96'),
        (dict(attn='a' * 10**6), 'expected at most 1,000 characters'),
        (dict(attn=['\x1b[2J' * 100] * 3), 'config.json of'),
        (dict(embed_pools=nested(100)), 'values in 8 lists'),
        (dict(embed_pools=[[] for _ in range(10_000)]), 'expected at most 1,000 values'),
        (dict(num_steps=10**9), 'expected at most 1,000'),
        (dict(num_steps=10**4000), 'expected at most 1,000'),
        (dict(num_heads=10**6), 'expected at most 100,000'),
        (dict(num_steps=True), 'expected numbers$'),
        (dict(depths=[True, 1, 1]), 'expected numbers$'),
        (dict(num_steps=None), 'num_steps must be a whole number'),
        (dict(drop_rate=float('nan')), 'expected at most'),
        (dict(mlp_ratio=float('-inf')), 'expected at most'),
        (dict(depths={'a': 1}), 'cannot make msvit_4_96'),
        (dict(depths='1' * 500), 'cannot make msvit_4_96'),
        ({'evil\x1b[31m\n': 1}, r'unknown model_args \[.evil\\x1b'),
    ],
)
def test_settings_of_absurd_size_or_kind_are_refused(saved, tmp_path, change, message):
    config = json.loads((saved / 'config.json').read_text())
    config['model_args'].update(change)
    refused(tmp_path, config, message)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(input_size=[1, 10**6, 10**6]), 'up to 16,384'),
        (dict(input_size=[1, True, 28]), 'input_size='),
        (dict(test_input_size=[1, 10**6, 28]), 'up to 16,384'),
        (dict(mean=[float('nan')]), 'has mean='),
        (dict(crop_pct=float('inf')), 'has crop_pct='),
        (dict(interpolation='a' * 10**6), 'has interpolation='),
        (dict(label_descriptions=7), 'has label_descriptions=7; expected a list of names'),
        ({'\x1b[2J': 1}, r'unknown keys \[.\\x1b'),
    ],
)
def test_other_pretrained_cfgs_are_refused(saved, tmp_path, change, message):
    config = json.loads((saved / 'config.json').read_text())
    config['pretrained_cfg'].update(change)
    refused(tmp_path, config, message)


def refused(folder, config, message):
    (folder / 'config.json').write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message) as error:
        timm.create_model(f'local-dir:{folder}', pretrained=True)
    assert str(error.value).isprintable() and len(str(error.value)) < 2000


def test_other_threads_make_models_without_the_bound(monkeypatch):
    monkeypatch.setattr(settings, 'MAX_MODULES', 3)
    made = []
    with settings._bounded():
        thread = threading.Thread(target=lambda: made.append(torch.nn.Sequential(*map(torch.nn.Identity, range(9)))))
        thread.start()
        thread.join()
        with pytest.raises(ValueError, match='more than 3 modules'):
            torch.nn.Sequential(*map(torch.nn.Identity, range(9)))
    assert len(made[0]) == 9
    torch.nn.Sequential(*map(torch.nn.Identity, range(9)))  # nothing is left of it
