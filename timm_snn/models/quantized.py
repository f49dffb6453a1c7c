"""A network of whole numbers, which answers the same to the bit wherever it runs: what `timm_snn.quantize` returns."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..files import check_regular_file, printable
from ..layers import ConvBn, ConvBnLif, DualSpikeSelfAttention, RepConv
from ..layers.fixed import (
    FIXED_ATTENTIONS,
    FixedConv,
    FixedConvBnLif,
    FixedCurrents,
    FixedLevels,
    FixedLIF,
    FixedMaxPool,
    FixedMean,
    FixedRepConv,
)
from ..ops.fixed import LIMIT, MAX_SUM, MULTIPLIER_BITS
from .pretrained import FILENAME, save_for_hf

__all__ = ['Quantization', 'QuantizedModel', 'load_quantized']

_VERSION = 1  # of the entry `quantization` in config.json
_SAVED = ('fraction_bits', 'convolutions', 'neurons', 'shortcuts', 'mean')  # of a Quantization, in that entry


@dataclass
class Quantization:
    """Settings of layers by name, for `config.json`, and the tensors of their state dict."""

    fraction_bits: int = 0
    convolutions: dict[str, dict[str, Any]] = field(default_factory=dict)
    neurons: dict[str, dict[str, Any]] = field(default_factory=dict)
    shortcuts: dict[str, int] = field(default_factory=dict)  # the current that a spike adds
    mean: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)


class QuantizedModel(nn.Module):
    """What `timm_snn.quantize` returns: a network of whole numbers, for inference.

    It has the structure of the model that it was made of, in `network`, whose parameters are whole numbers: they have
    no gradient, and a conversion to another floating-point type changes nothing.

    Shape: images [B, C, H, W] or frames [B, T, C, H, W] -> logits float32 [B, num_classes].
    """

    def __init__(self, network: Any, quantization: Quantization) -> None:
        super().__init__()
        self.network = _fixed(network, quantization)
        self.quantization = quantization
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        steps = self.forward_steps(x).double()
        return (steps.sum(1) / steps.shape[1]).float()

    def forward_steps(self, x: Tensor) -> Tensor:
        """Logits of every time step [B, T, num_classes], whose mean over T is what `forward` returns."""
        currents = self.network.forward_steps(x)
        return (currents.double() * 2.0**-self.quantization.fraction_bits).float()

    def train(self, mode: bool = True) -> 'QuantizedModel':
        """Raises ValueError for mode=True: whole numbers have no gradient."""
        if mode:
            raise ValueError(
                'a quantised model cannot be trained, its weights are whole numbers: train the model that it was made '
                'of, and quantise that again'
            )
        return super().train(False)

    @property
    def num_steps(self) -> int:
        """T, which may be assigned as that of the model."""
        return self.network.num_steps

    @num_steps.setter
    def num_steps(self, num_steps: int) -> None:
        self.network.num_steps = num_steps

    @property
    def num_classes(self) -> int:
        return self.network.num_classes

    @property
    def num_features(self) -> int:
        return self.network.num_features

    @property
    def in_chans(self) -> int:
        return self.network.in_chans

    @property
    def takes_events(self) -> bool:
        return self.network.takes_events

    @property
    def chunk_steps(self) -> int:
        return self.network.chunk_steps

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        return self.network.pretrained_cfg

    @property
    def default_cfg(self) -> dict[str, Any]:
        return self.network.pretrained_cfg

    @property
    def _model_args(self) -> dict[str, Any]:
        return self.network._model_args

    def save(self, folder: str | Path) -> None:
        """model.safetensors and config.json, for `load_quantized`."""
        settings = {name: getattr(self.quantization, name) for name in _SAVED}
        save_for_hf(self, folder, model_config={'quantization': {'version': _VERSION, **settings}})


def load_quantized(folder: str | Path) -> QuantizedModel:
    """What `QuantizedModel.save` wrote, without calibration data.

    Raises: ValueError for a folder that holds another kind of model, or settings or tensors that do not fit; OSError if
    a file is missing.
    """
    folder = Path(folder)
    config_file, weights_file = folder / 'config.json', folder / FILENAME
    check_regular_file(config_file)
    check_regular_file(weights_file)
    settings = json.loads(config_file.read_text(encoding='utf-8')).get('quantization')
    if settings is None:
        raise ValueError(f'{printable(str(config_file))} has no entry `quantization`: it is not a quantised model')
    quantization = _read_settings(settings, printable(str(config_file)))
    network = timm.create_model(f'local-dir:{folder}', pretrained=False)
    try:
        model = QuantizedModel(network, quantization)
        model.load_state_dict(load_file(weights_file))
    except (AttributeError, KeyError, TypeError, RuntimeError) as error:
        reason = printable(' '.join(str(error).split()), 400)
        raise ValueError(f'{printable(str(folder))} does not hold a quantised model of its config: {reason}') from error
    _check_ranges(model, printable(str(folder)))
    return model


def _check_ranges(model: nn.Module, where: str) -> None:
    """Raises ValueError for numbers that the kernels of `timm_snn.ops.fixed` do not take."""
    for name, module in model.named_modules():
        if isinstance(module, FixedConv):
            limit = module.input_limit if module.takes != 'spikes' else 1
            sums = module.weight.to(torch.int64).abs().flatten(1).sum(1).max() * limit
            fits = 1 <= module.shift <= 46 and 0 <= module.input_limit < 2**15 and sums.item() < MAX_SUM
            fits = fits and 0 <= module.multiplier.min().item() <= module.multiplier.max().item() < 2**MULTIPLIER_BITS
            numbers = module.bias
        elif isinstance(module, (FixedLIF, FixedLevels)):
            numbers = module.threshold if isinstance(module, FixedLIF) else module.thresholds
            fits = not isinstance(module, FixedLIF) or abs(module.neuron.v_rest) <= LIMIT
        else:
            continue
        if not fits or numbers.to(torch.int64).abs().max() > LIMIT:
            raise ValueError(f'{where} has numbers in {name} that are out of range: quantise the model again')


def _read_settings(settings: Mapping[str, Any], where: str) -> Quantization:
    if settings.get('version') != _VERSION:
        raise ValueError(
            f'{where} has a quantization of version {settings.get("version")!r}, expected {_VERSION}: update timm-snn'
        )
    try:
        return Quantization(**{name: settings[name] for name in _SAVED})
    except KeyError as error:
        raise ValueError(f'{where} has a quantization without {error}') from error


def _fixed(network: Any, made: Quantization) -> Any:
    """The network with layers of whole numbers in the place of its own; they hold zeros. It is changed in place."""
    for module in list(network.modules()):
        if isinstance(module, RepConv):
            module.__class__ = FixedRepConv
            module.bn1, module.bn2 = nn.Identity(), nn.Identity()
            module.dw.padding = (1, 1)
        elif type(module) in FIXED_ATTENTIONS:
            if isinstance(module, DualSpikeSelfAttention):
                del module.lif_rate, module.attn_rate
            module.__class__ = FIXED_ATTENTIONS[type(module)]
            module.scale = 1
        elif isinstance(module, ConvBn):
            module.bn = nn.Identity()  # type: ignore[assignment]
            if isinstance(module.pool, nn.MaxPool2d):
                module.pool = FixedMaxPool()  # type: ignore[assignment]
            if isinstance(module, ConvBnLif):
                module.__class__ = FixedConvBnLif
    for name, settings in made.convolutions.items():
        network.set_submodule(name, FixedConv(network.get_submodule(name), **settings))
    for name, settings in made.neurons.items():
        kind = FixedLevels if 'levels' in settings else FixedLIF
        network.set_submodule(name, kind.from_settings(settings))
    for name, current in made.shortcuts.items():
        network.set_submodule(name, FixedCurrents(current))
    network.head.global_pool = FixedMean(**made.mean)
    return network
