"""Backbones for dense prediction: the feature levels of a timm model, what they carry, and neurons like its own."""

import copy
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from ..layers import DropPath, LayerFn
from ..models import SpikingTransformer
from ..models.base import named_layers
from ..models.streaming import is_neuron

__all__ = [
    'carries_currents',
    'description',
    'is_spiking',
    'neuron_of',
    'open_backbone',
    'refuse_frames',
    'unfold_frames',
]

# Arguments of `timm.create_model` that say how levels are handed out, or belong to a classifier or to the machine.
_NOT_KEPT = ('features_only', 'feature_cls', 'num_classes', 'backend')


def open_backbone(name: str, **kwargs: Any) -> Any:
    """`timm.create_model(name, features_only=True, **kwargs)`, of which None is left out.

    Raises: ValueError for `num_steps` or `lif_layer` of a model without neurons.
    """
    try:
        return timm.create_model(name, features_only=True, **kwargs)
    except TypeError as error:
        given = [key for key in ('num_steps', 'lif_layer') if kwargs.get(key) is not None and key in str(error)]
        if not given:
            raise
        raise ValueError(f'the backbone {name!r} has no neurons and no time: leave out {given[0]}') from error


def is_spiking(features: Any) -> bool:
    """Whether the levels of every step can be had: of a model whose stages hand on spikes or currents."""
    return isinstance(getattr(features, 'model', None), SpikingTransformer)


def description(name: str, features: Any) -> dict[str, Any]:
    """`backbone` and its arguments as JSON can hold them, for `timm.create_model` to make the same layers again.

    A model of 'local-dir:' or 'hf-hub:' is known by its architecture, and needs its folder no more.
    """
    args = {key: value for key, value in features._model_args.items() if key not in _NOT_KEPT}
    return {'backbone': features.pretrained_cfg['architecture'] if ':' in name else name, **named_layers(args)}


def neuron_of(model: nn.Module) -> LayerFn:
    """What makes neurons of the kind and with the settings that the model has, outside of its attention.

    What these have learned is where the new ones begin: a parameter with a value per channel at its mean.
    """
    neuron: Any = next(m for name, m in model.named_modules() if is_neuron(name, m) and not name.endswith('attn_lif'))
    if getattr(neuron, 'per_channel', 0):
        return partial(_like, neuron, per_channel=True)
    return partial(_like, neuron)


def _like(neuron: nn.Module, per_channel: int = 0) -> nn.Module:
    made: Any = copy.deepcopy(neuron)
    if per_channel:
        made.per_channel = per_channel
        for name, parameter in neuron.named_parameters(recurse=False):
            setattr(made, name, nn.Parameter(parameter.detach().mean().expand(per_channel).clone()))
    return made


@torch.no_grad()
def carries_currents(features: Any) -> list[bool]:
    """For each level, whether it is a map of currents, as in membrane shortcuts, and not of spikes or their sums.

    It is measured, since families mix both: a copy of random weights, all of whose neurons fire where their input is
    positive, answers whole numbers where there are spikes.
    """
    generator = torch.Generator('cpu').manual_seed(0)
    copied: Any = copy.deepcopy(features).float().requires_grad_(False)
    copied = copied.to_empty(device='cpu') if next(copied.parameters()).is_meta else copied.cpu()
    for name, module in list(copied.named_modules()):
        if is_neuron(name, module):
            copied.set_submodule(name, _Step())
    for parameter in copied.parameters():
        parameter.normal_(generator=generator)
    for module in copied.train().modules():
        if isinstance(module, (DropPath, _DropoutNd)):
            module.eval()
    copied.num_steps = copied.model.chunk_steps
    size = 2 * max(features.feature_info.reduction())
    levels = copied.forward_steps(torch.randn(2, features.in_chans, size, size, generator=generator, device='cpu'))
    return [not torch.equal(x, x.round()) for x in levels]


class _Step(nn.Module):
    """A neuron without a membrane."""

    def forward(self, x: Tensor) -> Tensor:
        return (x > 0).to(x.dtype)


def refuse_frames(x: Tensor, name: str) -> None:
    """Raises: ValueError for frames [B, T, C, H, W], in a backbone without time."""
    if x.ndim == 5:
        raise ValueError(
            f'expected images [B, C, H, W], got {list(x.shape)}: the backbone {name!r} has no time; take a spiking '
            'one, or the mean of the frames'
        )


def unfold_frames(x: Tensor, in_chans: int) -> Tensor:
    """Frames whose time is among the channels, [B, T * C, H, W] -> [B, T, C, H, W], as libraries know four axes alone.

    Images stay as they are.
    """
    return x if x.shape[1] == in_chans else x.unflatten(1, (-1, in_chans))
