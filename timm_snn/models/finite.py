"""Weights that are numbers."""

from collections.abc import Mapping

from torch import Tensor

__all__ = ['check_finite']


def check_finite(state_dict: Mapping[str, Tensor], name: str) -> None:
    """Raises: ValueError if a weight or a buffer is NaN or infinite; `name` says whose they are.

    A comparison with NaN is false, so that a network may answer with finite logits all the same.
    """
    broken = [key for key, tensor in state_dict.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        shown = ', '.join(broken[:3]) + (f' and {len(broken) - 3} more' if len(broken) > 3 else '')
        raise ValueError(f'{name} must be finite, got NaN or infinity in {shown}: take weights of before that')
