"""A model's neuron by name, class or partial: its settings, how they are saved, and layers that are refused."""

import json
from functools import partial

import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import nn

import timm_snn
from tests.conftest import lively
from tests.support.families import SMALLEST, shallow
from timm_snn.layers import IF, LIF, IntegerNeuron, ParametricLIF
from timm_snn.models import set_num_steps
from timm_snn.models.base import neuron_layer
from timm_snn.ops import ATan

TINY = dict(embed_dims=(8, 8, 8), depths=(1, 1, 1), num_heads=2, num_classes=3, in_chans=3, num_steps=3)


def make(**kwargs):
    return timm.create_model('msvit_4_96', **TINY | kwargs)


def neurons_of(model) -> list[LIF]:
    return [module for module in model.modules() if isinstance(module, (LIF, IntegerNeuron))]


@pytest.mark.parametrize('name', SMALLEST)
class TestEveryFamily:
    def test_settings_reach_every_neuron(self, name):
        model = timm.create_model(name, lif_layer='lif', lif_kwargs=dict(tau=4.0, surrogate='atan'), device='meta')
        assert {(lif.tau, lif.surrogate) for lif in neurons_of(model)} == {(4.0, ATan())}

    def test_settings_are_those_of_its_own_neuron(self, name):
        model = timm.create_model(name, lif_kwargs=dict(v_threshold=0.75), device='meta')
        assert 0.75 in {neuron.v_threshold for neuron in neurons_of(model)}

    @pytest.mark.parametrize('lif_layer', ['lif', 'plif'])
    def test_thresholds_and_time_constants_are_learned_by_channel(self, name, lif_layer):
        torch.manual_seed(0)
        settings = dict(v_threshold=0.3, learn_threshold=True, per_channel=True)
        model = lively(shallow(timm.create_model(name, lif_layer=lif_layer, lif_kwargs=settings, num_steps=2)))
        lifs = neurons_of(model)
        assert len({lif.per_channel for lif in lifs}) > 1 and min(lif.per_channel for lif in lifs) > 0
        images = torch.rand(2, model.in_chans, 32, 32)
        model(images).square().sum().backward()
        learned = [parameter for lif in lifs for parameter in lif.parameters()]
        assert len(learned) == len(lifs) * (1 + (lif_layer == 'plif'))
        assert all(parameter.grad is not None for parameter in learned)
        assert sum(bool(parameter.grad.any()) for parameter in learned) > len(learned) / 2

    @pytest.mark.parametrize('num_steps', [0, -1, 1.5, '4', True, None])
    def test_steps_are_whole_numbers(self, name, num_steps):
        model = timm.create_model(name, device='meta')
        with pytest.raises(ValueError, match=f'num_steps must be a whole number of at least 1, got {num_steps!r}'):
            model.num_steps = num_steps

    def test_resets_of_other_libraries_do_nothing(self, name):
        functional = pytest.importorskip('spikingjelly.activation_based.functional')
        utils = pytest.importorskip('snntorch.utils')
        model = timm.create_model(name, device='meta')
        before = {key: value.shape for key, value in model.state_dict().items()}
        functional.reset_net(model)
        utils.reset(model)
        assert {key: value.shape for key, value in model.state_dict().items()} == before


@pytest.mark.parametrize('name', ['mst_tiny', 'mst_tiny_ann'])
def test_converted_models_can_be_reset_and_want_whole_steps(name):
    functional = pytest.importorskip('spikingjelly.activation_based.functional')
    model = timm.create_model(name, device='meta', num_classes=5)
    functional.reset_net(model)
    assert model.get_classifier().out_features == 5
    if name == 'mst_tiny':
        with pytest.raises(ValueError, match='whole number'):
            set_num_steps(model, 0)
    model.reset_classifier(7)
    assert model.get_classifier().out_features == 7


class TestSettings:
    @pytest.mark.parametrize(
        ('given', 'saved'),
        [
            (dict(lif_kwargs=dict(tau=4.0)), dict(lif_kwargs=dict(tau=4.0))),
            (dict(lif_layer=ParametricLIF), dict(lif_layer='plif')),
            (
                dict(lif_layer=partial(LIF, tau=3.0, v_reset=None), lif_kwargs=dict(surrogate=ATan(3.0))),
                dict(lif_layer='lif', lif_kwargs=dict(tau=3.0, v_reset=None, surrogate='atan:3.0')),
            ),
            (
                dict(lif_layer='if', lif_kwargs=dict(learn_threshold=True)),
                dict(lif_layer='if', lif_kwargs=dict(learn_threshold=True)),
            ),
            (
                dict(lif_layer=partial(LIF, tau=3.0), lif_kwargs=dict(tau=5)),
                dict(lif_layer='lif', lif_kwargs=dict(tau=5)),
            ),
        ],
    )
    def test_a_saved_model_has_them(self, tmp_path, given, saved):
        model = make(**given)
        save_for_hf(model, tmp_path, safe_serialization=True)
        args = json.loads((tmp_path / 'config.json').read_text())['model_args']
        assert {key: value for key, value in args.items() if key.startswith('lif_')} == saved
        loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True)
        assert [repr(neuron) for neuron in neurons_of(loaded)] == [repr(neuron) for neuron in neurons_of(model)]
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))

    def test_settings_go_before_those_of_partials_and_families(self):
        layer = neuron_layer(partial(LIF, tau=3.0), None, tau=2.0, surrogate='atan')
        assert layer().tau == 3.0 and layer().surrogate == ATan()
        model = make(lif_layer=partial(LIF, tau=3.0), lif_kwargs=dict(tau=4.0))
        assert {lif.tau for lif in neurons_of(model)} == {4.0}
        model = make(lif_kwargs=dict(v_threshold=0.75), attn_v_threshold=0.5)
        assert {lif.v_threshold for lif in neurons_of(model)} == {0.75, 0.5}

    def test_what_a_family_sets_goes_to_layers_that_take_it(self):
        model = timm.create_model('spikingresformer_ti', lif_layer='integer', lif_kwargs=dict(levels=2), device='meta')
        assert {neuron.levels for neuron in neurons_of(model)} == {2}

    @pytest.mark.parametrize(
        ('kwargs', 'message'),
        [
            (dict(lif_kwargs=dict(taus=4.0)), r"neuron 'lif' has no setting taus: lif_kwargs takes some of \[.*'tau'"),
            (
                dict(lif_layer='plif', lif_kwargs=dict(taus=4.0)),
                r"neuron 'plif' .* takes some of .*'detach_reset'.*'tau'",
            ),
            (dict(lif_kwargs=['tau']), 'settings by name'),
            (dict(lif_kwargs=dict(backend='torch')), r"pass create_model\(..., backend='torch'\)"),
            (dict(lif_kwargs=dict(surrogate='tanh:2')), "unknown surrogate 'tanh:2'"),
            (dict(lif_kwargs=dict(surrogate='atan:no')), "'atan:no' needs a number above 0"),
            (dict(lif_kwargs=dict(surrogate='atan:-1')), "'atan:-1' needs a number above 0"),
            (dict(lif_kwargs=dict(tau=0.5)), 'got tau=0.5'),
            (dict(lif_layer='relu', lif_kwargs=dict(tau=4.0)), "'relu' has no settings"),
            (dict(act='relu', lif_kwargs=dict(tau=4.0)), 'leave out lif_kwargs'),
        ],
    )
    def test_others_are_refused(self, kwargs, message):
        with pytest.raises(ValueError, match=message):
            make(**kwargs)

    def test_models_without_neurons_take_none(self):
        with pytest.raises(ValueError, match='mst_tiny has no argument lif_layer'):
            timm.create_model('mst_tiny', lif_kwargs=dict(tau=4.0), device='meta')

    def test_a_file_with_others_is_refused(self, tmp_path):
        save_for_hf(make(lif_kwargs=dict(tau=4.0)), tmp_path, safe_serialization=True)
        config = json.loads((tmp_path / 'config.json').read_text())
        for settings, message in (
            (dict(evil=1), 'no setting evil'),
            (dict(tau=1e9), 'expected at most'),
            ([1], 'by name'),
        ):
            config['model_args']['lif_kwargs'] = settings
            (tmp_path / 'config.json').write_text(json.dumps(config))
            with pytest.raises(ValueError, match=message):
                timm.create_model(f'local-dir:{tmp_path}', pretrained=True)


class Forgetful(nn.Module):
    """An own neuron, with noise in training."""

    def __init__(self, v_threshold: float = 1.0) -> None:
        super().__init__()
        self.noise, self.norm, self.v_threshold = nn.Dropout(0.5), nn.BatchNorm1d(1), v_threshold

    def forward(self, x):
        x = self.norm(self.noise(x).reshape(-1, 1)).view(x.shape)
        return timm_snn.lif(x + torch.rand_like(x), v_threshold=self.v_threshold)


class Remembers(nn.Module):
    v = 0.0

    def forward(self, x):
        self.v = self.v / 2 + x
        return (self.v >= 1).to(x)


class BatchFirst(nn.Module):
    def forward(self, x):
        return timm_snn.lif(x.transpose(0, 1)).transpose(0, 1)


class Answers(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class TestOwnNeurons:
    @pytest.mark.parametrize(
        ('layer', 'message'),
        [
            (Remembers, 'lif_layer Remembers remembers its last call: .* put it at rest at the start of forward'),
            (BatchFirst, 'lif_layer BatchFirst mixes the samples'),
            (lambda: Answers(lambda x: x[0]), r'answers \(4, 3, 2, 5, 7\) by \(3, 2, 5, 7\): a layer for single steps'),
            (lambda: Answers(lambda x: (x, x)), 'by a tuple'),
            (lambda: Answers(lambda x: x @ x), 'failed for .*: RuntimeError'),
            (lambda: len, 'must return an nn.Module, got builtin'),
            (nn.LSTM, 'LSTM must be made by a call without arguments'),
        ],
    )
    def test_what_is_no_neuron_is_refused_when_the_model_is_made(self, layer, message):
        with pytest.raises(ValueError, match=message) as error:
            make(lif_layer=layer)
        assert '\n' not in str(error.value)

    def test_right_layers_pass(self):
        for layer in (Forgetful, nn.Sigmoid, partial(nn.Dropout, 0.5), lambda **settings: LIF(tau=3.0, **settings)):
            make(lif_layer=layer)

    def test_the_look_leaves_no_trace(self):
        shared = Forgetful()
        torch.manual_seed(0)
        state, numbers = torch.get_rng_state(), [p.clone() for p in shared.state_dict().values()]
        neuron_layer(lambda: shared, None)
        assert torch.equal(torch.get_rng_state(), state) and shared.training
        assert all(torch.equal(a, b) for a, b in zip(numbers, shared.state_dict().values(), strict=True))

    def test_a_backend_that_the_look_cannot_have_does_not_matter(self):
        class Bound(nn.Module):
            def __init__(self, v_threshold: float = 1.0, backend: str | None = None) -> None:
                super().__init__()
                self.settings = dict(v_threshold=v_threshold, backend=backend)

            def forward(self, x):
                return timm_snn.lif(x, **self.settings)

        assert neuron_layer(Bound, 'triton')().settings['backend'] == 'triton'
        assert neuron_layer(partial(Bound, backend='triton'), None)().settings['backend'] == 'triton'
        timm_snn.set_backend('triton')
        neuron_layer(Bound, None)
        timm_snn.set_backend(None)

    def test_the_meta_device_is_let_pass(self):
        assert neuron_layer(lambda: nn.BatchNorm1d(3, device='meta'), None)().weight.is_meta  # which cannot be called
        with torch.device('meta'):
            model = make(lif_layer=Forgetful)
        assert all(p.is_meta for p in model.parameters())

    def test_a_backend_needs_a_neuron_that_takes_one(self):
        with pytest.raises(ValueError, match="backend='torch' is for neurons that timm_snn runs, and Forgetful has no"):
            make(lif_layer=Forgetful, backend='torch')
        assert {lif.backend for lif in neurons_of(make(backend='torch'))} == {'torch'}
        assert IF().neuron == neuron_layer('if', 'torch')().neuron
