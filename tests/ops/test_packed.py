import pytest
import timm
import torch
from torch import nn

from tests.conftest import lively
from timm_snn.ops import packed_spikes


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last', 'expanded'])
@pytest.mark.parametrize('values', ['bits', 'integers', 'reals', 'large', 'negative'])
def test_gradients_are_exactly_the_same(values, layout):
    x = torch.randint(0, 2, (3, 8, 31, 29)).float()
    x *= {'bits': 1, 'integers': 3, 'reals': 0.5, 'large': 256, 'negative': -1}[values]
    if layout == 'channels_last':
        x = x.to(memory_format=torch.channels_last)
    if layout == 'expanded':
        x = x[:1].expand(3, -1, -1, -1)
    conv = nn.Conv2d(8, 4, 3)
    (expected,) = torch.autograd.grad(conv(x).square().sum(), conv.weight)
    with packed_spikes():
        loss = conv(x).square().sum()
    assert torch.equal(torch.autograd.grad(loss, conv.weight)[0], expected)


def test_what_is_kept_is_small(monkeypatch):
    held = []
    hooks = torch.autograd.graph.saved_tensors_hooks
    monkeypatch.setattr(
        torch.autograd.graph,
        'saved_tensors_hooks',
        lambda pack, unpack: hooks(lambda x: held.append(pack(x)) or held[-1], unpack),
    )
    x = torch.randint(0, 2, (2, 8, 33, 33)).float()
    units = [nn.Conv2d(8, 4, 3) for _ in range(2)]
    with packed_spikes():
        [unit(x) for unit in units]
        units[0](x + 2 * x)
    packed = [h for h in held if not isinstance(h, torch.Tensor)]
    assert packed[0] is packed[1]  # both save x, which is packed once
    assert packed[0].values.numel() == x.numel() // 8 and packed[2].values.numel() == x.numel()


def test_memory_that_was_freed_is_not_mistaken():
    """Tensors that reuse the address of one packed before."""
    conv = nn.Conv2d(8, 4, 3, bias=False)
    with packed_spikes():
        losses = []
        for i in range(5):
            x = torch.full((2, 8, 33, 33), float(i))
            losses.append(conv(x).sum())
            del x
            conv(torch.rand(2, 8, 33, 33))
    for i, loss in enumerate(losses):
        gradient = torch.autograd.grad(loss, conv.weight)[0]
        assert torch.equal(gradient, torch.full_like(gradient, i * 2.0 * 31 * 31))


def test_a_model_trains_the_same():
    model = lively(timm.create_model('msvit_4_96')).train()
    x = torch.rand(4, 1, 28, 28)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    gradients = []
    for packed in (False, True):
        model.load_state_dict(state)
        model.zero_grad()
        if packed:
            with packed_spikes():
                loss = model(x).square().sum()
        else:
            loss = model(x).square().sum()
        loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
