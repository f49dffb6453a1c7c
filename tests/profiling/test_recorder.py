"""Any model is counted as it runs, whatever runs as one kernel, and stays as it was."""

import copy
import gc

import pytest
import timm
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

import timm_snn
from tests.conftest import lively
from tests.support.profiling import Net, layer, profile, same_counts
from timm_snn.layers import (
    ConvBnLif,
    MultiScaleSpikingAttention,
    SpikingSelfAttention,
    SpikingStem,
    attentions,
    neurons,
)
from timm_snn.ops.backends.inductor import why_not


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
            maps = y if unit.dims == 2 else y.unsqueeze(2)
            return unit.pool.forward(unit.bn.forward(maps).view_as(y)).unflatten(0, x.shape[:2])

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


def test_all_attention_and_neuron_names():
    """Also a sum of scales in self-attention, whose query is no longer 0 and 1."""
    for kwargs in ({'attn': 'ssa', 'query_kernels': ((1, 3),) * 3}, {'attn': 'mssa'}, {'lif_layer': 'plif'}):
        model = lively(timm.create_model('msvit_4_96', **kwargs)).double()
        report = profile(model, torch.rand(2, 1, 28, 28))
        assert report.total.firing_rate > 0 and not report.not_counted
        assert {row.kind for row in report.layers} <= {'conv', 'linear', 'MSSA', 'SSA'}


def test_attention_and_neurons_of_users(monkeypatch):
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
            return x + (q @ (k.transpose(2, 3) @ tokens) @ self.mix).transpose(2, 3).unflatten(3, x.shape[3:]).sign()

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


def test_variants_of_our_units_are_counted_as_they_run():
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


def test_neurons_that_return_their_membrane_too():
    snntorch = pytest.importorskip('snntorch')
    fired = []

    class Loop(nn.Module):
        num_steps = 3

        def __init__(self):
            super().__init__()
            self.conv, self.lif, self.fc = nn.Conv2d(1, 2, 3), snntorch.Leaky(0.9, threshold=0.2), nn.Linear(24, 4)

        def forward(self, x):
            membrane, logits = self.lif.init_leaky(), 0.0
            fired.append(0.0)
            for _ in range(3):
                spikes, membrane = self.lif(self.conv(x), membrane)
                logits, fired[-1] = logits + self.fc(spikes.flatten(1)), fired[-1] + spikes.sum().item()
            return logits

    net = Loop()
    net.conv.weight.data.abs_()
    report = profile(net, torch.rand(2, 1, 6, 5))
    lif = layer(report, 'lif')
    assert lif.neurons == 24 and 0 < lif.firing_rate == pytest.approx(fired[-1] / (2 * 3 * 24))
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
    small.stem.units[0] = torch.compile(small.stem.units[0])
    small.stages[0].blocks[0].attn.k = torch.compile(small.stages[0].blocks[0].attn.k)
    report = profile(small, images)
    same_counts(plain, report)
    assert [row.parameters for row in report.layers] == [row.parameters for row in plain.layers]
    assert not report.not_counted
