"""Integer inference: a trained network in whole numbers, the same to the bit wherever it runs."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.layers import SelectAdaptivePool2d
from torch import Tensor, nn

from ..files import check_regular_file, printable
from ..layers import ConvBn, ConvBnLif, DualSpikeSelfAttention, RepConv
from ..layers.fixed import (
    FIXED_ATTENTIONS,
    FixedConv,
    FixedConvBnLif,
    FixedLevels,
    FixedLIF,
    FixedMaxPool,
    FixedMean,
    FixedRepConv,
)
from ..wrappers import unwrapped
from .calibration import METHODS, Calibrated, batches_of, calibrate, why_not_quantized
from .pretrained import FILENAME, save_for_hf

__all__ = ['QuantizedModel', 'load_quantized', 'quantize']

_VERSION = 1  # of the entry `quantization` in config.json


def quantize(
    model: nn.Module,
    calibration_data: Any,
    *,
    method: str = 'mse',
    num_samples: int = 512,
    correct_bias: bool = True,
    round_tau: bool = False,
) -> 'QuantizedModel':
    """A copy of a trained model that computes with whole numbers: int8 weights, integer spikes, membranes and currents.

        quantized = timm_snn.quantize(model, images)     # a few hundred of the training set, as the model sees them
        logits = quantized(images)
        quantized.save('folder')                         # timm_snn.load_quantized('folder')

    Its answers are the same to the bit on every machine, with any number of threads, batch size and memory format,
    because no number is rounded but where `timm_snn.ops.fixed` says so. Images become whole numbers at the door; from
    there on there is no floating point but where float64 holds whole numbers exactly.

    Batch norms are folded into convolutions as by `timm_snn.fuse`; a multiplier and a bias for each channel make
    fixed-point currents of a convolution's sums. The model itself is left as it is.

    Args:
        model: One of the spiking families, trained. Its tau are powers of two or inf.
        calibration_data: Images [N, C, H, W] or frames [N, T, C, H, W], or batches of such, with or without targets, as
            a data loader gives them.
        method: How ranges are chosen: 'mse' keeps the error of what weights make of their inputs least, 'percentile'
            cuts one in a thousand off, 'max' nothing.
        num_samples: As many of the calibration data are used.
        correct_bias: Whether biases make up for what rounded weights change in the mean.
        round_tau: Whether a tau that is no power of two becomes the nearest; else it is refused.

    Raises: ValueError for layers without a form in whole numbers, each by its name with the reason.
    """
    model = unwrapped(model)
    if method not in METHODS:
        raise ValueError(f'expected a method of {METHODS}, got {method!r}')
    if reasons := why_not_quantized(model, round_tau):
        listed = '; '.join(f'{name or "the model"}: {reason}' for name, reason in list(reasons.items())[:5])
        more = f'; and {len(reasons) - 5} layers more' if len(reasons) > 5 else ''
        raise ValueError(f'cannot quantise this {type(model).__name__}: {listed}{more}')
    parameter = next(model.parameters())
    batches = batches_of(calibration_data, num_samples, parameter.device, parameter.dtype)
    calibrated = calibrate(model, batches, method, correct_bias)
    network = copy.deepcopy(model).requires_grad_(False)
    quantized = QuantizedModel(network, calibrated)
    quantized.load_state_dict({f'network.{name}': tensor for name, tensor in calibrated.tensors.items()})
    return quantized.to(parameter.device)


class QuantizedModel(nn.Module):
    """What `timm_snn.quantize` returns: a network of whole numbers, for inference.

    It has the structure of the model that it was made of, in `network`, whose layers hold integers in buffers. There
    are no parameters, and nothing that a conversion to another floating-point type would change.

    Shape: images [B, C, H, W] or frames [B, T, C, H, W] -> logits float32 [B, num_classes].
    """

    readout_dtype = torch.float64  # of a stream's sum of logits, which is exact in it

    def __init__(self, network: Any, calibrated: Calibrated) -> None:
        super().__init__()
        self.network = _fixed(network, calibrated)
        self._spec = calibrated
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        steps = self.forward_steps(x).double()
        return (steps.sum(1) / steps.shape[1]).float()

    def forward_steps(self, x: Tensor) -> Tensor:
        """Logits of every time step [B, T, num_classes], whose mean over T is what `forward` returns."""
        currents = self.network.forward_steps(x)
        return (currents.double() * 2.0**-self._spec.fraction_bits).float()

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
        spec = self._spec
        quantization = dict(
            version=_VERSION,
            fraction_bits=spec.fraction_bits,
            mean=spec.mean,
            convolutions=spec.convolutions,
            neurons=spec.neurons,
        )
        save_for_hf(self, folder, model_config={'quantization': quantization})


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
    calibrated = _read_settings(settings, printable(str(config_file)))
    network = timm.create_model(f'local-dir:{folder}', pretrained=False)
    model = QuantizedModel(network, calibrated)
    model.load_state_dict(load_file(weights_file))
    return model


def _read_settings(settings: Mapping[str, Any], where: str) -> Calibrated:
    if settings.get('version') != _VERSION:
        raise ValueError(
            f'{where} has a quantization of version {settings.get("version")!r}, expected {_VERSION}: update timm-snn'
        )
    try:
        return Calibrated(
            settings['fraction_bits'], settings['convolutions'], settings['neurons'], settings['mean']
        )
    except KeyError as error:
        raise ValueError(f'{where} has a quantization without {error}') from error


def _fixed(network: Any, made: Calibrated) -> Any:
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
                module.pool = FixedMaxPool()
            if isinstance(module, ConvBnLif):
                module.__class__ = FixedConvBnLif
    for name, settings in made.convolutions.items():
        network.set_submodule(name, FixedConv(network.get_submodule(name), **settings))
    for name, settings in made.neurons.items():
        kind = FixedLevels if 'levels' in settings else FixedLIF
        network.set_submodule(name, kind.from_settings(settings))
    assert isinstance(network.head.global_pool, SelectAdaptivePool2d)
    network.head.global_pool = FixedMean(**made.mean)
    return network
