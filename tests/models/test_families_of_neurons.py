"""Every family with every neuron by name: it builds, trains a step, is causal, and is the same after it was saved."""

import json

import pytest
import timm
import torch
from timm.models import save_for_hf
from timm.optim import create_optimizer_v2

import timm_snn
from tests.conftest import lively
from tests.support.families import SMALLEST, shallow
from timm_snn.layers import PSN
from timm_snn.models import set_num_steps

NAMES = ['alif', 'clif', 'glif', 'klif', 'psn', 'sliding_psn', 'ternary']
FIXED = ['glif', 'psn']


def make(family: str, neuron: str):
    """A shallow one that fires, at two steps, in float64, where spikes do not depend on threads."""
    torch.manual_seed(0)
    settings = dict(lif_layer=neuron, lif_kwargs=dict(v_threshold=0.6), num_steps=2, num_classes=5)
    model = lively(shallow(timm.create_model(family, **settings)).double())
    for module in model.modules():
        if isinstance(module, PSN):  # random mixing of two steps alone may silence a layer
            module.weight.data.copy_(torch.tensor([[1.0, 0.3], [0.3, 1.0]]))
    return model


def msvit(neuron: str, **kwargs):
    sizes = dict(embed_dims=(8, 16, 16), depths=(1, 1, 1), num_heads=2, in_chans=3, num_classes=5)
    torch.manual_seed(0)
    return timm.create_model('msvit_4_96', lif_layer=neuron, **{**sizes, **kwargs})


@pytest.mark.parametrize('neuron', NAMES)
@pytest.mark.parametrize('family', SMALLEST)
def test_it_trains_a_step_and_is_causal(family, neuron):
    model = make(family, neuron)
    frames = torch.rand(1, 2, model.in_chans, 16, 16, dtype=torch.float64)
    model(frames).square().sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    with torch.no_grad():
        before = list(_levels(model.eval(), frames))
        frames[:, 1] = 1 - frames[:, 1]
        after = list(_levels(model, frames))
    first, second = ([torch.equal(a[t], b[t]) for a, b in zip(before, after, strict=True)] for t in range(2))
    assert not all(second)
    assert all(first) == (neuron != 'psn')
    assert model.chunk_steps == (2 if neuron == 'psn' else 1)


def _levels(model, frames):
    """What comes out of the stem and of every stage, [T, B, ...]."""
    x = model.stem(frames.transpose(0, 1), model.num_steps)
    yield x
    for stage in model.stages:
        x = stage(x)
        yield x


@pytest.mark.parametrize('neuron', NAMES)
class TestOneModel:
    def test_it_is_saved_and_loaded_by_name(self, neuron, tmp_path):
        model = lively(msvit(neuron, num_steps=3)).eval()
        save_for_hf(model, tmp_path)
        saved = json.loads((tmp_path / 'config.json').read_text())['model_args']
        assert (saved['lif_layer'], saved['num_steps']) == (neuron, 3)
        loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
        images = torch.rand(2, 3, 32, 32)
        assert torch.equal(loaded(images), model(images)) and model(images).any()

    def test_it_is_fused(self, neuron):
        model = lively(msvit(neuron, num_steps=3).double()).eval()
        images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
        torch.testing.assert_close(timm_snn.fuse(model)(images), model(images), rtol=0, atol=1e-10)

    def test_checkpointing_changes_nothing(self, neuron):
        results = []
        for enable in (False, True):
            model = lively(msvit(neuron, num_steps=3).double()).train()
            model.set_grad_checkpointing(enable)
            torch.manual_seed(1)
            logits = model(torch.rand(2, 3, 32, 32, dtype=torch.float64))
            logits.square().sum().backward()
            results.append([logits, *(p.grad for p in model.parameters())])
        for plain, checkpointed in zip(*results, strict=True):
            torch.testing.assert_close(plain, checkpointed)

    def test_it_gives_features(self, neuron):
        net = msvit(neuron, num_steps=3, features_only=True)
        taps = net(torch.rand(2, 3, 32, 32))
        sum(tap.square().sum() for tap in taps).backward()
        assert len(taps) == 3 and all(p.grad is not None for p in net.parameters())

    def test_it_is_profiled(self, neuron):
        model = lively(msvit(neuron, num_steps=3)).eval()
        fired = []
        stem = model.stem.units[0].lif
        hook = stem.register_forward_hook(lambda module, args, output: fired.append(output))
        images = torch.rand(4, 3, 32, 32)
        model(images)
        hook.remove()
        report = timm_snn.profile(model, images, batch_size=4)
        row = next(row for row in report.layers if row.name == 'stem.units.0')
        assert row.firing_rate == pytest.approx(fired[0].ne(0).double().mean().item())  # a spike of -1 is one
        assert report.num_steps == 3 and 0 < report.total.firing_rate < 1

    def test_steps_are_any_number_or_fixed(self, neuron):
        model = msvit(neuron, num_steps=3).eval()
        if neuron in FIXED:
            for assign in (lambda: setattr(model, 'num_steps', 4), lambda: set_num_steps(model, 4)):
                with pytest.raises(ValueError, match=r'parameters for each of 3 steps, and cannot run 4: make'):
                    assign()
            assert model.num_steps == 3 and model(torch.rand(1, 3, 32, 32)).isfinite().all()
        else:
            model.num_steps = 4
            assert model(torch.rand(1, 4, 3, 32, 32)).isfinite().all()

    def test_frames_stream_where_steps_follow_from_each_other(self, neuron):
        model = lively(msvit(neuron, num_steps=4).double()).eval()
        frames = torch.rand(2, 4, 3, 32, 32, dtype=torch.float64)
        if neuron in FIXED:
            with pytest.raises(ValueError, match=r'cannot stream this MSViT: stem.units.0.lif, a (PSN|GLIF),'):
                timm_snn.stream(model)
            return
        stream = timm_snn.stream(model)
        for frame in frames.unbind(1):
            logits = stream(frame)
        torch.testing.assert_close(logits, model(frames), rtol=0, atol=1e-10)


@pytest.mark.parametrize('neuron', ['psn', 'clif'])
def test_it_compiles(neuron):
    model = lively(msvit(neuron, num_steps=2, depths=(1, 0, 0)).double()).eval()
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend='eager')
        torch.testing.assert_close(compiled(images), model(images))


def test_weight_decay_leaves_the_mixing_of_steps_alone():
    model = msvit('psn')
    groups = create_optimizer_v2(model, opt='adamw', weight_decay=0.1).param_groups
    kept = {id(p) for group in groups if not group['weight_decay'] for p in group['params']}
    layers = [module for module in model.modules() if isinstance(module, PSN)]
    assert layers and all(id(p) in kept for layer in layers for p in layer.parameters())


def test_a_neuron_of_ones_own_is_told_the_steps():
    class Mine(PSN):
        pass

    model = msvit(Mine, num_steps=3)
    assert {module.num_steps for module in model.modules() if isinstance(module, Mine)} == {3}
    with pytest.raises(ValueError, match='Mine has parameters for each of 3 steps'):
        model.num_steps = 2


def test_settings_of_a_family_that_a_neuron_does_not_have_do_not_concern_it():
    model = timm.create_model('spikingformer_2_256', lif_layer='psn', device='meta')  # whose own tau is 1.5
    assert any(isinstance(module, PSN) for module in model.modules())


def test_spikes_of_both_signs_are_whole_numbers_to_the_energy():
    """Their effective operations are additions; convention A, which knows 0 and 1 alone, charges MACs."""
    model = lively(msvit('ternary', num_steps=2)).eval()
    model.stem.units[-1].bn.bias.data.normal_(0, 3)  # currents of both signs
    report = timm_snn.profile(model, torch.rand(4, 3, 32, 32))
    unit = next(row for row in report.layers if row.name == 'stages.0.embed.shortcut')
    assert (unit.input, unit.input_largest) == ('integer', 1) and unit.effective_acs > 0 == unit.effective_macs
    assert unit.energy_mj['A'] == pytest.approx(unit.dense_macs * 4.6e-9)
    assert unit.energy_mj['B'] == pytest.approx(unit.dense_macs * unit.input_rate * 0.9e-9)
