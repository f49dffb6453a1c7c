"""Integer inference: the whole numbers that stand for a trained network's weights and thresholds.

Three looks at the network give them. A pass in which every neuron fires tells, of every tensor, whether it is spikes or
currents and how large it can get. Passes over calibration data tell which inputs a weight meets, and how large currents
are. Then the numbers are chosen, layer by layer, in float64.
"""

import copy
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import (
    ConvBn,
    DualSpikeSelfAttention,
    IntegerNeuron,
    ParametricLIF,
    RepConv,
    RunningFiringRate,
    SoftmaxAttention,
)
from ..layers.conv import DilatedMaxPool
from ..layers.fixed import FIXED_ATTENTIONS
from ..layers.neuron import FUSED
from ..ops.fixed import LIMIT, MAX_SUM, MULTIPLIER_BITS
from ..wrappers import unwrapped
from .base import SpikingTransformer
from .fuse import CONVOLUTIONS, NORMS, fuse
from .quantized import Quantization, QuantizedModel
from .spiking_resnet import SpikingResNetBlock
from .streaming import is_neuron

__all__ = ['quantize', 'why_not_quantized']

_METHODS = ('max', 'percentile', 'mse')

MAX_FRACTION_BITS = 16  # of currents: more would not change a spike
MIN_FRACTION_BITS = 8
COUNT_BITS = 8  # of a membrane that counts drive: it halves its distance to them so often before it is rounded
_MAX_COUNT = 255  # of spikes in an element of a tensor
_SHARE_OF_RANGE = torch.linspace(0.3, 1.0, 57, dtype=torch.float64).tolist()  # that 'mse' tries
_SAMPLE = 4096  # numbers that are kept of each batch that a layer sees
# What a spike is in the pass in which all neurons fire: no sum of real numbers is a whole multiple of it by chance.
_SYMBOLS = (0.7390851332151607, 0.5671432904097838)
_UNLIKE = 0.8346268416740732  # what makes a mean of spikes no multiple of them

_CONVOLUTIONS = (*CONVOLUTIONS, nn.Linear)
_NEURONS = (*FUSED, IntegerNeuron)


def quantize(
    model: nn.Module,
    calibration_data: Any,
    *,
    method: str = 'max',
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
        method: How ranges are chosen: 'max' keeps all of a channel's weights, 'percentile' cuts one in a thousand off,
            'mse' keeps the error of what weights make of their inputs least.
        num_samples: As many of the calibration data are used.
        correct_bias: Whether biases make up for what rounded weights change in the mean.
        round_tau: Whether a tau that is no power of two becomes the nearest; else it is refused.

    Raises: ValueError for layers without a form in whole numbers, each by its name with the reason.
    """
    model = unwrapped(model)
    if method not in _METHODS:
        raise ValueError(f'expected a method of {_METHODS}, got {method!r}')
    if reasons := why_not_quantized(model, round_tau):
        listed = '; '.join(f'{name or "the model"}: {reason}' for name, reason in list(reasons.items())[:5])
        more = f'; and {len(reasons) - 5} layers more' if len(reasons) > 5 else ''
        raise ValueError(f'cannot quantise this {type(model).__name__}: {listed}{more}')
    parameter = next(model.parameters())
    batches = _batches_of(calibration_data, num_samples, parameter.device, parameter.dtype)
    quantization = _calibrate(model, batches, method, correct_bias)
    network = copy.deepcopy(model).requires_grad_(False)
    quantized = QuantizedModel(network, quantization)
    quantized.load_state_dict({f'network.{name}': tensor for name, tensor in quantization.tensors.items()})
    return quantized.to(parameter.device)


def why_not_quantized(model: nn.Module, round_tau: bool = False) -> dict[str, str]:
    """For each layer that has no form in whole numbers, by name, the reason; '' is the model itself."""
    if not isinstance(model, SpikingTransformer):
        return {'': f'a {type(model).__name__} is not one of the spiking families of timm_snn'}
    reasons = {}
    if model.num_classes == 0:
        reasons[''] = 'it has no classifier, and features are not whole numbers of spikes'
    elif model.head.global_pool.pool_type != 'avg':
        reasons['head.global_pool'] = f"its pooling is {model.head.global_pool.pool_type!r}, expected 'avg'"
    for name, module in model.named_modules():
        if reason := _why_not(name, module, round_tau):
            reasons[name] = reason
    return reasons


def _why_not(name: str, module: Any, round_tau: bool) -> str | None:
    kind = type(module).__name__
    if is_neuron(name, module):
        if type(module) not in _NEURONS:
            return f'{kind} is a neuron without a form in whole numbers: LIF, IF and integer neurons have one'
        return None if isinstance(module, IntegerNeuron) else _why_not_tau(module, round_tau)
    if isinstance(module, SoftmaxAttention):
        return 'a softmax is not made of whole numbers: use an attention of spikes'
    if isinstance(module, RunningFiringRate):
        return (
            None if module.running.all() else 'it has not learned the firing rate of every head: train the model first'
        )
    if isinstance(module, DualSpikeSelfAttention) and module.num_patches is None:
        return 'its scale depends on the size of the input: make it with num_patches'
    if not type(module).__module__.startswith(('timm_snn.', 'torch.', 'timm.')):
        return f'it is a {type(module).__module__}.{kind}, of which quantize does not know what it computes'
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        dilated = set(module.dilation) != {1} or getattr(module, 'border', 0) > 0
        if type(module) not in _CONVOLUTIONS or module.padding_mode != 'zeros' or dilated:
            return 'a convolution of another class, padding mode or dilation has no kernel of whole numbers'
    elif isinstance(module, ConvBn):
        if isinstance(module.pool, nn.MaxPool1d):
            return 'pooling of tokens has no kernel of whole numbers'
        if isinstance(module.pool, DilatedMaxPool):
            return 'dilated pooling has no kernel of whole numbers: make the model without output_stride'
    elif any(True for _ in module.parameters(recurse=False)) and not isinstance(module, (*_CONVOLUTIONS, *NORMS)):
        return f'{kind} has parameters, and no form in whole numbers'
    return None


def _why_not_tau(lif: Any, round_tau: bool) -> str | None:
    taus = _taus(lif)
    if taus.numel() > 1 and taus.unique().numel() > 1:
        return 'its channels differ in tau, and a neuron in whole numbers has one shift for all'
    tau = taus.flatten()[0].item()
    if tau == math.inf or math.frexp(tau)[0] == 0.5 or round_tau:
        return None
    learned = ' (learned)' if isinstance(lif, ParametricLIF) else ''
    return (
        f'its tau is {tau:.4g}{learned}, and a shift divides by 1, 2, 4, ... alone: round_tau=True takes the nearest, '
        'train with such a tau otherwise'
    )


def _taus(lif: Any) -> Tensor:
    return lif.learned_tau().detach().double() if isinstance(lif, ParametricLIF) else torch.tensor(lif.tau).double()


@dataclass
class _Flow:
    """What goes into a layer: spikes, each worth so much and at most so many in an element, or real numbers."""

    worth: float | None  # None for real numbers
    most: int = 0


def _trace(model: Any, image: Tensor) -> dict[str, _Flow]:
    """What goes into every convolution, neuron and the pooling, from a pass in which all neurons fire as they can.

    A sum of spikes is largest then. Spikes are given an odd worth in this pass, by which their sums and products are
    told from real numbers.
    """
    kinds = sorted({_worth_and_count(m) for m in model.modules() if isinstance(m, _NEURONS)})
    symbols = dict(zip(kinds, _SYMBOLS, strict=False))
    flows: dict[str, _Flow] = {}

    def note(name: str, x: Tensor) -> None:
        flow = _flow_of(x, symbols)
        if flows.setdefault(name, flow) != flow:
            raise ValueError(f'cannot quantise {name}: it runs twice in a pass, on different kinds of input')
        if flow.most > _MAX_COUNT and not isinstance(model.get_submodule(name), _NEURONS):
            raise ValueError(
                f'cannot quantise {name}: its input can be a sum of {flow.most} spikes, and a byte holds {_MAX_COUNT}'
            )

    with _Hooks() as hooks:
        for name, module in model.named_modules():
            if (
                isinstance(module, (*_CONVOLUTIONS, *_NEURONS))
                or name == 'head.global_pool'
                or _adds_to_currents(model, name)
            ):
                hooks.before(module, lambda x, name=name: note(name, x))
            if isinstance(module, _NEURONS):
                symbol = symbols[_worth_and_count(module)]
                hooks.after(module, lambda y, symbol=symbol: torch.full_like(y, symbol))
            if name == 'head.global_pool':
                hooks.after(module, lambda y: y * _UNLIKE)
            if isinstance(module, RunningFiringRate):
                hooks.after(module, torch.ones_like)
        model.forward_steps(image)
    return flows


def _adds_to_currents(model: Any, name: str) -> bool:
    """Whether this is a shortcut around convolutions alone, in a block whose sum fires."""
    block, _, place = name.rpartition('.')
    return (
        place == 'shortcut'
        and isinstance(model.get_submodule(block), SpikingResNetBlock)
        and isinstance(model.get_submodule(name), nn.Identity)
    )


def _flow_of(x: Tensor, symbols: Mapping[tuple[float, int], float]) -> _Flow:
    for (worth, count), symbol in symbols.items():
        for degree in (1, 2, 3):  # products of two in masks, of three in self-attention
            number = x / symbol**degree
            if (number - number.round()).abs().max() < 1e-6 and number.min() >= 0 and number.max() > 0.5:
                return _Flow(worth**degree, round(number.max().item()) * count**degree)
    return _Flow(None)


def _worth_and_count(neuron: Any) -> tuple[float, int]:
    """What one of its spikes is worth, and how many it fires at most in a step."""
    if not isinstance(neuron, IntegerNeuron):
        return 1.0, 1
    return (1 / neuron.levels if neuron.normalize else 1.0), neuron.levels


class _Hooks:
    """Hooks that are gone at the end of the block."""

    def __init__(self) -> None:
        self._handles: list[Any] = []

    def __enter__(self) -> '_Hooks':
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in self._handles:
            handle.remove()

    def before(self, module: nn.Module, see: Any) -> None:
        self._handles.append(module.register_forward_pre_hook(lambda _, args: see(args[0])))

    def after(self, module: nn.Module, replace: Any) -> None:
        self._handles.append(module.register_forward_hook(lambda _, args, y: replace(y)))


class _Seen:
    """The inputs of a convolution over calibration data: mean and mean square by channel, and a sample of values."""

    def __init__(self) -> None:
        self.count = 0
        self.total: Any = 0.0
        self.squares: Any = 0.0
        self.largest = 0.0
        self._sample: list[Tensor] = []

    def add(self, x: Tensor) -> None:
        rows = x.detach().movedim(1, -1).reshape(-1, x.shape[1]).double()
        self.count += len(rows)
        self.total = self.total + rows.sum(0)
        self.squares = self.squares + rows.square().sum(0)
        values = rows.abs().flatten()
        self.largest = max(self.largest, values.max().item())
        self._sample.append(values[:: max(1, len(values) // _SAMPLE)])

    @property
    def mean(self) -> Tensor:
        return self.total / self.count

    @property
    def mean_square(self) -> Tensor:
        return self.squares / self.count

    @property
    def sample(self) -> Tensor:
        return torch.cat(self._sample)


def _observe(model: Any, batches: Iterable[Tensor], names: Iterable[str]) -> dict[str, _Seen]:
    seen = {name: _Seen() for name in names}
    with _Hooks() as hooks:
        for name, module in model.named_modules():
            if name in seen:
                hooks.before(module, seen[name].add)
        for batch in batches:
            model.forward_steps(batch)
    return seen


@torch.no_grad()
def _calibrate(model: Any, batches: Iterable[Tensor], method: str, correct_bias: bool) -> Quantization:
    """The numbers of a quantised network that does what this model does, which is left as it is.

    Raises: ValueError for a model without such numbers, by the name of the layer.
    """
    batches = iter(batches)
    first = next(batches, None)
    if first is None:
        raise ValueError('quantize needs calibration data: got no batch')
    exact: Any = fuse(copy.deepcopy(model).double())
    for name, module in exact.named_modules():
        if isinstance(module, ConvBn) and not isinstance(module.bn, nn.Identity):
            raise ValueError(
                f'cannot quantise {name}.bn: a {type(module.bn).__name__} does not fold into a convolution'
            )
        if isinstance(module, RepConv):
            _move_bias(module)
    used = copy.deepcopy(exact).to(first.dtype)
    for module in exact.modules():
        if type(module) in FIXED_ATTENTIONS and hasattr(module, 'scale'):
            module.scale = 1.0  # which goes into the threshold behind it
    flows = _trace(exact, first[:1].double())
    convolutions = [name for name in flows if isinstance(exact.get_submodule(name), _CONVOLUTIONS)]
    seen = _observe(used, itertools.chain([first], batches), convolutions)
    made = Quantization(_fraction_bits(exact, convolutions, flows, seen))
    for i, name in enumerate(convolutions):
        _quantise_convolution(
            made, name, exact.get_submodule(name), flows[name], seen[name], i == 0, method, correct_bias
        )
    factors = _drive_factors(used)
    for name, flow in flows.items():
        neuron = exact.get_submodule(name)
        if isinstance(neuron, _NEURONS):
            _quantise_neuron(made, name, neuron, flow, factors.get(name, torch.tensor(1.0)))
    for name, flow in flows.items():
        if flow.worth is not None and _adds_to_currents(exact, name):
            made.shortcuts[name] = round(flow.worth * 2**made.fraction_bits)
    pooled = flows['head.global_pool']
    made.mean = dict(worth=1.0 if pooled.worth is None else pooled.worth, fraction_bits=made.fraction_bits)
    return made


def _move_bias(conv: Any) -> None:
    """The bias of RepConv's first convolution into that of its last: it is the border's value, so every tap sees it."""
    taps = conv.dw.weight.sum((1, 2, 3))
    conv.pw2.bias += conv.pw2.weight.flatten(1) @ (taps * conv.pw1.bias)
    conv.pw1.bias.zero_()


def _fraction_bits(
    exact: Any, convolutions: Iterable[str], flows: Mapping[str, _Flow], seen: Mapping[str, _Seen]
) -> int:
    """As many as leave room for the sum of all currents that the layers can make, which no stream exceeds."""
    bound = 1.0
    for name in convolutions:
        conv, flow = exact.get_submodule(name), flows[name]
        largest = 2 * seen[name].largest if flow.worth is None else flow.worth * flow.most
        weights = conv.weight.abs().flatten(1).sum(1) * largest
        bound += (weights + (0.0 if conv.bias is None else conv.bias.abs())).max().item()
    bits = min(MAX_FRACTION_BITS, math.floor(math.log2(LIMIT / bound)))
    if bits < MIN_FRACTION_BITS:
        raise ValueError(
            f'cannot quantise this {type(exact).__name__}: its currents can add up to {bound:.3g} thresholds or so, '
            'which leaves too few of 32 bits for their fractions'
        )
    return bits


def _quantise_convolution(
    made: Quantization, name: str, conv: Any, flow: _Flow, seen: _Seen, is_first: bool, method: str, correct_bias: bool
) -> None:
    weight = conv.weight  # [O, C / groups, ...]
    energy = _by_input(seen.mean_square, conv)
    scale = _weight_scale(weight, energy, method)
    by = [-1, *[1] * (weight.ndim - 1)]
    whole = (weight / scale.view(by)).round().clamp(-127, 127)
    magnitude = max(1.0, whole.abs().flatten(1).sum(1).max().item())
    limit = min(2**15 - 1, int((MAX_SUM - 1) // magnitude))
    one = 2.0**made.fraction_bits
    settings: dict[str, Any] = {}
    if flow.worth is not None:
        if flow.most > limit:
            raise ValueError(
                f'cannot quantise {name}: its sums can reach 2^24; its input holds up to {flow.most} spikes'
            )
        settings['takes'], unit = 'spikes', flow.worth
    elif is_first:
        shift = max(-16, min(15, math.floor(math.log2(limit / max(seen.largest, 1e-6)))))
        settings.update(takes='image', input_shift=shift, input_limit=limit)
        unit = 2.0**-shift
    else:
        shift = _input_shift(seen.sample * one, limit, method)
        settings.update(takes='currents', input_shift=shift, input_limit=limit)
        unit = 2.0**shift / one
    ratio = scale * unit * one
    settings['shift'] = max(1, min(46, MULTIPLIER_BITS - 1 - math.floor(math.log2(ratio.max().item()))))
    multiplier = (ratio * 2.0 ** settings['shift']).round().clamp(max=2**MULTIPLIER_BITS - 1)
    bias = torch.zeros(len(weight)).double() if conv.bias is None else conv.bias
    if correct_bias:
        lost = (weight - whole * scale.view(by)).reshape(*weight.shape[:2], -1).sum(2)
        bias = bias + (lost * _by_input(seen.mean, conv).flatten(1)).sum(1)
    made.convolutions[name] = settings
    shape = (*weight.shape[:2], *[1] * (4 - weight.ndim), *weight.shape[2:])
    made.tensors[f'{name}.weight'] = whole.reshape(shape).to(torch.int8)
    made.tensors[f'{name}.multiplier'] = multiplier.to(torch.int32)
    made.tensors[f'{name}.bias'] = (bias * one).round().to(torch.int32)


def _by_input(by_channel: Tensor, conv: Any) -> Tensor:
    """Numbers of the input channels [C], for the weights that they meet: [1 or O, C / groups, 1, ...]."""
    groups = getattr(conv, 'groups', 1)
    rows = by_channel.view(groups, -1).repeat_interleave(conv.weight.shape[0] // groups, 0)
    return rows.view(*rows.shape, *[1] * (conv.weight.ndim - 2))


def _weight_scale(weight: Tensor, energy: Tensor, method: str) -> Tensor:
    """The step between two weights, by output channel [O]; 127 steps reach the largest that is kept."""
    rows = weight.flatten(1)
    largest = rows.abs().amax(1)
    if method == 'percentile':
        largest = torch.minimum(largest, rows.abs().quantile(0.999, 1))
    full = torch.where(largest > 0, largest, 1.0) / 127
    if method != 'mse':
        return full
    energy = (energy + 1e-3 * energy.mean() + 1e-12).expand_as(weight).flatten(1)
    best, error = full, torch.full_like(full, math.inf)
    for share in _SHARE_OF_RANGE:
        scale = (full * share).unsqueeze(1)
        rounded = (rows / scale).round().clamp(-127, 127) * scale
        missed = ((rows - rounded).square() * energy).sum(1)
        best, error = torch.where(missed < error, full * share, best), torch.minimum(missed, error)
    return best


def _input_shift(values: Tensor, limit: int, method: str) -> int:
    """How many low bits of currents a convolution does without; `values` are magnitudes in fixed point."""
    largest = values.quantile(0.9999).item() if method == 'percentile' else values.max().item()
    shift = max(0, math.ceil(math.log2(max(largest, 1.0) / limit)))
    if method != 'mse':
        return shift
    candidates = range(max(0, shift - 4), shift + 1)
    return min(
        candidates, key=lambda s: ((values / 2**s).round().clamp(max=limit) * 2**s - values).square().sum().item()
    )


def _drive_factors(model: Any) -> dict[str, Tensor]:
    """By the name of a neuron, what attention multiplies with that is not whole: () or one for each head."""
    factors = {}
    for name, module in model.named_modules():
        if isinstance(module, DualSpikeSelfAttention):
            assert module.num_patches is not None  # or `why_not_quantized` has refused it
            for neuron, rate, length in (
                ('attn_lif', module.lif_rate, module.head_dim),
                ('out_lif', module.attn_rate, module.num_patches),
            ):
                factors[f'{name}.{neuron}'] = (rate.running.double() * length).rsqrt()
        elif type(module) in FIXED_ATTENTIONS:
            factors[f'{name}.attn_lif'] = torch.tensor(module.scale).double()
    return factors


def _quantise_neuron(made: Quantization, name: str, neuron: Any, flow: _Flow, factor: Tensor) -> None:
    """Thresholds in units of the membrane, which are those of currents, or of counts with some bits of fraction."""
    count_bits = None if flow.worth is None else COUNT_BITS
    unit = (2.0**made.fraction_bits if flow.worth is None else 2.0**COUNT_BITS / flow.worth) / factor
    if isinstance(neuron, IntegerNeuron):
        steps = (torch.arange(neuron.levels, dtype=torch.float64) + 0.5) * neuron.v_threshold
        thresholds = (steps * unit.unsqueeze(-1) if unit.ndim else steps * unit).ceil()
        made.tensors[f'{name}.thresholds'] = _whole(thresholds)
        made.neurons[name] = dict(levels=list(thresholds.shape), count_bits=count_bits)
        return
    rest = neuron.neuron.v_rest
    above = torch.tensor(neuron.v_threshold - rest).double()
    if neuron.log_threshold is not None:
        above = above * neuron.log_threshold.double().exp()
    tau = _taus(neuron).flatten()[0].item()
    reset = None if neuron.v_reset is None else _whole(rest * unit)
    if reset is not None and reset.numel() > 1 and reset.unique().numel() > 1:
        raise ValueError(f'cannot quantise {name}: its heads differ in scale, and so would the value of their reset')
    threshold = _whole((rest + above) * unit)
    made.tensors[f'{name}.threshold'] = threshold
    made.neurons[name] = dict(
        leak_shift=None if tau == math.inf else max(0, round(math.log2(tau))),
        v_reset=None if reset is None else int(reset.flatten()[0]),
        decay_input=neuron.decay_input,
        count_bits=count_bits,
        channels=list(threshold.shape),
    )


def _whole(x: Tensor) -> Tensor:
    return x.round().clamp(-LIMIT, LIMIT).to(torch.int32)


def _batches_of(data: Any, most: int, device: torch.device, dtype: torch.dtype) -> Iterator[Tensor]:
    """Batches of images or frames from a tensor, or from what yields tensors or (tensor, target, ...), up to so many.

    Raises: ValueError for another kind of batch.
    """
    if isinstance(data, Tensor):
        data = data.split(32)
    count = 0
    for batch in data:
        images = batch[0] if isinstance(batch, (tuple, list)) else batch
        if not isinstance(images, Tensor) or images.ndim not in (4, 5):
            raise ValueError(
                'calibration data is a tensor of images [N, C, H, W] or frames [N, T, C, H, W], or a loader of batches '
                f'of such, with or without targets: got a batch of {type(images).__name__}'
            )
        images = images[: most - count].to(device, dtype)
        count += len(images)
        yield images
        if count >= most:
            return
