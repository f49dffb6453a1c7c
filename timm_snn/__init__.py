"""Spiking vision transformers for timm.

Importing this package registers the models: `import timm, timm_snn; timm.create_model('msvit_10_384')`.
"""

from typing import TYPE_CHECKING, Any

from . import layers, models, ops
from .export import export as export
from .layers import LIF, ParametricLIF
from .models import MSViT, fuse
from .models import convert as convert
from .models import expand_levels as expand_levels
from .models import load_quantized as load_quantized
from .models import quantize as quantize
from .models import stream as stream
from .models import to_nir as to_nir
from .models import why_not_nir as why_not_nir
from .models import write_nir as write_nir
from .models.pretrained import list_pretrained
from .ops import BackendUnavailable, backend_report, lif, lif_stream, set_backend, use_backend
from .profiling import profile
from .profiling import record as record
from .version import __version__ as __version__

if TYPE_CHECKING:
    from .hub import push_to_hub as push_to_hub

__all__ = [
    'LIF',
    'BackendUnavailable',
    'MSViT',
    'ParametricLIF',
    'backend_report',
    'fuse',
    'layers',
    'lif',
    'lif_stream',
    'list_pretrained',
    'models',
    'ops',
    'profile',
    'set_backend',
    'use_backend',
]


def __getattr__(name: str) -> Any:
    """`push_to_hub`, whose cards need the event data: whoever uploads nothing does not wait for that."""
    if name != 'push_to_hub':
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from .hub import push_to_hub

    return push_to_hub
