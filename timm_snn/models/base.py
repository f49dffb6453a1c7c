"""The base of every family: a stem, stages of blocks, a head, how time enters and leaves, and timm's contract."""

from collections.abc import Mapping, Sequence
from functools import partial
from inspect import Parameter, signature
from typing import Any, ClassVar

import torch
from timm.layers import get_device_dtype
from timm.models import checkpoint_seq
from torch import Tensor, nn

from ..layers import (
    ConvBn,
    ConvBnLif,
    LayerFn,
    Registry,
    ReluNeuron,
    attentions,
    mean_over_time,
    merge_time,
    neuron_for,
    patch_embeds,
    refuse_bare_recording,
    split_time,
    to_time_first,
)
from ..layers.patch_embed import InnerLevel
from ..ops.backend import keep_switches
from .heads import Head
from .levels import feature_levels, inner_module, stage_of, take_indices
from .neurons import name_neuron
from .neurons import neuron_layer as neuron_layer
from .weights import check_finite

__all__ = [
    'KEEP',
    'POOL',
    'SpikingStage',
    'SpikingTransformer',
    'attention_layer',
    'check_num_steps',
    'embedding_widths',
    'neuron_layer',
    'per_stage',
    'tokenizer_widths',
]

# For each convolution of a stem or a patch embedding: whether the map is pooled to half its size, or kept.
POOL = True
KEEP = False


def check_num_steps(num_steps: Any) -> None:
    """Raises: ValueError unless it is a whole number of at least 1."""
    if type(num_steps) is not int or num_steps < 1:
        raise ValueError(f'num_steps must be a whole number of at least 1, got {num_steps!r}')


def attention_layer(attn: str | LayerFn, neuron_first: bool = True, **options: Any) -> LayerFn:
    """A name in `timm_snn.layers.attentions` or a layer, with those of a family's own options that it takes.

    Whoever writes an attention needs none of them. Families whose streams are currents pass `pre_activation=True`, and
    a layer without this argument gets a neuron in front of it, so that it sees spikes, unless it says `takes_currents`.
    `neuron_first=False` leaves the neuron to the layer.

    Raises: ValueError for a layer of currents without `pre_activation`, in a family whose stream is spikes.
    """
    layer = attentions.get(attn)
    parameters = signature(layer).parameters.values()
    takes_all = any(p.kind is Parameter.VAR_KEYWORD for p in parameters)
    taken = {k: v for k, v in options.items() if takes_all or k in {p.name for p in parameters}}
    made = partial(layer, **taken) if taken else layer
    takes_currents = getattr(_without_arguments(layer), 'takes_currents', False)
    if 'pre_activation' not in options:
        if takes_currents:
            name = attn if isinstance(attn, str) else _without_arguments(layer).__name__
            raise ValueError(
                f'attention {name!r} takes the currents of membrane shortcuts, and the stream of this family is '
                "spikes: use 'ssa' or 'statten' here, or a family with such shortcuts, as 'sdt_8_384'"
            )
        return made
    return made if 'pre_activation' in taken or takes_currents or not neuron_first else partial(_behind_a_neuron, made)


def _without_arguments(layer: Any) -> Any:
    """The layer in partials."""
    return _without_arguments(layer.func) if isinstance(layer, partial) else layer


def _behind_a_neuron(
    attn: LayerFn, dim: int, *args: Any, lif_layer: LayerFn, device=None, dtype=None, **kwargs
) -> nn.Module:
    dd = {'device': device, 'dtype': dtype}
    return nn.Sequential(neuron_for(dim, lif_layer).to(**dd), attn(dim, *args, lif_layer=lif_layer, **dd, **kwargs))


def per_stage(value: Any, num_stages: int, name: str) -> tuple:
    """One value for every stage, or a sequence with one per stage. Raises ValueError for another length."""
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,) * num_stages
    if len(values) != num_stages:
        raise ValueError(f'expected one {name} for each of {num_stages} stages, got {len(values)}: {values}')
    return values


def embedding_widths(
    embed_dims: Sequence[int], pools: Sequence[Sequence[bool]], widths: Sequence[Sequence[int]] | None
) -> tuple[Sequence[int], ...]:
    """Per stage, the channels of the convolutions in its patch embedding: `widths`, or for None those of the stage.

    Raises: ValueError for widths that do not end in the channels of their stages.
    """
    if widths is None:
        widths = [(dim,) * len(stage_pools) for dim, stage_pools in zip(embed_dims, pools, strict=True)]
    widths = per_stage(widths, len(embed_dims), 'tuple of embed_widths')
    if any(stage_widths and stage_widths[-1] != dim for stage_widths, dim in zip(widths, embed_dims, strict=True)):
        raise ValueError(f'embed_widths={widths} must end in the embed_dims={tuple(embed_dims)} of their stages')
    return widths


def tokenizer_widths(embed_dim: int, pools: Sequence[bool]) -> list[int]:
    """Channels of the four convolutions that make tokens of pixels. Raises ValueError if there are not four pools."""
    if len(pools) != 4 or embed_dim % 8:
        raise ValueError(f'expected four pools and an embed_dim that 8 divides, got {pools} and {embed_dim}')
    return [embed_dim // 8, embed_dim // 4, embed_dim // 2, embed_dim]


class SpikingStage(nn.Module):
    """Patch embedding, then blocks: a map of `num_chs` channels at 1 / `reduction` of the input's size.

    It is a feature level of its model, unless `is_level` is False, and so is what the embedding has as `inner_levels`.

    Shape: [T, B, C, H, W] -> [T, B, num_chs, H', W'].
    """

    __jit_unused_properties__: ClassVar = ['inner_levels']

    def __init__(
        self, embed: nn.Module, blocks: Sequence[nn.Module], num_chs: int, reduction: int, is_level: bool = True
    ) -> None:
        super().__init__()
        self.embed = embed
        self.blocks = nn.Sequential(*blocks)
        self.num_chs = num_chs
        self.reduction = reduction
        self.is_level = is_level
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        return self._forward_blocks(self.embed(x))

    @torch.jit.unused
    def forward_levels(self, x: Tensor) -> list[Tensor]:
        """The maps of the inner levels, then what `forward` returns."""
        embed: Any = self.embed
        *inner, x = embed.forward_levels(x) if self.inner_levels else [embed(x)]
        return [*inner, self._forward_blocks(x)]

    @property
    def inner_levels(self) -> Sequence[InnerLevel]:
        return getattr(self.embed, 'inner_levels', ())

    def _forward_blocks(self, x: Tensor) -> Tensor:
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq([keep_switches(block) for block in self.blocks], x)
        else:
            x = self.blocks(x)
        return x


class SpikingTransformer(nn.Module):
    """Stem, stages, head. A family builds the parts from its arguments and hands them to this constructor.

    Args:
        stem: Called as stem(x, num_steps) with x [1 or T, B, in_chans, H, W], where one step stands for all; returns
            [T, B, C, H, W], with T = num_steps.
        stages: Each halves the resolution, or keeps it. The output of the last is averaged over H and W, and over T,
            and classified.
        head_lif: A neuron between pooling and classifier; None for none.
        num_classes, in_chans, global_pool, num_steps, drop_rate: As documented by every family.

    `feature_info` has the feature levels: maps whose strides are distinct powers of two, ascending. Of stages with the
    same stride it is the last; where a patch embedding divides the size by four, there is a level inside of it. In a
    family with `stream_is_currents`, stages return membrane currents, else spikes and sums of them.

    `levels` is above 1 in a network that `timm_snn.expand_levels` made: every step is so many inside.

    `num_steps` may be assigned later, to this model and to `features_only` ones; `timm_snn.models.set_num_steps` does
    it through wrappers of other libraries.

    `act` is 'relu' in an artificial twin, which has ReLU for neurons and one step (`timm_snn.models.builder`), and None
    in a spiking network.

    Raises: ValueError if num_steps is not a whole number of at least 1, or in a twin another than 1.
    """

    __jit_unused_properties__: ClassVar = ['_model_args', 'chunk_steps', 'takes_events']
    stream_is_currents: ClassVar[bool] = False

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[SpikingStage],
        *,
        num_classes: int,
        in_chans: int,
        global_pool: str,
        num_steps: int,
        drop_rate: float,
        head_lif: nn.Module | None = None,
        device=None,
        dtype=None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        self.feature_info = feature_levels(stages)
        self.num_features = stages[-1].num_chs
        self.head_lif = head_lif
        self.head = Head(self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate, **dd)
        self.head_hidden_size = self.head.num_features  # twice num_features with the pooling 'catavgmax'
        self._init_head()
        self.act = 'relu' if any(isinstance(module, ReluNeuron) for module in self.modules()) else None
        self.levels = 1
        self.num_steps = num_steps

    def __setattr__(self, name: str, value: Any) -> None:
        if name == 'num_steps':
            check_num_steps(value)
            if self.act == 'relu' and value != 1:
                raise ValueError(
                    f"act='relu' has no memory, and all steps of an image would be the same: expected num_steps=1, got "
                    f'{value}; frames are averaged outside of the model'
                )
            for module in self.modules():
                if hasattr(module, 'set_num_steps'):  # has weights for every step
                    module.set_num_steps(value)  # type: ignore[operator]
        super().__setattr__(name, value)

    def _init_head(self) -> None:
        """Convolutions keep PyTorch's initialisation, as in most released code."""
        if self.num_classes > 0:
            nn.init.trunc_normal_(self.head.fc.weight, std=0.02)
            nn.init.zeros_(self.head.fc.bias)

    @property
    def _model_args(self) -> dict[str, Any]:
        # timm keeps create_model's arguments here and writes them to config.json. `num_steps` may have been assigned.
        return dict(named_layers(self._timm_args), num_steps=self.num_steps)

    @_model_args.setter
    def _model_args(self, args: dict[str, Any]) -> None:
        if self.act == 'relu':  # the builder cannot tell what the caller passed from a family's defaults
            self.num_steps = args.get('num_steps', 1)
            if args.get('lif_layer') not in (None, 'relu'):
                raise ValueError(
                    f"act='relu' takes the place of all neurons: leave out lif_layer={args['lif_layer']!r}"
                )
        self._timm_args = {k: v for k, v in args.items() if k != 'backend'}  # which belongs to the machine

    @property
    def chunk_steps(self) -> int:
        """How many steps see each other: 1, in a causal model, or the longest chunk of its attention ('statten')."""
        return max(getattr(module, 'chunk_steps', 1) for module in self.modules() if module is not self)

    @property
    def takes_events(self) -> bool:
        """Whether the model was trained on frames of events: its pretrained_cfg then says how these are made."""
        return bool((getattr(self, 'pretrained_cfg', None) or {}).get('frames'))

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return undecayed_in(self)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return dict(
            stem=r'^stem\.',
            blocks=r'^stages\.(\d+)'
            if coarse
            else [(r'^stages\.(\d+)\.embed', (0,)), (r'^stages\.(\d+)\.blocks\.(\d+)', None)],
        )

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        for module in self.modules():
            if isinstance(module, SpikingStage):
                module.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        check_finite(state_dict, f'this state dict of a {type(self).__name__}')
        super()._load_from_state_dict(state_dict, prefix, *args)

    def init_non_persistent_buffers(self) -> None:
        # There are none. transformers, which loads without load_state_dict, calls what has timm's name here at the end.
        check_finite(self.state_dict(), f'this {type(self).__name__}')

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        # in_features: pruning may have left fewer than the head was made for
        self.head.reset(num_classes, global_pool, in_features=self.num_features, **get_device_dtype(self))
        self.head_hidden_size = self.head.num_features
        self._init_head()

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Feature levels, averaged over time.

        Args:
            x: Images or frames, as in `forward`.
            indices: Levels of `feature_info` to return: None is all, an int the last n, a list these.
            norm: No effect, there is no final norm.
            stop_early: Do not compute stages after the last one wanted.
            output_fmt: 'NCHW' only.
            intermediates_only: Return the list alone, without the final features.
        """
        if output_fmt != 'NCHW':
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        x, levels = self.forward_levels(x, indices, stop_early)
        intermediates = [mean_over_time(level) for level in levels]
        return intermediates if intermediates_only else (mean_over_time(x), intermediates)

    def forward_levels(
        self, x: Tensor, indices: int | Sequence[int] | None = None, stop_early: bool = True
    ) -> tuple[Tensor, list[Tensor]]:
        """What the last stage returns, and feature levels, at every step: [T, B, C, H, W].

        Args: as those of `forward_intermediates`. With `stop_early` the last stage is that of the last level wanted.
        """
        taken, deepest = take_indices(self.feature_info, indices)
        stages: Any = self.stages[: stage_of(self.feature_info[deepest]) + 1] if stop_early else self.stages
        wanted = {self.feature_info[i]['module'] for i in taken}
        x = self._forward_stem(x)
        levels = []
        for i, stage in enumerate(stages):
            names = [*(inner_module(i, level) for level in stage.inner_levels), f'stages.{i}']
            if wanted.isdisjoint(names[:-1]):
                maps, names = [stage(x)], names[-1:]
            else:
                maps = stage.forward_levels(x)
            levels += [level for name, level in zip(names, maps, strict=True) if name in wanted]
            x = maps[-1]
        return x, levels

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove stages after that of the last level wanted, and the head with them. `prune_norm`: there is no norm."""
        taken, deepest = take_indices(self.feature_info, indices)
        last = stage_of(self.feature_info[deepest])
        prune_end = last < len(self.stages) - 1
        stages: Any = self.stages[: last + 1]
        self.stages = stages
        if prune_end:
            self.num_features = stages[-1].num_chs
        if prune_head or prune_end:
            self.reset_classifier(0, '')
            self.head_lif = None  # a learned time constant without a gradient would stop DistributedDataParallel
        return taken

    def append_levels(self, number: int, lif_layer: LayerFn) -> None:
        """Append stages of a 3x3 convolution and pooling, each with the channels of the last and half of its size."""
        chs, dd = self.num_features, get_device_dtype(self)
        stages: Any = self.stages
        for _ in range(number):
            if self.stream_is_currents:
                embed: nn.Module = nn.Sequential(neuron_for(chs, lif_layer), ConvBn(chs, chs, 3, pool=True))
            else:
                embed = ConvBnLif(chs, chs, 3, pool=True, lif_layer=lif_layer)
            stages.append(SpikingStage(embed.to(**dd), [], chs, 2 * stages[-1].reduction))
        self.feature_info = feature_levels(stages)

    def _forward_stem(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] or frames [B, T, C, H, W] -> [T, B, C', H', W']."""
        if not torch.jit.is_scripting():
            self._check_batch(x)
        x = to_time_first(x, self.num_steps, self.in_chans)
        if self.levels > 1 and x.shape[0] > 1:
            x = x.repeat_interleave(self.levels, 0)
        return self.stem(x, self.num_steps * self.levels)

    @torch.jit.unused
    def _check_batch(self, x: Tensor) -> None:
        if self.takes_events:
            refuse_bare_recording(x, self.num_steps)

    def _head_steps(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Features [T, B, C, H, W] -> logits of every step [T, B, num_classes]."""
        if self.head_lif is not None:
            x = self.head_lif(split_time(self.head.global_pool(merge_time(x)), x.shape[0]))
            T = x.shape[0]
            x = self.head.drop(merge_time(x))
            return split_time(x if pre_logits else self.head.fc(x), T)
        return split_time(self.head(merge_time(x), pre_logits=pre_logits), x.shape[0])

    def forward_features(self, x: Tensor) -> Tensor:
        return mean_over_time(self.stages(self._forward_stem(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of features averaged over time [B, C, H, W].

        A neuron in the head gets the same averaged features at every step. In `forward` it gets the features of each
        step, so the logits of the two differ.
        """
        if self.head_lif is not None:
            return self._head_steps(
                x.unsqueeze(0).expand(self.num_steps * self.levels, -1, -1, -1, -1), pre_logits
            ).mean(0)
        return self.head(x, pre_logits=pre_logits)

    def forward_steps(self, x: Tensor) -> Tensor:
        """Logits of every time step [B, T, num_classes], whose mean over T is what `forward` returns, up to rounding.

        The model is causal: the mean of the first t steps is the answer of the same model with `num_steps=t`. That is
        early exit, and with a loss at every step it is temporal efficient training (arXiv 2202.11946). With attention
        over chunks of steps (`chunk_steps` above 1) it holds for t that are multiples of a chunk.
        """
        return self._head_steps(self.stages(self._forward_stem(x))).transpose(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.head_lif is not None:
            return self._head_steps(self.stages(self._forward_stem(x))).mean(0)
        x = self.forward_features(x)
        x = self.forward_head(x)
        return x


def undecayed_in(model: nn.Module) -> set[str]:
    """The parameters that modules in a model exempt from weight decay.

    timm's optimizer factory exempts those of one dimension or none, such as ParametricLIF's w, by itself.
    """
    return {
        f'{name}.{parameter}'
        for name, module in model.named_modules()
        if name and hasattr(module, 'no_weight_decay')
        for parameter in module.no_weight_decay()
    }


def named_layers(args: Mapping[str, Any]) -> dict[str, Any]:
    """A model's arguments for JSON: layers become the names that they are registered by, others stay as they are."""
    registries = {'attn': attentions, 'mixers': attentions, 'patch_embed': patch_embeds}

    def named(registry: Registry, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [named(registry, layer) for layer in value]
        return registry.name_of(value) or value

    plain = {key: named(registries[key], value) if key in registries else value for key, value in args.items()}
    return plain | name_neuron(args)
