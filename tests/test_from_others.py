"""docs/from_spikingjelly.md and docs/from_snntorch.md run as they are printed."""

import re
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest

from timm_snn.layers import neurons
from timm_snn.ops import surrogate

DOCS = Path(__file__).parents[1] / 'docs'


@pytest.mark.parametrize('library', ['spikingjelly', 'snntorch'])
def test_every_block_runs(library, tmp_path, monkeypatch):
    pytest.importorskip(library)
    monkeypatch.setattr(neurons, '_layers', dict(neurons._layers))  # a page registers a neuron
    monkeypatch.setattr(surrogate, '_OWN', dict(surrogate._OWN))  # and makes a surrogate
    page = (DOCS / f'from_{library}.md').read_text()
    sections = re.split(r'^## ', page, flags=re.MULTILINE)
    assert len(sections) == 21
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    names: dict[str, Any] = {}
    for section in sections:
        blocks = re.findall(r'^```python\n(.*?)^```', section, re.MULTILINE | re.DOTALL)
        assert len(blocks) == (1 if section is sections[0] else 2), section
        for block in blocks:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                exec(compile(block, f'from_{library}.md, {section.splitlines()[0]}', 'exec'), names)
