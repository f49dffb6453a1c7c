"""Every registered model as the backbone of the libraries for segmentation and detection, as a new user would try it.

Members run with two blocks a stage and with zeros for weights, which shows sizes, channels and which parameters get a
gradient: the smallest of every family, and `-m slow` has all. Where a test needs spikes, they have weights.
"""

import functools
from collections import OrderedDict
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import timm_snn
from tests.support.families import SMALLEST, shallow
from timm_snn.models import SpikingTransformer, set_num_steps
from timm_snn.testing import lively

MODELS = [
    name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith(timm_snn.models.__name__)
]
OF_SWIN = ('mst_tiny', 'mst_tiny_ann')  # timm's layers, made for one size of image
QUICK = {*SMALLEST, *OF_SWIN}
MEMBERS = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
SIZE = (32, 32)


def options_for(name: str) -> dict[str, Any]:
    return ({'img_size': SIZE} if name in OF_SWIN else {}) | ({'num_steps': 1} if name != 'mst_tiny_ann' else {})


def depth_of(strides: list[int]) -> int:
    """As segmentation_models_pytorch counts: how often the image is halved."""
    return strides[-1].bit_length() - 1


def missing_levels(strides: list[int]) -> int:
    """How many there are not, down to a stride of 32."""
    return 5 - depth_of(strides)


@functools.cache
def strides_of(name: str) -> list[int]:
    return timm.create_model(name, features_only=True, device='meta').feature_info.reduction()


def shorten(model: Any) -> Any:
    """Two blocks a stage."""
    for module in model.modules():
        if isinstance(module, SpikingTransformer):
            shallow(module)
    return model


@pytest.fixture
def zeros_for_weights(monkeypatch):
    """To draw the weights of all members at random would take longer than everything else."""

    def fill(conv):
        for parameter in conv.parameters(recurse=False):
            nn.init.zeros_(parameter)

    monkeypatch.setattr(nn.modules.conv._ConvNd, 'reset_parameters', fill)


def learns(model: nn.Module, *outputs: Tensor) -> bool:
    """Whether every parameter has a finite gradient."""
    sum(output.float().square().mean() for output in outputs).backward()  # type: ignore[union-attr]
    return all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize('name', MEMBERS)
def test_unet_and_fpn_of_smp(name, zeros_for_weights):
    """A Unet with the depth that the levels give, and an FPN with five, of which some may be appended; one encoder."""
    smp = pytest.importorskip('segmentation_models_pytorch')
    strides = strides_of(name)
    assert strides == [strides[0] << i for i in range(len(strides))] and strides[0] in (1, 2, 4)
    depth = depth_of(strides)
    made = dict(encoder_name=f'tu-{name}', encoder_weights=None, classes=3, **options_for(name))
    extra = {'extra_levels': 5 - depth} if depth < 5 else {}
    unet = smp.Unet(**made, encoder_depth=depth, decoder_channels=(8,) * depth)
    fpn = smp.FPN(**made, **extra, decoder_pyramid_channels=32, decoder_segmentation_channels=32)
    encoder, x = shorten(fpn.encoder), torch.rand(2, 3, *SIZE)
    announced = encoder.model.feature_info
    assert announced.reduction() == [*strides, *(2**i for i in range(depth + 1, 6))]
    features = encoder(x)
    assert [level.shape[1] for level in features] == encoder.out_channels
    assert unet.encoder.out_channels == encoder.out_channels[: depth + 1]
    for level, channels, stride in zip(
        reversed(features), reversed(announced.channels()), (32, 16, 8, 4), strict=False
    ):
        assert level.shape == (2, channels, SIZE[0] // stride, SIZE[1] // stride)
    logits = [model.segmentation_head(model.decoder(features[:n])) for model, n in ((unet, depth + 1), (fpn, 6))]
    assert all(y.shape == (2, 3, *SIZE) for y in logits)
    unet.encoder = nn.Identity()
    assert learns(nn.ModuleList([unet, fpn]), *logits)


@pytest.mark.parametrize('name', MEMBERS)
def test_pyramid_of_torchvision_over_timm_backbone_of_transformers(name, zeros_for_weights):
    transformers, ops = pytest.importorskip('transformers'), pytest.importorskip('torchvision.ops')
    strides = strides_of(name)
    config = transformers.TimmBackboneConfig(backbone=name, out_indices=list(range(len(strides))))
    backbone = shorten(transformers.TimmBackbone(config, **options_for(name)))
    fpn = ops.FeaturePyramidNetwork(backbone.channels, 8)
    x = torch.rand(2, 3, *SIZE)
    maps = backbone(x).feature_maps
    assert [(x.shape[2] // y.shape[2], x.shape[3] // y.shape[3]) for y in maps] == [(s, s) for s in strides]
    levels = fpn(OrderedDict((str(stride), y) for stride, y in zip(strides, maps, strict=True)))
    assert [y.shape[1:] for y in levels.values()] == [(8, *y.shape[2:]) for y in maps]
    assert learns(nn.ModuleList([backbone, fpn]), *levels.values())


@pytest.mark.parametrize('name', [name for name in MEMBERS if name not in OF_SWIN])
@torch.no_grad()
def test_levels_of_a_dilated_backbone_down_to_the_fifth(name, zeros_for_weights):
    """What DeepLab asks for."""
    extra = missing_levels(strides_of(name))
    options = dict(extra_levels=extra, output_stride=8, in_chans=3, features_only=True, **options_for(name))
    features = shorten(timm.create_model(name, **options))
    strides = features.feature_info.reduction()
    assert strides[-1] == 8 and len(strides) == len(strides_of(name)) + extra
    levels = features(torch.rand(2, 3, *SIZE))
    assert [tuple(y.shape[2:]) for y in levels] == [(SIZE[0] // s, SIZE[1] // s) for s in strides]
    assert [y.shape[1] for y in levels] == features.feature_info.channels()


def enliven(model: Any) -> Any:
    """Two blocks a stage, which fire."""
    for module in model.modules():
        if isinstance(module, SpikingTransformer):
            lively(shallow(module))
    return model


def first_gradient(model: nn.Module) -> Tensor:
    """Of the first convolution of its backbone."""
    return next(next(m for m in model.modules() if isinstance(m, SpikingTransformer)).parameters()).grad


def check_segmenter(smp: Any, name: str, architecture: str, **strides: int) -> None:
    extra = missing_levels(strides_of(name))
    levels = {'extra_levels': extra} if extra else {}
    made = dict(encoder_weights=None, classes=3, num_steps=2, **levels, **strides)
    model = enliven(getattr(smp, architecture)(f'tu-{name}', **made))
    x, deepest = torch.rand(2, 3, *SIZE), strides.get('encoder_output_stride', 32)
    assert model.encoder(x)[-1].shape[2:] == (SIZE[0] // deepest, SIZE[1] // deepest)
    logits = model(x)
    assert logits.shape == (2, 3, *SIZE) and learns(model, logits) and first_gradient(model).any()


@pytest.fixture
def smp():
    return pytest.importorskip('segmentation_models_pytorch')


class TestSmp:
    """segmentation_models_pytorch, on the smallest member of every family, with `encoder_depth` left at 5."""

    @pytest.mark.parametrize('name', SMALLEST)
    @pytest.mark.parametrize(
        ('architecture', 'strides'),
        [('Unet', {}), ('DeepLabV3', {'encoder_output_stride': 8}), ('DeepLabV3Plus', {'encoder_output_stride': 16})],
    )
    def test_with_appended_levels(self, smp, name, architecture, strides):
        check_segmenter(smp, name, architecture, **strides)

    @pytest.mark.parametrize(('architecture', 'output_stride'), [('DeepLabV3', 16), ('DeepLabV3Plus', 8)])
    def test_with_other_strides(self, smp, architecture, output_stride):
        check_segmenter(smp, 'msvit_4_96', architecture, encoder_output_stride=output_stride)

    def test_without_anything_the_error_says_what_to_write(self, smp):
        with pytest.raises(ValueError, match=r'3 feature levels, of strides \[4, 8, 16\]') as error:
            smp.Unet('tu-msvit_10_384', encoder_weights=None)
        assert 'extra_levels=1' in str(error.value) and 'encoder_depth=4' in str(error.value)
        assert '\n' not in str(error.value)
        with pytest.raises(RuntimeError, match=r'Begin without weights by .* encoder_weights=None'):
            smp.Unet('tu-msvit_10_384')

    def test_what_has_no_dilation_says_so(self, smp):
        with pytest.raises(ValueError, match=r'mst_tiny cannot have output_stride=8'):
            smp.DeepLabV3('tu-mst_tiny', encoder_weights=None)


@pytest.fixture
def transformers():
    return pytest.importorskip('transformers')


def tiny_detr(transformers: Any, **kwargs: Any) -> Any:
    sizes = dict(d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16)
    heads = dict(encoder_attention_heads=2, decoder_attention_heads=2)
    config = transformers.DetrConfig(**sizes, **heads, num_queries=4, num_labels=3, **kwargs)
    return transformers.DetrForObjectDetection(config)


def backbones_gradient(detector: nn.Module) -> Tensor:
    """Of its first convolution, after a step with two objects."""
    objects = {'class_labels': torch.tensor([1, 2]), 'boxes': torch.rand(2, 4) / 2}
    detector.train()(pixel_values=torch.rand(2, 3, *SIZE), labels=[objects, objects]).loss.backward()
    return first_gradient(detector)


def enliven_frozen(detector: nn.Module) -> None:
    """Batch norms of transformers' own class, which `lively` does not know."""
    for module in detector.modules():
        if 'FrozenBatchNorm' in type(module).__name__:
            module.weight.fill_(3)
            module.bias.fill_(0.8)


class TestTransformers:
    @pytest.mark.parametrize('name', ['msvit_4_96', 'metaspikformer_8_256', 'sew_resnet18'])
    def test_detr(self, transformers, name):
        """It replaces every BatchNorm2d by a class of its own, also between convolution and neuron of our units."""
        config = transformers.TimmBackboneConfig(backbone=name, out_indices=[-1])
        detector = tiny_detr(transformers, backbone_config=config)
        enliven(detector)
        set_num_steps(detector, 2)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in detector.model.backbone.modules())
        enliven_frozen(detector)
        gradient = backbones_gradient(detector)
        assert gradient.isfinite().all() and gradient.any()

    def test_frozen_norms_answer_as_in_eval_mode(self, transformers):
        usual = lively(timm.create_model('msvit_4_96', features_only=True, in_chans=3, out_indices=(-1,))).eval()
        config = transformers.TimmBackboneConfig(backbone='msvit_4_96', out_indices=[-1])
        backbone = tiny_detr(transformers, backbone_config=config).model.backbone.model.train()
        backbone.load_state_dict(usual.state_dict())
        x = torch.rand(1, 3, *SIZE)
        with torch.no_grad():
            torch.testing.assert_close(backbone(x), usual(x), rtol=0, atol=1e-2)
            assert usual(x)[0].any()

    def test_detr_by_the_name_of_a_backbone(self, transformers):
        """It asks for four levels, of which the residual networks have enough, and is dilated to a stride of 16."""
        detector = tiny_detr(transformers, use_timm_backbone=True, backbone='sew_resnet18', dilation=True)
        assert detector.model.backbone.model.feature_info.reduction() == [4, 8, 16, 16]
        with pytest.raises(ValueError, match='3 feature levels'):
            tiny_detr(transformers, use_timm_backbone=True, backbone='msvit_4_96')

    def test_rt_detr(self, transformers):
        config = transformers.RTDetrConfig(
            backbone_config=transformers.TimmBackboneConfig(backbone='msvit_4_96', out_indices=[0, 1, 2]),
            encoder_in_channels=[48, 48, 96],
            feat_strides=[4, 8, 16],
            decoder_in_channels=[16] * 3,
            d_model=16,
            encoder_hidden_dim=16,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            decoder_layers=1,
            num_queries=8,
            num_labels=3,
            num_denoising=0,
        )
        detector = transformers.RTDetrForObjectDetection(config)
        enliven_frozen(detector)
        assert backbones_gradient(detector).any()

    @pytest.mark.parametrize('freeze', [False, True])
    def test_the_backbone_alone(self, transformers, freeze):
        config = transformers.TimmBackboneConfig(
            backbone='msvit_4_96', out_indices=[0, 2], output_stride=8, freeze_batch_norm_2d=freeze
        )
        backbone = transformers.AutoBackbone.from_config(config).train()
        assert backbone.channels == [48, 96]
        assert [y.shape[2] for y in backbone(torch.rand(1, 3, *SIZE)).feature_maps] == [8, 4]
        assert any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules()) != freeze
