"""The promise to whoever adds a family: it is one file, and nothing else in the tree knows of it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from tests.support.families import MODELS, SMALLEST, shallow
from timm_snn.layers import attentions
from timm_snn.models.settings import argument_names

ROOT = Path(__file__).parents[2]
CONTRIBUTING = (ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8')


def test_a_family_in_one_file_outside_the_package_gets_the_checks_of_every_family():
    checks = ['tests/models/test_families.py', 'tests/models/test_shapes.py']
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '-p', 'tests.models.toyformer']
    result = subprocess.run(
        [*command, *checks, '-k', 'toyformer'], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout[-3000:]
    assert int(re.search(r'(\d+) passed', result.stdout)[1]) == 19


def test_nothing_else_in_the_tree_knows_of_it():
    files = [
        file for folder in ('timm_snn', 'recipes', 'hub', 'docs', 'tests') for file in (ROOT / folder).rglob('*.*')
    ]
    readable = [file for file in files if file.suffix in ('.py', '.md', '.csv', '.yaml', '.json')]
    knowing = {file.name for file in readable if 'toyformer' in file.read_text(encoding='utf-8').lower()}
    assert knowing == {'toyformer.py', 'test_contributing.py'}


@pytest.mark.parametrize('name', MODELS)
def test_an_attention_of_the_documented_signature_works_in_every_member(name, monkeypatch):
    """Of two blocks a stage, with a gradient that comes through it."""
    monkeypatch.setattr(attentions, '_layers', dict(attentions._layers))
    signature = re.search(r"@attentions\.register\('mine'\)\n.*\n +def __init__\(self, (.*)\): \.\.\.", CONTRIBUTING)[1]
    assert signature == 'dim, num_heads, attn_v_threshold, lif_layer, device=None, dtype=None'

    @attentions.register('mine')
    class MyAttention(nn.Module):
        def __init__(self, dim, num_heads, attn_v_threshold, lif_layer, device=None, dtype=None):
            super().__init__()
            assert dim % num_heads == 0
            self.weight = nn.Parameter(torch.ones(dim, 1, 1, device=device, dtype=dtype))
            self.lif = lif_layer(v_threshold=attn_v_threshold).to(device=device, dtype=dtype)

        def forward(self, x):
            return self.lif(x * self.weight)

    if 'attn' not in argument_names(type(timm.create_model(name, device='meta'))):
        return  # as the text says
    meta = timm.create_model(name, device='meta', attn='mine')
    assert sum(isinstance(module, MyAttention) for module in meta.modules()) > 0
    if name not in SMALLEST:
        return  # which would take long
    model = shallow(timm.create_model(name, num_steps=1, num_classes=3, attn='mine'))
    x = torch.rand(2, model.in_chans, 64, 64)
    logits = model(x)
    logits.square().sum().backward()
    assert logits.isfinite().all()
    assert all(m.weight.grad is not None for m in model.modules() if isinstance(m, MyAttention))
