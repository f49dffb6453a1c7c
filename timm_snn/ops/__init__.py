"""Pure functions on tensors: no modules, no parameters, no state."""

from .backend import BackendUnavailable, backend_report, backends, set_backend, use_backend
from .bn_lif import bn_lif, pool_lif
from .integer import integer_spikes
from .lif import lif, lif_stream
from .memory import keep_freed_memory
from .mssa import mssa
from .neuron import Neuron
from .packed import packed_spikes
from .sparse_conv import sparse_spikes
from .surrogate import ATan, Erf, PiecewiseQuadratic, Sigmoid, Surrogate, make_surrogate, spike

__all__ = [
    'ATan',
    'BackendUnavailable',
    'Erf',
    'Neuron',
    'PiecewiseQuadratic',
    'Sigmoid',
    'Surrogate',
    'backend_report',
    'backends',
    'bn_lif',
    'integer_spikes',
    'keep_freed_memory',
    'lif',
    'lif_stream',
    'make_surrogate',
    'mssa',
    'packed_spikes',
    'pool_lif',
    'set_backend',
    'sparse_spikes',
    'spike',
    'use_backend',
]
