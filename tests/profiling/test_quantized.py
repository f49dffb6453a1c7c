"""A quantised network is profiled as what it is: accumulates and multiply-accumulates of int8 weights."""

import math

import pytest
import timm
import torch
from torch.nn import functional as F

import timm_snn
from tests.support.profiling import layer, profile
from tests.support.quantized import small
from timm_snn.layers.fixed import FixedConv, FixedLevels, FixedLIF
from timm_snn.profiling.energy import INT8_AC_PJ, INT8_MAC_PJ

# MSSA, SSA; membrane shortcuts and masks; convolutions in a row; integer neurons; products of currents and spikes
NAMES = ['msvit_4_96', 'sdt_2_256', 'metaspikformer_8_256', 'espikeformer_5m', 'spikingresformer_ti']


@pytest.fixture(scope='module', params=NAMES)
def profiled(request):
    """The reports of a float model and of the quantised one, that one, and images."""
    model = small(request.param)
    images = torch.rand(2, model.in_chans, 32, 32)
    quantized = timm_snn.quantize(model, images)
    return profile(model, images), profile(quantized, images), quantized, images


def seen_by(model, kinds, images):
    """Input and output of every module of these kinds, by name, from plain hooks."""
    seen, handles = {}, []
    for name, module in model.named_modules():
        if isinstance(module, kinds):
            handles.append(
                module.register_forward_hook(lambda m, args, y, name=name: seen.update({name: (args[0], y)}))
            )
    model(images)
    for handle in handles:
        handle.remove()
    return seen


def test_macs_are_those_of_the_float_model(profiled):
    exact, report, quantized, _ = profiled
    assert [row.name for row in report.layers] == [f'network.{row.name}' for row in exact.layers]
    assert [row.name for row in report.stages] == [row.name for row in exact.stages]
    for row, other in zip(report.layers, exact.layers, strict=True):
        assert (row.kind, row.neurons, row.state_bytes) == (other.kind, other.neurons, other.state_bytes), row.name
        assert row.dense_macs_per_step == pytest.approx(other.dense_macs_per_step), row.name
        assert row.mask_ops == other.mask_ops and row.matmul_ops == other.matmul_ops, row.name
        # the classifier of a quantised network runs at every step, which that of a float model may do
        assert row.steps == (quantized.num_steps if row.name == 'network.head.fc' else other.steps), row.name
        assert row.dense_macs == pytest.approx(other.dense_macs * row.steps / other.steps), row.name
    assert not report.not_counted


def test_operations_are_those_of_the_inputs_of_convolutions(profiled):
    _, report, quantized, images = profiled
    convolutions = seen_by(quantized, FixedConv, images)
    bits = quantized.quantization.fraction_bits
    for i, (name, (x, _)) in enumerate(convolutions.items()):
        conv = quantized.get_submodule(name)
        row = layer(report, name if any(row.name == name for row in report.layers) else name.removesuffix('.conv'))
        maps = x[:, :, None, None] if x.ndim == 2 else x.unsqueeze(2) if x.ndim == 3 else x
        geometry = conv.stride, conv.padding, 1, conv.groups
        used = F.conv2d((maps != 0).double(), (conv.weight != 0).double(), None, *geometry)
        # the current of an image is computed for one step, and stands for all
        repeats = 1 if len(x) % (quantized.num_steps * len(images)) == 0 else quantized.num_steps
        effective = used.sum().item() * repeats / len(images)
        dense = used[0].numel() * math.prod(conv.weight.shape[1:]) * len(x) * repeats / len(images)
        assert row.dense_macs == dense, name
        if conv.takes == 'spikes':
            is_binary = x.max() <= 1
            assert row.input == ('binary' if is_binary else 'integer'), name
            assert (row.effective_acs if is_binary else row.effective_macs) == pytest.approx(effective), name
            rate, mean = (x != 0).double().mean().item(), x.double().mean().item()
            assert row.energy_mj['B'] == pytest.approx(dense * rate * INT8_AC_PJ * 1e-9), name
            assert row.energy_mj['C'] == pytest.approx(dense * mean * INT8_AC_PJ * 1e-9), name
            pj = mean * INT8_AC_PJ if is_binary else INT8_MAC_PJ
            assert row.energy_mj['A'] == pytest.approx(dense * pj * 1e-9), name
        elif x.any():  # currents that are all zero look like no spikes
            assert row.input == 'real' and row.effective_macs == pytest.approx(effective), name
            assert row.effective_acs == 0, name
            steps = repeats if i == 0 else 1  # C charges the first convolution once
            for convention, macs in zip('ABC', (dense, dense, dense / steps), strict=True):
                assert row.energy_mj[convention] == pytest.approx(macs * INT8_MAC_PJ * 1e-9), name
            if conv.takes == 'currents':
                assert row.input_largest == x.abs().max().item() * 2.0**-bits, name


def test_firing_rates_are_those_of_the_neurons(profiled):
    _, report, quantized, images = profiled
    neurons = seen_by(quantized, (FixedLIF, FixedLevels), images)
    rows = {row.name: row for row in report.layers if row.firing_rate is not None}
    for name, (_, spikes) in neurons.items():
        row = rows.get(name) or rows.get(name.removesuffix('.lif'))
        assert row is not None and row.firing_rate == pytest.approx((spikes != 0).double().mean().item()), name
    assert len(neurons) > 5 and report.num_steps == quantized.num_steps


def test_shipped_weights_cost_8_bit_operations():
    model = timm.create_model('msvit_4_96.digits', pretrained=True).eval()
    images = torch.rand(2, *model.pretrained_cfg['input_size'])
    quantized = timm_snn.quantize(model, images)
    exact, report = profile(model, images), profile(quantized, images)
    assert (exact.mac_pj, exact.ac_pj) == (4.6, 0.9)
    assert (exact.model, report.model) == ('msvit_4_96.digits', 'msvit_4_96.digits, quantised')
    assert (report.mac_pj, report.ac_pj) == (INT8_MAC_PJ, INT8_AC_PJ) == (0.23, 0.03)
    assert profile(quantized, images, mac_pj=1.0).ac_pj == INT8_AC_PJ
    T, head = quantized.num_steps, layer(exact, 'head.fc').dense_macs  # which runs at every step once quantised
    assert report.total.dense_macs == exact.total.dense_macs + (T - 1) * head
