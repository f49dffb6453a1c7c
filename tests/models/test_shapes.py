"""The table of shapes in the docstring of every family's file is what its model does."""

import re
import sys

import pytest
import timm
import torch

from tests.support.families import FAMILIES

ROW = re.compile(r'^ {4}([\w.]+) +\[(.+?)\]', re.MULTILINE)


@pytest.mark.parametrize('family', FAMILIES)
def test_the_table_of_shapes_in_the_docstring_is_true(family):
    module = sys.modules[timm.model_entrypoint(FAMILIES[family][0]).__module__]
    heading, table = re.search(r'^Shapes of (\w+).*:\n\n((?: {4}.*\n?)+)', module.__doc__, re.MULTILINE).groups()
    rows = dict(ROW.findall(table))
    model = timm.create_model(heading, device='meta').eval()
    parts = ['stem', *(f'stages.{i}' for i in range(len(model.stages))), *(['head_lif'] if model.head_lif else [])]
    assert list(rows) == ['input', *parts, 'logits']

    sizes = {'T': model.num_steps, 'B': 2}
    shapes = {name: tuple(sizes.get(size) or int(size) for size in row.split(', ')) for name, row in rows.items()}
    seen = {}
    for name in parts:
        model.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: seen.update({name: tuple(output.shape)})
        )
    seen['logits'] = tuple(model(torch.empty(shapes.pop('input'), device='meta')).shape)
    assert seen == shapes
