"""Quantised networks: what they compute, that it is the same to the bit however it is run, and what is refused.

Hashes of the integer arithmetic of every family are in tests/models/test_quantized_hashes.py.
"""

import copy
import json
from functools import partial

import pytest
import timm
import torch
from torch import nn

import timm_snn
from tests.conftest import lively
from tests.support.families import SMALLEST
from tests.support.quantized import small
from timm_snn.layers import LIF, RepConv, SoftmaxAttention
from timm_snn.layers.fixed import FixedConv


@torch.no_grad()
def made(name):
    model = small(name)
    x = torch.randint(0, 256, (2, model.in_chans, 32, 32)) / 256  # which no rounding of the image changes
    return model, x, timm_snn.quantize(model, x)


@torch.no_grad()
def dequantised(model, quantized):
    """The model with the quantised weights, in float64 and with neurons of real numbers."""
    real = timm_snn.fuse(copy.deepcopy(model).double())
    one = 2.0**quantized.quantization.fraction_bits
    for module in real.modules():
        if isinstance(module, RepConv):
            module.pw1.bias.zero_()
    for name, conv in quantized.network.named_modules():
        if isinstance(conv, FixedConv):
            unit = {'spikes': 1.0, 'image': 2.0**-conv.input_shift, 'currents': 2.0**conv.input_shift / one}[conv.takes]
            unit *= 0.25 if 'espikeformer' in type(model).__name__.lower() and unit == 1.0 and 'head' not in name else 1
            scale = conv.multiplier.double() * 2.0**-conv.shift / one / unit
            replaced = real.get_submodule(name)
            replaced.weight.copy_((conv.weight.double() * scale.view(-1, 1, 1, 1)).view_as(replaced.weight))
            if replaced.bias is not None:
                replaced.bias.copy_(conv.bias.double() / one)
    return real


@pytest.mark.parametrize('name', SMALLEST)
@torch.no_grad()
def test_every_family_computes_what_its_quantised_weights_say(name):
    """But for the rounding of currents, by which some spikes differ; and in one way however it is run."""
    model, x, quantized = made(name)
    logits = quantized(x)
    expected = dequantised(model, quantized)(x.double())
    assert expected.std() > 1e-3
    assert (logits - expected).abs().median() < 0.25 * expected.std()
    assert not any(t.is_floating_point() for t in quantized.state_dict().values())
    assert torch.equal(quantized(x[1:2]), logits[1:2])
    assert torch.equal(quantized(x.contiguous(memory_format=torch.channels_last)), logits)
    with torch.autocast('cpu', torch.bfloat16), timm_snn.use_backend('torch'):
        assert torch.equal(quantized(x), logits)
    frames = x.unsqueeze(1).repeat(1, 2, 1, 1, 1)
    stream = timm_snn.stream(quantized)
    stream(frames[:, 0])
    again = timm_snn.stream(quantized)
    again.load_state(stream.state())
    assert torch.equal(again(frames[:, 1]), logits)


@pytest.fixture(scope='module')
def msvit():
    return made('msvit_4_96')


@torch.no_grad()
def test_saved_models_answer_the_same_and_are_a_quarter_of_the_size(msvit, tmp_path):
    model, x, quantized = msvit
    quantized.save(tmp_path)
    loaded = timm_snn.load_quantized(tmp_path)
    assert torch.equal(loaded(x), quantized(x))
    assert loaded.quantization.convolutions == quantized.quantization.convolutions
    assert (tmp_path / 'model.safetensors').stat().st_size < 0.3 * 4 * sum(p.numel() for p in model.parameters())
    with pytest.raises(RuntimeError, match=r'load_quantized\(folder\) loads it'):
        timm.create_model(f'local-dir:{tmp_path}', pretrained=True)
    config = json.loads((tmp_path / 'config.json').read_text())
    config['quantization']['convolutions']['stem.units.0.conv']['shift'] = 99
    (tmp_path / 'config.json').write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r'numbers in network\.stem\.units\.0\.conv that are out of range'):
        timm_snn.load_quantized(tmp_path)
    del config['quantization']['convolutions']['stem.units.0.conv']
    (tmp_path / 'config.json').write_text(json.dumps(config))
    with pytest.raises(ValueError, match='does not hold a quantised model of its config'):
        timm_snn.load_quantized(tmp_path)
    (tmp_path / 'config.json').write_text(json.dumps({k: v for k, v in config.items() if k != 'quantization'}))
    with pytest.raises(ValueError, match='not a quantised model'):
        timm_snn.load_quantized(tmp_path)


@torch.no_grad()
def test_conversions_and_wrappers_change_no_bit(msvit):
    _, x, quantized = msvit
    logits = quantized(x)
    assert torch.equal(copy.deepcopy(quantized).half()(x), logits)
    assert torch.equal(copy.deepcopy(quantized).double()(x), logits)
    assert torch.equal(timm_snn.fuse(quantized)(x), logits)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(quantized(x), logits)
    finally:
        torch.set_num_threads(threads)


def test_hooked_layers_see_what_runs_in_one_op(msvit):
    """A unit whose neuron is watched runs part by part, with the same spikes."""
    _, x, quantized = msvit
    logits, seen = quantized(x), []
    hooks = [
        module.register_forward_hook(lambda m, args, y: seen.append(y.dtype))
        for name, module in quantized.network.named_modules()
        if name.endswith('lif')
    ]
    assert torch.equal(quantized(x), logits)
    assert set(seen) == {torch.uint8}
    for hook in hooks:
        hook.remove()


def test_training_is_refused(msvit):
    _, _, quantized = msvit
    with pytest.raises(ValueError, match='train the model that it was made of'):
        quantized.train()
    assert not quantized.eval().training
    assert not any(parameter.requires_grad for parameter in quantized.parameters())


def test_wrong_kinds_of_input_are_refused(msvit):
    _, x, quantized = msvit
    conv = quantized.network.stages[0].blocks[0].mlp.fc1.conv
    with pytest.raises(TypeError, match='quantised for spikes and got currents'):
        conv(torch.zeros(1, 96, 4, 4, dtype=torch.int32))
    with pytest.raises(ValueError, match='images'):
        quantized(x[0])


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(lif_layer=partial(LIF, tau=3.0)), r'stem\.units\.0\.lif: its tau is 3'),
        (dict(lif_layer='psn'), 'PSN is a neuron without a form in whole numbers'),
        (dict(act='relu'), 'ReluNeuron is a neuron without'),
        (dict(num_classes=0), 'no classifier'),
        (dict(global_pool='max'), "pooling is 'max'"),
        (dict(attn=('mssa', 'mssa', SoftmaxAttention)), 'softmax is not made of whole numbers'),
    ],
)
def test_layers_without_whole_numbers_are_refused_by_name(settings, message):
    model = timm.create_model('msvit_4_96', depths=(1, 1, 1), **settings).eval()
    with pytest.raises(ValueError, match=message):
        timm_snn.quantize(model, torch.rand(1, model.in_chans, 32, 32))


def test_other_models_data_and_methods_are_refused():
    x = torch.rand(1, 1, 32, 32)
    with pytest.raises(ValueError, match='not one of the spiking families'):
        timm_snn.quantize(nn.Conv2d(1, 1, 1), x)
    model = timm.create_model('msvit_4_96').eval()
    with pytest.raises(ValueError, match='expected a method'):
        timm_snn.quantize(model, x, method='kl')
    with pytest.raises(ValueError, match='got no batch'):
        timm_snn.quantize(model, [])
    with pytest.raises(ValueError, match='a tensor of images'):
        timm_snn.quantize(model, [torch.rand(3)])


@torch.no_grad()
def test_a_tau_is_rounded_where_that_is_asked_for():
    torch.manual_seed(0)
    model = lively(timm.create_model('msvit_4_96', depths=(1, 1, 1), lif_layer='plif', num_steps=2)).eval()
    for module in model.modules():
        if isinstance(module, LIF):
            module.w.fill_(0.1)  # a tau of 1.9
    x = torch.rand(2, 1, 32, 32)
    with pytest.raises(ValueError, match=r'1\.905 \(learned\)'):
        timm_snn.quantize(model, x)
    quantized = timm_snn.quantize(model, x, round_tau=True)
    assert quantized.network.stem.units[0].lif.neuron.leak_shift == 1


@pytest.mark.parametrize('method', ['mse', 'percentile'])
@torch.no_grad()
def test_batches_with_targets_and_other_methods(method):
    torch.manual_seed(0)
    model = lively(timm.create_model('msvit_4_96', depths=(1, 1, 1), num_steps=2)).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x = torch.rand(4, 1, 32, 32)
    quantized = timm_snn.quantize(model, [(x[:2], torch.zeros(2)), (x[2:], torch.ones(2))], method=method)
    assert torch.equal(quantized(x), timm_snn.quantize(model, x, method=method)(x))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
