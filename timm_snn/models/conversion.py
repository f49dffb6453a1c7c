"""ANN-to-SNN conversion: a trained artificial network with integrate-and-fire neurons for its activations.

`quantize_activations` puts activations into a network that have the levels of a firing rate; after fine-tuning,
`convert` puts neurons there. Sources: arXiv 2303.04347 (activation, neuron, theorem), 2210.01208 (masking).
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import timm.layers
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ..layers import merge_time, split_time, to_time_first
from ..layers.quantized import ClipFloorShift, ConvertedNeuron, OnRunningMean, check_mask_ratio
from ..layers.temporal import repeat_for_steps
from ..modes import evaluating
from ..wrappers import unwrapped
from .base import check_num_steps
from .heads import let_heads_be_reset

__all__ = ['ConversionReport', 'ConvertedModel', 'convert', 'quantize_activations']

# What is near to max(0, x), which a firing rate can be.
REPLACED = (nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, timm.layers.GELU, timm.layers.GELUTanh, timm.layers.Swish)

# Names of torch's functions that commute with a mean over time.
AFFINE = {
    'adaptive_avg_pool1d', 'adaptive_avg_pool2d', 'add', 'alpha_dropout', 'avg_pool1d', 'avg_pool2d',
    'broadcast_to', 'cat', 'chunk', 'clone', 'concat', 'contiguous', 'diff', 'double', 'dropout', 'dropout1d',
    'dropout2d', 'expand', 'expand_as', 'feature_dropout', 'flatten', 'flip', 'float', 'get', 'half',
    'hstack', 'identity', 'interpolate', 'mean', 'moveaxis', 'movedim', 'narrow', 'neg', 'pad',
    'permute', 'pixel_shuffle', 'pixel_unshuffle', 'positive', 'repeat', 'repeat_interleave', 'reshape', 'roll',
    'rsub', 'select', 'split', 'squeeze', 'stack', 'sub', 'subtract', 'sum', 'swapaxes', 'swapdims', 't',
    'tensor_split', 'tile', 'to', 'transpose', 'type', 'unbind', 'unflatten', 'unfold', 'unsqueeze', 'upsample',
    'view', 'view_as', 'vstack',
}  # fmt: skip
# These do if a single argument carries time, and for a quotient that is not the divisor.
PRODUCTS = {
    'addmm', 'baddbmm', 'bmm', 'conv1d', 'conv2d', 'conv3d', 'conv_transpose1d', 'conv_transpose2d', 'dot', 'einsum',
    'getitem', 'index_select', 'linear', 'matmul', 'mm', 'mul', 'multiply', 'mv',
}  # fmt: skip
QUOTIENTS = {'div', 'divide', 'truediv', 'itruediv', 'true_divide'}


@dataclass(frozen=True)
class ConversionReport:
    """What became of a network.

    Attributes:
        neurons: Names of the activations that are integrate-and-fire neurons now.
        real_valued: Layers that stay real-valued and see running means, by name, with the reason.
        kept: Names of the activations in such layers, which stay what they were.
    """

    neurons: tuple[str, ...]
    real_valued: Mapping[str, str]
    kept: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f'{len(self.neurons)} activations are integrate-and-fire neurons.']
        if self.real_valued:
            lines.append(f'{len(self.real_valued)} layers stay real-valued and see running means:')
            lines += [f'  {name}: {reason}' for name, reason in self.real_valued.items()]
        if self.kept:
            lines.append(f'{len(self.kept)} activations inside of these stay as they are: {", ".join(self.kept)}')
        return '\n'.join(lines)


def quantize_activations(model: nn.Module, levels: int = 8, images: Tensor | None = None) -> nn.Module:
    """A copy of a network with a `timm_snn.layers.ClipFloorShift` for every ReLU, GELU and SiLU, to be fine-tuned.

    Args:
        levels: Of the activations; as many time steps as there are levels lose least in the conversion.
        images: A batch from which every theta starts at the 99.9th percentile of what the activation there gives;
            without, at 1. Networks that are trained need it.

    Raises: ValueError if there is no such activation as a module of its own.
    """
    model = copy.deepcopy(unwrapped(model))
    found = {name: m for name, m in model.named_modules(remove_duplicate=False) if isinstance(m, REPLACED)}
    if not found:
        raise ValueError(
            f'found no ReLU, GELU or SiLU in {type(model).__name__}: an activation that a forward method computes by '
            'itself, such as functional.relu, has to become a module first'
        )
    thetas = _percentiles(model, found, images) if images is not None else {}
    like = next(model.parameters())
    for name, activation in found.items():
        theta = thetas.get(activation, 1.0)
        _replace(model, name, ClipFloorShift(levels, theta, device=like.device, dtype=like.dtype))
    return model


@torch.no_grad()
def _percentiles(model: nn.Module, found: Mapping[str, nn.Module], images: Tensor) -> dict[nn.Module, float]:
    """By activation, the 99.9th percentile of its results; 1 where these are not positive."""
    seen: dict[nn.Module, float] = {}

    def watch(module: nn.Module, args: Any, result: Tensor) -> None:
        count = max(1, math.ceil(result.numel() * 0.999))
        seen[module] = max(seen.get(module, 0.0), result.float().flatten().kthvalue(count).values.item())

    hooks = [module.register_forward_hook(watch) for module in set(found.values())]
    with evaluating(model):
        model(images)
    for hook in hooks:
        hook.remove()
    return {module: theta for module, theta in seen.items() if 0 < theta < math.inf}


def convert(
    ann: nn.Module,
    *,
    num_steps: int,
    levels: int | None = None,
    mask_ratio: float | None = None,
    images: Tensor | None = None,
) -> 'ConvertedModel':
    """A spiking copy of a network whose activations are `ClipFloorShift`, with `report` of what stays real-valued.

        ann = timm_snn.models.quantize_activations(timm.create_model('resnet18', pretrained=True), levels=8, images=x)
        ...                                        # fine-tune
        snn = timm_snn.convert(ann, num_steps=16)
        print(snn.report)

    Convolutions, linear layers, batch norms, sums and means commute with a mean over time and stay as they are. What
    does not, such as softmax, layer norm, max pooling and products of activations, is found by watching a forward pass,
    stays real-valued and sees running means (`timm_snn.layers.OnRunningMean`): the smallest module that calls it, with
    the activations inside of it.

    Args:
        ann: Any network of images [B, C, H, W].
        num_steps: T; may be assigned later.
        levels: Replace ReLU, GELU and SiLU first, as `quantize_activations` does, for a conversion without fine-tuning.
        mask_ratio: Spikes to drop at random behind every neuron (random spike masking); None leaves it to the layers.
        images: What the forward pass is watched with, and thetas of `levels` start from. Default: noise of the size
            that timm has noted for the network.

    Raises: ValueError for a network that has no such activation, has others, or calls a function that does not commute
    in the outermost forward method, where no module can be told apart.
    """
    ann = copy.deepcopy(unwrapped(ann)).eval()
    others = [type(m).__name__ for m in ann.modules() if isinstance(m, REPLACED)]
    if others and levels is None:
        raise ValueError(
            f'convert expected ClipFloorShift activations, got {len(others)} others, such as {others[0]}: call '
            'quantize_activations and fine-tune, or pass levels to do without fine-tuning'
        )
    known = {m.levels for m in ann.modules() if isinstance(m, ClipFloorShift)}
    if levels is not None and known - {levels}:
        raise ValueError(f'this network has activations of {sorted(known)} levels, not {levels}: leave out levels')
    if others and levels is not None:
        ann = quantize_activations(ann, levels, images).eval()
    if images is None:
        images = _noise(ann)
    watch = _watch(ann, images)
    if '' in watch.reasons:
        raise ValueError(
            f'convert cannot tell which part of {type(ann).__name__} is real-valued: its own forward method '
            f'{watch.reasons[""]}; make that a module'
        )
    outermost = [name for name in watch.reasons if not any(name.startswith(f'{other}.') for other in watch.reasons)]
    return ConvertedModel(ann, num_steps, {name: watch.by_step[name] for name in outermost}, mask_ratio, watch.reasons)


class ConvertedModel(nn.Module):
    """A network of images that runs for T = `num_steps`, in place of whose activations spike `ConvertedNeuron`s.

    The layers see time as a batch, [T * B, ...]. All steps run at once, so that memory grows with T x B. `num_steps`
    may be assigned. What is not found here is the artificial network's: `feature_info`, `reset_classifier` and so on.

    Args:
        ann: With `ClipFloorShift` activations; becomes a part of this.
        num_steps: T.
        real_valued: Names of the modules for `OnRunningMean`, with those of their arguments that carry time.
        mask_ratio: Of all neurons; None for that of each activation.
        reasons: Why a module stays real-valued, for the report.

    Shape: images [B, C, H, W] or frames [B, T, C, H, W] -> what the network answers, averaged over T.
    Raises: ValueError for no activation to convert, thetas that are not positive, and arguments out of range.
    """

    def __init__(
        self,
        ann: nn.Module,
        num_steps: int,
        real_valued: Mapping[str, frozenset[int | str]],
        mask_ratio: float | None = None,
        reasons: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        if mask_ratio is not None:
            check_mask_ratio(mask_ratio)
        places = dict(ann.named_modules(remove_duplicate=False))  # a module may be at several
        first_names = {name: first for first in real_valued for name in places if places[name] is places[first]}
        real_valued = {name: real_valued[first] for name, first in first_names.items()}
        activations = {name: m for name, m in places.items() if isinstance(m, ClipFloorShift)}
        kept = [name for name in activations if any(name.startswith(f'{other}.') for other in real_valued)]
        neurons = [name for name in activations if name not in kept]
        if not neurons:
            where = f'all {len(kept)} are in layers that stay real-valued' if kept else 'there are none'
            raise ValueError(
                f'found no ClipFloorShift to convert in {type(ann).__name__}, {where}: quantize_activations makes them'
            )
        for name in neurons:
            theta = activations[name].theta
            if not theta.is_meta and not 0 < theta.item() < math.inf:
                raise ValueError(f'the neuron {name} needs a theta above 0, got {theta.item()}: train with a lower lr')
        made: dict[nn.Module, nn.Module] = {}
        for name in neurons:
            activation = activations[name]
            ratio = activation.mask_ratio if mask_ratio is None else mask_ratio
            _replace(ann, name, made.setdefault(activation, ConvertedNeuron(activation, num_steps, ratio)))
        for name, by_step in real_valued.items():
            layer = places[name]
            _replace(ann, name, made.setdefault(layer, OnRunningMean(layer, by_step, num_steps)))
        let_heads_be_reset(ann)
        self.model = ann
        why = {name: (reasons or {}).get(first, 'by design') for name, first in first_names.items()}
        self.report = ConversionReport(tuple(neurons), why, tuple(kept))
        self.num_steps = num_steps

    def __setattr__(self, name: str, value: Any) -> None:
        if name != 'num_steps':
            super().__setattr__(name, value)
            return
        check_num_steps(value)
        object.__setattr__(self, name, value)
        for module in self.model.modules():
            if isinstance(module, (ConvertedNeuron, OnRunningMean)):
                module.num_steps = value

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__('model'), name)

    def forward(self, x: Tensor) -> Tensor:
        return self._mean(self.model(self._steps(x)))

    def forward_steps(self, x: Tensor) -> Tensor:
        """Answers of every step [B, T, ...], whose mean over the first t steps is the answer with `num_steps=t`."""
        return split_time(self.model(self._steps(x)), self.num_steps).transpose(0, 1)

    def forward_features(self, x: Tensor) -> Tensor:
        return self._mean(self.model.forward_features(self._steps(x)))  # type: ignore[operator]

    def forward_head(self, x: Tensor, **kwargs: Any) -> Tensor:
        """The answer to features averaged over time, of a head without neurons."""
        return self.model.forward_head(x, **kwargs)  # type: ignore[operator]

    def forward_intermediates(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Features of the stages, averaged over time, as timm has them."""
        found = self.model.forward_intermediates(self._steps(x), *args, **kwargs)  # type: ignore[operator]
        if isinstance(found, list):
            return [self._mean(level) for level in found]
        return self._mean(found[0]), [self._mean(level) for level in found[1]]

    def _steps(self, x: Tensor) -> Tensor:
        """Images or frames as [T * B, C, H, W]."""
        x = to_time_first(x, self.num_steps, x.shape[-3] if x.ndim > 2 else 0)
        return merge_time(x if len(x) == self.num_steps else repeat_for_steps(x, self.num_steps))

    def _mean(self, x: Tensor) -> Tensor:
        return split_time(x, self.num_steps).mean(0)

    def extra_repr(self) -> str:
        return f'num_steps={self.num_steps}'


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition('.')
    setattr(model.get_submodule(parent), last, module)


def _noise(model: Any) -> Tensor:
    """An image of the size that timm has noted. Raises: ValueError if it has not."""
    if not getattr(model, 'pretrained_cfg', None):
        raise ValueError('convert does not know what images this network takes: pass images, a batch of them')
    size = resolve_model_data_config(model)['input_size']
    embed = getattr(getattr(model, 'patch_embed', None), 'img_size', None)  # of the model, not of its weights
    like = next(model.parameters())
    return torch.randn(
        1, getattr(model, 'in_chans', size[0]), *(embed or size[1:]), device=like.device, dtype=like.dtype
    )


class _Watch(TorchFunctionMode):
    """Which modules call functions that do not commute with a mean over time, and what of their arguments carries time.

    What carries time is what is computed from the image. It requires a gradient, as the image does and no parameter; of
    masks, indices and what is detached, which cannot, a list is kept.
    """

    def __init__(self) -> None:
        super().__init__()
        self.path: list[str | None] = []  # of the modules that run; None for an activation
        self.reasons: dict[str, str] = {}
        self.by_step: dict[str, frozenset[int | str]] = {}
        self._without_gradient: dict[int, Tensor] = {}

    def enter(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            self.path.append(None if isinstance(module, ClipFloorShift) else name)
            arguments: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
            by_step = {key for key, value in arguments if self._carries_time(value)}
            self.by_step[name] = self.by_step.get(name, frozenset()) | by_step

        return hook

    def leave(self, *_: Any) -> None:
        self.path.pop()

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        factors = [self._carries_time(value) for value in tree_leaves((args, kwargs))]
        result = func(*args, **kwargs)
        name = func.__name__.strip('_')
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if any(factors) and made and not name.startswith('new_') and not name.endswith('_like'):
            self._without_gradient |= {id(tensor): tensor for tensor in made if not tensor.requires_grad}
            is_current = any(tensor.is_floating_point() for tensor in made)
            if is_current and self.path and self.path[-1] is not None and not _is_affine(name, factors, args, kwargs):
                self.reasons.setdefault(self.path[-1], f'calls {name}')
        return result

    def _carries_time(self, value: Any) -> bool:
        tensors = (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))
        return any(tensor.requires_grad or id(tensor) in self._without_gradient for tensor in tensors)


def _is_affine(name: str, factors: list[bool], args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether a function commutes with a mean over time of those of its arguments that `factors` marks."""
    if name == 'batch_norm':  # with statistics of its own
        return not kwargs.get('training', args[5] if len(args) > 5 else False)
    if name in QUOTIENTS:
        return factors[0] and sum(factors) == 1
    plain = name if name in AFFINE | PRODUCTS else name[1:]  # radd, imul
    return plain in AFFINE or (plain in PRODUCTS and sum(factors) == 1)


def _watch(model: nn.Module, images: Tensor) -> _Watch:
    """Run the network once, in eval mode."""
    watch = _Watch()
    hooks = []
    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(watch.enter(name), with_kwargs=True))
        hooks.append(module.register_forward_hook(watch.leave))
    learn = [p for p in model.parameters() if p.requires_grad]
    for parameter in learn:
        parameter.requires_grad_(False)
    with torch.enable_grad(), watch:
        model(images[:1].detach().clone().requires_grad_())
    for parameter in learn:
        parameter.requires_grad_()
    for hook in hooks:
        hook.remove()
    return watch
