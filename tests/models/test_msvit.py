import json
import types

import pytest
import timm
import torch
from timm.models import save_for_hf
from timm.optim import create_optimizer_v2
from torch import nn

import timm_snn
from tests.conftest import lively
from timm_snn.layers import ConvBnLif, DropPath, attentions, neurons, patch_embeds
from timm_snn.ops import backend
from timm_snn.ops.backends import reference

CIFAR100 = 'msvit_4_384.cifar100'


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


class TestParameterCounts:
    @pytest.mark.parametrize(
        ('name', 'count'),
        [
            ('msvit_10_384', 17_686_216),
            ('msvit_10_512', 31_232_616),
            ('msvit_10_768', 69_802_408),
            ('msvit_4_384.cifar100', 7_593_412),
            ('msvit_4_384.cifar10', 7_558_762),
            ('msvit_2_256', 1_701_002),
            ('msvit_4_96', 500_050),
        ],
    )
    def test_of_every_model(self, name, count):
        assert parameters(timm.create_model(name, device='meta')) == count

    def test_of_the_parts_of_msvit_10_384(self):
        model = timm.create_model('msvit_10_384', device='meta')
        stages = model.stages
        assert parameters(model.stem) + parameters(stages[0].embed) == 520_032
        assert [parameters(stage.embed) for stage in stages[1:]] == [701_568, 2_066_688]
        assert [parameters(stage.blocks) for stage in stages] == [520_704, 1_041_408, 12_450_816]
        assert parameters(model.head) == 385_000

    @pytest.mark.parametrize(
        ('query_kernels', 'count'),
        [
            (((3, 3), (3, 3), (1,)), 7_740_868),  # MSSA(P+P) + SSA
            (((1, 1), (1, 1), (1,)), 7_445_956),  # MSSA(Q+Q) + SSA
            (((3,), (3,), (1,)), 7_518_916),  # MSSA(P) + SSA
            (((1,), (1,), (1,)), 7_371_460),  # MSSA(Q) + SSA
            (((1, 3), (1, 3), (3, 3)), 9_069_508),  # MSSA + MSSA(P+P), 9.04 M in the paper
            (((1, 3), (1, 3), (1, 1)), 7_889_860),  # MSSA + MSSA(Q+Q)
            (((1, 3), (1, 3), (1, 3)), 8_479_684),  # MSSA + MSSA(P+Q)
            (None, 7_593_412),  # MSSA(P+Q) + SSA
        ],
    )
    def test_of_the_ablations_in_table_3(self, query_kernels, count):
        model = timm.create_model(CIFAR100, query_kernels=query_kernels)
        assert parameters(model) == count
        assert model.eval()(torch.rand(1, 3, 16, 16)).shape == (1, 100)

    def test_of_the_events_model_with_point_wise_p_is_the_papers(self):
        assert parameters(timm.create_model('msvit_2_256', query_kernels=((1, 1), (1, 1), (1,)))) == 1_668_234


def images(model, batch=3, size=(32, 48)) -> torch.Tensor:
    return torch.rand(batch, model.in_chans, *size, dtype=torch.float64)


def test_every_stage_gets_gradients(small):
    small.train()
    nn.functional.cross_entropy(small(images(small)), torch.tensor([1, 2, 3])).backward()
    for part in (small.stem, *small.stages, small.head):
        assert sum(p.grad.norm() for p in part.parameters()) > 0


class TestTime:
    def test_the_same_weights_run_any_number_of_steps(self, small):
        frames = torch.rand(2, 6, 1, 28, 28, dtype=torch.float64)
        with pytest.raises(ValueError, match=r'expected 4 frames .* assign model.num_steps = 6'):
            small(frames)
        small.num_steps = 6
        assert small(frames).shape == (2, 10)

    def test_the_first_steps_answer_as_a_model_of_fewer_steps(self, small):
        images = torch.rand(3, 1, 28, 28, dtype=torch.float64)
        logits = small.forward_steps(images)
        assert logits.shape == (3, 4, 10)
        for t in range(1, 5):
            small.num_steps = t
            torch.testing.assert_close(logits[:, :t].mean(1), small(images))
        assert logits[:, 0].ne(logits[:, 3]).any()

    @pytest.mark.parametrize('shape', [(2, 3, 28, 28), (28, 28), (2, 1, 2, 1, 28, 28)])
    def test_other_channels_and_ranks_are_refused(self, small, shape):
        with pytest.raises(ValueError, match=r'expected images \[B, 1, H, W\]'):
            small(torch.rand(shape, dtype=torch.float64))


class TestArguments:
    def test_attention_threshold_reaches_the_attention_neurons_alone(self):
        model = timm.create_model('msvit_4_96', attn_v_threshold=0.25)
        thresholds = {n: m.v_threshold for n, m in model.named_modules() if isinstance(m, timm_snn.LIF)}
        assert {t for n, t in thresholds.items() if n.endswith('attn_lif')} == {0.25}
        assert {t for n, t in thresholds.items() if not n.endswith('attn_lif')} == {1.0}
        assert timm.create_model('msvit_2_256').stages[1].blocks[0].attn.attn_lif.v_threshold == 0.5

    def test_stochastic_depth_grows_to_the_last_block(self):
        model = timm.create_model('msvit_10_384', drop_path_rate=0.2, device='meta')
        rates = [m.drop_prob for m in model.modules() if isinstance(m, DropPath)]
        assert rates[0] == 0 and rates[-1] == pytest.approx(0.2) and rates == sorted(rates)

    def test_neuron_by_name_or_layer(self):
        model = timm.create_model('msvit_4_96', lif_layer='plif')
        assert all(isinstance(m, timm_snn.ParametricLIF) for m in model.modules() if isinstance(m, timm_snn.LIF))
        model = timm.create_model('msvit_4_96', lif_layer=lambda **kwargs: timm_snn.LIF(tau=3.0, **kwargs))
        assert {m.tau for m in model.modules() if isinstance(m, timm_snn.LIF)} == {3.0}

    def test_backend_reaches_every_neuron(self):
        model = timm.create_model('msvit_4_96', backend='torch')
        assert {m.backend for m in model.modules() if isinstance(m, timm_snn.LIF)} == {'torch'}
        with pytest.raises(ValueError, match="unknown LIF backend 'cuda'"):
            timm.create_model('msvit_4_96', backend='cuda')

    def test_attention_by_name_for_all_stages_or_each(self):
        names = ['SpikingSelfAttention'] * 3
        model = timm.create_model('msvit_4_96', attn='ssa')
        assert [type(stage.blocks[0].attn).__name__ for stage in model.stages] == names
        model = timm.create_model('msvit_4_96', attn=('ssa', 'mssa', 'ssa'))
        names[1] = 'MultiScaleSpikingAttention'
        assert [type(stage.blocks[0].attn).__name__ for stage in model.stages] == names

    @pytest.mark.parametrize(
        ('kwargs', 'message'),
        [
            (dict(attn=('ssa', 'mssa')), 'expected one attn for each of 3 stages, got 2'),
            (dict(num_heads=5), 'num_heads=5 does not divide dim=48'),
            (dict(depths=(1, 1)), 'expected one depth for each of 3 stages'),
            (dict(query_kernels=((2,), (1,), (1,))), 'odd kernel sizes'),
            (
                dict(embed_pools=((), (), (True,))),
                'stage 0 has no patch embedding and cannot change 24 channels',
            ),
            (dict(drop_path_rate=1.0), 'drop_prob < 1'),
            (dict(num_steps=0), 'num_steps must be a whole number of at least 1, got 0'),
            (dict(num_steps=2.5), 'num_steps must be a whole number'),
            (dict(query_kernels=(1, 3, 1)), 'query_kernels needs a tuple of odd kernel sizes'),
            (dict(attn_v_threshold=0.0), 'v_threshold above the resting potential'),
        ],
    )
    def test_bad_arguments_are_refused(self, kwargs, message):
        with pytest.raises(ValueError, match=message):
            timm.create_model('msvit_4_96', **kwargs)

    def test_query_kernels_may_be_left_to_single_stages(self):
        model = timm.create_model('msvit_4_96', query_kernels=(None, (3,), None))
        kernels = [[unit.conv.kernel_size[0] for unit in stage.blocks[0].attn.q] for stage in model.stages]
        assert kernels == [[1, 3], [3], [1]]

    def test_unknown_arguments_are_refused(self):
        with pytest.raises(TypeError, match='nonsense'):
            timm.create_model('msvit_4_96', nonsense=1)


def test_own_components_by_name(monkeypatch):
    """A user's neuron, attention and patch embedding, without touching our files."""
    for registry in (neurons, attentions, patch_embeds):
        monkeypatch.setattr(registry, '_layers', dict(registry._layers))

    @neurons.register('relu')
    class ReluNeuron(nn.Module):
        def __init__(self, v_threshold: float = 1.0) -> None:
            super().__init__()
            self.v_threshold = v_threshold

        def forward(self, x):
            return (x - self.v_threshold).relu()

    @attentions.register('pool')
    class PoolAttention(nn.Module):
        def __init__(self, dim, num_heads, attn_v_threshold=1.0, lif_layer=None, device=None, dtype=None) -> None:
            super().__init__()
            self.lif = lif_layer(v_threshold=attn_v_threshold)

        def forward(self, x):
            return self.lif(x.mean((3, 4), keepdim=True).expand_as(x))

    @patch_embeds.register('strided')
    class StridedEmbed(nn.Module):
        def __init__(self, in_chs, widths, pools, lif_layer=None, device=None, dtype=None) -> None:
            super().__init__()
            self.unit = ConvBnLif(in_chs, widths[-1], stride=2 ** sum(pools), lif_layer=lif_layer)

        def forward(self, x):
            return self.unit(x)

    model = timm.create_model('msvit_4_96', lif_layer='relu', attn='pool', patch_embed='strided')
    assert not any(isinstance(m, timm_snn.LIF) for m in model.modules())
    assert model(torch.rand(2, 1, 28, 28)).shape == (2, 10)


class TestTimmContract:
    def test_registered_with_these_tags(self):
        tags = {name for name in timm.list_models('msvit*', include_tags=True)}
        assert tags == {
            'msvit_10_384.in1k',
            'msvit_10_512.in1k',
            'msvit_10_768.in1k',
            'msvit_4_384.cifar10',
            'msvit_4_384.cifar100',
            'msvit_2_256.cifar10_dvs',
            'msvit_2_256.dvs128_gesture',
            'msvit_3_192.cifar10',
            'msvit_4_96.digits',
            'msvit_4_96.event_digits',
            'msvit_4_96.fashion_mnist',
            'msvit_4_96.nmnist_small',
        }

    def test_pretrained_weights_that_do_not_exist_are_not_promised(self):
        with pytest.raises(RuntimeError, match='No pretrained weights exist for msvit_10_768'):
            timm.create_model('msvit_10_768', pretrained=True)

    def test_tags_bring_their_classes(self):
        assert timm.create_model('msvit_2_256.dvs128_gesture', device='meta').num_classes == 11

    def test_features_only(self):
        net = timm.create_model('msvit_4_96', features_only=True)
        assert [tap.shape[1:] for tap in net(torch.rand(2, 1, 32, 48))] == [(48, 8, 12), (48, 4, 6), (96, 2, 3)]
        net = timm.create_model('msvit_4_96', features_only=True, out_indices=(1,))
        assert [tap.shape[1:] for tap in net(torch.rand(2, 4, 1, 32, 32))] == [(48, 4, 4)]

    def test_a_new_classifier_starts_like_the_first_also_after_pruning(self):
        model = timm.create_model('msvit_4_96', num_classes=1000).eval()
        std = model.head.fc.weight.std()
        model.prune_intermediate_layers([0])
        model.reset_classifier(1000, 'avg')
        assert model(torch.rand(2, 1, 28, 28)).shape == (2, 1000)
        assert 0.9 < model.head.fc.weight.std() / std < 1.1 and not model.head.fc.bias.any()

    @pytest.mark.parametrize('indices', [4, [3], [-4], 0, []])
    def test_feature_levels_that_do_not_exist_are_refused(self, small, indices):
        with pytest.raises(ValueError, match=r'out of range, the model has 3 feature levels'):
            small.forward_intermediates(images(small), indices=indices)

    def test_intermediates_other_than_nchw_are_refused(self, small):
        with pytest.raises(ValueError, match="must be 'NCHW', got 'NLC'"):
            small.forward_intermediates(images(small), output_fmt='NLC')

    def test_optimizer_groups(self):
        model = timm.create_model('msvit_4_96', lif_layer='plif')
        optimizer = create_optimizer_v2(model, opt='adamw', lr=1e-3, weight_decay=0.05, layer_decay=0.8)
        groups = {id(p): g for g in optimizer.param_groups for p in g['params']}
        scales = [groups[id(stage.blocks[-1].mlp.fc1.conv.weight)]['lr_scale'] for stage in model.stages]
        assert scales == sorted(scales) and scales[0] < scales[-1] < 1
        for name, parameter in model.named_parameters():
            assert (groups[id(parameter)]['weight_decay'] == 0) == (parameter.ndim < 2), name

    @pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float64])
    def test_dtype_argument(self, dtype):
        model = timm.create_model('msvit_4_96', dtype=dtype, lif_layer='plif').eval()
        assert {p.dtype for p in model.parameters()} == {dtype}
        assert model(torch.rand(2, 1, 28, 28, dtype=dtype)).dtype == dtype

    def test_meta_device_argument(self):
        model = timm.create_model('msvit_4_96', device='meta', lif_layer='plif')
        assert all(t.is_meta for t in (*model.parameters(), *model.buffers()))
        assert model(torch.rand(2, 1, 28, 28, device='meta')).is_meta

    @pytest.fixture
    def shallow(self) -> timm_snn.MSViT:
        """Both kinds of attention; torch.compile takes a second for every neuron and step."""
        return lively(timm.create_model('msvit_4_96', depths=(1, 0, 1), num_steps=2).double().eval())

    def test_compiles_without_graph_breaks(self, shallow):
        compiled = torch.compile(shallow, fullgraph=True, backend='aot_eager')
        x = images(shallow)
        torch.testing.assert_close(compiled(x), shallow(x), rtol=0, atol=1e-9)
        gradients = torch.autograd.grad(compiled(x).sum(), list(shallow.parameters()))
        expected = torch.autograd.grad(shallow(x).sum(), list(shallow.parameters()))
        torch.testing.assert_close(gradients, expected)

    def test_compiled_code_follows_the_backend_switch(self, monkeypatch):
        def inverted(*args, **kwargs):
            spikes, v = reference.lif(*args, **kwargs)
            return 1 - spikes, v

        module = types.SimpleNamespace(why_not=reference.why_not, lif=inverted)
        monkeypatch.setitem(backend._BACKENDS, 'inverted', backend.Backend('inverted', 'nowhere'))
        monkeypatch.setitem(backend._modules, 'inverted', module)
        layer = torch.compile(timm_snn.LIF(), fullgraph=True, backend='eager')
        x = torch.randn(4, 2, 3)
        with timm_snn.use_backend('torch'):
            plain = layer(x)
        with timm_snn.use_backend('inverted'):
            assert torch.equal(layer(x), 1 - plain)
        timm_snn.set_backend('torch')
        assert torch.equal(layer(x), plain)

    def test_exports(self, small):
        x = images(small)
        batch = torch.export.Dim('batch', min=1)
        program = torch.export.export(small, (x,), dynamic_shapes=({0: batch},))
        torch.testing.assert_close(program.module()(x), small(x), rtol=0, atol=1e-9)
        torch.testing.assert_close(program.module()(x[:2]), small(x[:2]), rtol=0, atol=1e-9)

    def test_torchscript_has_the_same_logits(self, small):
        x = images(small)
        torch.testing.assert_close(torch.jit.script(small)(x), small(x), rtol=0, atol=1e-9)

    def test_saved_models_load_and_forget_the_backend(self, tmp_path):
        model = timm.create_model('msvit_4_96', num_classes=7, num_steps=3, attn='ssa', backend='torch').eval()
        save_for_hf(model, tmp_path, safe_serialization=True)
        config = json.loads((tmp_path / 'config.json').read_text())
        assert config['model_args'].items() >= {'num_steps': 3, 'attn': 'ssa'}.items()
        assert 'backend' not in json.dumps(config)
        assert not list(tmp_path.glob('*.bin'))
        loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
        assert loaded.num_steps == 3 and loaded.num_classes == 7
        x = torch.rand(2, 1, 28, 28)
        assert torch.equal(loaded(x), model(x))
        model.num_steps = 5  # as documented
        save_for_hf(model, tmp_path, safe_serialization=True)
        assert timm.create_model(f'local-dir:{tmp_path}', pretrained=True).num_steps == 5
