"""Facts about E-SpikeFormer alone: sizes, one step that stands for four, the neuron before the classifier."""

import pytest
import timm
import torch
from timm.models import save_for_hf

from tests.conftest import lively
from timm_snn.layers import LIF, EfficientSpikeDrivenSelfAttention, IntegerNeuron


@pytest.mark.parametrize(
    ('name', 'parameters'),
    [('espikeformer_5m', 5_105_608), ('espikeformer_10m', 10_023_112), ('espikeformer_19m', 18_987_504)],
)
def test_models_have_as_many_parameters_and_entries_as_the_released_code(name, parameters):
    model = timm.create_model(name, device='meta')
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(model.state_dict()) == 605


@pytest.mark.parametrize(('name', 'parameters'), [('espikeformer_83m', 83_230_824), ('espikeformer_173m', 170_760_040)])
def test_reconstructions_have_the_counts_that_their_files_are_named_after(name, parameters):
    model = timm.create_model(name, device='meta')
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert [len(stage.blocks) for stage in model.stages] == [1, 1, 2, 12]
    for size in (224, 384):
        taps = model.forward_intermediates(torch.empty(1, 3, size, size, device='meta'), intermediates_only=True)
        assert [tap.shape[-1] for tap in taps] == [size // 2, size // 4, size // 8, size // 16]
    assert timm.create_model(name, features_only=True, device='meta').feature_info.reduction() == [2, 4, 8, 16]


def test_levels_are_those_of_every_neuron_and_are_saved(tmp_path):
    small = dict(embed_dims=(8, 16, 32), depths=(1, 1, 1, 1), num_classes=5)
    model = timm.create_model('espikeformer_83m', levels=8, **small)
    save_for_hf(model, tmp_path, safe_serialization=True)
    for found in (model, timm.create_model(f'local-dir:{tmp_path}', pretrained=True)):
        assert {module.levels for module in found.modules() if isinstance(module, IntegerNeuron)} == {8}
        assert not found.head_lif.normalize


@pytest.fixture(scope='module')
def tiny():
    torch.manual_seed(0)
    model = timm.create_model('espikeformer_5m', embed_dims=(8, 16, 32, 40), depths=(1, 1, 1, 1, 1), num_classes=5)
    return lively(model.double().eval())


def test_an_image_has_the_same_logits_at_any_number_of_steps(tiny):
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        once = tiny(x)
        tiny.num_steps = 3
        torch.testing.assert_close(tiny(x), once)
        tiny.num_steps = 1


def test_spikes_are_quarters_and_integers_before_the_classifier(tiny):
    fired: dict[str, torch.Tensor] = {}
    for name, module in tiny.named_modules():
        if isinstance(module, IntegerNeuron):
            module.register_forward_hook(lambda _, args, out, name=name: fired.update({name: out}))
    with torch.no_grad():
        tiny(torch.rand(2, 3, 32, 32, dtype=torch.float64))
    integers = set(fired['head_lif'].unique().tolist())
    assert max(integers) > 1 and integers <= {0, 1, 2, 3, 4}
    del fired['head_lif']
    quarters = {value for x in fired.values() for value in x.unique().tolist()}
    assert {0.25, 0.5} < quarters <= {0, 0.25, 0.5, 0.75, 1}


def test_another_neuron_can_take_its_place():
    model = timm.create_model('espikeformer_5m', lif_layer='lif', num_steps=4, device='meta')
    assert not any(isinstance(module, IntegerNeuron) for module in model.modules())
    assert isinstance(model.head_lif, LIF)


def test_the_linear_order_of_attention_is_the_quadratic_one():
    torch.manual_seed(0)
    layer = EfficientSpikeDrivenSelfAttention(16, 4, lif_layer=IntegerNeuron).double()
    x = torch.randn(2, 3, 16, 4, 6, dtype=torch.float64)
    current = []
    layer.attn_lif.register_forward_hook(lambda _, args, out: current.append(args[0]))
    y = layer(x)
    s = layer.lif(x).flatten(3)
    q, k, v = (layer.heads(unit(s)).transpose(3, 4) for unit in (layer.q, layer.k, layer.v))  # [T, B, heads, N, D]
    assert v.shape[4] == 4 * q.shape[4] == 16
    expected = (q @ k.transpose(3, 4)) @ v * 2 / 4**0.5
    torch.testing.assert_close(current[0].transpose(3, 4), expected)
    assert expected.any() and y.shape == x.shape


def test_arguments_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match='expected four embed_dims, the first of them even, and five depths'):
        timm.create_model('espikeformer_5m', device='meta', depths=(1, 2, 6, 2))
    with pytest.raises(ValueError, match='num_heads=7 does not divide dim=128'):
        timm.create_model('espikeformer_5m', device='meta', num_heads=7)
