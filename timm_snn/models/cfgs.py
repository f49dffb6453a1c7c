"""Pretrained configs for the data sets of the field; a family adds where its paper and code are."""

from collections.abc import Callable, Mapping
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

__all__ = ['cifar10', 'cifar100', 'events', 'imagenet', 'tagged_cfgs']

Cfg = dict[str, Any]


def imagenet(**family: Any) -> Cfg:
    # Without hf_hub_id there are no weights and timm says so.
    return {
        'num_classes': 1000,
        'input_size': (3, 224, 224),
        'pool_size': (14, 14),
        'crop_pct': 0.875,
        'interpolation': 'bicubic',
        'mean': IMAGENET_DEFAULT_MEAN,
        'std': IMAGENET_DEFAULT_STD,
        'first_conv': 'stem.units.0.conv',
        'classifier': 'head.fc',
        'license': 'apache-2.0',
        **family,
    }


def _small_images(**cfg: Any) -> Cfg:
    return imagenet(**{'input_size': (3, 32, 32), 'pool_size': (8, 8), 'crop_pct': 1.0, **cfg})


def cifar10(**family: Any) -> Cfg:
    statistics = dict(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
    return _small_images(**{'num_classes': 10, **statistics, **family})


def cifar100(**family: Any) -> Cfg:
    statistics = dict(mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762))
    return _small_images(**{'num_classes': 100, **statistics, **family})


def events(**family: Any) -> Cfg:
    """Frames of two polarities, 128 x 128; 10 classes, as CIFAR10-DVS."""
    return _small_images(**{'num_classes': 10, 'input_size': (2, 128, 128), 'mean': (0, 0), 'std': (1, 1), **family})


def tagged_cfgs(models: Mapping[str, str], **family: Any) -> dict[str, Any]:
    """`{'name': 'in1k'}` -> `{'name.in1k': cfg}`, with one entry for every tag, which are separated by spaces."""
    makers: dict[str, Callable[..., Cfg]] = {
        'in1k': imagenet,
        'cifar10': cifar10,
        'cifar100': cifar100,
        'cifar10_dvs': events,
        'dvs128_gesture': lambda **cfg: events(num_classes=11, **cfg),
    }
    return {f'{name}.{tag}': makers[tag](**family) for name, tags in models.items() for tag in tags.split()}
