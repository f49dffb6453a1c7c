"""The profiler's numbers against counting by hand, published figures and other tools, on all that users bring."""

import copy
import gc
import math
from dataclasses import asdict

import pytest
import timm
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

import timm_snn
from tests.conftest import lively
from timm_snn.layers import (
    LIF,
    ConvBnLif,
    MultiScaleSpikingAttention,
    SpikingSelfAttention,
    SpikingStem,
    attentions,
    neurons,
    to_time_first,
)
from timm_snn.ops.backends.inductor import why_not
from timm_snn.profiling.rules import rule_of


def profile(model, data, **kwargs) -> timm_snn.profiling.Report:
    return timm_snn.profile(model, data, progress=False, **kwargs)


def constant(name: str, **kwargs) -> nn.Module:
    """A big model without the seconds that initialising it takes; what it computes does not matter."""
    model = timm.create_model(name, device='meta', **kwargs).to_empty(device='cpu')
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data.fill_(0.01 if tensor.is_floating_point() else 0)
    return model


def layer(report, name):
    return next(row for row in report.layers if row.name == name)


class Net(nn.Module):
    """A stem, units and a classifier, as all our models are."""

    def __init__(self, *units: nn.Module, stem=(1, 2), num_steps=2, head=(3, 2)) -> None:
        super().__init__()
        self.num_steps, self.in_chans = num_steps, stem[0]
        self.stem = SpikingStem(stem[0], (stem[1],), (False,))
        self.units = nn.Sequential(*units)
        self.head = nn.Linear(*head)

    def forward(self, x):
        x = self.stem(to_time_first(x, self.num_steps, self.in_chans), self.num_steps)
        return self.head(self.units(x).mean((0, 3, 4)))


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


@pytest.mark.parametrize('name', ['tf_efficientnet_b0', 'mobilevit_xxs', 'xcit_nano_12_p16_224', 'encoder'])
def test_macs_of_other_architectures_are_those_of_torchs_flop_counter(name):
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches, self.layer = nn.Conv2d(3, 16, 4, 4), nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

        def forward(self, x):
            return self.layer(self.patches(x).flatten(2).transpose(1, 2)).mean(1)

    model = Encoder() if name == 'encoder' else timm.create_model(name)
    images = torch.rand(1, 3, 64, 96)  # a map shared by samples counts once for a batch there, for each sample here
    with FlopCounterMode(display=False) as counter:  # on 'meta', since it does not know a CPU's kernel for attention
        copy.deepcopy(model).to('meta').train()(images.to('meta'))
    report = profile(model, images)
    assert report.total.dense_macs == counter.get_total_flops() / 2
    assert not [name for name in report.not_counted if 'embed' not in name and 'token' not in name]
    assert torch.backends.mha.get_fastpath_enabled()


def spikes_of(model, names, images):
    """What units put out, by plain hooks."""
    found = {}
    handles = [
        model.get_submodule(name).register_forward_hook(lambda m, args, out, name=name: found.update({name: out}))
        for name in names
    ]
    with torch.no_grad():
        model.eval()(images)
    for handle in handles:
        handle.remove()
    return found


def test_self_attention_costs_what_the_published_counter_says(small):
    """T h N d^2 (min(fr_k, fr_v) + fr_q)."""
    images = torch.rand(3, 1, 28, 36).double()
    name = 'stages.2.blocks.0.attn'
    found = spikes_of(small, [f'{name}.{unit}' for unit in ('q.0', 'k', 'v')], images)
    q, k, v = (found[f'{name}.{unit}'] for unit in ('q.0', 'k', 'v'))
    T, _, C, N = q.shape
    acs = T * C * C / 3 * N * (min(k.mean(), v.mean()) + q.mean()).item()
    row = layer(profile(small, images), f'{name}.attn_lif')
    assert row.kind == 'SSA' and row.matmul_ops == 2 * T * C * (C / 3) * N
    for convention in 'ABC':
        assert row.energy_mj[convention] == pytest.approx(0.9e-9 * acs)
    heads = [x.unflatten(2, [3, -1]) for x in (q, k, v)]
    kv = heads[2] @ heads[1].transpose(-2, -1)
    pairs = torch.einsum('tbhdn,tbhen->', heads[2], heads[1])  # spikes that meet
    pairs = pairs + torch.einsum('tbhde,tbhen->', (kv != 0).double(), heads[0])
    assert row.effective_matmul_ops == pytest.approx(pairs.item() / 3)


def test_multi_scale_attention_costs_its_spikes(small):
    images = torch.rand(3, 1, 28, 36).double()
    name = 'stages.0.blocks.0.attn'
    found = spikes_of(small, [f'{name}.{unit}' for unit in ('q.0', 'q.1', 'k', 'attn_lif')], images)
    row = layer(profile(small, images), f'{name}.attn_lif')
    spikes = sum(found[f'{name}.{unit}'].sum().item() for unit in ('q.0', 'q.1', 'k')) / 3
    assert row.kind == 'MSSA' and row.effective_mask_ops == spikes
    assert row.mask_ops == 3 * found[f'{name}.k'][:, 0].numel()
    assert row.energy_mj['A'] == row.energy_mj['C'] == pytest.approx(0.9e-9 * spikes)
    gates = found[f'{name}.attn_lif']  # [T, B, heads, 1, N]
    assert row.firing_rate == pytest.approx(gates.mean().item())
    assert row.rate_by_step == pytest.approx(gates.mean((1, 2, 3, 4)).tolist())
    assert row.neuron_updates * 3 == gates.numel()


@pytest.mark.parametrize('erode', [False, True])
def test_spike_driven_attention_costs_its_spikes(erode):
    model = lively(timm.create_model('sdt_2_256', embed_dim=48, depth=1, num_steps=3, erode=erode).double().eval())
    images = torch.rand(2, 2, 16, 24).double()
    name = 'stages.2.blocks.0.attn'
    found = spikes_of(model, [f'{name}.{unit}' for unit in ('q', 'k', 'v', 'attn_lif')], images)
    q, k, v, gates = (found[f'{name}.{unit}'] for unit in ('q', 'k', 'v', 'attn_lif'))
    agreement = model.get_submodule(name).agreement(k, v)
    row = layer(profile(model, images), f'{name}.attn_lif')
    assert row.kind == 'SDSA' and row.mask_ops == 3 * q[:, 0].numel()
    spikes = (v.sum() + agreement.sum() + q.sum()).item() / 2
    assert row.effective_mask_ops == spikes and row.energy_mj['A'] == pytest.approx(0.9e-9 * spikes)
    assert row.firing_rate == pytest.approx(gates.mean().item()) and 0 < row.firing_rate < 1


class TestOtherTools:
    @pytest.mark.parametrize('kind', ['binary', 'ternary', 'real', 'integer', 'pruned'])
    def test_neurobench(self, kind):
        """Its names, its numbers; where a batch is binary and another is not, it decides by batch and we by data."""
        pytest.importorskip('neurobench')
        from neurobench.benchmarks import Benchmark
        from neurobench.metrics.static import Footprint, ParameterCount
        from neurobench.metrics.workload import SynapticOperations
        from neurobench.models import TorchModel

        net = nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(4, 6, 3, padding=1, groups=2),
            nn.Flatten(),
            nn.Linear(72, 5),
        ).eval()
        x = torch.rand(6, 2, 7, 5)
        x = {'binary': (x > 0.6).float(), 'ternary': (4 * x - 2).trunc(), 'integer': (3 * x).floor()}.get(kind, x)
        if kind == 'pruned':
            net[2].weight.data[:, 0, 1] = 0
            net[4].weight.data[1:3] = 0
        loader = DataLoader(TensorDataset(x, torch.zeros(6, dtype=torch.long)), batch_size=4)
        metrics = [[ParameterCount, Footprint], [SynapticOperations]]
        theirs = Benchmark(TorchModel(net), loader, [], [], metrics).run(quiet=True)
        ours = profile(net, loader)
        assert theirs['SynapticOperations'] == pytest.approx(
            {
                'Effective_MACs': ours.total.effective_macs,
                'Effective_ACs': ours.total.effective_acs,
                'Dense': ours.total.dense,
            }
        )
        assert (theirs['ParameterCount'], theirs['Footprint']) == (ours.parameters, ours.footprint_bytes)

    def test_spikingjellys_op_counter(self):
        pytest.importorskip('spikingjelly')
        from spikingjelly.activation_based import functional, neuron, op_counter

        net = nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=2, padding=1),
            neuron.LIFNode(),
            nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=False),
            neuron.LIFNode(),
            nn.Flatten(),
            nn.Linear(72, 5, bias=False),
        ).eval()
        for parameter in net.parameters():
            parameter.data.abs_()
        x = 5 * torch.rand(6, 2, 7, 5)
        macs, synops = op_counter.MACCounter(), op_counter.SynOpCounter()
        with op_counter.DispatchCounterMode([macs, synops]), torch.no_grad():
            net(x)
        functional.reset_net(net)
        report = profile(net, x)
        first, later = layer(report, '0'), [layer(report, name) for name in '25']
        assert macs.get_total() == 6 * first.dense_macs
        assert synops.get_total() == pytest.approx(6 * sum(row.effective_acs for row in later)) and later[0].input_rate
        assert report.total.firing_rate > 0.1 and layer(report, '1').neuron_updates == 48


def folded(model: nn.Module) -> nn.Module:
    """A copy for inference with every batch norm inside the convolution, which then has a bias."""
    model = copy.deepcopy(model).eval()
    for unit in model.modules():
        if isinstance(unit, ConvBnLif):
            bn, conv = unit.bn, unit.conv
            scale = bn.weight.data / torch.sqrt(bn.running_var + bn.eps)
            bias = torch.zeros_like(scale) if conv.bias is None else conv.bias.data
            conv.weight.data = conv.weight.data * scale.reshape(-1, *[1] * (conv.weight.ndim - 1))
            conv.bias = nn.Parameter(bn.bias.data + (bias - bn.running_mean) * scale)
            unit.bn = nn.Identity()
    return model


def same_counts(a, b, rel: float = 1e-12) -> None:
    """The same numbers in every layer and stage, up to a share of `rel`; a folded model has fewer parameters."""
    for one, other in zip([*a.layers, *a.stages, a.total], [*b.layers, *b.stages, b.total], strict=True):
        for name, value in asdict(one).items():
            expected = getattr(other, name)
            if isinstance(value, (float, list, dict)):
                expected = pytest.approx(expected, rel=rel)
            assert value == expected or name == 'parameters', (one.name, name)


class TestFusion:
    IMAGES = torch.rand(3, 1, 20, 28, generator=torch.Generator().manual_seed(0)).double()

    def test_a_folded_model_has_the_same_numbers(self, small):
        plain = profile(small, self.IMAGES)
        assert plain.total.firing_rate > 0.05 and plain.total.effective_mask_ops > 0
        same_counts(plain, profile(folded(small), self.IMAGES))

    @pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
    def test_so_has_timm_snn_fuse_with_any_backend(self, small, dtype):
        small.to(dtype)
        # in float32 a membrane may lie so near to its threshold that the rounding of folded weights decides
        rel = 1e-12 if dtype == torch.float64 else 1e-2
        plain, fused = profile(small, self.IMAGES), timm_snn.fuse(small)
        assert plain.total.firing_rate > 0.05
        same_counts(plain, profile(fused, self.IMAGES), rel)
        same_counts(plain, profile(torch.compile(fused), self.IMAGES), rel)
        if why_not() is None:
            with timm_snn.use_backend('compile'):
                same_counts(plain, profile(small, self.IMAGES), rel)
                same_counts(plain, profile(fused, self.IMAGES), rel)

    def test_units_that_run_as_one_kernel_have_the_same_numbers(self, small, monkeypatch):
        """No part of a unit or of attention is called as a module."""
        plain = profile(small, self.IMAGES)

        def current(unit, x):
            y = unit.conv.forward(x.reshape(-1, *x.shape[2:]))
            return unit.pool.forward(unit.bn.forward(y)).unflatten(0, x.shape[:2])

        monkeypatch.setattr(ConvBnLif, 'current', current)
        monkeypatch.setattr(ConvBnLif, 'forward', lambda unit, x: unit.lif.forward(unit.current(x)))

        def mssa(attn, x):
            tokens = x.flatten(3)
            k = attn.k(tokens).unflatten(2, [-1, attn.head_dim])
            q = attn.q(tokens).unflatten(2, [-1, attn.head_dim])
            gates = attn.attn_lif.forward(q.sum(3, keepdim=True))
            return attn.proj((gates * k).flatten(2, 3)).unflatten(3, x.shape[3:])

        mssa.__module__ = MultiScaleSpikingAttention.__module__
        monkeypatch.setattr(MultiScaleSpikingAttention, 'forward', mssa)
        same_counts(plain, profile(small, self.IMAGES))


class TestWhatUsersBring:
    @pytest.mark.parametrize('kind', ['list', 'loader', 'labels', 'dicts', 'set', 'one pair'])
    def test_data_in_any_form_gives_the_same_report(self, small, kind):
        images, labels = torch.rand(5, 1, 20, 28), torch.arange(5)
        samples = TensorDataset(images, labels)
        data = {
            'list': [images[:2], images[2:]],
            'loader': DataLoader(images, batch_size=2),
            'labels': DataLoader(samples, batch_size=4),
            'dicts': [{'image': images[:4], 'label': labels[:4]}, {'image': images[4:], 'label': labels[4:]}],
            'set': samples,
            'one pair': (images, labels),
        }[kind]
        report, whole = profile(small, data, batch_size=3), profile(small, images)
        same_counts(whole, report)
        assert report.num_samples == 5
        assert (report.top1 is None) == (kind in ('list', 'loader'))
        assert report.energy['A'].ci95 == pytest.approx(whole.energy['A'].ci95)

    def test_the_interval_is_that_of_single_samples(self, small):
        images = torch.rand(4, 1, 20, 28)
        report = profile(small, images)
        singles = torch.tensor([profile(small, image.unsqueeze(0)).energy['C'].mj for image in images])
        assert report.energy['C'].mj == pytest.approx(singles.mean().item())
        # the operand that gates self-attention is chosen over all data: a hair's breadth
        assert report.energy['C'].ci95 == pytest.approx(1.96 * singles.std().item() / math.sqrt(4), rel=1e-2)
        assert profile(small, images[:1]).energy['C'].ci95 is None

    def test_num_samples_cuts_the_last_batch(self, small):
        images = torch.rand(5, 1, 20, 28)
        same_counts(profile(small, images[:3]), profile(small, DataLoader(images, batch_size=2), num_samples=3))

    def test_a_timm_data_set_gets_the_models_own_transform(self, small):
        from PIL import Image

        class Pictures(Dataset):
            def __len__(self):
                return 3

            def __getitem__(self, index):
                return Image.new('L', (40, 30), 60 * index), index

        report = profile(small, Pictures())
        assert report.num_samples == 3 and report.input_shape == (1, 28, 28) and report.top1 is not None

    def test_images_at_one_step_and_frames(self):
        model = lively(timm.create_model('msvit_2_256', num_steps=2))
        frames = torch.rand(2, 2, 2, 32, 48).round()
        report = profile(model, frames)
        assert (report.num_steps, report.static, report.input_shape) == (2, False, (2, 2, 32, 48))
        model.num_steps = 1
        one = profile(model, frames[:, 0])
        assert (one.num_steps, one.static) == (1, True)
        assert one.total.dense_macs_per_step == report.total.dense_macs_per_step == one.total.dense_macs

    @pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
    def test_half_precision(self, dtype):
        model = lively(timm.create_model('msvit_4_96')).to(dtype)
        images = torch.rand(2, 1, 28, 28)
        report, reference = profile(model, images), profile(model.float(), images)
        assert report.total.dense_macs == reference.total.dense_macs
        assert report.state_bytes == reference.state_bytes  # membranes are float32 in all of them
        assert report.total.firing_rate == pytest.approx(reference.total.firing_rate, rel=0.05)
        assert report.energy['C'].mj == pytest.approx(reference.energy['C'].mj, rel=0.05)
        assert 2 * report.footprint_bytes < 1.01 * reference.footprint_bytes

    def test_models_without_neurons(self):
        model = timm.create_model('resnet18', num_classes=5)
        report = profile(model, torch.rand(2, 3, 33, 47))
        assert report.total.firing_rate is None and report.total.neurons == 0 and report.state_bytes == 0
        assert report.energy['B'].acs == 0 and report.energy['ANN twin'].mj == pytest.approx(report.energy['B'].mj)

    def test_features_only(self):
        model = timm.create_model('msvit_4_96', features_only=True)
        report = profile(model, torch.rand(2, 1, 28, 28))
        assert [row.name for row in report.stages] == ['stem', 'stages.0', 'stages.1', 'stages.2']
        assert sum(row.parameters for row in report.stages) == report.parameters

    def test_all_attention_and_neuron_names(self):
        """Also a sum of scales in self-attention, whose query is no longer 0 and 1."""
        for kwargs in ({'attn': 'ssa', 'query_kernels': ((1, 3),) * 3}, {'attn': 'mssa'}, {'lif_layer': 'plif'}):
            model = lively(timm.create_model('msvit_4_96', **kwargs)).double()
            report = profile(model, torch.rand(2, 1, 28, 28))
            assert report.total.firing_rate > 0 and not report.not_counted
            assert {row.kind for row in report.layers} <= {'conv', 'linear', 'MSSA', 'SSA'}

    def test_attention_and_neurons_of_users(self, monkeypatch):
        """Without a rule their convolutions, neurons and products are counted as they run."""
        monkeypatch.setattr(attentions, '_layers', dict(attentions._layers))
        monkeypatch.setattr(neurons, '_layers', dict(neurons._layers))

        @neurons.register('round')
        class Round(nn.Module):
            def __init__(self, v_threshold=1.0):
                super().__init__()
                self.scale = v_threshold

            def forward(self, x):
                return (x / self.scale).round().clamp(0, 3)

        @attentions.register('bare')
        class Bare(nn.Module):
            def __init__(self, dim, num_heads, attn_v_threshold, lif_layer, device=None, dtype=None):
                super().__init__()
                self.qk = nn.Linear(dim, 2 * dim, bias=False)
                self.lif = lif_layer()
                self.mix = nn.Parameter(torch.eye(dim))

            def forward(self, x):
                tokens = x.flatten(3).transpose(2, 3)
                q, k = self.lif(self.qk(tokens)).chunk(2, 3)
                return (
                    x + (q @ (k.transpose(2, 3) @ tokens) @ self.mix).transpose(2, 3).unflatten(3, x.shape[3:]).sign()
                )

        class Variant(SpikingSelfAttention):
            def forward(self, x):
                return super().forward(x)

        model = lively(timm.create_model('msvit_4_96', attn=('bare', Variant, 'mssa'), lif_layer='round', num_steps=3))
        images = torch.rand(2, 1, 28, 28)
        report = profile(model, images)
        bare, variant = layer(report, 'stages.0.blocks.0.attn'), layer(report, 'stages.1.blocks.0.attn')
        assert bare.kind == variant.kind == 'product'
        assert bare.matmul_ops == 3 * 2 * 49 * 48 * 48 and bare.dense == 3 * 49 * 48 * 48
        assert variant.matmul_ops == 3 * 2 * 16 * 48 * 16
        qk, lif = layer(report, 'stages.0.blocks.0.attn.qk'), layer(report, 'stages.0.blocks.0.attn.lif')
        assert qk.dense_macs == 3 * 49 * 48 * 96 and lif.neurons == 49 * 96
        assert layer(report, 'stages.0.embed.units.0').largest > 1
        assert not report.not_counted

        with torch.inference_mode():
            same_counts(report, profile(model, images.clone()))

    def test_layers_that_run_for_some_batches_only(self):
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

    def test_variants_of_our_units_are_counted_as_they_run(self):
        class NeuronFirst(ConvBnLif):
            def forward(self, x):
                return self.current(self.lif(x))

        class Stem(SpikingStem):
            def forward(self, x, num_steps):
                return self.units(x.expand(num_steps, -1, -1, -1, -1))

        net = Net(NeuronFirst(2, 3)).eval()
        net.stem = Stem(1, (2,), (False,))
        report = profile(net, 9 * torch.rand(2, 1, 3, 5))
        names = ['stem.units.0', 'units.0.lif', 'units.0.conv', 'head']
        assert [row.name for row in report.layers] == names and not report.not_counted
        assert [row.dense_macs for row in report.layers] == [2 * 15 * 9 * 2, 0, 2 * 15 * 2 * 3, 6]
        assert [row.neurons for row in report.layers] == [30, 30, 0, 0]

    def test_single_step_networks_of_other_libraries(self):
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

    def test_neurons_that_return_their_membrane_too(self):
        snntorch = pytest.importorskip('snntorch')

        class Loop(nn.Module):
            num_steps = 3

            def __init__(self):
                super().__init__()
                self.conv, self.lif, self.fc = nn.Conv2d(1, 2, 3), snntorch.Leaky(0.9, threshold=0.2), nn.Linear(24, 4)
                self.spikes = 0.0

            def forward(self, x):
                membrane, logits, self.spikes = self.lif.init_leaky(), 0.0, 0.0
                for _ in range(3):
                    spikes, membrane = self.lif(self.conv(x), membrane)
                    logits, self.spikes = logits + self.fc(spikes.flatten(1)), self.spikes + spikes.sum().item()
                return logits

        net = Loop()
        net.conv.weight.data.abs_()
        report = profile(net, torch.rand(2, 1, 6, 5))
        lif = layer(report, 'lif')
        assert lif.neurons == 24 and 0 < lif.firing_rate == pytest.approx(net.spikes / (2 * 3 * 24))
        assert report.total.neuron_updates == 72 and layer(report, 'fc').input == 'binary'


def state_of(model):
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    values = {name: value.clone() for name, value in model.state_dict().items()}
    return hooks, [m.training for m in model.modules()], model.num_steps, values


def same_state(a, b) -> bool:
    return a[:3] == b[:3] and all(torch.equal(value, b[3][name]) for name, value in a[3].items())


class TestTheModelStaysAsItWas:
    def test_after_a_run(self, small):
        small.train()
        small.stages[1].eval()
        before = state_of(small)
        first = profile(small, torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0)))
        assert same_state(before, state_of(small)) and torch.is_grad_enabled()
        second = profile(small, torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0)))
        assert first == second
        small(torch.rand(2, 1, 28, 28).double()).sum().backward()  # outputs are no inference tensors, hooks are gone

    def test_after_an_exception(self, small, monkeypatch):
        small.train()
        before = state_of(small)
        with pytest.raises(ValueError, match='expected images'):
            profile(small, torch.rand(2, 3, 28, 28))
        with pytest.raises(ValueError, match=r'cannot profile stem\.units\.0: found NaN'):
            profile(small, torch.full((1, 1, 28, 28), torch.nan))

        def broken(x):
            raise KeyError('in the middle')

        monkeypatch.setattr(small.stages[1].blocks[0].mlp, 'forward', broken)
        with pytest.raises(KeyError, match='in the middle'):
            profile(small, torch.rand(2, 1, 28, 28))
        assert same_state(before, state_of(small))

    def test_no_tensor_of_a_run_is_kept(self, small):
        def maps():
            gc.collect()
            return [x for x in gc.get_objects() if type(x) is torch.Tensor and x.ndim > 3]

        images = torch.rand(1, 1, 31, 37).double()
        before = maps()
        report = profile(small, images)
        assert report.num_samples == 1 and {id(x) for x in maps()} <= {id(x) for x in before}


class TestRefusals:
    @pytest.mark.parametrize(
        ('data', 'message'),
        [
            ([], 'no samples'),
            (torch.rand(0, 1, 28, 28), 'no samples'),
            (3, 'expected images, batches of them or a data set, got int'),
            ('cifar10', 'got str'),
            ([torch.rand(3, 28)], r'got shape \(3, 28\)'),
            ([{'pixels': 1}], 'got NoneType'),
            ([torch.rand(1, 1, 28, 28), torch.rand(1, 4, 1, 28, 28)], r'T=4.* got shape \(1, 4, 1, 28, 28\)'),
        ],
    )
    def test_data(self, small, data, message):
        with pytest.raises(ValueError, match=message):
            profile(small, data)

    @pytest.mark.parametrize(
        ('kwargs', 'message'),
        [({'num_samples': 0}, 'num_samples must be at least 1'), ({'mac_pj': -1}, 'at least 0 pJ')],
    )
    def test_arguments(self, small, kwargs, message):
        with pytest.raises(ValueError, match=message):
            profile(small, torch.rand(1, 1, 28, 28), **kwargs)

    def test_models(self):
        with pytest.raises(ValueError, match='scripted or traced'):
            profile(torch.jit.script(nn.Sequential(nn.Conv2d(1, 1, 1))), torch.rand(1, 1, 2, 2))
        with pytest.raises(ValueError, match='expected a model'):
            profile('msvit_4_96', torch.rand(1, 1, 2, 2))


def test_what_is_compiled_is_compiled_again_afterwards():
    graphs = []
    compiled = torch.compile(nn.Conv2d(1, 1, 1), backend=lambda graph, inputs: graphs.append(graph) or graph.forward)
    images = torch.rand(1, 1, 2, 2)
    profile(compiled, images)
    profile(nn.Sequential(compiled), images)
    assert not graphs
    compiled(images)
    assert len(graphs) == 1


def test_compiled_models_run_eagerly_and_keep_their_names(small):
    images = torch.rand(2, 1, 20, 28)
    plain = profile(small, images)
    same_counts(plain, profile(torch.compile(small), images))
    small.stages[1] = torch.compile(small.stages[1])  # as regional compilation does
    small.head.fc = torch.compile(small.head.fc)
    report = profile(small, images)
    same_counts(plain, report)
    assert [row.parameters for row in report.layers] == [row.parameters for row in plain.layers]
    assert not report.not_counted


def test_weights_that_nothing_is_known_of_are_named():
    class Embedded(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.table = nn.Conv2d(1, 2, 1), nn.Embedding(3, 2)

        def forward(self, x):
            return self.conv(x).mean((2, 3)) + self.table.weight[0]

    assert profile(Embedded(), torch.rand(1, 1, 2, 2)).not_counted == ['table.weight']


def test_layers_of_ours_all_have_rules():
    for name in attentions.names():
        assert rule_of(attentions.get(name)(6, 2)), name
