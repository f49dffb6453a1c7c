"""Which kernel of lif.cu runs a call, and how it is compiled: the part of the CuPy backend that needs no CuPy."""

import math
from pathlib import Path

import torch
from torch import Tensor

from ..neuron import Neuron

__all__ = ['BLOCK', 'CHUNK', 'OPTIONS', 'SOURCE', 'STORED', 'backward_kernel', 'forward_kernel', 'neurons_per_thread']

SOURCE = Path(__file__).with_name('lif.cu').read_text()
OPTIONS = ('-std=c++17', '--fmad=false')
BLOCK = 128  # threads
CHUNK = 8  # the most steps whose membranes a thread keeps in registers
STORED = {
    torch.float32: 'float',
    torch.float16: '__half',
    torch.bfloat16: '__nv_bfloat16',
    torch.float64: 'double',
}


def neurons_per_thread(steps: Tensor, *others: Tensor | None, strides: tuple[int, ...]) -> int:
    """As many neighbours as fill 16 bytes of `steps` [T, M], or fewer where a size, stride or address is odd.

    Args:
        strides: Distances between steps, of `steps` and of the others that have steps.
    """
    tensors = [steps, *(t for t in others if t is not None)]
    addresses = [t.data_ptr() // t.element_size() for t in tensors]
    return math.gcd(16 // steps.element_size(), steps.shape[1], *strides, *addresses)


def forward_kernel(steps: Tensor, width: int, neuron: Neuron, by_channel: bool = False) -> str:
    """The C++ name of the kernel for `steps` [T, M], `width` neurons in a thread, perhaps each channel with its tau."""
    return f'lif_forward<{_arguments(steps, width, neuron, by_channel)}>'


def backward_kernel(steps: Tensor, width: int, neuron: Neuron, by_channel: bool = False) -> str:
    """The same for the backward pass."""
    learned, surrogate = _flag(neuron.tau is None), neuron.surrogate.name.upper()
    settings = _arguments(steps, width, neuron, by_channel)
    return f'lif_backward<{settings}, {_flag(neuron.detach_reset)}, {surrogate}, {learned}>'


def _arguments(steps: Tensor, width: int, neuron: Neuron, by_channel: bool = False) -> str:
    num_steps = steps.shape[0] if steps.shape[0] <= CHUNK else 0
    flags = map(_flag, (neuron.v_reset is None, neuron.decay_input, neuron.inverse_is_exact, by_channel))
    return ', '.join([STORED[steps.dtype], str(num_steps), str(width), *flags])


def _flag(flag: bool) -> str:
    return str(flag).lower()
