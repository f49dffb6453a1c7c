"""Rows of a report are sums and means of what was recorded, counted here by hand."""

import math

import pytest
import timm
import torch
from torch import nn

from tests.support.profiling import Net, layer, profile
from timm_snn.layers import ConvBnLif


def two_layers() -> Net:
    net = Net(ConvBnLif(2, 3)).double().eval()
    conv, fc = net.stem.units[0].conv, net.units[0].conv
    conv.weight.data[0], conv.weight.data[1] = 1, 0.25
    fc.weight.data.fill_(0.1)
    fc.weight.data[0] = 4
    return net


class TestTwoLayersByHand:
    """Pixels 0 1 4 in a row, T = 2, tau = 2, threshold 1.

    Channel 0 of the stem adds up its neighbours: currents 1 5 5; pixels 1 and 2 fire at both steps (h = 2.5), pixel 0
    never (h = 0.5, 0.75). Channel 1 has a quarter of that, at most h = 0.625, 0.94: silent. So 4 spikes of 12.
    The second layer turns a spike into a current of 4 for neuron 0 and of 0.1 for the others: 4 spikes of 18.
    """

    PIXELS = torch.tensor([0.0, 1.0, 4.0]).double().reshape(1, 1, 1, 3)

    @pytest.fixture
    def report(self):
        return profile(two_layers(), self.PIXELS)

    def test_spikes(self, report):
        stem, unit = layer(report, 'stem.units.0'), layer(report, 'units.0')
        assert (stem.firing_rate, stem.spike_count, stem.largest) == (4 / 12, 4 / 12, 1)
        assert (stem.input, stem.input_rate, stem.input_mean, stem.input_largest) == ('integer', 2 / 3, 5 / 3, 4)
        assert stem.rate_by_step == [2 / 6, 2 / 6] and unit.rate_by_step == [2 / 9, 2 / 9]
        assert (unit.firing_rate, unit.input, unit.input_rate) == (4 / 18, 'binary', 4 / 12)
        assert report.total.firing_rate == 8 / 30
        assert (report.total.neurons, report.total.neuron_updates, report.state_bytes) == (15, 30, 15 * 8)

    def test_operations(self, report):
        rows = [layer(report, name) for name in ('stem.units.0', 'units.0', 'head')]
        assert [row.dense_macs_per_step for row in rows] == [3 * 9 * 2, 3 * 2 * 3, 3 * 2]
        assert [row.dense_macs for row in rows] == [108, 36, 6]
        # along the row of 3 pixels the kernel meets 2 + 3 + 2, of its three rows one
        assert [row.dense for row in rows] == [7 * 2 * 2, 36, 6]
        # pixels 1 and 2 are met 3 and 2 times by 2 kernels at 2 steps; a mean of 2/3 in the first of 3 channels
        assert [row.effective_macs for row in rows] == [5 * 2 * 2, 0, 2]
        assert [row.effective_acs for row in rows] == [0, 4 * 3, 0]

    def test_energy(self, report):
        found = {name: (energy.macs, energy.acs) for name, energy in report.energy.items()}
        assert found == {
            'A': (108 + 6 + 2, pytest.approx(36 * 4 / 12)),  # the classifier's bias counts
            'B': (108 + 6, pytest.approx(12)),
            'C': (54 + 6, pytest.approx(12)),
            'ANN twin': (54 + 18 + 6, 0),
        }
        mj = {name: energy.mj for name, energy in report.energy.items()}
        assert mj == pytest.approx({'A': 544.4e-9, 'B': 535.2e-9, 'C': 286.8e-9, 'ANN twin': 358.8e-9}, rel=1e-12)
        for name in 'ABC':
            energy = report.energy[name]
            assert energy.mj_first_every_step - energy.mj_first_once == pytest.approx(54 * 4.6e-9)
            assert energy.mj == pytest.approx(energy.mj_first_once if name == 'C' else energy.mj_first_every_step)
        prices = profile(two_layers(), self.PIXELS, mac_pj=1.5, ac_pj=0.4)
        assert prices.energy['C'].mj == pytest.approx((60 * 1.5 + 12 * 0.4) * 1e-9)

    def test_sums(self, report):
        for name in ('A', 'B', 'C', 'ANN twin'):
            for rows in (report.layers, report.stages):
                assert sum(row.energy_mj[name] for row in rows) == pytest.approx(report.energy[name].mj)
        assert sum(row.parameters for row in report.layers) == report.parameters == 18 + 4 + 6 + 6 + 8
        assert report.footprint_bytes == 42 * 8 + (2 + 3) * 2 * 8 + 2 * 8


def test_the_interval_is_that_of_single_samples(small):
    images = torch.rand(4, 1, 20, 28)
    report = profile(small, images)
    singles = torch.tensor([profile(small, image.unsqueeze(0)).energy['C'].mj for image in images])
    assert report.energy['C'].mj == pytest.approx(singles.mean().item())
    # the operand that gates self-attention is chosen over all data: a hair's breadth
    assert report.energy['C'].ci95 == pytest.approx(1.96 * singles.std().item() / math.sqrt(4), rel=1e-2)
    assert profile(small, images[:1]).energy['C'].ci95 is None


def test_models_without_neurons():
    model = timm.create_model('resnet18', num_classes=5)
    report = profile(model, torch.rand(2, 3, 33, 47))
    assert report.total.firing_rate is None and report.total.neurons == 0 and report.state_bytes == 0
    assert report.energy['B'].acs == 0 and report.energy['ANN twin'].mj == pytest.approx(report.energy['B'].mj)


def test_features_only():
    model = timm.create_model('msvit_4_96', features_only=True)
    report = profile(model, torch.rand(2, 1, 28, 28))
    assert [row.name for row in report.stages] == ['stem', 'stages.0', 'stages.1', 'stages.2']
    assert sum(row.parameters for row in report.stages) == report.parameters


def test_weights_that_nothing_is_known_of_are_named():
    class Embedded(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.table = nn.Conv2d(1, 2, 1), nn.Embedding(3, 2)

        def forward(self, x):
            return self.conv(x).mean((2, 3)) + self.table.weight[0]

    assert profile(Embedded(), torch.rand(1, 1, 2, 2)).not_counted == ['table.weight']
