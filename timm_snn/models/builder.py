"""timm's model factory for the families: it reads and adapts weights, with the checks of `untrusted.py` around it.

`create_model(NAME, act='relu')` makes the artificial twin of any member: the same layers and parameters, with ReLU for
every neuron and one step. It is saved and loaded as other arguments are. `timm_snn.layers.ReluNeuron` says what becomes
of attention.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from timm.models import build_model_with_cfg
from torch import Tensor, nn

# Files outside the package import these from here.
from .base import named_layers as named_layers
from .base import neuron_layer
from .base import per_stage as per_stage
from .dilation import dilate
from .features import feature_extractor
from .keys import KeyRules as KeyRules
from .keys import find_mismatches as find_mismatches
from .keys import match_pointwise_shapes as match_pointwise_shapes
from .keys import rename_keys as rename_keys
from .levels import take_indices as take_indices
from .neurons import with_settings
from .pretrained import SpikingCfg, is_from_hub, naming_modules, refuse_untrained, resolve_source
from .settings import argument_names as argument_names
from .settings import arguments_of, check_config, make_from_config
from .untrusted import ReadingWeights, adopt_sizes, check_hash, own_keys, place_of
from .untrusted import WeightsMismatch as WeightsMismatch
from .untrusted import check_state_dict as check_state_dict
from .weights import check_finite, unpack

__all__ = ['build_spiking_model']

ModelT = TypeVar('ModelT', bound=nn.Module)


def build_spiking_model(
    model_cls: type[ModelT],
    variant: str,
    pretrained: bool,
    filter_fn: Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]] = own_keys,
    *,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    feature_cls: Any = 'getter',
    act: str | None = None,
    lif_kwargs: Mapping[str, Any] | None = None,
    extra_levels: int = 0,
    output_stride: int | None = None,
    **kwargs: Any,
) -> ModelT:
    """timm's `build_model_with_cfg` for models whose features carry time; features_only has all levels by default.

    `filter_fn(state_dict, model)` makes the keys of published files the model's; without one they are the model's own.
    timm replaces the classifier and adapts the first convolution of weights for other classes and channels. It goes by
    the pretrained config; this goes by the weights, and adapts them only where the caller asked for another number.
    `act='relu'` is the artificial twin, None the spiking network. `lif_kwargs` are settings of its neurons, see
    `neurons.with_settings`; they go before those of the family and of partials. `extra_levels` appends so many levels
    to a features_only model, each of half the size of the one before: a convolution that has no weights to load. With
    `output_stride` 8, 16 or 32 no map is smaller than that part of the input, see `dilation`; None leaves them as they
    were published.

    Raises, in one line: RuntimeError if there are no weights, or they cannot be read or are for other classes or
    channels; huggingface_hub's own errors if the Hub does not have or give them; ValueError for a config.json whose
    settings are not those of a model of ours, and for weights that are not finite.
    """
    if act not in (None, 'relu'):
        raise ValueError(f"act must be 'relu', for the artificial twin, or None, for neurons: got {act!r}")
    if act is not None:
        if lif_kwargs is not None:
            raise ValueError(f'act={act!r} takes the place of all neurons: leave out lif_kwargs={dict(lif_kwargs)}')
        kwargs.update(lif_layer='relu', num_steps=1)
    if extra_levels and not kwargs.get('features_only'):
        raise ValueError(f'extra_levels={extra_levels} appends feature levels: pass features_only=True with it')
    if extra_levels and not hasattr(model_cls, 'append_levels'):
        raise ValueError(f'{variant} has no extra_levels: its layers are those of another network')
    saved_args = kwargs.get('pretrained_model_args') or {}  # came with the weights, not from the caller
    config, has_tag = '', bool(pretrained_cfg)
    if isinstance(pretrained_cfg, dict):
        pretrained_cfg, config = check_config(pretrained_cfg, saved_args, variant, model_cls)
    cfg = resolve_source(variant, pretrained_cfg, pretrained_cfg_overlay)
    if lif_kwargs is not None:
        layer = kwargs.get('lif_layer', arguments_of(model_cls)[0].get('lif_layer'))
        if layer is None:
            raise ValueError(f'{variant} has no argument lif_layer: leave out lif_kwargs={lif_kwargs}')
        with naming_modules(cfg):
            kwargs['lif_layer'] = with_settings(layer, lif_kwargs)
    if pretrained:
        refuse_untrained(cfg)
    reading = ReadingWeights(variant, cfg)

    def construct(**model_kwargs: Any) -> ModelT:
        with naming_modules(cfg):
            model = make_from_config(model_cls, variant, config, model_kwargs) if config else model_cls(**model_kwargs)
        if pretrained:
            reading.begin()
        return model

    def fit(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        if is_from_hub(cfg):
            check_hash(cfg, kwargs.get('cache_dir'))
        state_dict = unpack(state_dict)
        reading.end()
        check_finite(state_dict, place_of(cfg))
        state_dict = filter_fn(state_dict, model)
        adopt_sizes(state_dict, model, _sizes_asked_for(kwargs, saved_args))
        return state_dict

    def finish(model: Any) -> None:
        if extra_levels:
            layer = kwargs.get('lif_layer', arguments_of(model_cls)[0]['lif_layer'])
            model.append_levels(extra_levels, neuron_layer(layer, kwargs.get('backend')))
        if output_stride is not None:
            dilate(model, output_stride, variant)

    own_cfg: Any = SpikingCfg(**cfg)  # timm would make its own of a dict, which knows no frames
    with reading:
        model = build_model_with_cfg(
            construct,
            variant,
            pretrained,
            pretrained_cfg=own_cfg,
            pretrained_filter_fn=fit,
            # The getter calls forward_intermediates, which averages over time; timm's hooks would return [T, B, ...].
            feature_cfg=dict(out_indices=None, feature_cls=feature_extractor(feature_cls, finish), output_fmt='NCHW'),
            **kwargs,
        )
    if not kwargs.get('features_only'):
        finish(model)
    _drop_foreign(model, known=pretrained or has_tag)
    return model


def _sizes_asked_for(kwargs: dict[str, Any], saved_args: dict[str, Any]) -> set[str]:
    """Those of num_classes and in_chans that the caller chose: weights of other sizes are adapted to them."""
    asked = {name for name in ('num_classes', 'in_chans') if name in kwargs and kwargs[name] != saved_args.get(name)}
    return asked | ({'num_classes'} if kwargs.get('features_only') else set())  # which has no classifier


def _drop_foreign(model: Any, known: bool) -> None:
    """Names of classes and how frames are made belong to weights: an untrained model has none, unless by its tag.

    An extractor of features has a config of its own beside that of the model inside.
    """
    for part in (model, getattr(model, 'model', model)):
        cfg = getattr(part, 'pretrained_cfg', {})
        names = cfg.get('label_names')
        if names and not (known and len(names) == getattr(part, 'num_classes', 0)):
            cfg.update(label_names=None, label_descriptions=None)
        if not known:
            cfg.pop('frames', None)
