"""Facts that hold for every layer, and the registries they are found by."""

import math

import pytest
import timm
import torch
from torch import nn

from tests.conftest import lively
from timm_snn.layers import (
    LIF,
    ConvBn,
    ConvBnLif,
    DropPath,
    MultiScaleSpikingAttention,
    ParametricLIF,
    QKTokenAttention,
    SepConv,
    SpikingMlp,
    SpikingPatchEmbed,
    SpikingPatchSplitting,
    SpikingResidual,
    SpikingSelfAttention,
    SpikingStem,
    attentions,
    neurons,
    patch_embeds,
    to_time_first,
)
from timm_snn.layers.attention import split_heads
from timm_snn.layers.temporal import mean_over_time, repeat_for_steps

X = torch.randint(0, 3, (4, 3, 12, 7, 5), generator=torch.Generator().manual_seed(0)).double()  # [T, B, C, H, W]

LAYERS = {
    'conv': lambda: ConvBnLif(12, 8, kernel_size=3, stride=2),
    'conv_pool': lambda: ConvBnLif(12, 8, kernel_size=3, pool=True, bias=True),
    'embed': lambda: SpikingPatchEmbed(12, (8, 16), (True, False)),
    'mlp': lambda: SpikingMlp(12, 20),
    'mssa': lambda: MultiScaleSpikingAttention(12, 3),
    'ssa': lambda: SpikingSelfAttention(12, 3),
    'qkta': lambda: QKTokenAttention(12, 3),
    'sps': lambda: SpikingPatchSplitting(12, (8, 16), (False, True), pool_input=True, position=True),
    'sps_cml': lambda: SpikingPatchSplitting(12, (8, 16), (True, True), cml=True, position=True),
    'mssa_plif': lambda: MultiScaleSpikingAttention(12, 3, lif_layer=ParametricLIF),
}

# Their output is a current, for membrane shortcuts.
CURRENT_LAYERS = {
    'conv_bn': lambda: ConvBn(12, 8, kernel_size=3, pool=True),
    'patches': lambda: ConvBn(12, 8, kernel_size=2, stride=2),
    'mlp_pre': lambda: SpikingMlp(12, 20, pre_activation=True),
    'ssa_pre': lambda: SpikingSelfAttention(12, 3, attn_v_threshold=0.1, pre_activation=True),
    'sep_conv': lambda: SepConv(12),
    'sep_conv_lif': lambda: SepConv(12, 3, depthwise_lif=True),
    'residual': lambda: SpikingResidual(SpikingMlp(12, 20, 3, bias=False, pre_activation=True)),
}
NEURONS_INSIDE = [name for name in CURRENT_LAYERS if name not in ('conv_bn', 'patches')]


def make(name: str) -> nn.Module:
    return lively({**LAYERS, **CURRENT_LAYERS}[name]().double().eval())


@pytest.fixture(params=[*LAYERS, *NEURONS_INSIDE])
def layer(request) -> nn.Module:
    return make(request.param)


@pytest.mark.parametrize('name', [*LAYERS, *CURRENT_LAYERS])
def test_output_is_small_integers_or_currents_and_every_parameter_learns(name):
    layer = make(name)
    y = layer(X)
    assert y.shape[:2] == X.shape[:2] and y.mean() > 0
    assert (set(y.unique().tolist()) <= {0, 1, 2}) == (name in LAYERS)
    layer.train()
    (layer(X) * torch.randn(y.shape, dtype=y.dtype)).sum().backward()
    for key, parameter in layer.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        # batch norm takes away what a bias in front of it adds
        assert key.endswith('conv.bias') or parameter.grad.any(), key


def test_samples_do_not_see_their_neighbours(layer):
    order = torch.tensor([2, 0, 1])
    assert torch.equal(layer(X[:, order]), layer(X)[:, order])
    assert torch.equal(layer(X[:, :1]), layer(X)[:, :1])


def test_steps_do_not_see_the_future_and_do_see_the_past(layer):
    changed = X.clone()
    changed[2] = 2 - X[2]
    assert torch.equal(layer(changed)[:2], layer(X)[:2])
    assert not torch.equal(layer(changed)[2], layer(X)[2])


def test_calls_start_at_rest(layer):
    assert torch.equal(layer(X), layer(X))


@pytest.mark.parametrize('size', [(1, 1), (1, 6), (7, 4), (9, 9)])
@pytest.mark.parametrize('pools', [(False,), (True, False), (False, True), (True, True)])
def test_both_branches_of_the_patch_embedding_meet_at_any_size(size, pools):
    embed = SpikingPatchEmbed(3, (4,) * len(pools), pools)
    y = embed(torch.rand(2, 1, 3, *size))
    assert y.shape[3:] == tuple(-(-side // 2 ** sum(pools)) for side in size)


def test_the_stem_computes_the_current_of_an_image_once():
    stem = SpikingStem(3, (4, 8), (True, False)).eval()
    image = torch.rand(1, 2, 3, 9, 6)
    steps = []
    stem.units[0].conv.register_forward_hook(lambda module, args, output: steps.append(len(args[0])))
    once = stem(image, 5)
    repeated = stem(image.repeat(5, 1, 1, 1, 1), 5)
    assert steps == [2, 10]  # T * B
    assert torch.equal(once, repeated)


def test_held_current_gives_the_same_batch_norm_gradient():
    torch.manual_seed(3)
    image = torch.rand(1, 4, 3, 9, 6, dtype=torch.float64)
    gradients = []
    for x in (image, image.repeat(5, 1, 1, 1, 1)):
        torch.manual_seed(0)
        stem = SpikingStem(3, (4, 8), (True, False)).double().train()
        stem(x, 5).sum().backward()
        gradients.append([p.grad for p in stem.parameters()])
    for once, repeated in zip(*gradients, strict=True):
        torch.testing.assert_close(once, repeated)


class TestDropPath:
    def test_a_sample_is_dropped_for_all_its_steps_or_none(self):
        x = torch.ones(4, 200, 2, 3, 3)
        y = DropPath(0.25)(x)
        kept = y.flatten(2).mean(2)  # [T, B]
        assert (kept == kept[0]).all()
        assert torch.equal(kept[0] > 0, kept[0] > 1.33) and kept.max() < 1.34  # 0 or 1 / (1 - 0.25)
        assert 0.15 < (kept[0] == 0).float().mean() < 0.35

    def test_no_effect_in_eval_and_at_zero(self):
        x = torch.ones(2, 3, 1, 1, 1)
        assert DropPath(0.9).eval()(x) is x and DropPath(0.0)(x) is x

    def test_tokens_and_maps_alike(self):
        y = DropPath(0.5)(torch.ones(3, 50, 2, 9))  # [T, B, C, N]
        assert (y == y[:1, :, :1, :1]).all() and set(y.unique().tolist()) == {0.0, 2.0}

    def test_probability_is_checked(self):
        with pytest.raises(ValueError, match='drop_prob < 1, got 1'):
            DropPath(1.0)


class TestTime:
    def test_images_and_frames(self):
        assert to_time_first(torch.rand(2, 3, 5, 4), 6, 3).shape == (1, 2, 3, 5, 4)
        frames = torch.rand(2, 6, 3, 5, 4)
        assert torch.equal(to_time_first(frames, 6, 3)[1], frames[:, 1])

    @pytest.mark.parametrize(
        ('shape', 'message'),
        [
            ((3, 5, 4), r'expected images \[B, 3, H, W\] or frames \[B, T, 3, H, W\], got \[3, 5, 4\]'),
            ((2, 1, 5, 4), r'in_chans='),
            (
                (2, 4, 3, 5, 4),
                r'expected 6 frames .* got \[2, 4, 3, 5, 4\].* num_steps=4 or assign model.num_steps = 4',
            ),
            ((2, 0, 3, 5, 4), r'expected 6 frames'),
        ],
    )
    def test_other_input_is_refused(self, shape, message):
        with pytest.raises(ValueError, match=message):
            to_time_first(torch.rand(shape), 6, 3)

    @pytest.mark.parametrize('dtype', [torch.uint8, torch.int64, torch.bool])
    def test_integers_are_refused(self, dtype):
        with pytest.raises(ValueError, match=r'expected floating-point images or frames, got .*x.float\(\)'):
            to_time_first(torch.ones(2, 3, 5, 4, dtype=dtype), 6, 3)


class TestNeurons:
    def test_parametric_lif_starts_at_tau_and_learns(self):
        x = torch.randn(5, 4, 3, dtype=torch.float64) + 0.5
        layer = ParametricLIF(tau=3.0).double()
        torch.testing.assert_close(1 / torch.sigmoid(layer.w), torch.tensor(3.0, dtype=torch.float64))
        assert torch.equal(ParametricLIF()(x), LIF()(x))  # tau 2 is exact
        layer(x).sum().backward()
        assert layer.w.grad.abs() > 0

    def test_parametric_lif_equals_spikingjelly(self):
        neuron = pytest.importorskip('spikingjelly.activation_based.neuron')
        surrogate = pytest.importorskip('spikingjelly.activation_based.surrogate')
        node = neuron.ParametricLIFNode(
            init_tau=2.0, surrogate_function=surrogate.Sigmoid(4.0), detach_reset=True, step_mode='m'
        )
        x = torch.randn(6, 9, 9) + 0.5
        ours = ParametricLIF(tau=2.0)
        theirs_spikes, our_spikes = node(x), ours(x)
        assert torch.equal(theirs_spikes, our_spikes)
        theirs_spikes.sum().backward()
        our_spikes.sum().backward()
        torch.testing.assert_close(ours.w.grad, node.w.grad, rtol=1e-5, atol=1e-5)

    def test_tau_of_one_cannot_be_learned(self):
        with pytest.raises(ValueError, match='initial tau > 1, got 1'):
            ParametricLIF(tau=1.0)

    @pytest.mark.parametrize('cls', [LIF, ParametricLIF])
    @pytest.mark.parametrize('kwargs', [{}, dict(v_reset=None), dict(tau=3.0, decay_input=False, v_reset=-0.1)])
    def test_torchscript_has_the_same_forward_pass(self, cls, kwargs):
        layer = cls(**kwargs).eval()
        x = torch.randn(4, 3, 5)
        assert torch.equal(torch.jit.script(layer)(x), layer(x))

    @pytest.mark.parametrize('cls', [LIF, ParametricLIF])
    def test_torchscript_does_not_train_without_a_gradient(self, cls):
        with pytest.raises(torch.jit.Error, match='train the eager model'):
            torch.jit.script(cls())(torch.randn(4, 3, 5))

    @pytest.mark.parametrize('cls', [LIF, ParametricLIF])
    @pytest.mark.parametrize('kwargs', [dict(tau=0.5), dict(v_threshold=0.0), dict(v_threshold=0.5, v_reset=0.5)])
    def test_settings_are_checked_when_the_layer_is_made(self, cls, kwargs):
        with pytest.raises(ValueError, match=r'tau|v_threshold'):
            cls(**kwargs)

    def test_a_tensor_as_the_tau_of_a_fixed_neuron_is_refused(self):
        with pytest.raises(ValueError, match='ParametricLIF learns it'):
            LIF(tau=nn.Parameter(torch.tensor(2.0)))  # type: ignore[arg-type]

    @pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
    def test_parametric_lif_has_its_time_constant_in_float32(self, dtype):
        layer = ParametricLIF(tau=2.3).to(dtype)
        x = (torch.randn(16, 64, 64) + 0.5).to(dtype)
        assert torch.equal(layer(x).float(), LIF(tau=1 + math.exp(-layer.w.item()))(x.float()))

    def test_settings_are_shown(self):
        assert 'tau=2.0, v_threshold=0.5, v_reset=0.0' in repr(LIF(v_threshold=0.5))


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


@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize(
    ('ours', 'plain', 'steps'),
    [
        (lambda x: repeat_for_steps(x, 4), lambda x: x.expand(4, -1, -1, -1, -1), 1),
        (lambda x: mean_over_time(x).mean((2, 3)), lambda x: x.mean((0, 3, 4)), 4),
        (lambda x: split_heads(x.flatten(3), 4).sum(3), lambda x: x.reshape(4, 3, 3, 4, 35).sum(3), 4),
    ],
)
def test_gradients_of_views_have_the_order_of_the_map(ours, plain, steps, channels_last):
    x = X[:steps].movedim(2, -1).contiguous().movedim(-1, 2) if channels_last else X[:steps]
    x.requires_grad_()
    upstream = torch.randn_like(plain(x))
    torch.testing.assert_close(ours(x), plain(x))
    (grad,), (expected,) = (torch.autograd.grad(f(x), x, upstream) for f in (ours, plain))
    torch.testing.assert_close(grad, expected)
    assert grad.stride()[1:] == x.stride()[1:]


@pytest.mark.parametrize('layer', [MultiScaleSpikingAttention, SpikingSelfAttention])
class TestAttentionArguments:
    def test_heads_must_divide_the_width(self, layer):
        with pytest.raises(ValueError, match='num_heads=5 does not divide dim=12'):
            layer(12, 5)

    @pytest.mark.parametrize('heads', [3.0, '3', 0])
    def test_heads_must_be_a_whole_number(self, layer, heads):
        with pytest.raises(ValueError, match='choose a whole number'):
            layer(12, heads)

    @pytest.mark.parametrize('kernels', [(), (2,), (1, -3), 3])
    def test_kernels_must_be_odd(self, layer, kernels):
        with pytest.raises(ValueError, match='odd kernel sizes'):
            layer(12, 3, query_kernels=kernels)


def dense_attention(q, k, v, heads):
    """softmax-free attention token by token, as Eq. 12 is written, on [B, C, N]."""
    B, C, N = q.shape
    q, k, v = (z.view(B, heads, C // heads, N).transpose(-2, -1) for z in (q, k, v))  # [B, heads, N, D]
    return ((q @ k.transpose(-2, -1)) @ v * 0.125).transpose(-2, -1).reshape(B, C, N)


def test_ssa_is_the_equation_of_the_paper():
    layer = lively(SpikingSelfAttention(12, 3).double().eval())
    tokens = X.flatten(3)
    q, k, v = (unit(tokens) for unit in (layer.q[0], layer.k, layer.v))
    attended = torch.stack([dense_attention(q[t], k[t], v[t], 3) for t in range(4)])
    expected = layer.proj(LIF()(attended)).unflatten(3, X.shape[3:])
    assert torch.equal(layer(X), expected)


def test_ssa_stays_in_the_range_of_float16():
    """3,136 tokens of 64 channels that all fire sum up to 200,704 before the scale, above float16's 65,504."""
    layer = SpikingSelfAttention(64, 1).eval()
    currents = []
    layer.attn_lif.register_forward_hook(lambda module, args, spikes: currents.append(args[0]))
    for unit in (layer.q[0], layer.k, layer.v):
        torch.nn.init.constant_(unit.bn.bias, 9.0)
    layer.half()(torch.zeros(1, 1, 64, 56, 56, dtype=torch.float16))
    assert currents[0].isfinite().all() and currents[0].max() == 64 * 56 * 56 / 8


def test_even_kernels_are_refused():
    with pytest.raises(ValueError, match='even ones as large as their stride, got kernel_size=2 and stride=1'):
        ConvBnLif(3, 4, kernel_size=2)


def test_mssa_is_the_equation_of_the_paper():
    layer = lively(MultiScaleSpikingAttention(12, 3).double().eval())
    tokens = X.flatten(3)
    q, p, k = (unit(tokens) for unit in (*layer.q, layer.k))
    heads = [slice(4 * i, 4 * i + 4) for i in range(3)]
    gates = [LIF()(q[:, :, h].sum(2) + p[:, :, h].sum(2)) for h in heads]
    masked = torch.cat([gate.unsqueeze(2) * k[:, :, h] for gate, h in zip(gates, heads, strict=True)], 2)
    assert 0 < torch.stack(gates).mean() < 1
    assert torch.equal(layer(X), layer.proj(masked).unflatten(3, X.shape[3:]))
