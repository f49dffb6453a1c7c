"""Augmentation and mixing of event frames [B, T, C, H, W]: each sample in its own way, all of its steps alike.

The functions take one parameter per sample, [B]; `EventAugment` draws them, and takes a single sample [T, C, H, W] too,
as the `transform` of a data set. Nothing is averaged, so that counts stay counts: a pixel that moves takes the value of
the nearest pixel of the source.
"""

import math

import torch
from timm.data import Mixup
from torch import Tensor

__all__ = ['EventAugment', 'EventMixup', 'affine', 'cutout', 'drop_events', 'drop_steps', 'flip', 'roll']


def flip(frames: Tensor, mask: Tensor) -> Tensor:
    """Mirror left and right in the samples where `mask` is true."""
    mask = _per_sample(mask, frames, 'mask').bool()
    return torch.where(mask[:, None, None, None, None], frames.flip(-1), frames)


def roll(frames: Tensor, dy: Tensor, dx: Tensor) -> Tensor:
    """Shift by whole pixels, down and to the right; what leaves at one edge comes in at the other."""
    dy, dx = _per_sample(dy, frames, 'dy'), _per_sample(dx, frames, 'dx')
    H, W = frames.shape[-2:]
    y = (torch.arange(H, device=frames.device) - dy[:, None]) % H
    x = (torch.arange(W, device=frames.device) - dx[:, None]) % W
    return _take(frames, y[:, :, None], x[:, None, :])


def affine(frames: Tensor, angle: Tensor, shear: Tensor, dy: Tensor, dx: Tensor) -> Tensor:
    """Shear, then rotate about the middle, then shift; empty where the source lies outside.

    Units: `angle` in degrees counter-clockwise, `shear` in pixels to the right per row down from the middle, `dy` and
    `dx` in pixels down and to the right.
    """
    device = frames.device
    angle = _per_sample(angle, frames, 'angle').float().deg2rad()[:, None, None]
    shear, dy, dx = (
        _per_sample(value, frames, name).float()[:, None, None]
        for name, value in (('shear', shear), ('dy', dy), ('dx', dx))
    )
    H, W = frames.shape[-2:]
    middle_y, middle_x = (H - 1) / 2, (W - 1) / 2
    # where each pixel comes from
    y = torch.arange(H, device=device)[:, None] - middle_y - dy
    x = torch.arange(W, device=device)[None, :] - middle_x - dx
    y, x = x * angle.sin() + y * angle.cos(), x * angle.cos() - y * angle.sin()
    x = x - shear * y
    return _take(frames, (y + middle_y).round().long(), (x + middle_x).round().long())


def cutout(frames: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """Empty the rows top <= y < top + height and columns left <= x < left + width; what lies outside is ignored."""
    top, left, height, width = (
        _per_sample(value, frames, name)[:, None]
        for name, value in (('top', top), ('left', left), ('height', height), ('width', width))
    )
    y, x = (torch.arange(size, device=frames.device) for size in frames.shape[-2:])
    rows, columns = (y >= top) & (y < top + height), (x >= left) & (x < left + width)
    return frames.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None, None], 0)


def drop_events(frames: Tensor, ratio: Tensor) -> Tensor:
    """Empty this share of the pixels of every step, at random, all channels of a pixel together.

    A pixel of a step is the finest part of a frame that can go without making counts differ between channels that
    depend on each other; where no pixel counts more than one event, it is EventDrop's random drop (arXiv 2106.05836).
    """
    ratio = _per_sample(ratio, frames, 'ratio')
    B, T, _, H, W = frames.shape
    dropped = torch.rand(B, T, 1, H, W, device=frames.device) < ratio[:, None, None, None, None]
    return frames.masked_fill(dropped, 0)


def drop_steps(frames: Tensor, start: Tensor, length: Tensor) -> Tensor:
    """Empty the steps start <= t < start + length: EventDrop's drop by time; `cutout` is its drop by area."""
    start, length = _per_sample(start, frames, 'start')[:, None], _per_sample(length, frames, 'length')[:, None]
    t = torch.arange(frames.shape[1], device=frames.device)
    return frames.masked_fill(((t >= start) & (t < start + length))[:, :, None, None, None], 0)


class EventAugment:
    """Random augmentation of [B, T, C, H, W], or of one sample [T, C, H, W], on any device.

    The defaults are the policy of MSViT on event data (arXiv 2505.14719, after NDA, arXiv 2203.06145): mirror half of
    the samples, then change each in one way or not at all, by shear, shift, rotation or cutout, each as likely; with
    magnitudes that are usual for 128x128.

    Magnitudes are the largest, 0 is off. The numbers are drawn on the CPU by torch's global generator, which
    Accelerate's checkpoints hold; only the pixels that `drop_events` takes are drawn on the frames' device.

    Args:
        flip: Share of samples to mirror. Not for data where left and right differ, such as digits or gestures.
        translate: Shift either way, as a share of H and of W; empty pixels come in.
        roll: The same, around the edges (NDA's rolling).
        rotate: Angle either way, in degrees.
        shear: Slope either way, in columns per row.
        cutout: Side of an empty square, as a share of the shorter of H and W; its middle may be anywhere.
        drop_events: Share of the pixels of every step.
        drop_steps: Share of the steps, in a row.
        one_of: Whether a sample is changed in one of these ways (or none), or in all of them at once.

    Raises: ValueError for magnitudes out of range, and for other than floating-point [B, T, C, H, W] or [T, C, H, W].
    """

    def __init__(
        self,
        flip: float = 0.5,
        translate: float = 0.04,
        roll: float = 0.0,
        rotate: float = 30.0,
        shear: float = 0.3,
        cutout: float = 0.25,
        drop_events: float = 0.0,
        drop_steps: float = 0.0,
        one_of: bool = True,
    ) -> None:
        _check_range('flip', flip, 0, 1)
        self.flip = flip
        magnitudes = dict(
            translate=translate,
            roll=roll,
            rotate=rotate,
            shear=shear,
            cutout=cutout,
            drop_events=drop_events,
            drop_steps=drop_steps,
        )
        for name, largest in magnitudes.items():
            _check_range(name, largest, 0, 180 if name == 'rotate' else 1)
        self.magnitudes = {name: largest for name, largest in magnitudes.items() if largest > 0}
        self.one_of = one_of

    def __repr__(self) -> str:
        settings = {'flip': self.flip, **self.magnitudes, 'one_of': self.one_of}
        return f'EventAugment({", ".join(f"{name}={value}" for name, value in settings.items())})'

    def __call__(self, frames: Tensor) -> Tensor:
        if frames.ndim == 4:
            return self(frames.unsqueeze(0)).squeeze(0)
        _check(frames)
        B, T, _, H, W = frames.shape
        frames = flip(frames, torch.rand(B) < self.flip)
        last = len(self.magnitudes)  # stands for no change
        chosen = torch.randint(last + 1, (B,)) if self.one_of else None
        largest = {
            name: torch.full((B,), value) if chosen is None else (chosen == i) * value
            for i, (name, value) in enumerate(self.magnitudes.items())
        }
        none = torch.zeros(B)
        if 'roll' in largest:
            dy, dx = _either_way(largest['roll'] * H), _either_way(largest['roll'] * W)
            frames = roll(frames, dy.round().long(), dx.round().long())
        if largest.keys() & {'translate', 'rotate', 'shear'}:
            shift = largest.get('translate', none)
            dy, dx = _either_way(shift * H).round(), _either_way(shift * W).round()
            angle, slope = _either_way(largest.get('rotate', none)), _either_way(largest.get('shear', none))
            frames = affine(frames, angle, slope, dy, dx)
        if 'cutout' in largest:
            side = (torch.rand(B) * largest['cutout'] * min(H, W)).round().long()
            top, left = torch.randint(H, (B,)) - side // 2, torch.randint(W, (B,)) - side // 2
            frames = cutout(frames, top, left, side, side)
        if 'drop_events' in largest:
            frames = drop_events(frames, torch.rand(B) * largest['drop_events'])
        if 'drop_steps' in largest:
            length = (torch.rand(B) * largest['drop_steps'] * T).round().long()
            frames = drop_steps(frames, (torch.rand(B) * (T - length + 1)).long(), length)
        return frames


class EventMixup(Mixup):
    """timm's Mixup and CutMix for frames [B, T, C, H, W] and labels [B]: a pair is mixed alike in all of its steps.

    timm takes the third axis for height, which is the channels here; so time goes into the channels meanwhile. Returns
    mixed frames, the input is left alone, and soft targets [B, num_classes]. The numbers are drawn by NumPy's global
    generator, as in timm. Arguments are those of timm's `Mixup`; `mixup_enabled = False` ends the mixing.

    Raises: ValueError for arguments out of range, an odd B, and other than floating-point [B, T, C, H, W] with labels.
    """

    def __init__(
        self,
        mixup_alpha: float = 0.5,
        cutmix_alpha: float = 0.0,
        prob: float = 1.0,
        switch_prob: float = 0.5,
        label_smoothing: float = 0.1,
        num_classes: int = 1000,
    ) -> None:
        _check_range('num_classes', num_classes, 1, math.inf)
        for name, value in (('mixup_alpha', mixup_alpha), ('cutmix_alpha', cutmix_alpha)):
            _check_range(name, value, 0, math.inf)
        for name, value in (('prob', prob), ('switch_prob', switch_prob), ('label_smoothing', label_smoothing)):
            _check_range(name, value, 0, 1)
        if mixup_alpha == 0 and cutmix_alpha == 0:
            raise ValueError('mixup_alpha and cutmix_alpha are both 0: make one of them positive, or mix nothing')
        super().__init__(
            mixup_alpha,
            cutmix_alpha,
            prob=prob,
            switch_prob=switch_prob,
            label_smoothing=label_smoothing,
            num_classes=num_classes,
        )

    def __call__(self, frames: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        _check(frames)
        if labels.shape != frames.shape[:1] or labels.is_floating_point():
            raise ValueError(f'expected {len(frames)} whole-number labels, got {list(labels.shape)} of {labels.dtype}')
        if len(frames) % 2:
            raise ValueError(f'expected an even number of samples to mix in pairs, got {len(frames)}: use drop_last')
        mixed, targets = super().__call__(frames.flatten(1, 2).clone(), labels)
        return mixed.unflatten(1, frames.shape[1:3]), targets


def _take(frames: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """The frames with pixel (y, x), both [B, H, W] or broadcast to it, at every place; 0 for a place outside."""
    H, W = frames.shape[-2:]
    inside = (y >= 0) & (y < H) & (x >= 0) & (x < W)
    index = (y.clamp(0, H - 1) * W + x.clamp(0, W - 1)).flatten(1)[:, None, None]
    taken = frames.flatten(3).gather(3, index.expand(*frames.shape[:3], -1)).view(frames.shape)
    return taken.masked_fill(~inside[:, None, None], 0)


def _either_way(largest: Tensor) -> Tensor:
    return (2 * torch.rand(len(largest)) - 1) * largest


def _per_sample(value: Tensor, frames: Tensor, name: str) -> Tensor:
    _check(frames)
    if value.shape != frames.shape[:1]:
        raise ValueError(f'expected one {name} per sample, [{len(frames)}], got {list(value.shape)}')
    return value.to(frames.device)


def _check(frames: Tensor) -> None:
    if frames.ndim != 5:
        raise ValueError(
            f'expected frames [B, T, C, H, W], got {list(frames.shape)}: frames.unsqueeze(0) makes a batch of one '
            "sample, and images are for timm's own transforms"
        )
    if not frames.is_floating_point():
        raise ValueError(f'expected floating-point frames, got {frames.dtype}: frames.float() makes them so')


def _check_range(name: str, value: float, least: float, most: float) -> None:
    if not (least <= value <= most and math.isfinite(value)):
        raise ValueError(f'expected {name} from {least:g} to {most:g}, got {value}')
