"""Configs of segmentation and detection, and what their headers say of them."""

import re
from pathlib import Path

from torch import nn

from tests.support.scripts import ROOT

DENSE_CONFIGS = ROOT / 'recipes' / 'configs' / 'dense'


def assert_header_says(name: str, output: Path, model: nn.Module) -> None:
    """The parameters of the config's model, its command, and whether it was run, beside the output of its name."""
    header = ''.join(line for line in (DENSE_CONFIGS / f'{name}.yaml').open() if line.startswith('#'))
    (stated,) = re.findall(r'\(([\d,]+) parameters', header)
    assert stated == f'{sum(p.numel() for p in model.parameters()):,}'
    assert f'--config recipes/configs/dense/{name}.yaml' in header and str(output) == f'output/{name}'
    assert ('Not run here.' in header) != ('Measured' in header)
