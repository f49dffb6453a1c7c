"""Time at the door of a model, stochastic depth, and the memory order of gradients."""

import pytest
import torch

from timm_snn.layers import DropPath, to_time_first
from timm_snn.layers.attention import split_heads
from timm_snn.layers.temporal import mean_over_time, repeat_for_steps

X = torch.randint(0, 3, (4, 3, 12, 7, 5), generator=torch.Generator().manual_seed(0)).double()  # [T, B, C, H, W]


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
