"""Models in wrappers: which model is inside."""

from typing import Any

from torch import nn

__all__ = ['unwrapped']


def unwrapped(model: Any) -> Any:
    """The model inside wrappers that compute nothing of their own; any other as it is.

    These are torch.compile's, DistributedDataParallel, DataParallel, torch's and timm's averaged models, and
    transformers' wrapper of timm's models.
    """
    while True:
        children = dict(model.named_children()) if isinstance(model, nn.Module) else {}
        inner = getattr(model, '_orig_mod', None) or children.get('timm_model')
        if inner is None and list(children) == ['module']:
            inner = children['module']
        if inner is None:
            return model
        model = inner
