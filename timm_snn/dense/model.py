"""What segmenters and detectors have in common: a backbone, its steps, and the arguments that make them again."""

from typing import Any, ClassVar

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from ..models.base import undecayed_in

__all__ = ['DenseModel', 'statistics']


class DenseModel(nn.Module):
    """A backbone with a head for every place of an image.

    `arguments` are plain values: the function that made the model makes one like it of them. `pretrained_cfg` is how
    the backbone's input is prepared, as timm has it. `label_names` are those of the classes, if they are known.
    `num_steps` is T and may be assigned; a model without time has none.
    """

    task: ClassVar[str]

    def __init__(self, features: Any, num_classes: int, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.label_names: list[str] | None = None
        self.in_chans: int = features.in_chans
        self.pretrained_cfg: dict[str, Any] = dict(features.pretrained_cfg)
        self.pretrained_cfg['input_size'] = (self.in_chans, *self.pretrained_cfg['input_size'][1:])
        self.pretrained_cfg.update(statistics(self.pretrained_cfg, self.in_chans))
        self._arguments = {key: _plain(value) for key, value in arguments.items()}

    @property
    def features(self) -> Any:
        """The backbone, as timm's `features_only` wraps it."""
        raise NotImplementedError

    @property
    def arguments(self) -> dict[str, Any]:
        steps = {'num_steps': self.num_steps} if hasattr(self, 'num_steps') else {}
        return {**self._arguments, **steps}

    @property
    def num_steps(self) -> int:
        return self.features.num_steps

    @num_steps.setter
    def num_steps(self, num_steps: int) -> None:
        self.features.num_steps = num_steps

    @property
    def takes_events(self) -> bool:
        """Whether the backbone was trained on frames of events."""
        return bool(self.pretrained_cfg.get('frames'))

    def no_weight_decay(self) -> set[str]:
        return undecayed_in(self)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.features.set_grad_checkpointing(enable)


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def statistics(cfg: dict[str, Any], in_chans: int) -> dict[str, tuple[float, ...]]:
    """Mean and std of each channel of the input; 0 and 1 where those of the backbone are for other channels."""
    mean, std = (tuple(cfg.get(key) or usual) for key, usual in _USUAL.items())
    if len(mean) == len(std) == in_chans:
        return {'mean': mean, 'std': std}
    return {'mean': (0.0,) * in_chans, 'std': (1.0,) * in_chans}


_USUAL = {'mean': IMAGENET_DEFAULT_MEAN, 'std': IMAGENET_DEFAULT_STD}
