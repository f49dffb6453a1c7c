"""Inputs, weights and outputs of the research code (`tests/golden/README.md`)."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

GOLDEN = Path(__file__).parents[1] / 'golden'


def fill(shapes: Mapping[str, list[int]], bn_table: Mapping[str, list[float]]) -> dict[str, Tensor]:
    """The state dict that the research code was given: every tensor follows from its key."""
    state_dict = {}
    for key, shape in shapes.items():
        module, _, leaf = key.rpartition('.')
        z = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(size=shape)
        if leaf == 'num_batches_tracked':
            state_dict[key] = torch.tensor(0)
            continue
        if leaf.startswith('firing_rate_'):  # SpikingResformer's running rates
            value = bn_table[key][0] * (1 + 0.3 * np.tanh(z))
        elif leaf == 'w' and not shape:  # of a neuron with a time constant that is learned
            value = 0.3 * z
        elif module in bn_table:
            shift, variance = bn_table[module]
            value = {
                'weight': 1 + 0.1 * z,
                'bias': shift + 0.2 * z,
                'running_mean': 0.1 * z,
                'running_var': variance * (1 + 0.5 * np.tanh(z)),
            }[leaf]
        elif module in ('head', 'classifier'):
            value = 0.1 * z
        else:
            value = 0.05 * z if leaf == 'bias' else z / np.sqrt(np.prod(shape[1:]))
        state_dict[key] = torch.from_numpy(np.asarray(value, np.float32))
    return state_dict


def shapes_of(name: str) -> dict[str, list[int]]:
    """Names and shapes in a file of the authors."""
    return {key: shape for key, (shape, _) in json.loads((GOLDEN / f'{name}.keys.json').read_text()).items()}


def weights_of(name: str) -> dict[str, Tensor]:
    return fill(shapes_of(name), json.loads((GOLDEN / f'{name}.bn_table.json').read_text()))


def outputs_of(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f'{name}.npz') as arrays:
        return dict(arrays)


def input_of(name: str, shape: tuple[int, ...]) -> Tensor:
    """Images, or with five axes events, in float64."""
    r = np.random.RandomState(0)
    x = (r.poisson(0.5, size=shape) if len(shape) == 5 else r.standard_normal(size=shape)).astype(np.float32)
    np.testing.assert_array_equal(x.ravel()[:8], outputs_of(name)['x_first8'])
    return torch.from_numpy(x).double()
