"""A backend as CONTRIBUTING says: one file and one row, and the conformance suite judges it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BACKEND = '''
"""A backend of one's own: its step is written anew, its gradient is autograd's."""

import torch

from timm_snn.ops.neuron import by_channel, membrane_dtype
from timm_snn.ops.surrogate import spike


def why_not(x=None):
    return None


def lif(x, v, tau, neuron, needs_v):
    current = x.to(membrane_dtype(x.dtype))
    v = torch.full_like(current[0], neuron.v_rest) if v is None else v
    tau = neuron.tau if tau is None else by_channel(tau.to(current), x.ndim - 1)
    spikes = []
    for i in current:
        leak = v - neuron.v_rest
        h = v + (i - leak) / tau if neuron.decay_input else v - leak / tau + i
        s = spike(h - neuron.v_threshold, neuron.surrogate)
        r = s.detach() if neuron.detach_reset else s
        if neuron.v_reset is None:
            v = h - r * neuron.v_threshold
        else:
            v = torch.where(h >= neuron.v_threshold, neuron.v_rest, h)
        if neuron.v_reset is not None and r.requires_grad:
            v = v + torch.where(h.isinf(), 0.0, neuron.v_rest - h) * (r - r.detach())
        spikes.append(s)
    return torch.stack(spikes).to(x.dtype), v
'''
ROW = """
from timm_snn.ops import backend

backend._BACKENDS['toy'] = backend.Backend('toy', 'toys.toy')
"""


def judge(folder: Path, text: str) -> subprocess.CompletedProcess:
    """The conformance suite on a backend of this text, in a process that has the row."""
    (folder / 'toys').mkdir()
    (folder / 'toys' / 'toy.py').write_text(text)
    (folder / 'toy_row.py').write_text(ROW)
    code = (
        f'import sys; sys.path.insert(0, {str(folder)!r}); import toy_row, pytest; sys.exit(pytest.main(sys.argv[1:]))'
    )
    options = ['-q', '-x', '-p', 'no:cacheprovider', '-p', 'no:xdist', '--backend', 'toy']
    return subprocess.run(
        [sys.executable, '-c', code, *options, 'tests/ops/test_conformance.py'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_right_backend_passes(tmp_path):
    result = judge(tmp_path, BACKEND)
    assert result.returncode == 0 and ' passed' in result.stdout, result.stdout + result.stderr


@pytest.mark.parametrize(
    ('right', 'wrong'),
    [
        ('v = h - r * neuron.v_threshold', 'v = h - r'),
        ('v - leak / tau + i', 'v - leak / tau + i / tau'),
        ('s.detach() if neuron.detach_reset else s', 's.detach()'),
        ('spikes.append(s)', 'spikes.append(s.nan_to_num(0))'),
    ],
    ids=['a reset by 1', 'a current that decays', 'a reset without a gradient', 'silence for NaN'],
)
def test_a_wrong_backend_fails(tmp_path, right, wrong):
    assert BACKEND.count(right) == 1
    result = judge(tmp_path, BACKEND.replace(right, wrong))
    assert result.returncode == 1 and ' failed' in result.stdout, result.stdout + result.stderr
