"""Facts about SpikingResformer alone: sizes, firing rates that attention scales by, a classifier without bias."""

import pytest
import timm
import torch

from timm_snn.layers import LIF, DualSpikeSelfAttention, GroupWiseMlp, RunningFiringRate


@pytest.mark.parametrize(
    ('name', 'parameters'),
    [
        ('spikingresformer_ti', 11_180_992),
        ('spikingresformer_s', 17_813_824),
        ('spikingresformer_m', 35_601_472),
        ('spikingresformer_l', 60_375_680),
        ('spikingresformer_cifar.cifar10', 10_793_152),
        ('spikingresformer_cifar.cifar100', 10_827_712),
        ('spikingresformer_gesture', 2_709_830),
    ],
)
def test_models_have_as_many_parameters_as_the_released_code(name, parameters):
    model = timm.create_model(name, device='meta')
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_a_new_classifier_has_no_bias_either():
    model = timm.create_model('spikingresformer_gesture', device='meta')
    model.reset_classifier(5)
    assert model.head.fc.bias is None and model.head.fc.weight.shape == (5, 192)


@pytest.mark.parametrize(
    ('name', 'img_size', 'patches'),
    [
        ('spikingresformer_ti', 224, 196),
        ('spikingresformer_ti', (288, 224), 18 * 14),
        ('spikingresformer_gesture', 64, 256),
    ],
)
def test_every_stage_attends_to_as_many_patches(name, img_size, patches):
    model = timm.create_model(name, device='meta', img_size=img_size)
    attention = [module for module in model.modules() if isinstance(module, DualSpikeSelfAttention)]
    assert [module.num_patches for module in attention] == [patches] * 6


def test_arguments_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match='img_size=32 has no patch of 4 pixels at 1/16 size'):
        timm.create_model('spikingresformer_ti', device='meta', img_size=32, patch_sizes=4)
    with pytest.raises(ValueError, match='group_size=64 does not divide the hidden width 96'):
        GroupWiseMlp(48, 96)
    with pytest.raises(ValueError, match='num_heads=5 does not divide dim=64'):
        DualSpikeSelfAttention(64, 5, 1)


def spikes(rate: float) -> torch.Tensor:
    """Two heads, of which the second is silent."""
    first = (torch.arange(1000) < rate * 1000).float().view(2, 5, 10, 10)
    return torch.stack([first, torch.zeros_like(first)], 2)


class TestRunningFiringRate:
    def test_heads_begin_with_the_first_batch_in_which_they_fire(self):
        scale = RunningFiringRate(2)
        assert scale(torch.zeros(2, 5, 2, 10, 10), 4).flatten().tolist() == [0, 0]  # neither inf nor NaN
        scale(spikes(0.25), 4)
        torch.testing.assert_close(scale.running.flatten(), torch.tensor([0.25, 0.0]))
        scale(spikes(0.5), 4)
        torch.testing.assert_close(scale.running.flatten(), torch.tensor([0.25025, 0.0]))

    def test_the_scale_is_one_over_the_root_of_rate_and_length(self):
        scale = RunningFiringRate(2).eval()
        assert scale(spikes(0.25), 16).flatten().tolist() == [0.5, 0]  # no training before: the batch's rate
        assert not scale.running.any()
        scale.running.fill_(0.01)
        torch.testing.assert_close(scale(spikes(0.25), 4).flatten(), torch.tensor([5.0, 5.0]))

    def test_half_precision_keeps_the_rate_in_float32(self):
        scale = RunningFiringRate(2, dtype=torch.bfloat16)
        assert scale(spikes(0.25).bfloat16(), 16).dtype == torch.bfloat16
        assert scale.running.dtype == torch.float32
        scale(spikes(0.5).bfloat16(), 16)
        torch.testing.assert_close(scale.running[0].item(), 0.25025)

    def test_a_forward_pass_that_checkpointing_repeats_counts_once(self):
        scale = RunningFiringRate(2)
        scale.running.fill_(0.5)
        weight = torch.ones((), requires_grad=True)
        run = torch.utils.checkpoint.checkpoint(lambda x: scale(x, 4) * weight.exp(), spikes(0.25), use_reentrant=False)
        once = scale.running.clone()
        run.sum().backward()
        assert torch.equal(scale.running, once)
        torch.testing.assert_close(once.flatten(), torch.tensor([0.49975, 0.4995]))


def test_a_silent_head_blocks_no_gradient_with_infinities():
    layer = DualSpikeSelfAttention(8, 2, 2, lif_layer=lambda: LIF(surrogate='atan'))
    x = torch.full((2, 3, 8, 4, 6), -1.0, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.isfinite().all()


def test_the_number_of_patches_is_that_of_the_input_if_not_given():
    torch.manual_seed(0)
    given = DualSpikeSelfAttention(8, 2, 2, num_patches=6).eval()
    free = DualSpikeSelfAttention(8, 2, 2).eval()
    free.load_state_dict(given.state_dict())
    x = 3 * torch.rand(2, 3, 8, 4, 6)
    assert torch.equal(free(x), given(x))
