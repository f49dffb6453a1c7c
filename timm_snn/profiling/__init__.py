"""What a model does with its spikes: firing rates, synaptic operations, energy estimates, and pictures of them."""

from . import page, text  # noqa: F401  # which reports are shown by
from .energy import AC_PJ, CONVENTIONS, MAC_PJ
from .profiler import profile
from .report import NOTICE, Energy, Layer, Report

__all__ = ['AC_PJ', 'CONVENTIONS', 'MAC_PJ', 'NOTICE', 'Energy', 'Layer', 'Report', 'profile']
