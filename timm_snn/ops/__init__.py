"""Pure functions on tensors: no modules, no parameters, no state."""

from .backend import BackendUnavailable, backend_report, set_backend, use_backend
from .lif import lif, lif_stream
from .surrogate import ATan, Erf, PiecewiseQuadratic, Sigmoid, Surrogate

__all__ = [
    'ATan',
    'BackendUnavailable',
    'Erf',
    'PiecewiseQuadratic',
    'Sigmoid',
    'Surrogate',
    'backend_report',
    'lif',
    'lif_stream',
    'set_backend',
    'use_backend',
]
