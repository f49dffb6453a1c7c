"""Exported files answer as the model: every family in ONNX Runtime, in float64 and in float32."""

import json
import zipfile
from importlib import import_module

import pytest
import timm
import torch
from timm.utils.onnx import onnx_export
from torch import nn

import timm_snn
from tests.support.families import SMALLEST
from timm_snn import cli
from timm_snn.data import EventDigits, frame_settings
from timm_snn.export import FORMATS, read_metadata, torch_export
from timm_snn.export.capture import prepared
from timm_snn.layers import IF, LIF, ParametricLIF
from timm_snn.layers.neuron import FUSED
from timm_snn.testing import lively

SIZE = (32, 48)
QUICK = ('maxformer_2_256', 'spikformer_2_256', 'spikingformer_2_256')


def tiny(name, dtype=torch.float32, **kwargs):
    """A member with the first block of every stage, at two steps."""
    torch.manual_seed(0)
    model = timm.create_model(name, **{'num_steps': 2, **kwargs})
    for stage in model.stages:
        del stage.blocks[1:]
    return lively(model.to(dtype).eval())


def images(model, batch=2, *steps):
    return torch.rand(batch, *steps, model.in_chans, *SIZE, dtype=next(model.parameters()).dtype)


def spikes_of(model, x):
    """Logits, and by the names of the neurons their spikes, [T, B, ...]."""
    model, spikes = prepared(model), {}
    for name, module in model.named_modules():
        if type(module) in FUSED:
            module.register_forward_hook(lambda module, args, s, name=name: spikes.update({name: s}))
    with torch.no_grad():
        return model(x), spikes


def run_in_onnx_runtime(file, x, names=()):
    """Logits, and the values of these names inside of the file."""
    onnx, runtime = pytest.importorskip('onnx'), pytest.importorskip('onnxruntime')
    model = onnx.load(file)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = runtime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])
    logits, *values = (torch.from_numpy(y) for y in session.run(['logits', *names], {'images': x.numpy()}))
    return logits, dict(zip(names, values, strict=True))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    pytest.importorskip('onnxscript')
    return tmp_path_factory.mktemp('exported')


class TestOnnx:
    @pytest.mark.parametrize('name', SMALLEST)
    def test_in_float64_every_spike_is_the_same(self, name, folder):
        model = tiny(name, torch.float64)
        timm_snn.export(model, folder / 'm.onnx', example=images(model), check=False)
        for batch in (1, 3):
            x = images(model, batch)
            logits, spikes = spikes_of(model, x)
            found, found_spikes = run_in_onnx_runtime(folder / 'm.onnx', x, list(spikes))
            torch.testing.assert_close(found, logits, rtol=0, atol=1e-9)
            assert logits.std(1).min() > 0, 'the model is silent'
            assert all(torch.equal(found_spikes[neuron], s) for neuron, s in spikes.items())

    @pytest.mark.parametrize('name', [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in SMALLEST])
    def test_in_float32_few_spikes_flip(self, name, folder):
        model = tiny(name)
        timm_snn.export(model, folder / 'm.onnx', example=images(model), check=False)
        x = images(model, 3)
        logits, spikes = spikes_of(model, x)
        found, found_spikes = run_in_onnx_runtime(folder / 'm.onnx', x, list(spikes))
        flips = sum(int((found_spikes[neuron] != s).sum()) for neuron, s in spikes.items())
        assert flips <= 1e-4 * sum(s.numel() for s in spikes.values())
        torch.testing.assert_close(found, logits, rtol=0, atol=1e-5 if flips == 0 else 0.1)

    def test_neurons_with_any_settings_are_translated(self, folder):
        neurons = [
            LIF(),
            LIF(tau=3.0, v_threshold=0.7, v_reset=-0.2),
            LIF(tau=3.0, decay_input=False, v_reset=None),
            LIF(tau=1.5, decay_input=False, v_reset=0.1),
            LIF(v_threshold=0.6, learn_threshold=True, per_channel=5),
            ParametricLIF(torch.linspace(1.5, 8.0, 5)),
            ParametricLIF(v_reset=None),
            IF(),
            IF(v_reset=None),
        ]
        model = Neurons(neurons).eval()
        with torch.no_grad():
            neurons[4].log_threshold.copy_(torch.linspace(-0.5, 0.5, 5))
        example = 2 * torch.randn(4, 6, 5, 7)
        timm_snn.export(model, folder / 'neurons.onnx', example=example)
        timm_snn.export(Neurons(neurons[:1]), folder / 'neuron.onnx', example=example)  # nothing else is in this graph
        runtime = pytest.importorskip('onnxruntime')
        session = runtime.InferenceSession(folder / 'neurons.onnx', providers=['CPUExecutionProvider'])
        example[0, 2, 1], example[1, 0, 2, 3], example[2, 1, 0, 4] = torch.nan, torch.inf, -torch.inf
        for spikes, wanted in zip(session.run(None, {'images': example.numpy()}), model(example), strict=True):
            torch.testing.assert_close(torch.from_numpy(spikes), wanted, rtol=0, atol=0, equal_nan=True)

    def test_a_program_finds_what_it_needs_in_the_file(self, folder):
        model = tiny('spikformer_2_256', num_steps=1, num_classes=3, in_chans=1)
        done = timm_snn.export(model, folder / 'm.onnx', example=images(model), labels=['cat', 'dog', 'fox'])
        metadata = read_metadata(folder / 'm.onnx')
        assert metadata == json.loads(json.dumps(done.metadata))
        assert metadata['labels'] == ['cat', 'dog', 'fox'] and metadata['num_steps'] == 1
        assert metadata['mean'] == list(model.pretrained_cfg['mean']) and metadata['input_size'] == [1, *SIZE]
        session = pytest.importorskip('onnxruntime').InferenceSession(folder / 'm.onnx')
        assert json.loads(session.get_modelmeta().custom_metadata_map['labels']) == ['cat', 'dog', 'fox']
        assert session.get_inputs()[0].shape == ['batch', 1, *SIZE] and session.get_outputs()[0].name == 'logits'
        assert b'spikformer.py' not in (folder / 'm.onnx').read_bytes()  # of the machine that wrote it

    def test_frames_of_events(self, folder):
        model = tiny('spikformer_2_256', num_steps=1, in_chans=2)
        timm_snn.export(model, folder / 'm.onnx', example=images(model, 2, 1))
        x = images(model, 3, 1)
        found, _ = run_in_onnx_runtime(folder / 'm.onnx', x)
        torch.testing.assert_close(found, spikes_of(model, x)[0], rtol=0, atol=1e-5)
        assert read_metadata(folder / 'm.onnx')['input'] == 'BTCHW'

    @pytest.mark.filterwarnings('ignore::DeprecationWarning', 'ignore::torch.jit.TracerWarning')
    def test_timms_exporter_takes_our_models(self, folder):
        model = tiny('spikformer_2_256')
        onnx_export(
            model,
            str(folder / 'timm.onnx'),
            example_input=images(model),
            output_names=['logits'],
            input_names=['images'],
        )
        x = images(model, 2)
        found, _ = run_in_onnx_runtime(folder / 'timm.onnx', x)
        torch.testing.assert_close(found, model(x), rtol=0, atol=1e-4)

    @pytest.mark.slow
    def test_the_shipped_weights_name_the_same_classes(self, folder):
        """Of 1,000 digits of a camera, of which the weights have not seen the first 360."""
        model = timm.create_model('msvit_4_96.event_digits', pretrained=True).eval()
        timm_snn.export(model, folder / 'digits.onnx')
        frames = []
        for train, number in ((False, 360), (True, 640)):
            data, settings = EventDigits(train, num_steps=model.num_steps), frame_settings(model)
            frames += [settings.frames(data.recording(i)) for i in range(number)]
        for x in torch.stack(frames).split(100):
            with torch.no_grad():
                answers = model(x).argmax(1)
            assert torch.equal(run_in_onnx_runtime(folder / 'digits.onnx', x)[0].argmax(1), answers)


class Neurons(nn.Module):
    """All of them on the same currents, [B, T, C, N]."""

    def __init__(self, neurons):
        super().__init__()
        self.neurons = nn.ModuleList(neurons)

    def forward(self, x):
        return tuple(neuron(x.transpose(0, 1)) for neuron in self.neurons)


class TestTorchExport:
    def test_it_is_plain_torch_and_answers_as_the_model(self, tmp_path):
        model = tiny('spikformer_2_256', num_steps=1)
        done = timm_snn.export(model, tmp_path / 'm.pt2', example=images(model))
        program = torch.export.load(tmp_path / 'm.pt2')
        targets = {node.target for node in program.graph.nodes if node.op == 'call_function'}
        assert all(t.namespace == 'aten' for t in targets if isinstance(t, torch._ops.OpOverload))
        for batch in (1, 5):
            x = images(model, batch)
            torch.testing.assert_close(program.module()(x), spikes_of(model, x)[0])
        assert read_metadata(tmp_path / 'm.pt2') == json.loads(json.dumps(done.metadata))
        assert done.difference < 1e-4 and done.checked == 6 == done.same_class
        assert 'm.pt2: torch_export' in str(done)


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_executorch_answers_as_the_model(tmp_path):
    pytest.importorskip('executorch')
    model = tiny('maxformer_2_256')
    done = timm_snn.export(model, tmp_path / 'm.pte', example=images(model))
    assert done.difference < 1e-4 and read_metadata(tmp_path / 'm.pte') == json.loads(json.dumps(done.metadata))


@pytest.mark.slow
def test_aoti_compiles_what_answers_as_the_model(tmp_path):
    model = tiny('msvit_4_96', num_steps=1)
    done = timm_snn.export(model, tmp_path / 'm.pt2', format='aoti', example=images(model))
    assert done.difference < 1e-4 and read_metadata(tmp_path / 'm.pt2')['model'].startswith('msvit_4_96')


class Broken(nn.Module):
    """A layer that no format can take, by `fault`."""

    def __init__(self, fault):
        super().__init__()
        self.layer = Fault(fault)

    def forward(self, x):
        return self.layer(x).mean((2, 3))


class Fault(nn.Module):
    def __init__(self, fault):
        super().__init__()
        self.fault = fault

    def forward(self, x):
        if self.fault == 'random':
            return nn.functional.dropout(x, 0.5)
        if self.fault == 'operator':
            return torch.ops.timm_snn.unrolled_lif(x, None, LIF().neuron.key)
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ('fault', 'message'),
    [
        ('random', r'cannot export layer, a Fault: aten.dropout.default draws random numbers'),
        ('operator', r'cannot export layer, a Fault: timm_snn.unrolled_lif.default is an operator'),
        ('branch', r'torch.export cannot trace this Broken'),
    ],
)
def test_what_cannot_be_exported_is_refused_by_name(tmp_path, fault, message):
    import_module('timm_snn.export.onnx')  # has the operator
    file = tmp_path / 'm.pt2'
    file.write_text('what was there')
    with pytest.raises(ValueError, match=message):
        timm_snn.export(Broken(fault), file, example=torch.rand(2, 3, 4, 4))
    assert file.read_text() == 'what was there' and list(tmp_path.iterdir()) == [file]


def test_a_file_that_does_not_answer_as_the_model_is_not_written(tmp_path, monkeypatch):
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    monkeypatch.setattr(torch_export, 'load', lambda file: lambda x: [-model(x).detach()])
    with pytest.raises(RuntimeError, match='does not answer as the model: outputs differ by'):
        timm_snn.export(model, tmp_path / 'm.pt2', example=torch.rand(2, 3, 2, 2))
    assert not list(tmp_path.iterdir())
    assert timm_snn.export(model, tmp_path / 'm.pt2', example=torch.rand(2, 3, 2, 2), check=False).difference is None


@pytest.mark.parametrize('format', ['onnx', 'executorch'])
def test_a_missing_library_is_named_with_the_command(tmp_path, monkeypatch, format):
    monkeypatch.setattr(import_module('timm_snn.export'), 'find_spec', lambda name: None)
    with pytest.raises(RuntimeError, match=f"format '{format}' needs {format}.*: pip install "):
        timm_snn.export(nn.Flatten(), tmp_path / f'm{FORMATS[format]}', format=format)


def test_wrong_arguments_say_what_to_do(tmp_path):
    model = nn.Flatten()
    x = torch.rand(2, 3, 2, 2)
    with pytest.raises(ValueError, match=r"expected a file that ends in one of .*, got 'm.txt'"):
        timm_snn.export(model, tmp_path / 'm.txt', example=x)
    with pytest.raises(ValueError, match='unknown format'):
        timm_snn.export(model, tmp_path / 'm.pt2', format='tflite', example=x)
    with pytest.raises(ValueError, match=r"format 'torch_export' ends in .pt2"):
        timm_snn.export(model, tmp_path / 'm.onnx', format='torch_export', example=x)
    with pytest.raises(FileNotFoundError, match='there is no folder'):
        timm_snn.export(model, tmp_path / 'no' / 'm.pt2', example=x)
    with pytest.raises(ValueError, match='pass example='):
        timm_snn.export(model, tmp_path / 'm.pt2')
    with pytest.raises(ValueError, match='at least two'):
        timm_snn.export(model, tmp_path / 'm.pt2', example=x[:1])


def test_metadata_of_a_strange_file(tmp_path):
    (tmp_path / 'm.pt2').write_bytes(b'no zip')
    with pytest.raises(ValueError, match='has no metadata of timm_snn'):
        read_metadata(tmp_path / 'm.pt2')
    with zipfile.ZipFile(tmp_path / 'n.pt2', 'w') as archive:
        archive.writestr('n/extra/timm_snn.json', '[')
    with pytest.raises(ValueError, match='has no metadata of timm_snn'):
        read_metadata(tmp_path / 'n.pt2')


def test_the_command(tmp_path, capsys):
    names = tmp_path / 'names.txt'
    names.write_text('\n'.join(f'class {i}' for i in range(10)))
    file = tmp_path / 'm.pt2'
    arguments = ['--num-steps', '1', '--format', 'torch_export', '--output', str(file), '--labels', str(names)]
    cli.main(['export', 'msvit_4_96', '--img-size', '32', *arguments])
    assert 'outputs differ from those of the model by at most' in capsys.readouterr().out
    metadata = read_metadata(file)
    assert metadata['labels'][9] == 'class 9' and metadata['input_size'] == [1, 32, 32]
    with pytest.raises(SystemExit, match=r"error: cannot export 'msvit_4_96': .* ends in .onnx"):
        cli.main(['export', 'msvit_4_96', '--format', 'onnx', '--output', str(file)])


def test_ctrl_c_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, capsys):
    file = tmp_path / 'm.pt2'
    file.write_text('of yesterday')

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch_export, 'load', interrupt)  # when it is written, and not checked yet
    with pytest.raises(SystemExit) as stop:
        cli.main(
            [
                'export',
                'msvit_4_96',
                '--img-size',
                '32',
                '--num-steps',
                '1',
                '--output',
                str(file),
                '--format',
                'torch_export',
            ]
        )
    said = 'stopped: there is no new file; go on with: timm-snn export msvit_4_96 --img-size 32 '
    assert stop.value.code == 130 and said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ['m.pt2'] and file.read_text() == 'of yesterday'
