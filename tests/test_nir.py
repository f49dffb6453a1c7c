"""Graphs of NIR: what they say, by NIR's own equations, is what the model does, and other libraries read them so."""

import sys

import pytest
import timm
import torch
from torch import Tensor, nn

import timm_snn
from tests.conftest import lively
from tests.support.families import SMALLEST, shallow
from timm_snn.export import read_metadata
from timm_snn.export.nir import run
from timm_snn.layers import ConvBn, ConvBnLif, SpikingMlp, SpikingResidual

nir = pytest.importorskip('nir')

DT = 1e-4


@torch.no_grad()
def assert_same_spikes(model: nn.Module, graph: nir.NIRGraph, frames: Tensor) -> None:
    """All neurons of a model and of its graph, which have the same names, on frames [B, T, C, H, W]."""
    with timm_snn.record(timm_snn.fuse(model)) as recording:
        logits = recording.model(frames)
    of_nodes = run(graph, frames)
    neurons = {name for name, node in graph.nodes.items() if isinstance(node, (nir.LIF, nir.IF))}
    assert neurons == recording.spikes.keys()
    for name, spikes in recording.spikes.items():
        ours = spikes.transpose(0, 1)
        assert torch.equal(of_nodes[name].reshape(ours.shape), ours), name
    assert sum(0 < spikes.mean() < 1 for spikes in recording.spikes.values()) > len(neurons) / 2
    torch.testing.assert_close(of_nodes['output'].mean(1).flatten(1), logits, rtol=0, atol=1e-10)


SETTINGS = [
    dict(),
    dict(tau=4.0, decay_input=False, v_threshold=0.5),
    dict(v_reset=-0.25),
    dict(v_reset=0.125, v_threshold=0.75, decay_input=False),
    dict(learn_threshold=True, per_channel=True),
]


@pytest.mark.parametrize('settings', SETTINGS)
def test_every_setting_of_the_neuron(settings, tmp_path):
    model = made('ms_resnet18', lif_layer='lif', lif_kwargs=settings)
    for module in model.modules():
        if isinstance(module, timm_snn.LIF) and module.learn_threshold:
            nn.init.uniform_(module.log_threshold, -0.5, 0.5)
    timm_snn.write_nir(model, tmp_path / 'model.nir', (3, 16, 16))
    assert_same_spikes(model, nir.read(tmp_path / 'model.nir'), torch.rand(2, 4, 3, 16, 16).double())


@pytest.mark.parametrize('lif_layer', ['plif', 'if'])
@pytest.mark.parametrize('name', ['spiking_resnet19', 'sew_resnet18'])
def test_other_families_and_neurons(name, lif_layer):
    pools = dict(pools=(False,) * 5) if name == 'sew_resnet18' else {}
    model = made(name, lif_layer=lif_layer, **pools)
    assert_same_spikes(model, timm_snn.to_nir(model, (3, 16, 16)), torch.rand(2, 4, 3, 16, 16).double())


def made(name: str, **kwargs: object) -> nn.Module:
    torch.manual_seed(0)
    widths = dict(embed_dims=(8, 16, 24), stem_dim=8, hidden_dim=12)
    if name != 'spiking_resnet19':
        widths = dict(embed_dims=(8, 8, 16, 16, 24), stem_dim=8)
    return lively(shallow(timm.create_model(name, num_classes=10, num_steps=4, **widths, **kwargs)).double().eval())


def test_the_format_of_export(tmp_path):
    """Checked when it is written, as other formats are."""
    model = made('ms_resnet18', lif_layer='lif')
    written = timm_snn.export(model, tmp_path / 'model.nir', example=torch.rand(2, 3, 16, 16).double())
    assert written.format == 'nir' and written.difference < 1e-9 and written.same_class == written.checked == 6
    about = read_metadata(tmp_path / 'model.nir')
    assert (about['num_steps'], about['input_size'], about['num_classes']) == (4, [3, 16, 16], 10)
    with pytest.raises(ValueError, match='which is max pooling'):
        timm_snn.export(timm.create_model('msvit_4_96'), tmp_path / 'other.nir')
    assert not (tmp_path / 'other.nir').exists()


def test_a_threshold_that_is_met_exactly():
    """We fire at the threshold, NIR above it."""
    net = exact_layers()
    frames = torch.randint(0, 2, (1, 6, 2, 8, 8)).float()
    with timm_snn.record(net, membranes=True) as recording:
        ours = net(frames.transpose(0, 1)).transpose(0, 1)
    assert any((h == 1).any() for h in recording.membranes.values())
    assert torch.equal(run(timm_snn.to_nir(net, (2, 8, 8)), frames)['output'], ours)


def exact_layers() -> nn.Sequential:
    """Layers whose numbers are small multiples of 1 / 4, so that no arithmetic rounds in a few steps."""
    torch.manual_seed(0)
    net = nn.Sequential(
        ConvBnLif(2, 6, 3, stride=2, bias=True),
        SpikingResidual(SpikingMlp(6, 8)),
        ConvBn(6, 5, 3),
        timm_snn.LIF(),
    )
    for module in net.modules():
        if isinstance(module, ConvBn):
            module.bn = nn.Identity()
            for parameter in module.conv.parameters():
                parameter.data.copy_(torch.randint(-3, 5, parameter.shape) / 4)
    return net.eval()


@pytest.mark.parametrize(('batch', 'steps'), [(1, 1), (3, 6)])
def test_snntorch_reads_it(batch, steps, tmp_path):
    pytest.importorskip('nirtorch')
    import_from_nir = pytest.importorskip('snntorch.import_nir').import_from_nir
    net = exact_layers()
    timm_snn.write_nir(net, tmp_path / 'net.nir', (2, 8, 8))
    theirs = import_from_nir(nir.read(tmp_path / 'net.nir'))
    assert_reads(theirs, net, torch.randint(0, 2, (batch, steps, 2, 8, 8)).float())


@pytest.mark.parametrize(('batch', 'steps'), [(1, 1), (3, 6)])
def test_norse_reads_it(batch, steps):
    norse = pytest.importorskip('norse.torch')
    net = exact_layers()
    theirs = norse.from_nir(timm_snn.to_nir(net, (2, 8, 8), dt=0.5**10), dt=0.5**10)
    assert_reads(theirs, net, torch.randint(0, 2, (batch, steps, 2, 8, 8)).float())


@torch.no_grad()
def assert_reads(theirs: nn.Module, ours: nn.Module, frames: Tensor) -> None:
    spikes, state = [], None
    for frame in frames.unbind(1):
        output = theirs(frame, state)
        y, state = output if isinstance(output, tuple) else (output, None)
        spikes.append(y)
    expected = ours(frames.transpose(0, 1))
    assert frames.shape[1] == 1 or 0 < expected.mean() < 1
    assert torch.equal(torch.stack(spikes), expected)


def test_snntorch_comes_back():
    """Its neuron as NIR, in ours: beta is 1 - 1 / tau, and the current is not divided."""
    snntorch = pytest.importorskip('snntorch')
    leaky = snntorch.Leaky(beta=0.75, reset_mechanism='zero', reset_delay=False)
    lif = timm_snn.LIF(tau=4.0, decay_input=False)
    node = timm_snn.to_nir(nn.Sequential(lif), (1, 1, 1)).nodes['0']
    assert 1 - DT / node.tau.item() == pytest.approx(leaky.beta.item(), abs=1e-6)
    assert node.r.item() * DT / node.tau.item() == pytest.approx(1)


@pytest.mark.parametrize('name', SMALLEST)
def test_every_family_is_written_or_says_why_not(name):
    with torch.device('meta'):
        model = timm.create_model(name)
    reasons = timm_snn.why_not_nir(model)
    assert (not reasons) == (name in ('ms_resnet18', 'spiking_resnet19'))
    assert all(model.get_submodule(layer) and reason for layer, reason in reasons.items())
    assert not any('does not know' in reason for reason in reasons.values())


def test_what_cannot_be_said_is_refused_by_name():
    reasons = timm_snn.why_not_nir(timm.create_model('msvit_4_96'))
    assert reasons['stem.units.0.pool'].startswith('which is max pooling')
    assert reasons['stages.2.blocks.0.attn'].startswith('which is attention')
    assert not any(name.startswith('stages.2.blocks.0.attn.') for name in reasons)
    soft = timm_snn.why_not_nir(made('ms_resnet18', lif_layer='lif', lif_kwargs=dict(v_reset=None)))
    assert 'soft reset' in soft['head_lif']
    assert 'ReluNeuron' in timm_snn.why_not_nir(timm.create_model('ms_resnet18', act='relu'))['head_lif']
    assert "'max'" in timm_snn.why_not_nir(made('ms_resnet18', global_pool='max'))['MSResNet']
    with pytest.raises(ValueError, match=r'stem.units.0.pool does, which is max pooling.* and \d+ more'):
        timm_snn.to_nir(timm.create_model('msvit_4_96'))
    with pytest.raises(ValueError, match=r'pass input_size=\(C, H, W\)'):
        timm_snn.to_nir(exact_layers())


class Mine(SpikingMlp):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) ** 2


def test_layers_of_ones_own_are_refused():
    assert timm_snn.why_not_nir(nn.Sequential(Mine(4, 8))) == {
        '0': 'which is a Mine: this export does not know how it connects its parts'
    }


def test_a_convolution_by_itself_is_refused():
    with pytest.raises(ValueError, match='what 1 does, which is a Conv2d by itself'):
        timm_snn.to_nir(nn.Sequential(timm_snn.LIF(), nn.Conv2d(2, 3, 1)), (2, 8, 8))


def test_without_nir(monkeypatch):
    monkeypatch.setitem(sys.modules, 'nir', None)
    assert timm_snn.why_not_nir(exact_layers()) == {}
    with pytest.raises(ImportError, match=r"pip install 'timm-snn\[nir\]'"):
        timm_snn.to_nir(exact_layers(), (2, 8, 8))
