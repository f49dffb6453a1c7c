"""The neuron, batch norm with the neuron, and the mask of MSSA as Triton kernels."""

from .bn_lif import affine_lif, affine_pool_lif, bn_lif, bn_pool_lif
from .lif import backward, forward, lif, why_not
from .mssa import mssa

__all__ = [
    'affine_lif',
    'affine_pool_lif',
    'backward',
    'bn_lif',
    'bn_pool_lif',
    'forward',
    'lif',
    'mssa',
    'why_not',
]
