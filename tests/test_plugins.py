"""docs/plugins.md runs as it is printed, and its code is what `timm-snn new` writes."""

import ast
import re
import sys
from pathlib import Path
from string import Template
from types import ModuleType

import pytest
import timm
import torch

from timm_snn import scaffold
from timm_snn.layers import neurons

PAGE = (Path(__file__).parents[1] / 'docs' / 'plugins.md').read_text(encoding='utf-8')
FAMILY, NEURON, LOSS, TESTS = re.findall(r'^```python\n(.*?)^```', PAGE, re.MULTILINE | re.DOTALL)

# Everything else may move.
PUBLIC = ('timm_snn', *(f'timm_snn.{name}' for name in ('layers', 'models', 'ops', 'testing', 'training.tasks')))


@pytest.fixture(scope='module')
def page():
    """The module that the blocks are in; the neuron that they register is forgotten afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neurons, '_layers', dict(neurons._layers))
        module = ModuleType('own_page')
        patch.setitem(sys.modules, 'own_page', module)
        for block in (FAMILY, NEURON, LOSS):
            exec(compile(block, 'docs/plugins.md', 'exec'), vars(module))
        yield module


def test_its_checks_pass(page):
    exec(compile(TESTS, 'docs/plugins.md', 'exec'), vars(page))


def test_its_family_trains_with_its_loss_and_takes_its_neuron(page):
    model = timm.create_model('tinyformer_3_32')
    images, labels, criterion = torch.rand(2, 3, 32, 32), torch.tensor([0, 1]), torch.nn.CrossEntropyLoss()
    result = page.CalmTask(model, criterion, weight=10.0)(images, labels)
    result['loss'].backward()
    assert result['loss'] > criterion(result['output'], labels)
    assert model.stem.units[0].conv.weight.grad.any()
    other = timm.create_model('tinyformer_3_32', lif_layer='half_lif').eval()
    assert any(isinstance(module, page.HalfLif) for module in other.modules()) and other(images).isfinite().all()


@pytest.mark.parametrize(
    ('block', 'template', 'name'),
    [(FAMILY, 'family/NAME/model.py.txt', 'tinyformer'), (NEURON, 'neuron/NAME/__init__.py.txt', 'half_lif')],
)
def test_it_prints_what_the_command_writes(block, template, name):
    text = Template((scaffold.TEMPLATES / template).read_text(encoding='utf-8'))
    assert block == text.substitute(name=name, class_name=''.join(map(str.capitalize, name.split('_'))))
    assert len(block.splitlines()) <= 50


@pytest.mark.parametrize('block', [FAMILY, NEURON, LOSS, TESTS])
def test_it_imports_public_names_alone(block):
    imports = [node for node in ast.walk(ast.parse(block)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    origins = [getattr(node, 'module', None) or node.names[0].name for node in imports]
    ours = [name for name in origins if name.startswith('timm_snn')]
    assert ours and set(ours) <= set(PUBLIC)
