"""Quantised networks in ONNX Runtime have the logits of torch, to the bit."""

import hashlib

import pytest
import torch

import timm_snn
from tests.support.families import SMALLEST
from tests.support.quantized import small
from timm_snn.export import export
from timm_snn.export.onnx import load

pytest.importorskip('onnxscript')
pytest.importorskip('onnxruntime')

# Counts and currents, thresholds for each head; the rest of the families takes minutes.
_FEW = ('msvit_4_96', 'spikingresformer_gesture')
_SHORT = {'msvit_4_96': dict(depths=(1, 0, 1)), 'spikingresformer_gesture': dict(depths=(1, 0, 0))}


def digest(logits):
    return hashlib.sha256(logits.contiguous().numpy().tobytes()).hexdigest()


@pytest.mark.parametrize('name', [n if n in _FEW else pytest.param(n, marks=pytest.mark.slow) for n in SMALLEST])
@torch.no_grad()
def test_onnx_runtime_has_the_same_bits_in_batches_of_any_size(name, tmp_path):
    model = small(name, **_SHORT.get(name, {}))
    torch.manual_seed(0)
    x = torch.randint(0, 256, (3, model.in_chans, 32, 32)) / 256
    quantized = timm_snn.quantize(model, x)
    made = export(quantized, tmp_path / 'model.onnx', example=x[:2])
    assert made.difference == 0
    (logits,) = load(made.file)(x)
    assert digest(logits) == digest(quantized(x))
    assert not torch.equal(logits[0], logits[1])
