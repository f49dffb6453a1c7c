"""The base of the families, on a network of three small stages, with a neuron in the head and without."""

import pytest
import torch
from torch import Tensor

from tests.conftest import lively
from timm_snn.layers import LIF, ConvBn, CurrentStem, ParametricLIF, SpikingMlp, SpikingResidual
from timm_snn.models import SpikingStage, SpikingTransformer


class Tiny(SpikingTransformer):
    """A stream of membrane currents: the stem has no neuron, branches begin with one."""

    def __init__(self, head_lif: LIF | None, num_steps: int = 3, **kwargs) -> None:
        stages = [
            SpikingStage(
                ConvBn(4, 4, 3, stride=2), [SpikingResidual(SpikingMlp(4, 8, pre_activation=True))], 4, 2 ** (i + 1)
            )
            for i in range(3)
        ]
        settings = dict(num_classes=5, in_chans=2, global_pool='avg', drop_rate=0.0) | kwargs
        super().__init__(CurrentStem(2, 4, 3), stages, num_steps=num_steps, head_lif=head_lif, **settings)


@pytest.fixture(params=[None, LIF(v_threshold=0.5)])
def model(request) -> Tiny:
    return lively(Tiny(request.param).double().eval())


@pytest.fixture
def x() -> Tensor:
    return torch.rand(2, 3, 2, 16, 24, dtype=torch.float64)  # [B, T, C, H, W]


def test_logits_are_the_mean_over_the_steps(model, x):
    steps = model.forward_steps(x)
    assert steps.shape == (2, 3, 5)
    torch.testing.assert_close(steps.mean(1), model(x))


def test_a_neuron_in_the_head_integrates_the_pooled_current_of_every_step(x):
    model = lively(Tiny(LIF(v_threshold=0.5)).double().eval())
    stream = model.stages(model.stem(x.transpose(0, 1), 3))
    spikes = model.head_lif(stream.mean((3, 4)))
    assert 0 < spikes.mean() < 1
    torch.testing.assert_close(model(x), model.head.fc(spikes).mean(0))
    assert not torch.allclose(model(x), model.forward_head(model.forward_features(x)))
    # which is the answer to a stream that stands still
    still = stream[:1].mean(0)
    expected = model.head.fc(model.head_lif(still.mean((2, 3)).expand(3, -1, -1))).mean(0)
    torch.testing.assert_close(model.forward_head(still), expected)


def test_pre_logits_are_what_a_model_without_classifier_returns(model, x):
    features = model.forward_features(x)
    logits, pre_logits = model.forward_head(features), model.forward_head(features, pre_logits=True)
    torch.testing.assert_close(model.head.fc(pre_logits), logits)
    model.reset_classifier(0)
    assert model(x).shape == pre_logits.shape == (2, 4)
    model.reset_classifier(0, '')
    assert model(x).shape == features.shape == (2, 4, 2, 3)


@pytest.mark.parametrize(('global_pool', 'width'), [('avg', 4), ('catavgmax', 8)])
def test_head_hidden_size_is_the_width_that_the_pooling_leaves(x, global_pool, width):
    model = Tiny(LIF(), global_pool=global_pool).double()
    pooled = [(model.head_hidden_size, model.forward_head(model.forward_features(x), pre_logits=True).shape[1])]
    model = Tiny(LIF()).double()
    model.reset_classifier(7, global_pool)
    pooled.append((model.head_hidden_size, model.head.fc.in_features))
    model.prune_intermediate_layers([0], prune_head=False)
    model.reset_classifier(0, global_pool)
    pooled.append((model.head_hidden_size, model(x).shape[1]))
    assert pooled == [(width, width)] * 3 and model.num_features == 4


def test_pruning_leaves_no_parameter_without_a_gradient(x):
    model = Tiny(ParametricLIF(v_threshold=0.5)).double()
    assert model.prune_intermediate_layers([0, 1]) == [0, 1] and model.head_lif is None
    assert model(x).shape == (2, 4, 4, 6)
    torch.jit.script(model.eval())
    model.forward_intermediates(x, intermediates_only=True)[-1].square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize('global_pool', ['avg', ''])
def test_the_neuron_of_the_head_stays_without_a_classifier_and_learns(x, global_pool):
    """A model without a classifier returns its spikes, and a later classifier gets them."""
    model = Tiny(ParametricLIF(v_threshold=0.5)).double()
    model.reset_classifier(0, global_pool)
    model(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.reset_classifier(5, 'avg')
    assert model.head_lif is not None and model(x).shape == (2, 5)


def test_torchscript(model, x):
    torch.testing.assert_close(torch.jit.script(model)(x), model(x))


def test_a_stem_without_a_neuron_computes_an_image_once(x):
    stem, image = lively(CurrentStem(2, 4, 3).double().eval()), x[:, 0]
    calls = []
    stem.unit.conv.register_forward_hook(lambda module, args, output: calls.append(len(output)))
    held, repeated = stem(image[None], 3), stem(image.expand(3, -1, -1, -1, -1), 3)
    assert calls == [2, 6] and torch.equal(held, repeated)


def test_gradients_of_features_keep_the_memory_order_of_the_stages(model, x):
    model.to(memory_format=torch.channels_last)
    orders = []

    def watch(module, args, output):
        output.register_hook(lambda gradient: orders.append((output.stride()[1:], gradient.stride()[1:])))

    for stage in model.stages:
        stage.register_forward_hook(watch)
    x = x.movedim(2, -1).contiguous().movedim(-1, 2)  # channels_last
    final, taps = model.forward_intermediates(x)
    (final.sum() + sum(tap.square().sum() for tap in taps)).backward()
    assert len(orders) == 3 and all(of_map[1] == 1 and of_map == of_gradient for of_map, of_gradient in orders)


@pytest.mark.parametrize('num_steps', [0, 2.5, '4'])
def test_steps_are_whole_numbers(num_steps):
    with pytest.raises(ValueError, match='num_steps must be a whole number of at least 1'):
        Tiny(None, num_steps=num_steps)
