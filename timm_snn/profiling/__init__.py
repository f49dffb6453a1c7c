"""Firing rates, synaptic operations and energy estimates of a model on data, and pictures of them."""

from . import page, text  # noqa: F401  # they show reports
from .energy import AC_PJ, CONVENTIONS, INT8_AC_PJ, INT8_MAC_PJ, MAC_PJ
from .profiler import profile
from .recording import Recording, record
from .report import NOTICE, Energy, Layer, Report

__all__ = [
    'AC_PJ',
    'CONVENTIONS',
    'INT8_AC_PJ',
    'INT8_MAC_PJ',
    'MAC_PJ',
    'NOTICE',
    'Energy',
    'Layer',
    'Recording',
    'Report',
    'profile',
    'record',
]
