"""The conventions A, B and C on operations counted by hand, and on published figures."""

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from tests.support.profiling import Net, layer, profile
from timm_snn.layers import LIF, ConvBnLif


def test_integer_spikes_tell_the_conventions_apart():
    """A layer fed 0, 1, 2: MACs for A, one AC per non-zero value for B, n ACs for n for C; NeuroBench says MACs."""
    net = Net(nn.Identity(), ConvBnLif(4, 3), stem=(1, 4)).double().eval()
    stream = torch.tensor([0.0, 1, 2, 2]).double().reshape(1, 1, 4, 1, 1).expand(2, 1, 4, 2, 5)
    net.units[0].forward = lambda x: stream
    row = layer(profile(net, torch.rand(1, 1, 2, 5)), 'units.1')
    dense = 2 * 4 * 3 * 10
    assert (row.input, row.input_largest, row.input_rate, row.input_mean) == ('integer', 2, 3 / 4, 5 / 4)
    priced = {'A': 4.6 * dense, 'B': 0.9 * dense * 3 / 4, 'C': 0.9 * dense * 5 / 4, 'ANN twin': 4.6 * dense / 2}
    assert row.energy_mj == pytest.approx({name: pj * 1e-9 for name, pj in priced.items()})
    assert (row.effective_acs, row.effective_macs) == (0, dense * 3 / 4)


def test_event_frames_cost_what_is_not_dark():
    net = Net(ConvBnLif(2, 3), num_steps=3).double().eval()
    frames = torch.zeros(2, 3, 1, 4, 6).double()
    frames[:, :, :, :2, :3] = 2
    report = profile(net, frames)
    first = layer(report, 'stem.units.0')
    dense = 3 * 24 * 9 * 2
    assert (first.dense_macs, first.input, not report.static) == (dense, 'integer', True)
    assert first.energy_mj['A'] == pytest.approx(4.6e-9 * dense)
    assert first.energy_mj['B'] == first.energy_mj['C'] == pytest.approx(4.6e-9 * dense / 4)
    assert report.energy['C'].mj_first_once == report.energy['C'].mj  # frames differ, there is no once


def test_binary_event_frames_are_accumulates_for_a_alone():
    net = Net(ConvBnLif(2, 3), num_steps=3).double().eval()
    frames = torch.zeros(2, 3, 1, 4, 6).double()
    frames[:, :, :, :2, :3] = 1
    first = layer(profile(net, frames), 'stem.units.0')
    dense = 3 * 24 * 9 * 2
    assert first.input == 'binary'
    assert first.energy_mj['A'] == pytest.approx(0.9e-9 * dense / 4)
    assert first.energy_mj['B'] == first.energy_mj['C'] == pytest.approx(4.6e-9 * dense / 4)
    page = (Path(__file__).parents[2] / 'docs' / 'energy.md').read_text(encoding='utf-8')
    assert '| A | T F MACs; for frames of 0 and 1 T F mean(input) ACs |' in page
    assert '| B | T F MACs; for event frames T F rate MACs |' in page
    assert '| C | F MACs; for event frames T F rate MACs |' in page


def constant(name: str, **kwargs) -> nn.Module:
    """A big model without the seconds that initialising it takes; what it computes does not matter."""
    model = timm.create_model(name, device='meta', **kwargs).to_empty(device='cpu')
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data.fill_(0.01 if tensor.is_floating_point() else 0)
    return model


class TestPublished:
    def test_deit_base(self):
        """17.5 GMACs and 80.5 mJ in the papers, which cut off 17.56; all of a ViT is MACs, in any convention."""
        report = profile(constant('deit_base_patch16_224'), torch.rand(1, 3, 224, 224))
        tokens, dim = 197, 768
        block = tokens * dim * 12 * dim + 2 * tokens * tokens * dim
        assert report.total.dense_macs == 196 * dim * dim + 12 * block + dim * 1000 == 17_563_828_224
        assert report.energy['ANN twin'].mj == pytest.approx(80.5, rel=5e-3)
        assert report.energy['B'].mj == pytest.approx(report.energy['ANN twin'].mj)
        assert report.total.effective_acs == 0 and report.total.firing_rate is None

    def test_spikingformer_8_512s_macs(self):
        """Its log has 0.347329512 G MACs: T = 4 times the first convolution, and the classifier with bias, once.

        A stand-in with the shapes of its first and last layers; what lies between is fed spikes and is ACs.
        """

        class StandIn(nn.Module):
            num_steps = 4

            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(3, 64, 3, padding=1, bias=False)
                self.lif = LIF()
                self.pool = nn.MaxPool2d(16)
                self.patches = nn.Conv2d(64, 512, 1, bias=False)
                self.head = nn.Linear(512, 1000)

            def forward(self, x):
                x = self.conv(x.repeat(4, 1, 1, 1)).unflatten(0, [4, -1])
                x = self.patches(self.pool(self.lif(x)[:, 0]))
                return self.head(x.mean((0, 2, 3)).unsqueeze(0))

        report = profile(StandIn(), torch.rand(1, 3, 224, 224))
        assert report.energy['A'].macs == 347_329_512
        assert report.energy['A'].acs == pytest.approx(4 * 196 * 64 * 512 * layer(report, 'patches').input_mean)

    @pytest.mark.parametrize(('size', 'gmacs'), [(384, 10.36), (512, 18.32), (768, 41.03)])
    def test_msvit_per_step(self, size, gmacs):
        report = profile(constant(f'msvit_10_{size}', num_steps=1), torch.rand(1, 3, 224, 224))
        assert round(report.total.dense_macs_per_step / 1e9, 2) == gmacs
        assert report.energy['ANN twin'].macs == report.total.dense_macs_per_step
