"""Layers by name."""

import pytest
import timm

from timm_snn.layers import LIF, ParametricLIF, attentions, neurons, patch_embeds


class TestRegistry:
    def test_names(self):
        assert {'lif', 'plif'} <= set(neurons.names())
        assert {'mssa', 'ssa'} <= set(attentions.names())
        assert 'spemsf' in patch_embeds.names()

    @pytest.mark.parametrize(
        ('registry', 'argument', 'kind'),
        [(neurons, 'lif_layer', 'neuron'), (attentions, 'attn', 'attention'), (patch_embeds, 'patch_embed', 'patch')],
    )
    def test_an_unknown_name_is_refused_with_the_known_ones(self, registry, argument, kind):
        with pytest.raises(ValueError, match=rf"unknown {kind}.*'nope'.*use one of .*{registry.names()[0]}"):
            timm.create_model('msvit_4_96', **{argument: 'nope'})

    @pytest.mark.parametrize('layer', [LIF(), ['lif'], 3])
    def test_what_is_no_name_and_no_class_is_refused(self, layer):
        with pytest.raises(ValueError, match='expected a name or a class of neuron layers'):
            timm.create_model('msvit_4_96', lif_layer=layer)

    def test_a_decorator_without_a_name_is_refused(self):
        with pytest.raises(TypeError, match=r'register needs a name: @register\("my_neuron"\)'):
            neurons.register(LIF)

    def test_replacing_a_name_warns(self, monkeypatch):
        monkeypatch.setattr(neurons, '_layers', dict(neurons._layers))
        with pytest.warns(UserWarning, match="neuron 'lif' is registered again"):
            neurons.register('lif')(ParametricLIF)
