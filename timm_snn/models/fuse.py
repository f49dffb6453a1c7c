"""A model for inference: batch norms folded into the convolutions, channels last."""

import copy
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..layers import ConvBn, RepConv

__all__ = ['fuse']


def fuse(model: nn.Module) -> nn.Module:
    """A copy of a trained model, in eval mode, to use for inference: same input, same output, less work.

    Batch norms disappear into the convolutions before them, folded in float64 and rounded once, and weights are laid
    out channels_last, as convolutions want them. Rounding differs from the model's in the last bit, so a membrane that
    lies on its threshold may fire in one and not in the other. Combine it with a backend, torch.compile and autocast:

        fused = timm_snn.fuse(model)
        with torch.inference_mode(), timm_snn.use_backend('compile'):
            logits = fused(images)

    The model itself is left as it is. Raises: ValueError for a model without units of convolution and norm.
    """
    units = [module for module in model.modules() if isinstance(module, ConvBn)]
    if not units:
        raise ValueError(f'fuse found no ConvBn in {type(model).__name__}: it takes the models of timm_snn')
    model = copy.deepcopy(model).eval().requires_grad_(False)
    for unit in model.modules():
        if isinstance(unit, ConvBn) and isinstance(unit.bn, nn.modules.batchnorm._BatchNorm):
            _fold(unit)
    return model.to(memory_format=torch.channels_last)


def _fold(unit: ConvBn) -> None:
    conv: Any = unit.conv
    if isinstance(conv, RepConv):  # stays three convolutions, one of 3x3 is more work
        _fold_into(conv.pw1, conv.bn1)
        _fold_into(conv.pw2, conv.bn2)
        conv.bn1 = conv.bn2 = nn.Identity()
        conv = conv.pw2
    _fold_into(conv, unit.bn)
    unit.bn = nn.Identity()  # type: ignore[assignment]


def _fold_into(conv: Any, bn: Any) -> None:
    statistics = (bn.running_mean.double(), bn.running_var.double(), bn.eps, bn.weight.double(), bn.bias.double())
    bias = None if conv.bias is None else conv.bias.double()
    folded = fuse_conv_bn_weights(conv.weight.double(), bias, *statistics)
    conv.weight, conv.bias = (nn.Parameter(p.to(conv.weight.dtype), requires_grad=False) for p in folded)
