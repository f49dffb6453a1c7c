"""What a state dict must be before it is loaded, wherever it comes from."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..files import printable

__all__ = ['check_finite']

SHOWN = 3  # names in an error


def check_finite(state_dict: Mapping[str, Any], source: object) -> None:
    """Weights and buffers with NaN or infinities are of a training that failed, and would answer with confidence.

    `source` is where they come from, for the message. Integers and values that are no tensors are passed over.
    Raises: ValueError that names the first of them.
    """
    wrong = [key for key, value in state_dict.items() if isinstance(value, Tensor) and not _is_finite(value)]
    if wrong:
        names = ', '.join(printable(key, 80) for key in wrong[:SHOWN])
        more = f' and {len(wrong) - SHOWN} more' if len(wrong) > SHOWN else ''
        raise ValueError(
            f'{printable(source)} has NaN or infinite values in {names}{more}: a training that failed leaves such '
            'weights; take a checkpoint from before'
        )


def _is_finite(value: Tensor) -> bool:
    if value.is_meta or not (value.is_floating_point() or value.is_complex()):
        return True
    if value.element_size() == 1:  # float8, of which torch cannot tell
        value = value.float()
    return bool(torch.isfinite(value).all())
