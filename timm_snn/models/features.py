"""Feature extractors whose `num_steps` is that of the model inside, and `set_num_steps` for other wrappers."""

from collections.abc import Sequence
from typing import Any

from timm.models import FeatureGraphNet, FeatureHookNet, FeatureInfo
from torch import Tensor, nn

from ..layers import LayerFn
from ..wrappers import unwrapped
from .base import SpikingTransformer
from .conversion import ConvertedModel

__all__ = ['feature_extractor', 'set_num_steps']

_WITH_STEPS = (SpikingTransformer, ConvertedModel)


def set_num_steps(model: Any, num_steps: int) -> None:
    """Run a model for T = `num_steps`, whatever it is wrapped in.

    An attribute that is assigned to a wrapper of another library, such as DistributedDataParallel, is the wrapper's
    and changes nothing; this assigns it to the models inside.

    Raises: ValueError if there is none, or num_steps is not a whole number of at least 1.
    """
    model = unwrapped(model)
    inside = [m for m in model.modules() if isinstance(m, _WITH_STEPS)] if isinstance(model, nn.Module) else []
    if not inside:
        raise ValueError(
            f'found no model of timm_snn in {type(model).__name__}: pass one, perhaps in wrappers that hold it as a '
            'module; a traced or exported one keeps the steps that it was made with'
        )
    for found in inside:
        found.num_steps = num_steps


class _Steps:
    """`num_steps` of the model inside."""

    @property
    def num_steps(self) -> int:
        return next(m for m in self.modules() if isinstance(m, _WITH_STEPS)).num_steps  # type: ignore[attr-defined]

    @num_steps.setter
    def num_steps(self, num_steps: int) -> None:
        set_num_steps(self, num_steps)


class SpikingFeatures(_Steps, nn.ModuleDict):
    """timm's 'getter': `forward_intermediates` of the model `self.model`, averaged over time.

    Arguments are those that timm passes. Shape: images or frames -> [B, C, H, W] for each of `out_indices`.
    """

    def __init__(
        self,
        model: nn.Module,
        out_indices: int | Sequence[int],
        output_fmt: str = 'NCHW',
        norm: bool = False,
    ) -> None:
        super().__init__()
        spiking: Any = model
        out_indices = spiking.prune_intermediate_layers(out_indices, prune_norm=not norm)
        self.feature_info = FeatureInfo(spiking.feature_info, tuple(out_indices))  # type: ignore[arg-type]
        self.model = model
        self.out_indices, self.output_fmt, self.norm = out_indices, output_fmt, norm

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.model.set_grad_checkpointing(enable)  # type: ignore[operator]

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.model.forward_intermediates(  # type: ignore[operator]
            x, indices=self.out_indices, norm=self.norm, output_fmt=self.output_fmt, intermediates_only=True
        )

    def forward_steps(self, x: Tensor) -> list[Tensor]:
        """The same levels at every step: [T, B, C, H, W]."""
        return self.model.forward_levels(x, self.out_indices)[1]  # type: ignore[operator]


class HookFeatures(_Steps, FeatureHookNet):
    """timm's 'hook': features of every step [T, B, C, H, W]."""


class GraphFeatures(_Steps, FeatureGraphNet):
    """timm's 'fx': features of every step, of a graph that keeps the number of steps it was traced with."""

    @property
    def num_steps(self) -> int:
        raise AttributeError('num_steps')

    @num_steps.setter
    def num_steps(self, num_steps: int) -> None:
        raise AttributeError("the graph of feature_cls='fx' keeps its steps: make the model with num_steps")


def feature_extractor(name: Any, extra_levels: int, lif_layer: LayerFn | None) -> Any:
    """What timm is to wrap a model in, by its argument `feature_cls`.

    A class of ours where timm's would not know `num_steps`, any other as it is. The model gets `extra_levels` with
    neurons `lif_layer` first. Without indices it returns all levels.

    Raises: ValueError for another name.
    """
    classes = {'getter': SpikingFeatures, 'hook': HookFeatures, 'fx': GraphFeatures}
    feature_cls = classes.get(name.lower()) if isinstance(name, str) else name
    if feature_cls is None:
        raise ValueError(f'feature_cls must be one of {list(classes)} or a class, got {name!r}')

    def extract(model: Any, out_indices: int | Sequence[int] | None, **kwargs: Any) -> nn.Module:
        if extra_levels:
            model.append_levels(extra_levels, lif_layer)
        if out_indices is None:
            out_indices = tuple(range(len(model.feature_info)))
        return feature_cls(model, out_indices=out_indices, **kwargs)

    return extract
