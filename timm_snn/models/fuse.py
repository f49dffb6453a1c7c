"""A model for inference: batch norms folded, channels last, zeros skipped, and CUDA graphs if they are wanted."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..layers import ConvBn, RepConv
from ..layers.conv import MapConv, TokenConv, is_plain, skip_zeros
from ..layers.frozen import FrozenBatchNorm2d
from ..layers.neuron import FUSED
from ..wrappers import unwrapped
from .graphs import use_graphs

__all__ = ['CONVOLUTIONS', 'NORMS', 'fuse']

CONVOLUTIONS = (MapConv, TokenConv, nn.Conv1d, nn.Conv2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d)


def fuse(model: nn.Module, *, cuda_graphs: bool = False) -> nn.Module:
    """A copy of a trained model, in eval mode, to use for inference: same input, same output, less work.

        fused = timm_snn.fuse(model)
        with torch.inference_mode():
            logits = fused(images)

    That is all. What is done, and how to choose another:

    - Batch norms disappear into the convolutions before them, folded in float64 and rounded once, and with them the
      learned thresholds of the neurons behind.
    - Weights are laid out channels_last, as convolutions want them.
    - On a CPU, convolutions skip the zeros among their inputs, as inside `timm_snn.ops.sparse_spikes`, where a sample
      of the input has enough of them and the C++ can be built; else they stay dense, as in exports. `with
      timm_snn.ops.sparse_spikes(enabled=False):` keeps them dense, and so does the backend 'torch', if it is named.
    - The neurons run on the backend that 'auto' chooses, the fastest that can run them: C++ on a CPU where that can be
      built, Triton or CuPy on CUDA. One that is named, by `use_backend` or otherwise, runs instead.
    - With `cuda_graphs`, for a model on a CUDA device, a pass is captured as a CUDA graph when a size of input first
      comes, and replayed for that size from then on, which ends waiting for Python: `forward` and `forward_steps`,
      under autocast too. A capture takes as long as several passes. Graphs keep the memory of a pass of the largest
      size, and of each size its input and output, for the 8 sizes that were used last. What no graph holds runs as
      without: gradients, hooks, training mode. Settings of layers other than `num_steps` are those of the capture.

    Rounding differs from the model's in the last bit, by the folding and by the order of the sums where zeros are
    skipped, so a membrane that lies on its threshold may fire in one and not in the other.

    The model itself is left as it is; of one in a wrapper such as DistributedDataParallel, the model inside is taken. A
    norm of another kind than batch norm, such as a frozen one, stays.

    Raises: ValueError for a model without units of convolution and norm, and where folding would lose what somebody
    has changed in a layer: weights that are computed (pruned, parametrized, quantized), hooks, methods and classes of
    convolutions and norms other than torch's, batch norms without running statistics; for `cuda_graphs` of a model on
    another device.
    """
    model = unwrapped(model)
    units = {name: module for name, module in model.named_modules() if isinstance(module, ConvBn)}
    if not units:
        raise ValueError(f'fuse found no ConvBn in {type(model).__name__}: it takes the models of timm_snn')
    for name, module in model.named_modules():
        if replaced := [key for key in vars(module) if callable(getattr(type(module), key, None))]:
            raise ValueError(
                f'fuse copies a model, and a copy cannot follow the {replaced[0]} that was assigned to '
                f'{name or "the model"} itself: del module.{replaced[0]} first, or unwrap the model that a library has '
                'prepared'
            )
    for name, unit in units.items():
        if isinstance(unit.bn, _BatchNorm):
            _check_unit(name, unit)
    try:
        model = copy.deepcopy(model).requires_grad_(False)
    except RuntimeError as error:
        raise ValueError(
            'fuse cannot copy this model: a module in it keeps a tensor that was computed with a gradient. For pruned '
            "weights torch.nn.utils.prune.remove(module, 'weight') ends that; others are to be detached"
        ) from error
    for name, unit in model.named_modules():
        if isinstance(unit, ConvBn) and isinstance(unit.bn, _BatchNorm):
            _fold(name, unit)
    skip_zeros(model)
    model = model.eval().to(memory_format=torch.channels_last)
    if cuda_graphs:
        use_graphs(model)
    return model


def _check_unit(name: str, unit: Any) -> None:
    """Raises ValueError unless convolution and norm do what their classes say and nobody watches them."""
    if not all(getattr(type(unit), method).__module__.startswith('timm_snn.') for method in ('forward', 'current')):
        raise ValueError(
            f'fuse cannot know what {name}, a {type(unit).__name__}, does between convolution and batch norm: make the '
            'model with a ConvBn or ConvBnLif there'
        )
    for part_name, part in _parts(unit):
        if reason := _why_not(part):
            raise ValueError(f'fuse cannot fold {name}.{part_name}: {reason}')


def _parts(unit: Any) -> Iterator[tuple[str, Any]]:
    """What folding changes or takes away."""
    yield 'conv', unit.conv
    yield 'bn', unit.bn
    if isinstance(unit.conv, RepConv):
        for name in ('pw1', 'bn1', 'pw2', 'bn2'):
            yield f'conv.{name}', getattr(unit.conv, name)


def _why_not(part: Any) -> str | None:
    if torch.nn.utils.parametrize.is_parametrized(part):
        return 'it is parametrized: call torch.nn.utils.parametrize.remove_parametrizations first'
    if any(name not in part._parameters and hasattr(part, name) for name in ('weight', 'bias')):
        return (
            'its weight is computed from others, as by pruning and weight norm: call torch.nn.utils.prune.remove, '
            'remove_weight_norm or remove_spectral_norm first'
        )
    if type(part) not in (*CONVOLUTIONS, *NORMS, RepConv):
        return (
            f"it is a {type(part).__module__}.{type(part).__name__}, and folding knows torch's convolutions and batch "
            'norms: merge or convert it into one of these first, as merging an adapter does'
        )
    if part._forward_hooks or part._forward_pre_hooks:
        return 'it has a forward hook, which would see other values: remove it first'
    if isinstance(part, _BatchNorm) and (part.running_mean is None or part.running_var is None):
        return (
            "it has no running statistics and normalises by each batch's own, which no weights can hold: train with "
            'track_running_stats=True'
        )
    return None


def _fold(name: str, unit: ConvBn) -> None:
    conv: Any = copy.deepcopy(unit.conv)  # which other units may use too, with norms of their own
    unit.conv = conv
    if isinstance(conv, RepConv):  # stays three convolutions, one of 3x3 is more work
        _fold_into(name, conv.pw1, conv.bn1)
        _fold_into(name, conv.pw2, conv.bn2)
        conv.bn1 = conv.bn2 = nn.Identity()
        conv = conv.pw2
    _fold_into(name, conv, unit.bn, _taken_threshold(unit))
    unit.bn = nn.Identity()  # type: ignore[assignment]


def _taken_threshold(unit: Any) -> Tensor | None:
    """What a learned threshold divides the current of this unit by, which its neuron does no more."""
    if not is_plain(getattr(unit, 'lif', nn.Identity()), FUSED) or unit.lif.log_threshold is None:
        return None
    unit.lif = copy.deepcopy(unit.lif)
    scale = unit.lif.log_threshold.double().exp()
    unit.lif.log_threshold, unit.lif.learn_threshold = None, False
    return scale


def _fold_into(name: str, conv: Any, bn: Any, scale: Tensor | None = None) -> None:
    weight, bias, bn_weight, bn_bias = (
        None if p is None else p.double() for p in (conv.weight, conv.bias, bn.weight, bn.bias)
    )
    if scale is not None:
        bn_weight = (torch.ones_like(bn.running_mean.double()) if bn_weight is None else bn_weight) / scale
        bn_bias = None if bn_bias is None else bn_bias / scale
    statistics = (bn.running_mean.double(), bn.running_var.double(), bn.eps, bn_weight, bn_bias)
    dtype = conv.weight.dtype
    folded = [p.to(dtype) for p in fuse_conv_bn_weights(weight, bias, *statistics)]  # type: ignore[arg-type]
    if not all(p.isfinite().all() for p in folded):
        raise ValueError(
            f'fuse cannot fold {name}: its weights and batch norm together are not finite in {dtype}; if they are '
            'finite, fuse the model in float32 and convert the result'
        )
    conv.weight, conv.bias = (nn.Parameter(p, requires_grad=False) for p in folded)
