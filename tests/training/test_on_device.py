"""Images on the device are augmented as timm's transform augments single ones: the same pixels, the same chances."""

import math
import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from timm_snn.training import on_device
from timm_snn.training.augmentation import Cutout
from timm_snn.training.data import Digits, Samples, TrainingSamples, make_transform
from timm_snn.training.errors import UserError
from timm_snn.training.loading import make_loader
from timm_snn.training.on_device import Augmentation, DeviceImages, DeviceSamples, random_numbers

CPU = torch.device('cpu')
CONFIG = {'input_size': (3, 32, 32), 'mean': (0.5, 0.4, 0.3), 'std': (0.2, 0.25, 0.3), 'interpolation': 'bicubic'}
GREY = {'input_size': (1, 32, 32), 'mean': (0.3,), 'std': (0.4,), 'interpolation': 'bilinear'}


class Draws:
    """Given numbers in place of random ones, the first for the first call."""

    def __init__(self, *numbers):
        self.numbers = list(numbers)

    def __call__(self, count):
        drawn = self.numbers.pop(0)
        assert drawn.shape[1] == count
        return drawn


def picture(height=20, width=24, seed=0) -> Image.Image:
    rng = np.random.default_rng(seed)
    smooth = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    noise = rng.integers(-40, 40, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8))


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float()


@pytest.mark.parametrize('name', ['bilinear', 'bicubic'])
@pytest.mark.parametrize('box', [(0, 0, 20, 24), (3, 5, 7, 11), (2, 0, 18, 24), (19, 23, 1, 1), (4, 4, 8, 8)])
@pytest.mark.parametrize('flip', [False, True])
def test_crops_have_the_pixels_of_pillow(name, box, flip):
    image = picture()
    expected = TF.resized_crop(image, *box, (8, 13), InterpolationMode(name))
    expected = as_tensor(TF.hflip(expected) if flip else expected)
    boxes, flips, cubic = torch.tensor([box]).double(), torch.tensor([flip]), torch.tensor([name == 'bicubic'])
    found = on_device.resized_crops(as_tensor(image), boxes, (8, 13), flips, cubic)
    assert (found - expected).abs().max() <= 1  # Pillow's weights are integers
    assert (found != expected).float().mean() < 0.05


def test_a_batch_has_a_box_for_each_image():
    images = torch.cat([as_tensor(picture(seed=i)) for i in range(3)])
    boxes = torch.tensor([[0, 0, 20, 24], [3, 5, 7, 11], [2, 1, 9, 9]]).double()
    flips, cubic = torch.tensor([False, True, False]), torch.tensor([True, False, True])
    together = on_device.resized_crops(images, boxes, (16, 16), flips, cubic)
    for i in range(3):
        alone = on_device.resized_crops(
            images[i : i + 1], boxes[i : i + 1], (16, 16), flips[i : i + 1], cubic[i : i + 1]
        )
        assert torch.equal(together[i : i + 1], alone)


@pytest.mark.parametrize(
    ('scale', 'ratio', 'size'), [((0.08, 1.0), (3 / 4, 4 / 3), (32, 32)), ((0.5, 1.0), (0.9, 1.1), (20, 40))]
)
def test_boxes_have_timms_distribution(scale, ratio, size):
    number = 4000
    random.seed(0)
    image = Image.new('L', size[::-1])
    timms = torch.tensor(
        [RandomResizedCropAndInterpolation.get_params(image, scale, ratio) for _ in range(number)]
    ).double()
    ours = on_device.draw_crops(on_device._Draws((0, 0), torch.arange(number)), *size, scale, ratio)
    assert (ours[:, :2] >= 0).all() and (ours[:, :2] + ours[:, 2:] <= torch.tensor(size)).all()
    tolerance = 4 * timms.std(0).clamp(min=0.1) / math.sqrt(number / 2)
    assert ((ours.mean(0) - timms.mean(0)).abs() < tolerance).all()
    assert ((ours.std(0) - timms.std(0)).abs() < tolerance).all()
    assert torch.equal(ours.amin(0)[2:], timms.amin(0)[2:]) or (ours.amin(0) - timms.amin(0)).abs().max() <= 2


def test_the_whole_image_is_taken_where_no_box_fits():
    ours = on_device.draw_crops(on_device._Draws((0, 0), torch.arange(5)), 8, 64, (1.0, 1.0), (0.9, 1.1))
    expected = RandomResizedCropAndInterpolation.get_params(Image.new('L', (64, 8)), (1.0, 1.0), (0.9, 1.1))
    assert ours.tolist() == [list(expected)] * 5


@pytest.mark.parametrize('order', [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_jitter_has_the_pixels_of_pillow(order):
    image, uniform = picture(), torch.tensor([[0.1, 0.8, 0.95]]).double()
    factors = (0.6 + 0.8 * uniform[0]).tolist()
    expected = image
    for which in order:
        adjust = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation)[which]
        expected = adjust(expected, factors[which])
    ranks = torch.tensor([[order.index(which) for which in range(3)]]).double()
    found = on_device.jittered(Draws(uniform, ranks), as_tensor(image), 0.4)
    assert (found - as_tensor(expected)).abs().max() <= 2


def test_jitter_of_grey_images():
    image = picture().convert('L')
    x = torch.from_numpy(np.asarray(image).copy())[None, None].float()
    uniform, ranks = torch.tensor([[0.1, 0.8, 0.95]]).double(), torch.tensor([[0.0, 1.0, 2.0]])
    expected = TF.adjust_contrast(TF.adjust_brightness(image, 0.6 + 0.8 * 0.1), 0.6 + 0.8 * 0.8)
    found = on_device.jittered(Draws(uniform, ranks), x, 0.4)
    assert (found[0, 0] - torch.from_numpy(np.asarray(expected).copy()).float()).abs().max() <= 1


@pytest.mark.parametrize('mode', ['const', 'rand', 'pixel'])
def test_erasing_has_timms_distribution(mode):
    number, far = 1500, 100.0  # what was there is told from what is put there
    x = torch.full((number, 2, 16, 24), far)
    ours = on_device.erased(on_device._Draws((1, 2), torch.arange(number)), x, 0.6, mode)
    random.seed(0)
    torch.manual_seed(0)
    timms = RandomErasing(0.6, mode=mode, device='cpu')(x.clone())
    areas = [(images[:, 0] != far).float().mean((1, 2)) for images in (ours, timms)]
    shares = [(area > 0).float().mean() for area in areas]
    assert abs(shares[0] - shares[1]) < 0.06
    of_erased = [area[area > 0] for area in areas]
    assert abs(of_erased[0].mean() - of_erased[1].mean()) < 0.02
    assert abs(of_erased[0].std() - of_erased[1].std()) < 0.02
    filled = ours[ours != far]
    if mode == 'const':
        assert not filled.any()
    else:
        assert abs(filled.mean()) < 0.1 and abs(filled.std() - 1) < 0.1
        varied = torch.stack([image[0][image[0] != far].std() for image in ours if (image[0] != far).sum() > 1])
        assert (varied > 0.1).float().mean() > 0.95 if mode == 'pixel' else (varied < 1e-6).all()


def test_padded_crops_have_the_pixels_of_torchvision():
    image, corner = picture(), (3, 8)
    padded = TF.pad(image, [4], padding_mode='reflect')
    expected = as_tensor(TF.hflip(TF.crop(padded, *corner, 20, 24)))
    augment = Augmentation(CONFIG | {'input_size': (3, 20, 24)}, hflip=1.0, color_jitter=0.0, pad_crop=4)
    drawn = [(torch.tensor([corner]).double() + 0.5) / 9, torch.zeros(1, 1).double()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(on_device, '_Draws', lambda *_: Draws(*drawn))
        found = augment(as_tensor(image).byte(), (0, 0), torch.tensor([0]))
    mean, std = (torch.tensor(CONFIG[name]).view(1, 3, 1, 1) for name in ('mean', 'std'))
    torch.testing.assert_close(found, (expected / 255 - mean) / std)


@pytest.mark.parametrize('size', [(8, 12), (6, 9)])
def test_padded_crops_are_anywhere_and_resized_to_any_size(size):
    augment = Augmentation(CONFIG | {'input_size': (3, *size)}, hflip=0.0, color_jitter=0.0, pad_crop=1)
    image = picture(8, 12)
    found = augment(as_tensor(image).byte().expand(300, -1, -1, -1), (0, 0), torch.arange(300))
    padded = TF.pad(image, [1], padding_mode='reflect')
    mean, std = (torch.tensor(CONFIG[name]).view(1, 3, 1, 1) for name in ('mean', 'std'))
    places = [(i, j) for i in range(3) for j in range(3)]
    crops = [TF.resized_crop(padded, *place, 8, 12, list(size), InterpolationMode.BICUBIC) for place in places]
    expected = (torch.cat([as_tensor(crop) for crop in crops]) / 255 - mean) / std
    distance = (found[:, None] - expected).abs().flatten(2).amax(2)  # to each of the nine
    assert distance.amin(1).max() < 0.03 and set(distance.argmin(1).tolist()) == set(range(9))  # of a level or two


def test_an_image_cut_out_on_the_device_is_that_of_the_loader(monkeypatch):
    x, places = torch.rand(5, 3, 9, 7) + 1, [(0, 0), (4, 3), (8, 6), (8, 0), (1, 5)]
    uniform = (torch.tensor(places) + 0.5) / torch.tensor([9, 7])
    found = on_device.cut_out(Draws(uniform.double()), x, 4)
    drawn = iter(sum(places, ()))
    monkeypatch.setattr(random, 'randrange', lambda _: next(drawn))
    expected = torch.stack([Cutout(4)(image.clone()) for image in x])
    assert torch.equal(found, expected)
    assert (expected == 0).flatten(1).sum(1).tolist() == [3 * n for n in (4, 16, 9, 6, 12)]


def test_without_randomness_it_is_timms_transform():
    image = picture(32, 32)
    fixed = dict(scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip=0.0, color_jitter=0.0, re_prob=0.0)
    expected = create_transform(is_training=True, **fixed, re_mode='const', **CONFIG)(image)
    found = Augmentation(CONFIG, **fixed)(as_tensor(image).byte(), (0, 0), torch.tensor([7]))
    assert torch.allclose(found[0], expected, atol=1e-5)


@pytest.mark.parametrize('config', [CONFIG, GREY, CONFIG | {'interpolation': 'random'}])
@pytest.mark.parametrize('options', [{}, {'pad_crop': 4, 'cutout': 9}])
def test_a_sample_is_augmented_alike_in_every_batch(config, options):
    images = torch.randint(256, (6, config['input_size'][0], 32, 32), dtype=torch.uint8)
    augment = Augmentation(config, re_prob=0.5, color_jitter=0.4, **options)
    indices = torch.tensor([3, 8, 1, 0, 12, 5])
    whole = augment(images, (42, 3), indices)
    assert torch.equal(augment(images[2:4], (42, 3), indices[2:4]), whole[2:4])
    assert not torch.equal(augment(images, (42, 4), indices), whole)  # another epoch
    assert not torch.equal(augment(images, (43, 3), indices), whole)  # another seed


def test_random_numbers():
    numbers = random_numbers((1, 2, 3), torch.arange(20000), 3)
    assert numbers.min() >= 0 and numbers.max() < 1
    assert (numbers.mean(0) - 0.5).abs().max() < 0.01 and (numbers.var(0) - 1 / 12).abs().max() < 0.005
    correlations = torch.corrcoef(torch.cat([numbers.T, numbers[:, :1].roll(1, 0).T]))
    assert (correlations - torch.eye(4)).abs().max() < 0.03
    assert not torch.equal(random_numbers((1, 2, 4), torch.arange(20000), 3), numbers)


def test_digits_on_the_device():
    samples = TrainingSamples(Digits(True), range(0, 1437, 50), seed=0)
    images = DeviceImages(samples, CPU, Augmentation(GREY))
    assert images.images.shape == (29, 1, 8, 8) and images.images.dtype == torch.uint8
    number, label = images[3]
    assert (number, label) == (3, int(Digits(True).labels[150]))
    batch = images(torch.tensor([3, 1]))
    assert batch.shape == (2, 1, 32, 32) and batch.dtype == torch.float32
    samples.epoch = 1
    assert not torch.equal(images(torch.tensor([3, 1])), batch)


def test_samples_to_evaluate_are_those_of_the_loader():
    transform = make_transform(GREY | {'crop_pct': 0.9}, False)
    samples = Samples(Digits(False), range(3, 30), transform)
    loader = make_loader(DeviceSamples(samples, CPU), 10, workers=2, pin_memory=True)
    assert loader.num_workers == 0
    images, labels = map(torch.cat, zip(*loader, strict=True))
    assert torch.equal(images, torch.stack([samples[number][0] for number in range(27)]))
    assert labels.tolist() == [samples[number][1] for number in range(27)]


def test_an_image_that_cannot_be_read_is_named_before_training():
    broken = Pictures((8, 8), None)
    for read in (
        lambda: DeviceSamples(Samples(broken, range(2), create_transform(**CONFIG)), CPU),
        lambda: DeviceImages(TrainingSamples(broken, [1], seed=0), CPU, Augmentation(CONFIG)),
    ):
        with pytest.raises(UserError, match='reads all images before training: sample 1 is unreadable'):
            read()


class Pictures(torch.utils.data.Dataset):
    def __init__(self, *sizes):
        self.sizes = sizes

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        if self.sizes[index] is None:
            raise OSError('truncated')
        return Image.new('RGB', self.sizes[index]), 0


def test_several_sizes_are_refused():
    samples = TrainingSamples(Pictures((8, 8), (8, 9)), range(2), seed=0)
    with pytest.raises(UserError, match='one size, and sample 1 is 8 x 9 where the first is 8 x 8'):
        DeviceImages(samples, CPU, Augmentation(CONFIG))


def test_too_many_are_refused(monkeypatch):
    monkeypatch.setattr(on_device, '_MOST_OF_MEMORY', 1e-12)
    with pytest.raises(UserError, match=r'needs 0\.0 GB for the images, and cpu has .* GB free'):
        DeviceImages(TrainingSamples(Pictures((8, 8)), range(1), seed=0), CPU, Augmentation(CONFIG))


def test_what_is_not_done_here_is_refused():
    with pytest.raises(UserError, match='no policy such as --aa rand-m9'):
        Augmentation(CONFIG, auto_augment='rand-m9')
    with pytest.raises(UserError, match='--pad-crop 8 reflects more pixels than images of 9 x 8 have'):
        Augmentation(CONFIG, pad_crop=8)(torch.zeros(1, 3, 8, 9, dtype=torch.uint8), (0, 0), torch.tensor([0]))
    with pytest.raises(UserError, match="not by 'lanczos'"):
        Augmentation(CONFIG | {'interpolation': 'lanczos'})
