"""`output_stride`: dilated models answer at every so many pixels as the usual ones, and take the same tools."""

from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import timm_snn
from tests.support.families import FAMILIES, shallow
from timm_snn import layers, testing
from timm_snn.layers.conv import DilatedMaxPool, MapConv, TokenConv
from timm_snn.models.base import KEEP, POOL, SpikingStage
from timm_snn.models.dilation import _Walk
from timm_snn.models.quantize import why_not_quantized
from timm_snn.testing import images, lively

ATTENTION = (
    layers.DualSpikeSelfAttention,
    layers.EfficientSpikeDrivenSelfAttention,
    layers.MultiScaleSpikingAttention,
    layers.SpikeDrivenSelfAttention,
    layers.SpikingSelfAttention,
)


def strides_of(name: str, **kwargs: Any) -> list[int]:
    return [level['reduction'] for level in timm.create_model(name, device='meta', **kwargs).feature_info]


DEEP = [
    next(name for name in names if strides_of(name)[-1] > 8)
    for file, names in FAMILIES.items()
    if file != 'spiking_resnet'  # whose only member keeps a quarter of the resolution
]


def made(name: str, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    return lively(shallow(timm.create_model(name, num_steps=2, num_classes=5, **kwargs)).double().eval())


def without_attention(model: nn.Module) -> nn.Module:
    for name, module in list(model.named_modules()):
        if isinstance(module, ATTENTION):
            model.set_submodule(name, nn.Identity())
    return model


@torch.no_grad()
def compare_at_shared_pixels(name: str, output_stride: int, size: tuple[int, int] = (36, 52), **kwargs: Any) -> None:
    usual = without_attention(made(name, **kwargs))
    dilated = without_attention(made(name, output_stride=output_stride, **kwargs))
    dilated.load_state_dict(usual.state_dict())
    x = torch.rand(1, usual.in_chans, *size, dtype=torch.float64)
    expected, found = (model.forward_intermediates(x, intermediates_only=True) for model in (usual, dilated))
    strides = [level['reduction'] for level in usual.feature_info]
    assert strides[-1] > output_stride
    assert [level['reduction'] for level in dilated.feature_info] == [min(stride, output_stride) for stride in strides]
    for stride, before, after in zip(strides, expected, found, strict=True):
        apart = max(1, stride // output_stride)
        shared = after[:, :, ::apart, ::apart][:, :, : before.shape[2], : before.shape[3]]  # even kernels drop a border
        torch.testing.assert_close(shared, before, rtol=0, atol=1e-9)
        assert before.any()


class TestShape:
    @pytest.mark.parametrize('name', DEEP)
    def test_every_family_answers_as_before_at_the_pixels_it_had(self, name):
        """But for attention, which sees them all."""
        compare_at_shared_pixels(name, 8)

    @pytest.mark.parametrize(('name', 'output_stride'), [('sew_resnet18', 16), ('max_resnet18', 16)])
    def test_a_stage_of_convolutions_alone(self, name, output_stride):
        compare_at_shared_pixels(name, output_stride)

    @pytest.mark.parametrize(
        ('name', 'kwargs'),
        [
            ('msvit_4_96', dict(stem_pools=(POOL, POOL), embed_pools=((KEEP, KEEP), (POOL, POOL), (POOL, KEEP)))),
            ('maxformer_2_256', dict(stem_pools=(POOL, POOL), embed_pools=((), (POOL, POOL), (POOL, KEEP)))),
            ('sew_resnet18', dict(stem_dim=8, embed_dims=(8,) * 5, strides=(1, 1, 4, 2, 1))),
        ],
    )
    def test_a_stage_that_is_dilated_in_the_middle(self, name, kwargs):
        """It divides the resolution by 4, of which 2 are beyond the output stride, also in its shortcut."""
        compare_at_shared_pixels(name, 8, **kwargs)

    def test_a_patch_splitting_of_several_units_that_pool(self):
        splitting = layers.SpikingPatchSplitting(4, (6, 8), (True, True), pool_input=True, position=True)
        stage = SpikingStage(splitting, [], 8, 32)
        _Walk(8, deepest=32).through(stage, 4)
        pools = [splitting.pool_input, *splitting.pools]
        assert [(pool.stride, pool.dilation) for pool in pools] == [(2, 1), (1, 1), (1, 2)]
        convs = [unit.conv for unit in (*splitting.units, splitting.position)]
        assert [conv.dilation for conv in convs] == [(1, 1), (2, 2), (4, 4)]

    @pytest.mark.parametrize('name', ['msvit_4_96', 'spikingresformer_cifar', 'mst_tiny'])
    def test_a_model_that_is_not_deeper_stays_as_it_is(self, name):
        usual = timm.create_model(name, device='meta')
        for output_stride in (8, 16, 32):
            if output_stride >= usual.feature_info[-1]['reduction']:
                assert str(timm.create_model(name, device='meta', output_stride=output_stride)) == str(usual)

    def test_appended_levels_are_dilated_too(self):
        features = timm.create_model('msvit_4_96', features_only=True, extra_levels=1, output_stride=8, in_chans=3)
        assert features.feature_info.reduction() == [4, 8, 8, 8]
        assert [level.shape[2] for level in features(torch.rand(1, 3, 32, 32))] == [8, 4, 4, 4]

    def test_queries_of_neighbours_reach_as_far_as_before(self):
        """MSSA's P runs over the tokens of a row."""
        model = made('msvit_4_96', output_stride=8, attn='mssa')
        p = model.stages[2].blocks[0].attn.q[1].conv
        assert isinstance(p, TokenConv) and p.dilation == (2,)
        x = torch.rand(2, p.in_channels, 15, dtype=torch.float64)
        with torch.no_grad():
            torch.testing.assert_close(p(x), nn.functional.conv1d(x, p.weight, padding=2, dilation=2))
            assert model(images(model)).shape == (3, 5)

    def test_rep_conv(self):
        conv = lively_rep_conv(layers.RepConv(3, 4).double().eval())
        x = torch.rand(1, 3, 9, 8, dtype=torch.float64)
        with torch.no_grad():
            expected = conv(x[:, :, ::2, ::2])
            conv.dw.dilation = (2, 2)
            torch.testing.assert_close(conv(x)[:, :, ::2, ::2], expected)
            torch.testing.assert_close(conv.merged()(x), conv(x))

    def test_dssa_divides_by_the_patches_of_the_larger_map(self):
        usual, dilated = (made('spikingresformer_ti', **kwargs) for kwargs in ({}, {'output_stride': 8}))
        numbers = [[stage.blocks[0].attn.num_patches for stage in model.stages] for model in (usual, dilated)]
        assert numbers == [[196, 196, 196], [196, 196, 4 * 196]]


def lively_rep_conv(conv: Any) -> Any:
    for bn in (conv.bn1, conv.bn2):
        for tensor in (bn.weight, bn.bias, bn.running_mean, bn.running_var):
            nn.init.uniform_(tensor, 0.5, 1.5)
    return conv


class TestRefusals:
    @pytest.mark.parametrize('output_stride', [0, 4, 12, 64, True, 8.0, '8'])
    def test_other_strides(self, output_stride):
        with pytest.raises(ValueError, match=f'output_stride must be 8, 16 or 32, got {output_stride!r}'):
            timm.create_model('msvit_4_96', output_stride=output_stride)

    def test_a_network_of_another_library(self):
        match = r'mst_tiny cannot have output_stride=8, since .* MaskedSpikingTransformer .* one of \[32\] or None'
        with pytest.raises(ValueError, match=match):
            timm.create_model('mst_tiny', output_stride=8, device='meta')

    def test_a_stage_with_another_way_of_downsampling(self, monkeypatch):
        class Halve(nn.Module):
            def forward(self, x):
                return x[..., ::2, ::2]

        monkeypatch.setattr(SpikingStage, '__init__', other_embedding(Halve))
        match = r'stage 2 changes the resolution by other layers than .* one of \[16, 32\]'
        with pytest.raises(ValueError, match=match):
            timm.create_model('msvit_4_96', output_stride=8)

    def test_strides_that_step_over_it(self):
        with pytest.raises(ValueError, match='divides the resolution by 6 and then by 12'):
            timm.create_model('sew_resnet18', stem_stride=3, strides=(1, 1, 2, 2, 2), output_stride=8, device='meta')

    def test_an_even_kernel_without_a_border(self):
        stage = SpikingStage(nn.Conv2d(2, 2, 2, 2), [], 2, 16)
        with pytest.raises(Exception, match='a Conv2d with an even kernel has no border'):
            _Walk(8, deepest=16).through(stage, 8)


def other_embedding(layer: type[nn.Module]) -> Any:
    usual = SpikingStage.__init__

    def init(self, embed, *args, **kwargs):
        usual(self, embed, *args, **kwargs)
        if self.reduction == 16:
            self.embed = nn.Sequential(layers.ConvBnLif(48, 96), layer())

    return init


DILATED = ['msvit_4_96', 'max_resnet18', 'spikformer_v2_8_384']


@pytest.fixture(scope='module', params=DILATED)
def model(request) -> Any:
    """Of which the second has dilated pooling of dilated maps, and the last even kernels."""
    sizes = {'max_resnet18': dict(embed_dims=(8, 8, 8, 16, 16), stem_dim=8), 'spikformer_v2_8_384': dict(embed_dim=96)}
    return made(request.param, output_stride=8, **sizes.get(request.param, {}))


class TestTools:
    def test_dilated_pooling_is_dilated(self, model):
        pools = [module for module in model.modules() if isinstance(module, DilatedMaxPool)]
        borders = [module.border for module in model.modules() if isinstance(module, MapConv) and module.border]
        expected = {'MSViT': ([1], []), 'MaxResNet': ([1, 2], []), 'SpikformerV2': ([], [1])}
        assert ([pool.dilation for pool in pools], borders) == expected[type(model).__name__]

    def test_it_learns(self, model):
        testing.check_learning(model)

    def test_a_stream_answers_as_all_frames_at_once(self, model):
        testing.check_streaming(model)

    def test_fused(self, model):
        testing.check_fusing(model)

    def test_skipping_zeros_changes_nothing(self, model):
        x = images(model)
        with torch.no_grad():
            expected = model(x)
            with timm_snn.ops.sparse_spikes(max_density=1):
                torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-9)

    def test_the_profiler_counts_what_torch_does(self, model):
        frames = images(model, batch=2).unsqueeze(0)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(frames)
        assert 2 * timm_snn.profile(model, frames, progress=False).total.dense_macs == counter.get_total_flops()

    def test_in_torchscript(self, model):
        x = images(model)
        with torch.no_grad():
            torch.testing.assert_close(torch.jit.script(model)(x), model(x))

    @pytest.mark.parametrize(
        'model', [DILATED[1], *(pytest.param(name, marks=pytest.mark.slow) for name in DILATED[::2])], indirect=True
    )
    def test_in_onnx_runtime(self, model, tmp_path):
        onnxruntime = pytest.importorskip('onnxruntime')
        pytest.importorskip('onnxscript')
        x = images(model, batch=2)
        timm_snn.export(model, tmp_path / 'm.onnx', example=x, check=False)
        session = onnxruntime.InferenceSession(tmp_path / 'm.onnx', providers=['CPUExecutionProvider'])
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(session.run(None, {'images': x.numpy()})[0]), model(x))

    def test_whole_numbers_and_nir_have_no_word_for_it(self, model):
        assert any('dilat' in reason for reason in why_not_quantized(model).values())
        assert any('dilat' in reason for reason in timm_snn.why_not_nir(model).values())


def test_a_folder_gives_the_dilated_model_back(tmp_path):
    model = lively(timm.create_model('msvit_4_96', output_stride=8, num_classes=5).eval())
    timm.models.save_for_hf(model, tmp_path)
    loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    x = images(model)
    with torch.no_grad():
        assert torch.equal(loaded.forward_features(x), model.forward_features(x))
    usual = timm.create_model(f'local-dir:{tmp_path}', pretrained=True, output_stride=32).eval()
    assert usual.feature_info[-1]['reduction'] == 16


def test_binary_spikes_of_an_integer_network():
    model = made('msvit_4_96', output_stride=8, lif_layer='integer')
    x = images(model)
    with torch.no_grad():
        torch.testing.assert_close(timm_snn.expand_levels(model)(x), model(x), rtol=0, atol=1e-9)
