"""Which kernel of lif.cu runs a call, and how it is compiled: the part of the CuPy backend that needs no CuPy."""

import math
from pathlib import Path

import torch
from torch import Tensor

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


def forward_kernel(steps: Tensor, width: int, *, tau: float | Tensor, v_reset: float | None, decay_input: bool) -> str:
    """The C++ name of the kernel for `steps` [T, M], `width` neurons in a thread."""
    return f'lif_forward<{_arguments(steps, width, tau, v_reset, decay_input)}>'


def backward_kernel(
    steps: Tensor,
    width: int,
    *,
    tau: float | Tensor,
    v_reset: float | None,
    decay_input: bool,
    surrogate: str,
    detach_reset: bool,
) -> str:
    """The same for the backward pass."""
    neuron = _arguments(steps, width, tau, v_reset, decay_input)
    return f'lif_backward<{neuron}, {_flag(detach_reset)}, {surrogate.upper()}, {_flag(isinstance(tau, Tensor))}>'


def _arguments(steps: Tensor, width: int, tau: float | Tensor, v_reset: float | None, decay_input: bool) -> str:
    num_steps = steps.shape[0] if steps.shape[0] <= CHUNK else 0
    power_of_two = not isinstance(tau, Tensor) and math.frexp(tau)[0] == 0.5
    flags = (_flag(flag) for flag in (v_reset is None, decay_input, power_of_two))
    return ', '.join([STORED[steps.dtype], str(num_steps), str(width), *flags])


def _flag(flag: bool) -> str:
    return str(flag).lower()
