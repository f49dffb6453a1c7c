"""Attention costs what its rule says, which is what its spikes say."""

import sys

import pytest
import timm
import torch
from torch import nn

from tests.conftest import lively
from tests.support.profiling import Net, layer, profile
from timm_snn.layers import LIF, ConvBnLif, attentions
from timm_snn.profiling import rules
from timm_snn.profiling.counts import count_elements
from timm_snn.profiling.rules import rule_of


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


def test_layers_of_ours_all_have_rules():
    for name in attentions.names():
        assert rule_of(attentions.get(name)(6, 2)), name


def test_a_layer_may_have_other_names_for_its_parts(monkeypatch):
    class Gated(nn.Module):
        """Keys that pass where the sum of them over channels fires."""

        def __init__(self):
            super().__init__()
            self.key, self.gate, self.last = ConvBnLif(2, 2), LIF(v_threshold=0.5), ConvBnLif(2, 3)

        def forward(self, x):
            k = self.key(x)
            return self.last(k * self.gate(k.sum(2, keepdim=True)))

    monkeypatch.setattr(rules, '_RULES', dict(rules._RULES))

    @rules.register(Gated, 'gated', neuron='gate', output='last')
    def gated(layer, spikes, site):
        site.operate('mask', ['key'], count_elements(spikes['key']))
        site.fire(spikes['last'])

    report = profile(lively(Net(Gated())).double(), torch.rand(2, 1, 3, 5))
    row = layer(report, 'units.0.gate')
    assert (row.kind, row.mask_ops) == ('gated', 2 * 2 * 15)
    assert row.effective_mask_ops == pytest.approx(2 * 2 * 15 * layer(report, 'units.0.key').firing_rate)
    assert row.firing_rate == layer(report, 'units.0.last').input_rate > 0


def test_the_old_name_of_the_rules_works_and_warns(monkeypatch):
    monkeypatch.delitem(sys.modules, 'timm_snn.profiling.attention', raising=False)
    with pytest.warns(DeprecationWarning, match='import register from timm_snn.profiling.rules'):
        from timm_snn.profiling.attention import register
    assert register is rules.register
