"""Facts about Meta-SpikeFormer alone; `test_families.py` and `test_golden_models.py` have the rest."""

import numpy as np
import pytest
import timm
import torch

import timm_snn
from tests.conftest import lively
from tests.support.reference import input_of, outputs_of, weights_of
from timm_snn.models.metaspikformer import checkpoint_filter_fn

SMALL = dict(embed_dims=(24, 48, 96, 120), num_classes=10)


@pytest.mark.parametrize(
    ('name', 'kwargs', 'count'),
    [
        ('metaspikformer_8_256', {}, 15_112_208),
        ('metaspikformer_8_384', {}, 31_333_864),
        ('metaspikformer_8_512', {}, 55_350_248),
        ('metaspikformer_8_512', {'embed_dims': (192, 384, 768, 960)}, 123_741_160),
        ('metaspikformer_8_256', SMALL, 1_988_698),
    ],
)
def test_parameters_are_the_released_ones(name, kwargs, count):
    model = timm.create_model(name, device='meta', **kwargs)
    assert sum(p.numel() for p in model.parameters()) == count
    assert len(model.state_dict()) == 825


def test_one_step_equals_the_research_code():
    golden = outputs_of('metaspikformer_small')
    model = timm.create_model('metaspikformer_8_256', **SMALL)
    assert model.num_steps == 1
    model.load_state_dict(checkpoint_filter_fn(weights_of('metaspikformer_small'), model))
    fired = []
    for module in model.modules():
        if isinstance(module, timm_snn.LIF):
            module.register_forward_hook(lambda module, args, output: fired.append(int(output.sum())))
    with torch.no_grad():
        logits = model.double().eval()(input_of('metaspikformer_small', (2, 3, 64, 64)))
    np.testing.assert_allclose(logits, golden['logits_fixed_T1'], rtol=0, atol=1e-9)
    assert sorted(fired) == sorted(golden['lif_spikes_fixed_T1'].tolist())


def test_the_classifier_of_a_distilled_file_is_the_mean_of_its_two():
    theirs = weights_of('metaspikformer_small')
    kd = {f'head_kd.{leaf}': torch.randn_like(theirs[f'head.{leaf}']) for leaf in ('weight', 'bias')}
    model = timm.create_model('metaspikformer_8_256', **SMALL)
    ours = checkpoint_filter_fn({**theirs, **kd}, model)
    x = torch.randn(3, 120)
    two = [
        torch.nn.functional.linear(x, f['weight'], f['bias'])
        for f in (
            {leaf: theirs[f'head.{leaf}'] for leaf in ('weight', 'bias')},
            {leaf: kd[f'head_kd.{leaf}'] for leaf in ('weight', 'bias')},
        )
    ]
    one = torch.nn.functional.linear(x, ours['head.fc.weight'], ours['head.fc.bias'])
    torch.testing.assert_close(one, (two[0] + two[1]) / 2)
    del kd['head_kd.bias']
    with pytest.raises(RuntimeError, match=r'1 keys unexpected \(first: head_kd.weight\)'):
        checkpoint_filter_fn({**theirs, **kd}, model)


def test_maps_have_the_sizes_of_the_table():
    model = timm.create_model('metaspikformer_8_256', depths=(1,) * 5, features_only=True).eval()
    with torch.no_grad():
        taps = model(torch.rand(1, 3, 64, 96))
    assert [tap.shape[1:] for tap in taps] == [
        (32, 32, 48),
        (64, 16, 24),
        (128, 8, 12),
        (360, 4, 6),
    ]


def test_the_profiler_counts_the_parts_of_convolutions_that_are_made_of_some():
    model = lively(timm.create_model('metaspikformer_8_256', depths=(1,) * 5, num_steps=4, **SMALL).double().eval())
    rows = {row.name: row for row in timm_snn.profile(model, torch.rand(2, 3, 32, 48).double(), progress=False).layers}
    k = 'stages.3.blocks.0.attn.k'
    # W1 sees spikes, the others what it makes of them
    assert rows[f'{k}.conv.pw1'].effective_acs > 0 and not rows[f'{k}.conv.pw1'].effective_macs
    assert rows[f'{k}.conv.dw'].effective_macs > 0 and rows[f'{k}.conv.pw2'].effective_macs > 0
    assert 0 < rows[k].firing_rate < 1 and not rows[k].effective_acs and not rows[k].effective_macs
    assert rows['stages.3.blocks.0.attn.attn_lif'].kind == 'SSA'


@pytest.mark.parametrize('kwargs', [{'embed_dims': (64, 128, 256)}, {'embed_dims': (9, 8, 8, 8)}, {'depths': (1, 2)}])
def test_bad_arguments_are_refused(kwargs):
    with pytest.raises(ValueError, match='expected four embed_dims, the first of them even, and five depths, got'):
        timm.create_model('metaspikformer_8_256', device='meta', **kwargs)
