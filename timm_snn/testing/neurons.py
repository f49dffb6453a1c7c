"""What every neuron of this package is tested for, of a class or function that makes it."""

from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, nn

from .families import lively

__all__ = [
    'NEURON_CHECKS',
    'check_neuron_causality',
    'check_neuron_gradient',
    'check_neuron_in_a_model',
    'check_neuron_memory',
    'check_neuron_neighbours',
    'check_neuron_precision',
]

NeuronLayer = Callable[..., nn.Module]
STEPS = 4


def currents(batch: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    """[T, B, C, H, W], with which most neurons fire now and then."""
    torch.manual_seed(0)
    return 8 * torch.rand(STEPS, batch, 2, 5, 7, dtype=dtype) - 2


def made(neuron: NeuronLayer) -> nn.Module:
    """As a model makes it, which tells it the number of steps if it wants to know."""
    layer: Any = neuron()
    if hasattr(layer, 'set_num_steps'):
        layer.set_num_steps(STEPS)
    return layer


@torch.no_grad()
def check_neuron_memory(neuron: NeuronLayer) -> None:
    """[T, B, ...] -> the same shape, not silent, and the same again in the next call."""
    layer, x = made(neuron).double().eval(), currents()
    spikes = layer(x)
    assert spikes.shape == x.shape and spikes.dtype == x.dtype, f'{x.shape} became {spikes.shape} of {spikes.dtype}'
    assert spikes.any(), 'it is silent'
    assert torch.equal(layer(x), spikes), 'the second call gives other spikes than the first'


@torch.no_grad()
def check_neuron_neighbours(neuron: NeuronLayer) -> None:
    """A sample's spikes do not depend on the others."""
    layer, x = made(neuron).double().eval(), currents()
    assert torch.equal(layer(x[:, :1]), layer(x)[:, :1])


@torch.no_grad()
def check_neuron_causality(neuron: NeuronLayer) -> None:
    """A step does not see later ones; leave this out for a neuron that may, such as PSN."""
    layer, x = made(neuron).double().eval(), currents()
    assert torch.equal(layer(torch.cat([x[:2], 1 - x[2:]]))[:2], layer(x)[:2]), 'a step saw a later one'


def check_neuron_gradient(neuron: NeuronLayer) -> None:
    """The surrogate gradient reaches the input and every parameter, and is finite."""
    layer, x = made(neuron).double().train(), currents().requires_grad_()
    (layer(x) + 1).square().sum().backward()  # silence too
    for name, tensor in [('input', x), *layer.named_parameters()]:
        assert tensor.grad is not None and tensor.grad.isfinite().all(), f'{name} has the gradient {tensor.grad}'
    assert x.grad is not None and x.grad.any(), 'no gradient reaches the input'


@torch.no_grad()
def check_neuron_precision(neuron: NeuronLayer) -> None:
    """Half precision in gives half precision out, and finite spikes."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        spikes = made(neuron).to(dtype).eval()(currents(dtype=dtype))
        assert spikes.dtype == dtype and spikes.isfinite().all(), f'{dtype} became {spikes.dtype}'


def check_neuron_in_a_model(neuron: NeuronLayer) -> None:
    """A model trains with it: finite logits, and a gradient in the first layer."""
    torch.manual_seed(0)
    model = lively(timm.create_model('msvit_4_96', num_classes=3, in_chans=1, num_steps=STEPS, lif_layer=neuron))
    logits = model(torch.rand(2, 1, 32, 32))
    logits.square().sum().backward()
    assert logits.isfinite().all() and model.stem.units[0].conv.weight.grad.any()


NEURON_CHECKS = (
    check_neuron_memory,
    check_neuron_neighbours,
    check_neuron_causality,
    check_neuron_gradient,
    check_neuron_precision,
    check_neuron_in_a_model,
)
