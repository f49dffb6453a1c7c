"""ONNX files, for ONNX Runtime and all that reads them: every neuron unrolled, metadata in `metadata_props`."""

import ast
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files import check_regular_file
from ..layers.fixed import FixedConv, FixedLevels, FixedLIF, driving
from ..layers.neuron import FUSED
from ..ops import fixed
from ..ops.backends import reference
from ..ops.fixed import LIMIT, FixedNeuron
from ..ops.lif import scaled
from ..ops.neuron import Neuron, by_channel
from .capture import capture
from .metadata import decode, encode

__all__ = ['INSTALL', 'METADATA_BESIDE', 'NEEDS', 'load', 'read_metadata', 'write']

NEEDS, INSTALL = ('onnx', 'onnxscript', 'onnxruntime'), "'timm-snn[export]'"
METADATA_BESIDE = False
INPUT = 'images'


# While a model is traced, a neuron is one operator: T times a dozen of torch's take the exporter minutes, and come out
# as twice as many nodes. Its translation is the equations of `reference.lif`, step by step.
@torch.library.custom_op('timm_snn::unrolled_lif', mutates_args=())
def _unrolled_lif(x: Tensor, tau: Tensor | None, neuron: str) -> Tensor:
    return reference.lif(x, None, tau, Neuron.from_key(neuron), False)[0]


@_unrolled_lif.register_fake
def _(x, tau, neuron):
    return torch.empty_like(x)


class _UnrolledLif(nn.Module):
    """Stands for a neuron while the model is traced."""

    def __init__(self, neuron: Any) -> None:
        super().__init__()
        self.lif = neuron

    def forward(self, x: Tensor) -> Tensor:
        learned = self.lif.learned().of(x)
        return _unrolled_lif(scaled(x, learned), learned.tau, self.lif.neuron.key)


# The same of a quantised neuron. Its spikes are int64, since ONNX Runtime adds no bytes.
@torch.library.custom_op('timm_snn::unrolled_fixed_lif', mutates_args=())
def _unrolled_fixed_lif(
    x: Tensor, threshold: Tensor, leak_shift: int | None, v_reset: int | None, decay_input: bool
) -> Tensor:
    neuron = FixedNeuron(leak_shift, v_reset, decay_input)
    return fixed.fixed_lif(x, None, threshold, neuron)[0].to(torch.int64)


@_unrolled_fixed_lif.register_fake
def _(x, threshold, leak_shift, v_reset, decay_input):
    return torch.empty_like(x, dtype=torch.int64)


class _UnrolledFixedLif(nn.Module):
    """Stands for a quantised neuron while the model is traced."""

    def __init__(self, lif: FixedLIF) -> None:
        super().__init__()
        self.lif = lif

    def forward(self, x: Tensor) -> Tensor:
        neuron = self.lif.neuron
        x = driving(x, self.lif.count_bits)
        return _unrolled_fixed_lif(x, self.lif.threshold, neuron.leak_shift, neuron.v_reset, neuron.decay_input)


class _UnrolledLevels(nn.Module):
    """Stands for a quantised integer neuron while the model is traced."""

    def __init__(self, levels: FixedLevels) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, x: Tensor) -> Tensor:
        x = driving(x, self.levels.count_bits).to(torch.int64)
        thresholds = self.levels.thresholds.to(torch.int64).unbind(-1)
        return sum((x >= by_channel(threshold, x.ndim - 1)).to(torch.int64) for threshold in thresholds)  # type: ignore[return-value]  # one at least


_UNROLLED = {**dict.fromkeys(FUSED, _UnrolledLif), FixedLIF: _UnrolledFixedLif, FixedLevels: _UnrolledLevels}


def write(model: nn.Module, example: Tensor, names: list[str], metadata: dict[str, Any], file: Path) -> None:
    """Write the ONNX file of a prepared model, which is changed."""
    for name, module in list(model.named_modules()):
        if type(module) in _UNROLLED and name:
            model.set_submodule(name, _UNROLLED[type(module)](module))
    ours = torch.ops.timm_snn
    translations: dict[Any, Callable[..., Any]] = {
        ours.unrolled_lif.default: _translate_lif,
        ours.unrolled_fixed_lif.default: _translate_fixed_lif,
    }
    program = capture(model, example, known=tuple(translations))
    if any(isinstance(module, FixedConv) for module in model.modules()):
        translations[torch.ops.aten.conv2d.default] = _translate_conv_of_whole_numbers
        translations[torch.ops.aten.__rshift__.Scalar] = _translate_right_shift
        translations[torch.ops.aten.__lshift__.Scalar] = _translate_left_shift
    elif example.dtype == torch.float64:
        translations[torch.ops.aten.conv2d.default] = _translate_conv_of_doubles
    try:
        exported: Any = torch.onnx.export(
            program,
            (),
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=names,
            custom_translation_table=translations,
        )
    except torch.onnx.errors.OnnxExporterError as error:
        missing = re.search(r'No ONNX function found for .*?>', str(error.__cause__ or error))
        raise ValueError(
            f"torch's ONNX exporter cannot translate this model: {missing[0] if missing else error}"
        ) from error
    _tidy(exported.model, names, metadata)
    exported.save(file, external_data=False)


def load(file: Path, num_threads: int = 0) -> Callable[[Tensor], list[Tensor]]:
    """The file in ONNX Runtime, on the CPU; 0 threads are as many as there are cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    session = onnxruntime.InferenceSession(str(file), options, providers=['CPUExecutionProvider'])
    return lambda x: [torch.from_numpy(y) for y in session.run(None, {INPUT: x.numpy()})]


def read_metadata(file: Path) -> dict[str, Any]:
    import onnx

    check_regular_file(file)
    return decode({prop.key: prop.value for prop in onnx.load(file, load_external_data=False).metadata_props}, file)


def _tidy(model: Any, outputs: list[str], metadata: dict[str, Any]) -> None:
    """Name nodes, the spikes of neurons and the batch; drop what only says how the file came to be.

    That would double a small file, and has the folders of the machine that wrote it.
    """
    import onnx_ir

    seen: Counter[str] = Counter()
    for node in model.graph:
        scope = _scope(node.metadata_props.get('pkg.torch.onnx.name_scopes', ''))
        node.name = _unique(f'{scope or "model"}/{node.op_type}', seen)
        for value in node.outputs:
            if value.name.startswith('unrolled_lif') and value.name not in outputs:
                value.name = _unique(scope, seen)
            value.metadata_props.clear()
        node.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.metadata_props.clear()
    for value in model.graph.initializers.values():
        value.metadata_props.clear()
    batch = model.graph.inputs[0].shape[0].value
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    for value in values:
        sizes = [getattr(size, 'value', size) for size in value.shape or ()]
        if batch in sizes:
            value.shape = onnx_ir.Shape(['batch' if size == batch else size for size in sizes])
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
    model.metadata_props.update(encode(metadata))


def _scope(text: str) -> str:
    """The module of a node, by name: the last scope is the node itself."""
    scopes = ast.literal_eval(text) if text else []
    return scopes[-2] if len(scopes) > 1 else ''


def _unique(name: str, seen: Counter[str]) -> str:
    seen[name] += 1
    return name if seen[name] == 1 else f'{name}_{seen[name]}'


def _translate_lif(x: Any, tau: Any, neuron: str) -> Any:
    """`reference.lif` in ONNX; x [T, B, ...], tau () or [C] or None."""
    import onnx_ir
    from onnxscript import opset20 as op

    settings = Neuron.from_key(neuron)
    dtype = x.dtype
    is_half = dtype in (onnx_ir.DataType.FLOAT16, onnx_ir.DataType.BFLOAT16)
    membrane = onnx_ir.DataType.FLOAT if is_half else dtype

    def constant(number: float) -> Any:
        return op.Constant(value=onnx_ir.tensor(number, dtype=membrane))

    current = op.Cast(x, to=membrane) if is_half else x
    rest, threshold = constant(settings.v_rest), constant(settings.v_threshold)
    if tau is not None and len(tau.shape):
        tau = op.Reshape(tau, op.Constant(value_ints=[-1, *[1] * (len(x.shape) - 3)]))

    def over_tau(y: Any) -> Any:
        if tau is not None:
            return op.Div(y, tau)
        number: Any = settings.tau
        return op.Mul(y, constant(1 / number)) if settings.inverse_is_exact else op.Div(y, constant(number))

    def charge(v: Any, x_t: Any) -> Any:
        """h; at rest, v is None."""
        if v is None:
            h = over_tau(x_t) if settings.decay_input else x_t
            return op.Add(rest, h) if settings.v_rest else h
        leak = op.Sub(v, rest) if settings.v_rest else v
        if settings.decay_input:
            return op.Add(v, over_tau(op.Sub(x_t, leak)))
        return op.Add(op.Sub(v, over_tau(leak)), x_t)

    num_steps, v, spikes = x.shape[0], None, []
    for t, x_t in enumerate(_steps(current, num_steps), 1):
        h = charge(v, x_t)
        fires = op.GreaterOrEqual(h, threshold)
        s = op.Where(op.IsNaN(h), h, op.Cast(fires, to=membrane))
        spikes.append(op.Cast(s, to=dtype) if is_half else s)
        if t < num_steps:
            v = op.Sub(h, op.Mul(s, threshold)) if settings.v_reset is None else op.Where(fires, rest, h)
    return _joined(spikes)


def _translate_fixed_lif(x: Any, threshold: Any, leak_shift: Any, v_reset: Any, decay_input: bool) -> Any:
    """`fixed_lif` in ONNX, on float64, which holds all of its numbers exactly; x [T, B, ...], threshold () or [C]."""
    import onnx_ir
    from onnxscript import opset20 as op

    double = onnx_ir.DataType.DOUBLE

    def constant(number: float) -> Any:
        return op.Constant(value=onnx_ir.tensor(float(number), dtype=double))

    rest, low, high = constant(v_reset or 0), constant(-LIMIT), constant(LIMIT)
    current = op.Clip(op.Cast(x, to=double), low, high)
    by_channel = bool(len(threshold.shape))  # which is not known of what Cast makes
    threshold = op.Cast(threshold, to=double)
    if by_channel:
        threshold = op.Unsqueeze(threshold, op.Constant(value_ints=list(range(1, len(x.shape) - 2))))

    def shifted(y: Any) -> Any:
        return op.Floor(op.Mul(y, constant(2.0**-leak_shift))) if leak_shift else y

    v, spikes = rest, []
    for x_t in _steps(current, x.shape[0]):
        if leak_shift is None:
            h = op.Add(v, x_t)
        elif decay_input:
            h = op.Add(v, shifted(op.Sub(x_t, op.Sub(v, rest))))
        else:
            h = op.Add(op.Sub(v, shifted(op.Sub(v, rest))), x_t)
        h = op.Clip(h, low, high)
        fires = op.GreaterOrEqual(h, threshold)
        v = op.Where(fires, op.Sub(h, threshold) if v_reset is None else rest, h)
        spikes.append(op.Cast(fires, to=onnx_ir.DataType.INT64))
    return _joined(spikes)


def _steps(x: Any, num_steps: int) -> Any:
    """[T, B, ...] -> T times [1, B, ...]."""
    from onnxscript import opset20 as op

    return op.Split(x, num_outputs=num_steps, axis=0) if num_steps > 1 else [x]


def _joined(steps: list[Any]) -> Any:
    """The inverse of `_steps`."""
    from onnxscript import opset20 as op

    return op.Concat(*steps, axis=0) if len(steps) > 1 else op.Identity(steps[0])


def _translate_right_shift(x: Any, bits: int) -> Any:
    """A division that rounds down, in float64: ONNX shifts no negative numbers."""
    import onnx_ir
    from onnxscript import opset20 as op

    factor = op.Constant(value=onnx_ir.tensor(2.0**-bits, dtype=onnx_ir.DataType.DOUBLE))
    return op.Cast(op.Floor(op.Mul(op.Cast(x, to=onnx_ir.DataType.DOUBLE), factor)), to=x.dtype)


def _translate_left_shift(x: Any, bits: int) -> Any:
    import onnx_ir
    from onnxscript import opset20 as op

    return op.Mul(x, op.Constant(value=onnx_ir.tensor(1 << bits, dtype=x.dtype)))


def _translate_conv_of_whole_numbers(
    x: Any, weight: Any, bias: Any = None, stride: Any = (1, 1), padding: Any = (0, 0), dilation: Any = (1, 1), groups=1
) -> Any:
    """A convolution of whole numbers in float32, which holds its sums exactly; ONNX Runtime has none of float64."""
    import onnx_ir
    from onnxscript import opset20 as op

    x, weight = (op.Cast(number, to=onnx_ir.DataType.FLOAT) for number in (x, weight))
    y = op.Conv(x, weight, strides=stride, pads=[*padding, *padding], dilations=dilation, group=groups)
    return op.Cast(y, to=onnx_ir.DataType.DOUBLE)


def _translate_conv_of_doubles(
    x: Any, weight: Any, bias: Any = None, stride: Any = (1, 1), padding: Any = (0, 0), dilation: Any = (1, 1), groups=1
) -> Any:
    """A convolution as one matrix product of its windows: ONNX Runtime has none of float64."""
    import onnx_ir
    from onnxscript import opset20 as op

    def ints(*numbers: int) -> Any:
        return op.Constant(value_ints=list(numbers))

    outs, ins, *kernel = weight.shape
    height, width = (n + 2 * p for n, p in zip(x.shape[2:], padding, strict=True))
    geometry = zip((height, width), dilation, kernel, stride, strict=True)
    size = [(n - d * (k - 1) - 1) // s + 1 for n, d, k, s in geometry]
    # of each tap and each output, where its input is in a padded map as one row
    rows, columns = (
        d * torch.arange(k).view(-1, 1) + s * torch.arange(n)
        for k, n, d, s in zip(kernel, size, dilation, stride, strict=True)
    )
    places = (rows[:, None, :, None] * width + columns[None, :, None, :]).flatten()
    if any(padding):
        x = op.Pad(x, ints(0, 0, *padding, 0, 0, *padding))
    x = op.Reshape(x, ints(0, ins * groups, height * width))
    windows = op.Gather(x, op.Constant(value=onnx_ir.tensor(places.int().numpy())), axis=2)
    taps = ins * kernel[0] * kernel[1]
    windows = op.Reshape(windows, ints(0, groups, taps, size[0] * size[1]))
    y = op.MatMul(op.Reshape(weight, ints(groups, outs // groups, taps)), windows)
    y = op.Reshape(y, ints(0, outs, *size))
    return y if bias is None else op.Add(y, op.Reshape(bias, ints(1, outs, 1, 1)))
