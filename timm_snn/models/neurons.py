"""The neuron of a model: the layer that its caller named, with its settings, after a look at what it does."""

import contextlib
from collections.abc import Mapping
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ..files import printable
from ..layers import LayerFn, ReluNeuron, adapter_of, neurons
from ..modes import evaluating
from ..ops.backend import BackendUnavailable, use_backend
from ..ops.surrogate import Surrogate, name_surrogate
from .pretrained import first_line
from .settings import arguments_of

__all__ = ['name_neuron', 'neuron_layer', 'with_settings']


def neuron_layer(lif_layer: str | LayerFn, backend: str | None, **settings: Any) -> LayerFn:
    """A family's neuron: a name in `timm_snn.layers.neurons` or a layer, for the layers of a model to call.

    Neurons of SpikingJelly and snnTorch get their adapter. `settings` are the family's own. Those that are not None go
    to a layer that takes them and was not given others, as by `with_settings`; 'relu' has none.

    A layer that is not of this package is called on a few numbers, with the random state and the mode that it had
    afterwards: it must answer [T, B, ...] with the same shape, and not remember its last call or mix samples.

    Raises: ValueError for `backend` with a layer that has no such argument, and for a layer that does not do that.
    """
    layer = neurons.get(lif_layer)
    if layer is ReluNeuron:
        return layer
    taken, given = _taken(layer), getattr(layer, 'keywords', {})
    own = {
        name: value
        for name, value in settings.items()
        if value is not None and name not in given and (taken is None or name in taken)
    }
    layer = partial(layer, **own) if own else layer
    if backend is not None:
        _check_takes_backend(layer, backend)
    if not getattr(_bare(layer), '__module__', '').startswith('timm_snn.layers.'):
        layer = _adapted(layer)
    return layer if backend is None else partial(layer, backend=backend)


def with_settings(lif_layer: str | LayerFn, settings: Mapping[str, Any]) -> LayerFn:
    """A name in `timm_snn.layers.neurons` or a layer, with the settings that `create_model` got as `lif_kwargs`.

    Raises: ValueError for a setting that the layer does not take, which names those that it does.
    """
    layer, name = neurons.get(lif_layer), _name_of(lif_layer)
    if not isinstance(settings, Mapping):
        raise ValueError(
            f'lif_kwargs are settings by name, such as dict(tau=4.0): got {printable(repr(settings), 200)}'
        )
    if layer is ReluNeuron:
        raise ValueError(f'the neuron {name} has no settings: leave out lif_kwargs={dict(settings)}')
    if 'backend' in settings:
        raise ValueError(
            'lif_kwargs are saved with a model, and a backend belongs to the machine: pass create_model(..., '
            f'backend={settings["backend"]!r})'
        )
    taken = _taken(layer)
    if taken is not None and (unknown := [key for key in settings if key not in taken]):
        raise ValueError(
            f'the neuron {name} has no setting {", ".join(printable(str(key), 100) for key in unknown)}: lif_kwargs '
            f'takes some of {sorted(taken - {"backend", "device", "dtype"})}'
        )
    return partial(layer, **settings) if settings else layer


def name_neuron(args: Mapping[str, Any]) -> dict[str, Any]:
    """`lif_layer` and `lif_kwargs` of a model's arguments, as far as they are there, as JSON can hold them.

    A layer becomes its name in the registry, and the settings of a partial go to the others, which are before them. A
    layer without a name stays what it is, as does a surrogate of a user's own. A `backend` belongs to the machine.
    """
    layer, settings = args.get('lif_layer'), dict(args.get('lif_kwargs') or {})
    name = neurons.name_of(layer)
    if name is None and isinstance(layer, partial) and not layer.args and (name := neurons.name_of(layer.func)):
        settings = {key: value for key, value in layer.keywords.items() if key != 'backend'} | settings
    named = {key: name_surrogate(value) if isinstance(value, Surrogate) else value for key, value in settings.items()}
    return ({'lif_layer': name or layer} if 'lif_layer' in args else {}) | ({'lif_kwargs': named} if named else {})


def _check_takes_backend(layer: LayerFn, backend: str) -> None:
    taken, name = _taken(layer), _name_of(layer)
    if adapter_of(_bare(layer)) or (taken is not None and 'backend' not in taken):
        raise ValueError(
            f'backend={backend!r} is for neurons that timm_snn runs, and {name} has no such argument: leave it out, or '
            'add the argument and hand it to timm_snn.lif'
        )


def _adapted(layer: LayerFn) -> LayerFn:
    """The layer as our models call it. Raises: ValueError as `neuron_layer`."""
    name = _name_of(layer)
    with torch.random.fork_rng(devices=[]), torch.device('cpu'):
        try:
            neuron = layer()
        except (TypeError, ValueError) as error:
            raise ValueError(
                f'lif_layer {name} must be made by a call without arguments, which failed: {first_line(error)}; '
                'lif_kwargs or functools.partial give it what it needs'
            ) from error
        if not isinstance(neuron, nn.Module):
            raise ValueError(f'lif_layer {name} must return an nn.Module, got {type(neuron).__name__}')
        adapter = adapter_of(type(neuron))
        if adapter is not None:
            neuron = adapter(neuron)
        with contextlib.suppress(BackendUnavailable):  # one that was bound to the layer, and does not run on a CPU
            _check(neuron, name)
    taken = _taken(layer)
    threshold: str | None = 'v_threshold' if adapter is None else adapter.threshold
    if taken is not None and threshold not in taken:  # nothing to set, as in one that is a factory without arguments
        threshold = None
    return layer if adapter is None and threshold else partial(_made, layer, adapter, threshold)


def _made(
    layer: LayerFn, adapter: type[nn.Module] | None, threshold: str | None, v_threshold: Any = None, **settings: Any
) -> nn.Module:
    """A neuron, in its adapter if it has one, and with the threshold of attention by the name that it has for it."""
    if v_threshold is not None and threshold is not None:
        settings[threshold] = v_threshold
    neuron = layer(**settings)
    return neuron if adapter is None else adapter(neuron)


@torch.no_grad()
def _check(neuron: nn.Module, name: str) -> None:
    """Raises ValueError unless every call maps [T, B, ...] to the same shape, from rest, sample by sample.

    Numbers are drawn anew for every call from the same seed, so that a random layer that forgets answers the same.
    """
    like = next(chain(neuron.parameters(), neuron.buffers()), torch.empty(0))
    if like.is_meta:
        return
    dtype = like.dtype if like.is_floating_point() else torch.get_default_dtype()
    num_steps = getattr(neuron, 'num_steps', None)
    if num_steps is None and hasattr(neuron, 'set_num_steps'):
        neuron.set_num_steps(4)  # type: ignore[operator]
    shape = (num_steps or 4, 3, 2, 5, 7)  # [T, B, C, H, W]
    generator = torch.Generator().manual_seed(0)
    x, other = (3 * torch.rand(2, *shape, generator=generator) - 0.5).to(like.device, dtype)

    def answer(x: Tensor, seed: int = 0) -> Tensor:
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would set those of all devices
        try:
            spikes: Any = neuron(x)
        except BackendUnavailable:
            raise
        except Exception as error:
            raise ValueError(
                f'lif_layer {name} must map x [T, B, C, H, W] to spikes of the same shape, and failed for '
                f'{tuple(x.shape)}: {type(error).__name__}: {first_line(error)}'
            ) from error
        if not isinstance(spikes, Tensor) or spikes.shape != x.shape:
            got = tuple(spikes.shape) if isinstance(spikes, Tensor) else f'a {type(spikes).__name__}'
            raise ValueError(
                f'lif_layer {name} must map x [T, B, ...] to spikes of the same shape, and answers {tuple(x.shape)} by '
                f'{got}: a layer for single steps needs a module around it that loops over x.unbind(0), begins at rest '
                'and stacks the spikes'
            )
        return spikes

    def same(a: Tensor, b: Tensor) -> bool:
        return torch.allclose(a.float(), b.float(), equal_nan=True)

    with evaluating(neuron), use_backend('torch'):  # whatever the process is told to use
        first = answer(x)
        answer(other)
        if not same(answer(x), first):
            raise ValueError(
                f'lif_layer {name} remembers its last call: expected every call to begin at rest, with all T steps in '
                'it, and answer the same input by the same spikes; put it at rest at the start of forward'
            )
        if same(answer(x, seed=1), first) and not same(answer(x.flip(1)), first.flip(1)):
            raise ValueError(
                f'lif_layer {name} mixes the samples of a batch: expected x [T, B, ...], with time first, and a sample '
                'that fires the same whoever is beside it'
            )


def _bare(layer: Any) -> Any:
    """The layer in partials."""
    return _bare(layer.func) if isinstance(layer, partial) else layer


def _name_of(layer: Any) -> str:
    if isinstance(layer, str):
        return repr(layer)
    name = neurons.name_of(layer) or neurons.name_of(_bare(layer))
    return repr(name) if name else getattr(_bare(layer), '__name__', str(layer))


def _taken(layer: Any) -> set[str] | None:
    """The names of its arguments; None for any."""
    arguments, takes_all = arguments_of(_bare(layer))
    return None if takes_all else set(arguments)
