"""What every family of this package is tested for, of a model; each check raises AssertionError."""

import copy
import tempfile
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.testing import assert_close

from ..layers import ConvBn, ConvBnLif, RunningFiringRate
from ..models import fuse
from ..models.pretrained import save_for_hf
from ..models.streaming import stream

__all__ = [
    'FAMILY_CHECKS',
    'check_causality',
    'check_checkpointing',
    'check_compiling',
    'check_contract',
    'check_features',
    'check_frames',
    'check_fusing',
    'check_golden',
    'check_learning',
    'check_memory',
    'check_neighbours',
    'check_saving',
    'check_steps',
    'check_streaming',
    'images',
    'lively',
    'make',
    'record_golden',
]


def make(name: str, **kwargs: Any) -> Any:
    """An untrained model by name for the checks of a family: two steps, eval mode, float64, and neurons that fire.

    In float64 no spike depends on the number of threads.
    """
    torch.manual_seed(0)
    return lively(timm.create_model(name, **{'num_steps': 2, **kwargs}).double().eval())


def lively(model: nn.Module) -> Any:
    """The model, with batch norms that let every neuron fire sometimes: untrained, its last layers are silent."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            nn.init.uniform_(module.weight, 0.8, 1.6)
            nn.init.uniform_(module.bias, 0.5, 1.2)
            module.running_var.fill_(0.5)  # type: ignore[union-attr]
        elif isinstance(module, RunningFiringRate):
            module.running.fill_(0.2)  # without which an untrained model goes by the batch
    for unit in model.modules():
        if isinstance(unit, ConvBn) and not isinstance(unit, ConvBnLif):  # currents, which add up in a stream
            nn.init.uniform_(unit.bn.bias, 0.0, 0.6)
        if isinstance(unit, ConvBn) and isinstance(unit.conv, _ConvNd):
            # the variance of currents over what it is with PyTorch's initial weights; a family may start with less
            scale = 3 * unit.conv.weight[0].numel() * unit.conv.weight.detach().square().mean()
            if scale < 0.5:
                unit.bn.running_var.mul_(scale)  # type: ignore[union-attr]
    return model


def images(model: Any, batch: int = 3, size: tuple[int, int] = (32, 48)) -> Tensor:
    """In the model's channels and dtype."""
    return torch.rand(batch, model.in_chans, *size, dtype=next(model.parameters()).dtype)


@torch.no_grad()
def check_neighbours(model: Any) -> None:
    """An image has the same logits in any order and company, and another image has others."""
    x = images(model)
    logits = model(x)
    order = torch.tensor([2, 0, 1])
    assert_close(model(x[order]), logits[order], rtol=0, atol=1e-9)
    assert_close(model(x[:1]), logits[:1], rtol=0, atol=1e-9)
    assert not torch.allclose(logits[0], logits[1]), 'two random images have the same logits: is the model silent?'


@torch.no_grad()
def check_memory(model: Any) -> None:
    """A call leaves nothing behind: the next one answers the same."""
    x = images(model, batch=1)
    assert torch.equal(model(x), model(x)), 'the second call gives other logits than the first'


@torch.no_grad()
def check_frames(model: Any) -> None:
    """Frames [B, T, C, H, W] that repeat an image are that image."""
    x = images(model, batch=2)
    frames = x.unsqueeze(1).repeat(1, model.num_steps, 1, 1, 1)
    assert_close(model(frames), model(x), rtol=0, atol=1e-9)


@torch.no_grad()
def check_causality(model: Any) -> None:
    """The first step of the last stage's output does not change with the second frame, and the second does."""
    stream = []
    hook = model.stages.register_forward_hook(lambda module, args, output: stream.append(output))
    frames = torch.rand(1, 2, model.in_chans, 32, 32, dtype=next(model.parameters()).dtype)
    model(frames)
    frames[:, 1] = 1 - frames[:, 1]
    model(frames)
    hook.remove()
    assert torch.equal(stream[0][0], stream[1][0]), 'a step saw a later one'
    assert not torch.equal(stream[0][1], stream[1][1]), 'the second frame changes nothing'


@torch.no_grad()
def check_steps(model: Any) -> None:
    """`forward_steps` has the logits of every step, whose mean is the answer; a model of one step gives the first."""
    x = images(model)
    logits = model.forward_steps(x)
    assert_close(logits.mean(1), model(x))
    before = model.num_steps
    try:
        model.num_steps = 1
        assert_close(logits[:, 0], model(x))
    finally:
        model.num_steps = before


@torch.no_grad()
def check_streaming(model: Any) -> None:
    """After every frame a stream answers as the model that sees all frames until then at once (`timm_snn.stream`)."""
    T = model.num_steps
    frames = torch.rand(1, T, model.in_chans, 32, 32, dtype=next(model.parameters()).dtype)
    expected = model.forward_steps(frames).cumsum(1) / torch.arange(1, T + 1).view(-1, 1)
    frame_by_frame = stream(model)
    for t, frame in enumerate(frames.unbind(1)):
        assert_close(frame_by_frame(frame), expected[:, t], rtol=0, atol=1e-9)


@torch.no_grad()
def check_features(model: Any) -> None:
    """The levels of `forward_intermediates` have the channels and sizes that `feature_info` announces, and fire."""
    taps = model.forward_intermediates(images(model, size=(64, 96)), intermediates_only=True)
    strides = [info['reduction'] for info in model.feature_info]
    assert strides == [strides[0] << i for i in range(len(strides))] and len(strides) >= 3, f'strides {strides}'
    for tap, info in zip(taps, model.feature_info, strict=True):
        assert tap.shape == (3, info['num_chs'], 64 // info['reduction'], 96 // info['reduction'])
        assert tap.any(), f'level {info["module"]} is silent'


def check_learning(model: Any) -> None:
    """Every parameter has a finite gradient, and stem, stages and head have one that is not zero."""
    twin = copy.deepcopy(model).train()
    twin(images(twin)).square().sum().backward()
    for name, parameter in twin.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), f'{name} has {parameter.grad}'
    for part in (twin.stem, *twin.stages, twin.head):
        parameters = list(part.parameters())
        assert not parameters or any(p.grad.any() for p in parameters), f'nothing in {type(part).__name__} learns'


def check_checkpointing(model: Any) -> None:
    """Gradient checkpointing changes neither logits nor gradients."""
    x = images(model)
    results = []
    for enable in (False, True):
        twin = copy.deepcopy(model).train()
        twin.set_grad_checkpointing(enable)
        logits = twin(x)
        logits.square().sum().backward()
        results.append([logits, *(p.grad for p in twin.parameters())])
    for plain, checkpointed in zip(*results, strict=True):
        assert_close(plain, checkpointed)


@torch.no_grad()
def check_contract(model: Any) -> None:
    """What timm's users rely on: num_classes=0, reset_classifier, in_chans, features_only, the pretrained config."""
    name = model.pretrained_cfg['architecture']
    x = images(model, batch=2)
    assert model.forward_head(model.forward_features(x), pre_logits=True).shape == (2, model.num_features)
    assert timm.create_model(name, num_classes=0, in_chans=5)(torch.rand(2, 5, 32, 32)).shape == (2, model.num_features)
    twin = copy.deepcopy(model)
    twin.reset_classifier(7)
    assert twin.num_classes == 7 and twin.double()(x).shape == (2, 7)
    backbone: Any = timm.create_model(name, features_only=True, in_chans=model.in_chans)
    sizes = [tap.shape[1] for tap in backbone(x.float())]
    assert sizes == backbone.feature_info.channels(), f'features_only announces {backbone.feature_info.channels()}'
    for key in ('first_conv', 'classifier'):
        for layer in (model.pretrained_cfg[key],) if isinstance(model.pretrained_cfg[key], str) else ():
            assert isinstance(model.get_submodule(layer), nn.Module), f'the pretrained config has {key}={layer!r}'


def check_saving(model: Any) -> None:
    """A folder in the Hub's format gives the same model back, with its settings."""
    name = model.pretrained_cfg['architecture']
    made = lively(timm.create_model(name, num_classes=7, num_steps=3).eval())
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        save_for_hf(made, folder)
        loaded = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
        x = images(made, batch=1)
        assert loaded.num_steps == 3 and torch.equal(loaded(x), made(x))


@torch.no_grad()
def check_fusing(model: Any) -> None:
    """`timm_snn.fuse` changes no logits beyond rounding."""
    x = images(model)
    assert_close(fuse(model)(x), model(x), rtol=0, atol=1e-9)


@torch.no_grad()
def check_compiling(model: Any) -> None:
    """torch.compile traces it as one graph, here at one step; tracing more takes long and shows nothing else."""
    torch.compiler.reset()
    twin = copy.deepcopy(model)
    twin.num_steps = 1
    x = images(twin)
    assert_close(torch.compile(twin, fullgraph=True, backend='eager')(x), twin(x), rtol=0, atol=1e-9)


FAMILY_CHECKS = (
    check_neighbours,
    check_memory,
    check_frames,
    check_causality,
    check_steps,
    check_streaming,
    check_features,
    check_learning,
    check_checkpointing,
    check_contract,
    check_saving,
    check_fusing,
    check_compiling,
)


def record_golden(model: Any, file: str | Path) -> None:
    """Write an input and the logits of every step to a safetensors file, for `check_golden` to compare with later.

    The weights are the model's own: record with those that users have, in float64, and keep the small file in the
    repository.
    """
    torch.manual_seed(0)
    x = images(model, batch=2)
    with torch.no_grad():
        save_file({'input': x, 'logits': model.forward_steps(x).contiguous()}, file)


@torch.no_grad()
def check_golden(model: Any, file: str | Path, atol: float = 1e-9) -> None:
    """The logits of every step are those that `record_golden` wrote, in float64."""
    recorded = load_file(file)
    assert_close(model.forward_steps(recorded['input']), recorded['logits'], rtol=0, atol=atol)
