"""The neuron's settings, and the dtype of its membrane."""

import torch

__all__ = ['membrane_dtype']


def membrane_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for half precision, which would lose spikes in the accumulation; otherwise the dtype itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
