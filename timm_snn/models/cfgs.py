"""Pretrained configs for the data sets of the field; a family adds the addresses of its paper and code."""

from collections.abc import Callable, Mapping
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..labels import CIFAR10, CIFAR100, DIGITS, DVS128_GESTURE, FASHION_MNIST
from .pretrained import FILENAME, SpikingCfg, hub_cfgs

__all__ = ['pretrained_cfgs', 'tagged_cfgs']

Cfg = dict[str, Any]


def _imagenet(**cfg: Any) -> Cfg:  # timm names the classes
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
        **cfg,
    }


def _small(label_names: tuple[str, ...], cfg: Cfg, **own: Any) -> Cfg:
    common = dict(num_classes=len(label_names), label_names=label_names, pool_size=(8, 8), crop_pct=1.0)
    return _imagenet(**{**common, **own, **cfg})


def _cifar10(**cfg: Any) -> Cfg:
    return _small(CIFAR10, cfg, input_size=(3, 32, 32), mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))


def _cifar100(**cfg: Any) -> Cfg:
    return _small(CIFAR100, cfg, input_size=(3, 32, 32), mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762))


def _fashion_mnist(**cfg: Any) -> Cfg:
    return _small(FASHION_MNIST, cfg, input_size=(1, 28, 28), pool_size=(2, 2), mean=(0.2860,), std=(0.3530,))


def _digits(**cfg: Any) -> Cfg:
    """8 x 8 pixels of scikit-learn's, shown at 32 x 32."""
    return _small(DIGITS, cfg, input_size=(1, 32, 32), pool_size=(2, 2), mean=(0.305,), std=(0.376,))


def _events(
    label_names: tuple[str, ...], size: int = 128, sensor: int = 128, split_by: str = 'number'
) -> Callable[..., Cfg]:
    """Frames of a square sensor, by number as in all papers; how many is the model's `num_steps`."""

    def make(**cfg: Any) -> Cfg:
        pool_size = (-(-size // 16), -(-size // 16))  # each of four poolings rounds up
        made = _small(label_names, cfg, input_size=(2, size, size), pool_size=pool_size, mean=(0, 0), std=(1, 1))
        channels, *frame = made['input_size']
        frames = dict(split_by=split_by, sensor_size=(sensor, sensor), channels=channels, size=tuple(frame))
        return {**made, 'frames': {**frames, 'mean': made['mean'], 'std': made['std']}}

    return make


_MAKERS: dict[str, Callable[..., Cfg]] = {
    'in1k': _imagenet,
    'cifar10': _cifar10,
    'cifar100': _cifar100,
    'fashion_mnist': _fashion_mnist,
    'digits': _digits,
    'cifar10_dvs': _events(CIFAR10),
    'dvs128_gesture': _events(DVS128_GESTURE),
    'event_digits': _events(DIGITS, size=32, split_by='time'),
    'nmnist_small': _events(DIGITS, size=34, sensor=34),
}


# Below recipes/configs, the config of each data set: with another --model, the start for other families.
_RECIPES = {
    'in1k': 'msvit/imagenet_10_384',
    'cifar10': 'msvit/cifar10',
    'cifar100': 'msvit/cifar100',
    'fashion_mnist': 'msvit/fashion_mnist',
    'digits': 'msvit/digits',
    'cifar10_dvs': 'msvit/cifar10_dvs',
    'dvs128_gesture': 'msvit/dvs128_gesture',
    'event_digits': 'msvit/event_digits',
    'nmnist_small': 'msvit/nmnist_small',
}


def tagged_cfgs(models: Mapping[str, str], recipes: Mapping[str, str] | None = None, **family: Any) -> dict[str, Any]:
    """`{'name': 'in1k'}` -> `{'name.in1k': config}`, with an entry for every tag, which are separated by spaces.

    Args:
        recipes: By name.tag, the config below recipes/configs that trains it; default: that of the data set.
        family: Further keys of timm's pretrained configs, the same for all entries.
    """
    cfgs = _by_tag(models, family)
    for name, cfg in cfgs.items():
        cfg['recipe'] = (recipes or {}).get(name) or _RECIPES[name.rpartition('.')[2]]
    return hub_cfgs(cfgs)


def pretrained_cfgs(models: Mapping[str, str], hub_org: str | None = None, **family: Any) -> dict[str, Any]:
    """The same for the models of another package: `{'name': 'cifar10'}` -> `{'name.cifar10': config}`.

    Args:
        models: By name, tags of data sets separated by spaces: how input is prepared, and what the classes are.
        hub_org: The user or organisation on the Hugging Face Hub that has the weights, each in its repository NAME.TAG;
            None as long as nobody has: `pretrained=True` then says so.
        family: Further keys of timm's pretrained configs, the same for all entries; `first_conv` and `classifier` are
            those of a `SpikingStem` and a `SpikingTransformer` by default.

    Raises: ValueError for the tag of another data set, whose config is written by hand, as in timm.
    """
    cfgs = _by_tag(models, family)
    if hub_org:
        cfgs = {
            name: {**cfg, 'hf_hub_id': f'{hub_org}/{name}', 'hf_hub_filename': FILENAME} for name, cfg in cfgs.items()
        }
    return {name: SpikingCfg(**cfg) for name, cfg in cfgs.items()}


def _by_tag(models: Mapping[str, str], family: Mapping[str, Any]) -> dict[str, Cfg]:
    tagged = [(name, tag) for name, tags in models.items() for tag in tags.split()]
    if unknown := [tag for _, tag in tagged if tag not in _MAKERS]:
        raise ValueError(
            f'expected tags among {", ".join(_MAKERS)}, got {unknown[0]!r}: the config of another data set is a dict '
            "with timm's keys, handed to timm.models.generate_default_cfgs"
        )
    return {f'{name}.{tag}': _MAKERS[tag](**family) for name, tag in tagged}
