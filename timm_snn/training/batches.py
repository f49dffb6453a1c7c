"""The last steps of a training batch before the model sees it, on the device."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import Mixup
from torch import Tensor

from ..data import EventAugment, EventMixup
from .errors import one_line_errors

__all__ = ['BatchTransform']


class BatchTransform:
    """Size of images, memory format, augmentation of event frames, and mixing of pairs of samples.

    Returns images and targets: labels [B], or [B, num_classes] where samples are mixed. `images_of` gives the images of
    a batch of numbers, where that is what is loaded (`on_device.DeviceImages`). `event_aug` holds arguments of
    `EventAugment`, or is None for none. Samples are mixed if `mixup` or `cutmix` is positive, up to `off_epoch` if that
    is not 0. `size` may be assigned: height and width that images are resized to, None for none. Raises: UserError for
    arguments out of range.
    """

    def __init__(
        self,
        num_classes: int,
        is_events: bool,
        *,
        images_of: Callable[[Tensor], Tensor] | None = None,
        channels_last: bool | None = False,
        event_aug: dict[str, Any] | None = None,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        prob: float = 1.0,
        switch_prob: float = 0.5,
        label_smoothing: float = 0.1,
        off_epoch: int = 0,
    ) -> None:
        self.images_of = images_of
        self.channels_last = channels_last
        self.off_epoch = off_epoch
        self.size: tuple[int, int] | None = None
        self.mix: Any = None
        with one_line_errors('set up the augmentation'):
            self.augment = None if event_aug is None else EventAugment(**event_aug)
            if mixup > 0 or cutmix > 0:
                self.mix = (EventMixup if is_events else Mixup)(
                    mixup,
                    cutmix,
                    prob=prob,
                    switch_prob=switch_prob,
                    label_smoothing=label_smoothing,
                    num_classes=num_classes,
                )

    def set_epoch(self, epoch: int) -> None:
        if self.mix:
            self.mix.mixup_enabled = self.off_epoch == 0 or epoch < self.off_epoch

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if self.images_of:
            images = self.images_of(images)
        if self.size and images.ndim == 4 and images.shape[2:] != self.size:
            images = F.interpolate(images, self.size, mode='bilinear', antialias=True)
        if self.channels_last and images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        if self.augment:
            images = self.augment(images)
        return self.mix(images, labels) if self.mix else (images, labels)
