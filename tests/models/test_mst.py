"""MST: the two networks of the same weights, and what timm gives to both."""

import pytest
import timm
import torch

import timm_snn
from timm_snn.models import convert, save_for_hf
from timm_snn.models.mst import checkpoint_filter_fn

SMALL = dict(img_size=32, window_size=4, embed_dim=16, depths=(2, 2), num_heads=(1, 2), num_classes=5)
X = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def make(name='mst_tiny', **kwargs):
    torch.manual_seed(0)
    if name == 'mst_tiny':
        kwargs.setdefault('num_steps', 4)
    model = timm.create_model(name, **SMALL, **kwargs)
    for key, parameter in model.named_parameters():  # current enough for spikes
        if key.endswith('weight') and parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def test_the_body_is_that_of_swin_tiny():
    swin, ann, snn = (
        timm.create_model(name, device='meta') for name in ('swin_tiny_patch4_window7_224', 'mst_tiny_ann', 'mst_tiny')
    )
    count = [sum(p.numel() for p in model.parameters()) for model in (swin, ann, snn)]
    thetas = sum(key.endswith('.theta') for key, _ in ann.named_parameters())
    assert count[1] == count[2] == 28_288_442 == count[0] + thetas
    assert snn.num_steps == 128


@torch.no_grad()
def test_weights_of_the_artificial_network_load_and_equal_its_conversion(tmp_path):
    ann = make('mst_tiny_ann')
    snn = timm.create_model('mst_tiny', **SMALL, num_steps=4).eval()
    snn.load_state_dict(checkpoint_filter_fn(ann.state_dict(), snn))
    converted = convert(ann, num_steps=4)
    assert torch.equal(snn(X), converted(X))
    assert (
        set(converted.report.real_valued)
        == {f'layers.{i}.blocks.{j}.attn.attend' for i in range(2) for j in range(2)}
        == set(snn.report.real_valued)
    )
    back = timm.create_model('mst_tiny_ann', **SMALL).eval()
    back.load_state_dict(checkpoint_filter_fn(snn.state_dict(), back))
    assert torch.equal(back(X), ann(X))


@torch.no_grad()
def test_the_answer_comes_near_that_of_the_artificial_network():
    ann = make('mst_tiny_ann', levels=64).double()
    x = X.double()
    snn = convert(ann, num_steps=2, images=x)
    errors = []
    for T in (2, 128):
        snn.num_steps = T
        errors.append((snn(x) - ann(x)).abs().max().item())
    assert errors[1] < errors[0] / 3 and errors[1] < 0.1 * ann(x).abs().max()


@torch.no_grad()
def test_samples_steps_and_calls_do_not_leak():
    model = make().double()
    x = X.double()
    logits = model(x)
    torch.testing.assert_close(model(x[[2, 0, 1]]), logits[[2, 0, 1]], rtol=0, atol=1e-9)
    torch.testing.assert_close(model(x[:1]), logits[:1], rtol=0, atol=1e-9)
    frames = torch.rand(1, 4, 3, 32, 32, dtype=torch.float64)
    first = model.forward_steps(frames)
    frames[:, 2:] = 1 - frames[:, 2:]
    second = model.forward_steps(frames)
    torch.testing.assert_close(first[:, :2], second[:, :2], rtol=0, atol=1e-9)
    assert not torch.allclose(first[:, 2:], second[:, 2:])


@pytest.mark.parametrize('name', ['mst_tiny', 'mst_tiny_ann'])
@torch.no_grad()
def test_saved_models_load(name, tmp_path):
    model = make(name)
    if name == 'mst_tiny':
        model.num_steps = 3
    save_for_hf(model, tmp_path)
    loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    assert getattr(loaded, 'num_steps', 3) == 3 and torch.equal(loaded(X), model(X))


@pytest.mark.parametrize('name', ['mst_tiny', 'mst_tiny_ann'])
@torch.no_grad()
def test_features(name):
    features = make(name, features_only=True)
    assert [tuple(tap.shape) for tap in features(X)] == [(3, 16, 8, 8), (3, 32, 4, 4)]
    assert features.feature_info.channels() == [16, 32] and features.feature_info.reduction() == [4, 8]


@torch.no_grad()
def test_the_head():
    model = make()
    torch.testing.assert_close(model.forward_head(model.forward_features(X)), model(X))
    model.reset_classifier(7)
    assert model(X).shape == (3, 7) and model.num_classes == 7


@torch.no_grad()
def test_events_of_another_size():
    model = make(in_chans=2, strict_img_size=False)
    assert model(torch.rand(2, 4, 2, 40, 24)).shape == (2, 5)


def test_masks():
    masked = make('mst_tiny_ann', mask_ratio=0.75)
    assert torch.equal(masked(X), make('mst_tiny_ann')(X))  # in eval mode
    snn = make(mask_ratio=0.75)
    assert not torch.equal(snn(X), snn(X))
    block = snn.get_submodule('model.layers.0.blocks.0')
    assert [m.act.mask_ratio for m in (block.norm1, block.norm2, block.mlp, block.attn)] == [0.75, 0.75, 0.75, 0.0]


def test_both_learn():
    for name in ('mst_tiny', 'mst_tiny_ann'):
        model = make(name).train()
        model(X).square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@torch.no_grad()
def test_it_is_profiled_and_compiled():
    model = make()
    report = timm_snn.profile(model, X, progress=False)
    assert report.num_steps == 4 and 0 < report.total.firing_rate < 1
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend='eager')(X), model(X))


def test_weights_that_do_not_exist_are_not_made_up():
    with pytest.raises(RuntimeError, match='pretrained'):
        timm.create_model('mst_tiny', pretrained=True)
