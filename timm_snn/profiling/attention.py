"""Deprecated: the old name of `timm_snn.profiling.rules`."""

import warnings

from .rules import gates, register, rule_of, runs_as

__all__ = ['gates', 'register', 'rule_of', 'runs_as']

warnings.warn(
    'timm_snn.profiling.attention is deprecated: import register from timm_snn.profiling.rules',
    DeprecationWarning,
    stacklevel=2,
)
