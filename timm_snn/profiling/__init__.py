"""What a model does with its spikes: firing rates, synaptic operations, energy estimates, and pictures of them."""

from .energy import AC_PJ, CONVENTIONS, MAC_PJ
from .profiler import profile
from .report import NOTICE, Energy, Layer, Report

__all__ = ['AC_PJ', 'CONVENTIONS', 'MAC_PJ', 'NOTICE', 'Energy', 'Layer', 'Report', 'profile']
