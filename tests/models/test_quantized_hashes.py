"""Integer networks of every family have the logits that they had on another machine: their hashes are in the JSON file.

The networks are filled with whole numbers from a generator that never changes, so that no rounding of this machine is
in them. `REGENERATE_HASHES=1 pytest tests/models/test_quantized_hashes.py` writes the file anew, after a change of what
is computed.
"""

import hashlib
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import timm_snn
from tests.support.families import SMALLEST
from tests.support.quantized import small
from timm_snn.layers.fixed import FixedConv, FixedLIF

FILE = Path(__file__).with_name('quantized_hashes.json')
HASHES = json.loads(FILE.read_text(encoding='utf-8')) if FILE.is_file() else {}


def seeded(name):
    """A network of this family with numbers of a generator, and images."""
    model = small(name)
    numbers = np.random.RandomState(0)  # whose sequence is the same in every version of NumPy

    def whole(shape, low, high, dtype):
        return torch.from_numpy(numbers.randint(low, high, tuple(shape))).to(dtype)

    x = whole((2, model.in_chans, 32, 32), 0, 256, torch.float32) / 256
    quantized = timm_snn.quantize(model, x)
    one = 2**16
    quantized.quantization.fraction_bits = 16
    for module in quantized.network.modules():
        if isinstance(module, FixedConv):
            module.shift, module.input_limit = 12, 255
            module.input_shift = {'image': 7, 'currents': 10}.get(module.takes, 0)
            weight = module.weight
            weight.copy_(whole(weight.shape, -127, 128, torch.int8))
            spread = 60 * math.isqrt(weight[0].numel()) * (50 if module.takes != 'spikes' else 1)
            module.multiplier.copy_(whole(module.multiplier.shape, 1, 2 * one * 2**12 // spread, torch.int32))
            module.bias.copy_(whole(module.bias.shape, 0, one, torch.int32))
        elif isinstance(module, FixedLIF) and module.count_bits is None:
            module.threshold.fill_(one // 4)
    return quantized, x


def digest(*tensors):
    state = hashlib.sha256()
    for tensor in tensors:
        state.update(tensor.contiguous().numpy().tobytes())
    return state.hexdigest()


@pytest.mark.parametrize('name', SMALLEST)
@torch.no_grad()
def test_integer_networks_answer_as_on_another_machine(name):
    quantized, x = seeded(name)
    steps = quantized.forward_steps(x)
    assert steps.std(0).max() > 0, 'all images have the same logits: the network is silent'
    found = digest(steps, quantized(x))
    with timm_snn.use_backend('torch'):
        assert digest(quantized.forward_steps(x.contiguous(memory_format=torch.channels_last)), quantized(x)) == found
    if os.environ.get('REGENERATE_HASHES'):
        kept = json.loads(FILE.read_text(encoding='utf-8')) if FILE.is_file() else {}
        FILE.write_text(json.dumps({**kept, name: found}, indent=2) + '\n', encoding='utf-8')
    else:
        assert found == HASHES[name]
