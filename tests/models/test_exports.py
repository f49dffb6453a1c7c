"""Traced and exported models take any batch, and plain torch whatever runs the model."""

import contextlib

import pytest
import timm
import torch

import timm_snn
from tests.conftest import lively
from tests.support.families import SMALLEST, shallow
from timm_snn.ops.backends import cpp

pytestmark = pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning', 'ignore::DeprecationWarning')

SWITCHES = {
    'none': contextlib.nullcontext,
    'cpp': lambda: timm_snn.use_backend('cpp'),
    'compile': lambda: timm_snn.use_backend('compile'),
    'sparse_spikes': timm_snn.ops.sparse_spikes,
    'packed_spikes': timm_snn.ops.packed_spikes,
}


def model_and_images(name, fused=False):
    torch.manual_seed(0)
    model = lively(shallow(timm.create_model(name, num_steps=2)).eval())
    chans, height, width = model.pretrained_cfg['input_size']
    size = (chans, min(height, 64), min(width, 64))
    return timm_snn.fuse(model) if fused else model, lambda batch, *steps: torch.rand(batch, *steps, *size)


def turned_on(switch):
    """The switch, or a skip where it needs a compiler that is not there."""
    if switch != 'none' and (reason := cpp.why_not()):
        pytest.skip(reason)
    return SWITCHES[switch]()


@pytest.mark.parametrize('steps', [(), (2,)], ids=['images', 'frames'])
@pytest.mark.parametrize('name', SMALLEST)
@torch.no_grad()
def test_a_trace_takes_any_batch(name, steps):
    model, images = model_and_images(name)
    with turned_on('cpp'):
        traced = torch.jit.trace(model, images(3, *steps), check_trace=False)
    for batch in (1, 7):
        x = images(batch, *steps)
        torch.testing.assert_close(traced(x), model(x))


@pytest.mark.parametrize('switch', SWITCHES)
@torch.no_grad()
def test_no_switch_reaches_a_trace_or_an_export(switch):
    model, images = model_and_images('msvit_4_96', fused=switch in ('none', 'cpp'))  # skips zeros by itself
    timm_snn.models.set_num_steps(model, 1)
    with turned_on(switch):
        traced = torch.jit.trace(model, images(3), check_trace=False)
        exported = torch.export.export(model, (images(3),), dynamic_shapes=({0: torch.export.Dim('batch')},))
    ops = {str(node.target) for node in exported.graph.nodes if node.op == 'call_function'}
    assert all(op.startswith(('aten.', '<built-in', '_operator')) for op in ops), ops
    for batch in (2, 7):
        x = images(batch)
        torch.testing.assert_close(traced(x), model(x))
        torch.testing.assert_close(exported.module()(x), model(x))


def test_no_backend_of_the_process_or_the_model_reaches_a_trace():
    with turned_on('cpp'):
        pass
    model, images = model_and_images('msvit_4_96')
    x = images(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, timm_snn.LIF):
                module.backend = 'cpp'
        traced = torch.jit.trace(model, images(2), check_trace=False)
    assert 'lif_cpp' not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(x), model(x))


@pytest.mark.parametrize('dynamo', [False, True])
def test_onnx(dynamo, tmp_path):
    pytest.importorskip('onnxscript')
    runtime = pytest.importorskip('onnxruntime')
    model, images = model_and_images('msvit_4_96')
    axes = {'dynamic_shapes': ({0: torch.export.Dim('b')},)} if dynamo else {'dynamic_axes': {'x': {0: 'b'}}}
    with turned_on('cpp'):
        torch.onnx.export(model, (images(3),), tmp_path / 'm.onnx', dynamo=dynamo, input_names=['x'], **axes)
    session = runtime.InferenceSession(tmp_path / 'm.onnx', providers=['CPUExecutionProvider'])
    for batch in (1, 7):
        x = images(batch)
        (logits,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), model(x))
