"""Training images that lie on the device, augmented there batch by batch: what --data-on-device does.

A small picture takes longer to decode and augment than to train on. Here all are decoded once, and a batch is a few
operations on tensors. What is drawn, and in which order it is applied, is what timm's training transform does: random
resized or padded crop, horizontal flip, colour jitter, normalisation, random erasing, cutout.
"""

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import Compose
from torchvision.transforms.functional import pil_to_tensor

from ..progress import track
from .data import Samples, TrainingSamples, UnreadableSample
from .errors import UserError

__all__ = ['Augmentation', 'DeviceImages', 'DeviceSamples', 'as_it_is', 'random_numbers']

_ATTEMPTS = 10  # to draw a box that fits, as timm
_ERASED_AREA, _ERASED_ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)  # timm's
_LUMA = (0.299, 0.587, 0.114)  # of Pillow's grey
_MOST_OF_MEMORY = 0.7  # of what is free, for the images


class DeviceImages(Dataset):
    """The images of a run as one tensor of bytes [N, C, H, W] on a device.

    As a data set it gives numbers of samples and labels, for a loader to draw batches from; called with the numbers of
    a batch, [B], it gives the augmented images, [B, C, *input size].

    What is drawn for a sample depends on the run's seed, the epoch and the sample alone, as in `TrainingSamples`, so
    that a run which goes on in the middle of an epoch repeats what it would have done.

    Raises: UserError for images that cannot be read, are of several sizes, or do not fit into memory.
    """

    def __init__(self, samples: TrainingSamples, device: torch.device, augment: 'Augmentation') -> None:
        self.samples, self.device, self.augment = samples, device, augment
        self.images, self.labels = _decoded(samples, samples.read_or_next, device)
        self.indices = torch.tensor(list(samples.indices), device=device)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> tuple[int, int]:
        return number, self.labels[number]

    def __call__(self, numbers: Tensor) -> Tensor:
        numbers = numbers.to(self.device)
        key = (self.samples.seed, self.samples.epoch)
        return self.augment(self.images[numbers], key, self.indices[numbers])


class DeviceSamples(Samples):
    """Samples to evaluate on, resized and cropped once by the first parts of their transform, as bytes on a device.

    Their loader takes normalised batches from `__getitems__` as they are, with the collate function `as_it_is`.
    """

    def __init__(self, samples: Samples, device: torch.device) -> None:
        super().__init__(samples.source, samples.indices, samples.transform, samples.description)
        *resize, _, normalize = samples.transform.transforms  # type: ignore[union-attr]
        self.mean, self.std = (
            torch.as_tensor(numbers, dtype=torch.float32, device=device).view(-1, 1, 1)
            for numbers in (normalize.mean, normalize.std)
        )
        resized = Samples(samples.source, samples.indices, Compose(resize))
        self.images, labels = _decoded(resized, resized.__getitem__, device)
        self.labels = torch.tensor(labels, device=device)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        images, labels = self.__getitems__([number])
        return images[0], labels[0]

    def __getitems__(self, numbers: list[int]) -> tuple[Tensor, Tensor]:
        """A batch, under the name that torch's loaders look for."""
        chosen = torch.tensor(numbers).to(self.images.device)
        return (self.images[chosen].float() / 255 - self.mean) / self.std, self.labels[chosen]


def as_it_is(batch: Any) -> Any:
    """The collate function of samples that come as a batch already."""
    return batch


def _decoded(
    samples: Samples, read: Callable[[int], tuple[Any, Any]], device: torch.device
) -> tuple[Tensor, list[int]]:
    """The pixels that are read, uint8 [N, C, H, W], each copied to its place so that memory holds them once."""
    images = torch.empty(0)
    labels: list[int] = []
    for number in track(range(len(samples)), 'decode', unit='images'):
        try:
            image, label = read(number)
        except UnreadableSample as error:
            raise UserError(f'--data-on-device reads all images before training: {error}') from error
        pixels = pil_to_tensor(image)
        if not labels:
            _check_memory(pixels.numel() * len(samples), device)
            images = torch.empty((len(samples), *pixels.shape), dtype=torch.uint8, device=device)
        elif pixels.shape != images.shape[1:]:
            raise UserError(
                f'--data-on-device takes images of one size, and sample {samples.name(number)} is '
                f'{_size(pixels)} where the first is {_size(images)}: leave it out'
            )
        images[number] = pixels
        labels.append(int(label))
    return images, labels


class Augmentation:
    """timm's training transform for batches, with the arguments of `data.make_transform`.

    Images are resized as Pillow does, and rounded to whole levels where it rounds. Raises: UserError for what is not
    done here: policies (`auto_augment`), interpolations other than bilinear, bicubic and random, and padding by more
    than an image has to reflect.
    """

    def __init__(
        self,
        data_config: dict[str, Any],
        *,
        scale: Sequence[float] = (0.08, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        hflip: float = 0.5,
        color_jitter: float = 0.4,
        auto_augment: str | None = None,
        re_prob: float = 0.0,
        re_mode: str = 'pixel',
        pad_crop: int = 0,
        cutout: int = 0,
    ) -> None:
        if auto_augment:
            raise UserError(f'--data-on-device has no policy such as --aa {auto_augment}: leave one of them out')
        interpolation = data_config['interpolation']
        if interpolation not in ('bilinear', 'bicubic', 'random'):
            raise UserError(
                f'--data-on-device resizes by bilinear or bicubic interpolation, or either at random, not by '
                f'{interpolation!r}: pass another --interpolation, or leave it out'
            )
        self.size = data_config['input_size'][1:]
        self.mean, self.std = (torch.tensor(data_config[name]).view(1, -1, 1, 1) for name in ('mean', 'std'))
        self.interpolation = interpolation
        self.scale, self.ratio, self.hflip, self.color_jitter = scale, ratio, hflip, color_jitter
        self.re_prob, self.re_mode, self.pad_crop, self.cutout = re_prob, re_mode, pad_crop, cutout

    def __call__(self, images: Tensor, key: tuple[int, int], indices: Tensor) -> Tensor:
        """uint8 [B, C, H, W] of these samples, for a seed and an epoch -> normalised [B, C, *size]."""
        draw = _Draws(key, indices)
        x = self._cropped(draw, images)
        if self.color_jitter:
            x = jittered(draw, x, self.color_jitter)
        x = (x / 255 - self.mean.to(x.device)) / self.std.to(x.device)
        if self.re_prob:
            x = erased(draw, x, self.re_prob, self.re_mode)
        return cut_out(draw, x, self.cutout) if self.cutout else x

    def _cropped(self, draw: '_Draws', images: Tensor) -> Tensor:
        """Crops of the input's size, mirrored at random, with levels of 0 to 255."""
        height, width = images.shape[2:]
        if self.pad_crop >= min(height, width):
            raise UserError(
                f'--pad-crop {self.pad_crop} reflects more pixels than images of {_size(images)} have: pass less'
            )
        if self.pad_crop:
            shifts = (draw(2) * (2 * self.pad_crop + 1)).floor().long() - self.pad_crop
            images = shifted(images, shifts)
            boxes = shifts.new_tensor([[0, 0, height, width]]).expand(len(images), 4)
        else:
            boxes = draw_crops(draw, height, width, self.scale, self.ratio)
        flips = draw(1)[:, 0] < self.hflip
        cubic = torch.full_like(flips, self.interpolation == 'bicubic')
        if self.interpolation == 'random':
            cubic = draw(1)[:, 0] < 0.5
        if self.pad_crop and tuple(self.size) == (height, width):  # as of most small images, and much faster
            return torch.where(flips.view(-1, 1, 1, 1), images.flip(3), images).float()
        return resized_crops(images.float(), boxes, self.size, flips, cubic)


class _Draws:
    """Random numbers of the samples of a batch, others at every call."""

    def __init__(self, key: tuple[int, int], indices: Tensor) -> None:
        self.key, self.indices, self.drawn = key, indices, 0

    def __call__(self, count: int) -> Tensor:
        """Uniform in [0, 1), float64 [B, count]."""
        self.drawn += 1
        return random_numbers((*self.key, self.drawn), self.indices, count)


def random_numbers(key: Sequence[int], indices: Tensor, count: int) -> Tensor:
    """Uniform numbers in [0, 1), float64 [len(indices), count], which depend on their arguments alone, on any device.

    SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) of a counter, in integers that wrap around.
    """
    state = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0].astype(np.int64))
    places = torch.arange(count, device=indices.device)
    x = _mixed(indices[:, None] * _signed(0x9E3779B97F4A7C15) + state) + places * _signed(0xD1342543DE82EF95)
    return _shifted(_mixed(x), 11).double() * 2.0**-53


def _mixed(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """To the right, with zeros; that of torch repeats the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(number: int) -> int:
    return number - (1 << 64)  # of one with the highest bit set


def draw_crops(draw: Any, height: int, width: int, scale: Sequence[float], ratio: Sequence[float]) -> Tensor:
    """Boxes [B, 4] of top, left, height and width, with timm's distribution of random resized crops."""
    logs = math.log(ratio[0]), math.log(ratio[1])
    area = height * width * _between(draw(_ATTEMPTS), *scale)
    aspect = _between(draw(_ATTEMPTS), *logs).exp()
    h, w = (area / aspect).sqrt().round(), (area * aspect).sqrt().round()
    fits = (w <= width) & (h <= height)
    middle = _central_crop(height, width, ratio)
    h, w = (torch.where(fits.any(1), _first(n, fits), whole) for n, whole in zip((h, w), middle, strict=True))
    where = draw(2)
    top, left = (
        torch.where(fits.any(1), (where[:, i] * (size - n + 1)).floor(), ((size - n) / 2).floor())
        for i, (size, n) in enumerate(((height, h), (width, w)))
    )
    return torch.stack([top, left, h, w], 1)


def shifted(x: Tensor, shifts: Tensor) -> Tensor:
    """Images [B, C, H, W] from so many rows and columns further, reflected at the border.

    Shape: shifts [B, 2], each less than the size of the images.
    """
    rows, columns = (_reflected(shifts[:, axis, None], size) for axis, size in enumerate(x.shape[2:]))
    numbers = torch.arange(len(x), device=x.device).view(-1, 1, 1)
    return x[numbers, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _reflected(start: Tensor, size: int) -> Tensor:
    """The places in a line that `size` places from each of `start` [B, 1] on are reflected to, [B, size]."""
    places = (start + torch.arange(size, device=start.device)).abs()
    return size - 1 - (size - 1 - places).abs()


def _central_crop(height: int, width: int, ratio: Sequence[float]) -> tuple[int, int]:
    """Height and width of what is taken where no box has fitted."""
    if width / height < min(ratio):
        return round(width / min(ratio)), width
    if width / height > max(ratio):
        return height, round(height * max(ratio))
    return height, width


def _between(uniform: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * uniform


def _first(numbers: Tensor, fits: Tensor) -> Tensor:
    """Of each row the first that fits; any if none does."""
    return numbers.gather(1, fits.byte().argmax(1, keepdim=True))[:, 0]


def resized_crops(x: Tensor, boxes: Tensor, size: Sequence[int], flips: Tensor, cubic: Tensor) -> Tensor:
    """Crops of x [B, C, H, W], resized as by Pillow, with a filter that is as wide as what becomes one pixel.

    x has levels of 0 to 255, and the result whole ones. `flips` mirrors, `cubic` is bicubic instead of bilinear; [B].
    """
    top, left, height, width = boxes.unbind(1)
    rows = _filters(top, height, x.shape[2], size[0], cubic)
    columns = _filters(left, width, x.shape[3], size[1], cubic)
    columns = torch.where(flips[:, None, None], columns.flip(1), columns)
    x = _levels(x @ columns.to(x.dtype).transpose(1, 2)[:, None])  # Pillow rounds after the rows, too
    return _levels(rows.to(x.dtype)[:, None] @ x)


def _filters(start: Tensor, length: Tensor, size_in: int, size_out: int, cubic: Tensor) -> Tensor:
    """What a line of numbers adds to each of the line that a part of it becomes, [B, size_out, size_in]."""
    start, length = start[:, None, None], length[:, None, None]
    scale = length / size_out
    centre = (torch.arange(size_out, device=start.device)[:, None] + 0.5) * scale
    place = torch.arange(size_in, device=start.device) - start
    distance = ((place + 0.5 - centre) / scale.clamp(min=1)).abs()
    near = ((1.5 * distance - 2.5) * distance * distance + 1).double()  # Keys' kernel with a = -1/2
    far = ((2.5 - 0.5 * distance) * distance - 4) * distance + 2
    bicubic = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    weights = torch.where(cubic[:, None, None], bicubic, (1 - distance).clamp(min=0))
    weights = torch.where((place >= 0) & (place < length), weights, 0.0)
    return weights / weights.sum(2, keepdim=True)


def _levels(x: Tensor) -> Tensor:
    return (x + 0.5).floor_().clamp_(0, 255)


def jittered(draw: Any, x: Tensor, strength: float) -> Tensor:
    """Brightness, contrast and saturation times random factors, one after the other in a random order.

    x [B, C, H, W] has levels of 0 to 255. Grey images have no saturation.
    """
    factors = _between(draw(3), max(0.0, 1 - strength), 1 + strength).to(x.dtype)
    order = draw(3).argsort(1)
    for place in range(3):
        which = order[:, place]
        grey = _grey(x)
        mean = _levels(grey.mean((1, 2, 3), keepdim=True))
        factor = factors.gather(1, which[:, None]).view(-1, 1, 1, 1)
        which = which.view(-1, 1, 1, 1)
        other = torch.where(which == 2, grey, mean * (which == 1))  # black, mean or grey: what it is blended with
        x = _truncated(other + factor * (x - other))
    return x


def _grey(x: Tensor) -> Tensor:
    """As Pillow converts colours to grey, [B, 1, H, W]."""
    if x.shape[1] == 1:
        return x
    return _levels((x * x.new_tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True))


def _truncated(x: Tensor) -> Tensor:
    return x.floor().clamp_(0, 255)  # as Pillow blends


def erased(draw: Any, x: Tensor, probability: float, mode: str) -> Tensor:
    """A random box of an image is erased with this probability: by zeros, a random colour, or random pixels.

    x [B, C, H, W] is normalised, and so is what is put there.
    """
    height, width = x.shape[2:]
    area = height * width * _between(draw(_ATTEMPTS), *_ERASED_AREA)
    aspect = _between(draw(_ATTEMPTS), *map(math.log, _ERASED_ASPECT)).exp()
    h, w = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (w < width) & (h < height)
    where = draw(3)
    chosen = fits.any(1) & (where[:, 2] < probability)
    h, w = _first(h, fits), _first(w, fits)
    top, left = ((where[:, i] * (size - n + 1)).floor() for i, (size, n) in enumerate(((height, h), (width, w))))
    return torch.where(_inside(x, top, left, h, w) & chosen.view(-1, 1, 1, 1), _filling(draw, x, mode), x)


def cut_out(draw: Any, x: Tensor, side: int) -> Tensor:
    """Normalised x [B, C, H, W] with a square of zeros around a random pixel of each, as `augmentation.Cutout`."""
    top, left = ((draw(2) * torch.tensor(x.shape[2:], device=x.device)).floor() - side // 2).unbind(1)
    length = torch.full_like(top, side)
    return x.masked_fill(_inside(x, top, left, length, length), 0.0)


def _inside(x: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """True within the box of each image of x [B, C, H, W]: [B, 1, H, W]. The numbers of the boxes are [B]."""
    rows, columns = (
        (places >= start[:, None]) & (places < (start + length)[:, None])
        for places, start, length in (
            (torch.arange(x.shape[2], device=x.device), top, height),
            (torch.arange(x.shape[3], device=x.device), left, width),
        )
    )
    return rows[:, None, :, None] & columns[:, None, None, :]


def _filling(draw: Any, x: Tensor, mode: str) -> Tensor:
    if mode == 'const':
        return torch.zeros_like(x)
    shape = x.shape[1:] if mode == 'pixel' else (x.shape[1], 1, 1)
    count = math.prod(shape)
    uniform = draw(2 * count)
    radius, angle = (-2 * (1 - uniform[:, :count]).log()).sqrt(), 2 * math.pi * uniform[:, count:]
    return (radius * angle.cos()).to(x.dtype).view(len(x), *shape)  # normal numbers, by Box and Muller


def _check_memory(needed: int, device: torch.device) -> None:
    if device.type == 'cuda':
        free = torch.cuda.mem_get_info(device)[0]
    else:  # which the processes of a machine share
        free = psutil.virtual_memory().available // int(os.environ.get('LOCAL_WORLD_SIZE', '1'))
    if needed > _MOST_OF_MEMORY * free:
        raise UserError(
            f'--data-on-device needs {needed / 1e9:.1f} GB for the images, and {device} has {free / 1e9:.1f} GB free, '
            f'of which it takes {_MOST_OF_MEMORY:.0%} at most: leave it out'
        )


def _size(images: Tensor) -> str:
    return f'{images.shape[-1]} x {images.shape[-2]}'
