"""Attention by name in every family that has a choice of it; nothing below names one."""

import copy
import json

import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import timm_snn
from tests.conftest import lively
from tests.support.families import SMALLEST, shallow
from timm_snn.layers import SpatialTemporalAttention, SpikingSelfAttention, attentions
from timm_snn.models.settings import argument_names


def has_a_choice(name: str) -> bool:
    return 'attn' in argument_names(type(timm.create_model(name, device='meta')))


def takes_currents(name: str) -> bool:
    """Whether the stream of a family carries currents: attention then begins with a neuron of its own."""
    model = timm.create_model(name, attn='ssa', device='meta')
    layers = [module for module in model.modules() if isinstance(module, SpikingSelfAttention)]
    return not isinstance(layers[0].lif, nn.Identity)


FAMILIES = [name for name in SMALLEST if has_a_choice(name)]
OF_CURRENTS = [name for name in attentions.names() if getattr(attentions.get(name), 'takes_currents', False)]


def make(name: str, attn: str, num_steps: int):
    """In float64, where spikes do not depend on threads; with a neuron in which steps meet."""
    torch.manual_seed(0)
    model = timm.create_model(name, attn=attn, num_steps=num_steps, num_classes=3, lif_layer='lif')
    return lively(shallow(model).double().eval())


def frames(model, size: int = 32) -> torch.Tensor:
    return torch.rand(1, model.num_steps, model.in_chans, size, size, dtype=torch.float64)


@pytest.fixture(scope='module', params=FAMILIES)
def model(request):
    return make(request.param, 'statten', num_steps=4)


class TestSpatialTemporalAttention:
    def test_it_is_there_and_said_to_join_steps(self, model):
        assert any(isinstance(module, SpatialTemporalAttention) for module in model.modules())
        assert model.chunk_steps == 2

    def test_a_step_sees_its_chunk_and_no_later_one(self, model):
        """In the currents of attention, which the neuron behind them may answer alike; few neurons fire at step 0."""
        currents: list[list[torch.Tensor]] = []
        neurons = [module.attn_lif for module in model.modules() if isinstance(module, SpatialTemporalAttention)]
        hooks = [neuron.register_forward_hook(lambda _, args, out: currents[-1].append(args[0])) for neuron in neurons]
        x = frames(model)
        for step in (None, 3, 2):
            changed = x.clone()
            if step is not None:
                changed[:, step] = 1 - changed[:, step]
            currents.append([])
            with torch.no_grad():
                model(changed)
        for hook in hooks:
            hook.remove()
        before, last, third = currents
        assert any(not torch.equal(a[2], b[2]) for a, b in zip(before, last, strict=True))  # one chunk with step 3
        assert all(torch.equal(a[:2], b[:2]) for a, b in zip(before, third, strict=True))

    def test_the_first_chunk_answers_as_a_model_of_as_many_steps(self, model, monkeypatch):
        x = frames(model)
        with torch.no_grad():
            first = model.forward_steps(x)[:, :2].mean(1)
            monkeypatch.setattr(model, 'num_steps', 2)
            torch.testing.assert_close(model(x[:, :2]), first)

    def test_every_parameter_learns(self, model):
        twin = copy.deepcopy(model).train()
        twin(frames(twin).expand(2, -1, -1, -1, -1)).square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in twin.parameters())
        attention = next(module for module in twin.modules() if isinstance(module, SpatialTemporalAttention))
        assert any(p.grad.any() for p in attention.parameters())

    def test_folded_norms_change_nothing(self, model):
        x = frames(model)
        with torch.no_grad():
            torch.testing.assert_close(timm_snn.fuse(model)(x), model(x))

    def test_the_profiler_counts_its_products(self, model):
        x = frames(model)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(x)
        report = timm_snn.profile(model, x)
        assert any(layer.kind == 'STAtten' for layer in report.layers)
        assert 2 * report.total.dense_macs == counter.get_total_flops()


@pytest.mark.parametrize('name', FAMILIES)
def test_its_name_is_saved_and_loaded(name, tmp_path):
    model = timm.create_model(name, attn='statten', num_classes=3, num_steps=2).eval()
    save_for_hf(model, tmp_path, safe_serialization=True)
    assert json.loads((tmp_path / 'config.json').read_text())['model_args']['attn'] == 'statten'
    loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    x = torch.rand(1, model.in_chans, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize('attn', attentions.names())
@pytest.mark.parametrize('name', FAMILIES)
def test_every_name_is_built_or_refused_in_one_line(name, attn):
    spikes = attn in OF_CURRENTS and not takes_currents(name)
    if spikes:
        with pytest.raises(ValueError, match=r'^[^\n]*the stream of this family is spikes[^\n]*$'):
            timm.create_model(name, attn=attn, device='meta')
    else:
        layer = attentions.get(attn)
        kind = getattr(layer, 'func', layer)
        model = timm.create_model(name, attn=attn, device='meta')
        assert any(isinstance(module, kind) for module in model.modules())


@pytest.mark.parametrize('attn', OF_CURRENTS)
@pytest.mark.parametrize('name', [name for name in FAMILIES if takes_currents(name)])
def test_attention_of_currents_gets_them_where_they_are(name, attn):
    """A neuron in front of its own would never let that fire: spikes reach half of a threshold."""
    model = make(name, attn, num_steps=2)
    fired = []
    for module in model.modules():
        if isinstance(module, attentions.get(attn)):
            module.lif.register_forward_hook(lambda _, args, out: fired.append(bool(out.any())))
    with torch.no_grad():
        model(frames(model))
    assert fired and all(fired)
