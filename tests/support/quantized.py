"""Small members of every family that can be quantised, for tests that make many."""

from functools import partial
from typing import Any

import timm
import torch

from tests.conftest import lively
from tests.support.families import shallow
from timm_snn.layers import LIF

_RESNET = dict(stem_dim=16, embed_dims=(16, 16, 32, 32, 64))
_LEAKY = dict(lif_layer=partial(LIF, v_threshold=0.25))  # theirs has a tau that no shift divides by
_SETTINGS: dict[str, dict[str, Any]] = {
    'espikeformer_5m': dict(embed_dims=(16, 32, 64, 64)),
    'max_resnet18': _RESNET,
    'metaspikformer_8_256': dict(embed_dims=(16, 32, 64, 64)),
    'ms_resnet18': {**_RESNET, **_LEAKY},
    'sew_resnet18': _RESNET,
    'spikformer_v2_8_384': dict(embed_dim=128),
    'spiking_resnet19': dict(stem_dim=32, embed_dims=(32, 32, 64), hidden_dim=64, **_LEAKY),
    'spikingformer_2_256': dict(tau=2.0),
}


def small(name: str, **kwargs: Any) -> Any:
    """An untrained member in eval mode, whose neurons fire."""
    torch.manual_seed(0)
    settings = {'num_classes': 10, 'num_steps': 2, **_SETTINGS.get(name, {}), **kwargs}
    return lively(shallow(timm.create_model(name, **settings))).eval()
