"""Sites add up the calls of a module over batches."""

import pytest
import torch
from torch import nn

from tests.support.profiling import Net, layer, profile
from timm_snn.layers import LIF, ConvBnLif, to_time_first


def test_a_stream_that_changes_in_place_is_measured_again():
    class Residual(Net):
        def forward(self, x):
            x = self.stem(to_time_first(x, self.num_steps, self.in_chans), self.num_steps)
            for unit in self.units:
                unit(x)
                x += 1
            return self.head(x.mean((0, 3, 4)))

    net = Residual(ConvBnLif(2, 3), ConvBnLif(2, 3), head=(2, 2)).double().eval()
    report = profile(net, torch.zeros(1, 1, 4, 4))
    assert [layer(report, f'units.{i}').input_rate for i in (0, 1)] == [0, 1]


def test_layers_that_run_for_some_batches_only():
    class Either(nn.Module):
        def __init__(self):
            super().__init__()
            self.dark, self.bright = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 3, 1)

        def forward(self, x):
            return (self.bright if x.mean() > 0.5 else self.dark)(x).sum((1, 2, 3))

    report = profile(Either(), [torch.zeros(1, 1, 2, 2), torch.ones(3, 1, 2, 2)])
    assert [row.dense_macs for row in report.layers] == [8 / 4, 12 * 3 / 4]
    assert [row.dense_macs_per_step for row in report.layers] == [8 / 4, 12 * 3 / 4]
    assert report.energy['C'].macs == 2  # of the first layer; the other one is fed 0 and 1
    assert report.energy['A'].ci95 > 0


def test_single_step_networks_of_other_libraries():
    """A layer that is called once per step is one layer at T steps, and only its first input is the image."""

    class Loop(nn.Module):
        num_steps = 3

        def __init__(self):
            super().__init__()
            self.conv, self.lif, self.fc = nn.Conv2d(1, 2, 3), LIF(), nn.Linear(2, 4)

        def forward(self, x):
            return sum(self.fc(self.lif(3 * self.conv(x).unsqueeze(0))[0].mean((2, 3))) for _ in range(3)) / 3

    report = profile(Loop(), torch.rand(2, 1, 6, 5))
    conv = layer(report, 'conv')
    assert (conv.steps, conv.dense_macs_per_step, conv.dense_macs) == (3, 12 * 9 * 2, 3 * 12 * 9 * 2)
    assert report.energy['B'].mj_first_every_step == pytest.approx(
        report.energy['B'].mj_first_once + 2 * 4.6e-9 * 12 * 9 * 2
    )
    assert len(layer(report, 'lif').rate_by_step) == 3 and layer(report, 'lif').neurons == 24
