"""Augmentation and mixing of event frames, each against a loop over samples, steps and pixels."""

import numpy as np
import pytest
import torch
from timm.data import Mixup
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import rotate

from timm_snn.data import EventAugment, EventMixup, augment

SHAPES = [(1, 3, 2, 7, 7), (4, 2, 2, 8, 5), (3, 1, 3, 6, 11)]


@pytest.fixture(params=SHAPES, ids=str)
def frames(request):
    """Counts, each sample, step, channel and pixel with its own."""
    return torch.randperm(int(np.prod(request.param))).reshape(request.param).double() + 1


def numbers(low: int, high: int, frames) -> torch.Tensor:
    return torch.randint(low, high + 1, (len(frames),))


def per_pixel(frames, source):
    """What source(b, t, y, x) -> (y, x) or None says, pixel by pixel."""
    out = torch.zeros_like(frames)
    B, T, _, H, W = frames.shape
    for b, t, y, x in np.ndindex(B, T, H, W):
        place = source(b, t, y, x)
        if place is not None:
            out[b, t, :, y, x] = frames[b, t, :, place[0], place[1]]
    return out


def test_flip_mirrors_the_chosen_samples(frames):
    mask = torch.arange(len(frames)) % 2 == 0
    W = frames.shape[-1]
    expected = per_pixel(frames, lambda b, t, y, x: (y, W - 1 - x if mask[b] else x))
    assert torch.equal(augment.flip(frames, mask), expected)


def test_roll_goes_around_the_edges_and_keeps_every_count(frames):
    H, W = frames.shape[-2:]
    dy, dx = numbers(-2 * H, 2 * H, frames), numbers(-2 * W, 2 * W, frames)
    rolled = augment.roll(frames, dy, dx)
    for sample, source, y, x in zip(rolled, frames, dy.tolist(), dx.tolist(), strict=True):
        assert torch.equal(sample, source.roll((y, x), (-2, -1)))
    assert torch.equal(rolled.sum((3, 4)), frames.sum((3, 4)))


def test_affine_shifts_and_leaves_empty_pixels(frames):
    H, W = frames.shape[-2:]
    none, dy, dx = torch.zeros(len(frames)), numbers(-H, H, frames), numbers(-W, W, frames)

    def source(b, t, y, x):
        y, x = y - int(dy[b]), x - int(dx[b])
        return (y, x) if 0 <= y < H and 0 <= x < W else None

    assert torch.equal(augment.affine(frames, none, none, dy, dx), per_pixel(frames, source))


def test_affine_shears_rows_about_the_middle(frames):
    H, W = frames.shape[-2:]
    none, shear = torch.zeros(len(frames)), torch.rand(len(frames)) * 2 - 1

    def source(b, t, y, x):
        x = x - float(shear[b]) * (y - (H - 1) / 2)
        return (y, round(x)) if -0.5 <= x < W - 0.5 else None

    assert torch.equal(augment.affine(frames, none, shear, none, none), per_pixel(frames, source))


def test_affine_rotates_as_torchvision_does(frames):
    none, angle = torch.zeros(len(frames)), torch.rand(len(frames)) * 360 - 180
    rotated = augment.affine(frames, angle, none, none, none)
    for sample, source, degrees in zip(rotated, frames, angle.tolist(), strict=True):
        expected = rotate(source.float(), degrees, InterpolationMode.NEAREST).double()
        assert torch.equal(sample, expected)


def test_affine_shears_then_rotates_then_shifts():
    frames = torch.zeros(1, 1, 1, 9, 9)
    frames[..., 6, 4] = 1  # two rows below the middle
    angle, shear, dy, dx = (torch.tensor([value]) for value in (90.0, 1.0, -1.0, 1.0))
    # shear to (6, 6), a quarter turn counter-clockwise to (2, 6), shift to (1, 7)
    assert augment.affine(frames, angle, shear, dy, dx).nonzero().tolist() == [[0, 0, 0, 1, 7]]


def test_cutout_empties_a_box_that_may_reach_over_the_edge(frames):
    H, W = frames.shape[-2:]
    top, left, height, width = (
        numbers(-2, H, frames),
        numbers(-2, W, frames),
        numbers(0, H, frames),
        numbers(0, 3, frames),
    )

    def source(b, t, y, x):
        inside = top[b] <= y < top[b] + height[b] and left[b] <= x < left[b] + width[b]
        return None if inside else (y, x)

    assert torch.equal(augment.cutout(frames, top, left, height, width), per_pixel(frames, source))


def test_drop_steps_empties_steps_in_a_row(frames):
    start, length = numbers(0, 2, frames), numbers(0, 2, frames)

    def source(b, t, y, x):
        return None if start[b] <= t < start[b] + length[b] else (y, x)

    assert torch.equal(augment.drop_steps(frames, start, length), per_pixel(frames, source))


def test_drop_events_takes_the_share_and_all_channels_of_a_pixel():
    frames = torch.ones(3, 4, 3, 50, 50) * torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    dropped = augment.drop_events(frames, torch.tensor([0.0, 0.3, 1.0]))
    torch.testing.assert_close(1 - dropped[:, :, 0].mean((1, 2, 3)), torch.tensor([0.0, 0.3, 1.0]), atol=0.02, rtol=0)
    assert torch.equal(dropped[:, :, 0] + dropped[:, :, 1], dropped[:, :, 2])
    assert not torch.equal(dropped[1, 0], dropped[1, 1])


EVERYTHING = dict(translate=0.3, roll=0.3, rotate=30, shear=0.3, cutout=0.5, drop_events=0.2, drop_steps=0.5)


def test_the_policy_changes_each_sample_in_one_way_or_none():
    frames = torch.rand(600, 2, 1, 9, 9) + 1
    change = EventAugment(flip=0, translate=0.3, rotate=0, shear=0, cutout=0.8)
    samples = change(frames)
    same = torch.tensor([torch.equal(*pair) for pair in zip(samples, frames, strict=True)])
    kept = torch.tensor([bool(((a == b) | (a == 0)).all()) for a, b in zip(samples, frames, strict=True)])
    assert 0.33 < same.double().mean() < 0.5  # a third, and shifts and boxes of size 0
    assert 0.6 < kept.double().mean() < 0.75  # identity and cutout
    both = EventAugment(flip=0, translate=0.3, rotate=0, shear=0, cutout=0.8, one_of=False)(frames)
    assert torch.tensor([torch.equal(*pair) for pair in zip(both, frames, strict=True)]).double().mean() < 0.2
    flipped = EventAugment(flip=0.5, translate=0, rotate=0, shear=0, cutout=0)(frames)
    mirrored = torch.tensor([torch.equal(a, b.flip(-1)) for a, b in zip(flipped, frames, strict=True)])
    assert 0.4 < mirrored.double().mean() < 0.6


def test_magnitudes_are_the_largest_that_are_drawn(monkeypatch):
    seen = {}

    def spy(name):
        def watch(frames, *args):
            seen[name] = [arg.double() for arg in args]
            return frames

        return watch

    for name in ('roll', 'affine', 'cutout', 'drop_events', 'drop_steps'):
        monkeypatch.setattr(augment, name, spy(name))
    EventAugment(**EVERYTHING, one_of=False)(torch.zeros(4000, 10, 1, 20, 40))
    limits = {name: [(arg.min().item(), arg.max().item()) for arg in args] for name, args in seen.items()}
    assert limits['roll'] == [(-6, 6), (-12, 12)] and limits['affine'][2:] == [(-6, 6), (-12, 12)]
    for (low, high), largest in zip(limits['affine'][:2], (30, 0.3), strict=True):
        assert -largest <= low < -0.98 * largest and 0.98 * largest < high <= largest
    assert limits['cutout'][2:] == [(0, 10), (0, 10)] and limits['cutout'][:2] == [(-5, 19), (-5, 39)]
    assert 0.198 < limits['drop_events'][0][1] <= 0.2 and limits['drop_steps'] == [(0, 10), (0, 5)]
    start, length = seen['drop_steps']
    assert (start + length).max() == 10


def test_all_steps_of_a_sample_are_changed_alike():
    frames = torch.randint(1, 9, (16, 1, 2, 13, 10)).float().expand(-1, 5, -1, -1, -1)
    for one_of in (True, False):
        changed = EventAugment(translate=0.2, roll=0.2, cutout=0.5, one_of=one_of)(frames)
        assert torch.equal(changed, changed[:, :1].expand_as(changed)) and not torch.equal(changed, frames)
        assert not torch.equal(frames[0], changed[0]) or not torch.equal(frames[1], changed[1])


def test_torchs_generator_decides_and_counts_stay_counts():
    frames = torch.randint(0, 9, (8, 4, 2, 12, 12)).float()
    change = EventAugment(**EVERYTHING, one_of=False)
    before = frames.clone()
    torch.manual_seed(3)
    first, second = change(frames), change(frames)
    torch.manual_seed(3)
    assert torch.equal(change(frames), first) and not torch.equal(first, second)
    assert torch.equal(first, first.round()) and torch.equal(frames, before)


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16, torch.float16])
def test_every_dtype_is_changed_as_float32_is(dtype):
    frames = torch.randint(0, 9, (4, 3, 2, 17, 12)).float()
    change = EventAugment(**EVERYTHING, one_of=False)
    torch.manual_seed(0)
    expected = change(frames)
    torch.manual_seed(0)
    changed = change(frames.to(dtype))
    assert changed.dtype == dtype and torch.equal(changed.float(), expected)


def test_gradients_pass_and_frames_need_not_be_contiguous():
    frames = torch.rand(3, 2, 4, 6, 5).transpose(1, 2).requires_grad_()
    augment.roll(frames, torch.tensor([1, 2, 3]), torch.tensor([0, 1, 0])).square().sum().backward()
    torch.testing.assert_close(frames.grad, 2 * frames.detach())


def mixed_by_hand(frames, labels, settings, num_classes):
    """timm's Mixup of every single step of the batch, with the same numbers each time."""
    steps, state = [], np.random.get_state()
    for t in range(frames.shape[1]):
        np.random.set_state(state)
        step, targets = Mixup(**settings, num_classes=num_classes)(frames[:, t].clone(), labels)
        steps.append(step)
    return torch.stack(steps, 1), targets


@pytest.mark.parametrize('kind', ['mixup', 'cutmix', 'both'])
@pytest.mark.parametrize('shape', [(2, 3, 2, 7, 7), (6, 4, 3, 12, 5)], ids=str)
def test_mixing_equals_timms_on_every_step(kind, shape):
    settings = dict(
        mixup_alpha=0.0 if kind == 'cutmix' else 0.8,
        cutmix_alpha=0.0 if kind == 'mixup' else 1.0,
        prob=0.9,
        switch_prob=0.4,
        label_smoothing=0.1,
    )
    frames, labels = torch.rand(shape), torch.randint(0, 5, shape[:1])
    before, mixup = frames.clone(), EventMixup(**settings, num_classes=5)
    for seed in range(12):
        np.random.seed(seed)
        expected = mixed_by_hand(frames, labels, settings, 5)
        np.random.seed(seed)
        mixed, targets = mixup(frames, labels)
        assert torch.equal(mixed, expected[0]) and torch.equal(targets, expected[1])
        torch.testing.assert_close(targets.sum(1), torch.ones(len(frames)))
    assert torch.equal(frames, before)


def test_cutmix_takes_a_box_of_the_partner_and_its_share_of_the_label():
    frames = torch.arange(4.0)[:, None, None, None, None].expand(4, 3, 2, 10, 14).contiguous()
    np.random.seed(0)
    mixed, targets = EventMixup(0.0, 1.0, label_smoothing=0, num_classes=4)(frames, torch.arange(4))
    for i in range(4):
        partner = mixed[i] == 3 - i
        assert torch.equal(partner, partner[:1, :1].expand_as(partner))  # the same box in all steps and channels
        rows, columns = partner[0, 0].any(1), partner[0, 0].any(0)
        assert 0 < rows.sum() * columns.sum() == partner[0, 0].sum() < 140
        torch.testing.assert_close(targets[i, 3 - i], partner.float().mean())
        torch.testing.assert_close(targets[i, i], 1 - partner.float().mean())


def test_mixup_weighs_a_sample_and_its_partner_as_their_labels():
    frames = torch.rand(4, 3, 2, 5, 6)
    np.random.seed(0)
    mixed, targets = EventMixup(0.5, label_smoothing=0, num_classes=4)(frames, torch.arange(4))
    for i in range(4):
        own, other = targets[i, i], targets[i, 3 - i]
        assert own + other == 1 and 0 < own < 1
        torch.testing.assert_close(mixed[i], own * frames[i] + other * frames[3 - i])


def test_mixing_can_be_ended():
    mixup = EventMixup(0.5, 1.0, label_smoothing=0, num_classes=3)
    mixup.mixup_enabled = False
    frames, labels = torch.rand(2, 2, 2, 5, 5), torch.tensor([2, 0])
    mixed, targets = mixup(frames, labels)
    assert torch.equal(mixed, frames) and targets.tolist() == [[0, 0, 1], [1, 0, 0]]


def test_one_sample_is_changed_as_a_batch_of_it():
    sample = torch.randn(3, 2, 7, 9)
    augment_events = EventAugment(drop_events=0.5, drop_steps=0.5, one_of=False)
    torch.manual_seed(1)
    batch = augment_events(sample[None])
    torch.manual_seed(1)
    assert torch.equal(augment_events(sample), batch[0]) and not torch.equal(batch[0], sample)


def test_it_says_what_it_does():
    assert repr(EventAugment(0, 0.1, 0, 0, 0, 0)) == 'EventAugment(flip=0, translate=0.1, one_of=True)'


FRAMES, LABELS = torch.zeros(2, 3, 2, 4, 4), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: EventAugment()(FRAMES[0, 0]), r'frames \[B, T, C, H, W\], got \[2, 4, 4\]: frames.unsqueeze'),
        (
            lambda: augment.flip(FRAMES[0], torch.ones(1)),
            r'frames \[B, T, C, H, W\], got \[3, 2, 4, 4\]: frames.unsqueeze',
        ),
        (lambda: EventAugment()(FRAMES.byte()), r'got torch.uint8: frames.float\(\)'),
        (lambda: augment.flip(FRAMES, torch.tensor([True])), r'one mask per sample, \[2\], got \[1\]'),
        (lambda: augment.roll(FRAMES, LABELS, LABELS[:, None]), r'one dx per sample, \[2\], got \[2, 1\]'),
        (lambda: EventAugment(flip=1.5), 'expected flip from 0 to 1, got 1.5'),
        (lambda: EventAugment(rotate=-1), 'expected rotate from 0 to 180, got -1'),
        (lambda: EventAugment(translate=5), 'expected translate from 0 to 1, got 5'),
        (lambda: EventMixup(prob=2), 'expected prob from 0 to 1, got 2'),
        (lambda: EventMixup(mixup_alpha=-0.1), 'expected mixup_alpha from 0'),
        (lambda: EventMixup(cutmix_alpha=float('inf')), 'expected cutmix_alpha from 0'),
        (lambda: EventMixup(0, 0), 'both 0'),
        (lambda: EventMixup(num_classes=0), 'expected num_classes from 1'),
        (lambda: EventMixup()(FRAMES[0], LABELS), r'got \[3, 2, 4, 4\]'),
        (lambda: EventMixup()(FRAMES[:1], LABELS[:1]), 'even number of samples to mix in pairs, got 1'),
        (lambda: EventMixup()(FRAMES, LABELS.float()), 'whole-number labels, got .* torch.float32'),
        (lambda: EventMixup()(FRAMES, LABELS[:1]), r'expected 2 whole-number labels, got \[1\]'),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
