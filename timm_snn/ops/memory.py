"""Memory that tensors on a CPU give back."""

import ctypes

__all__ = ['keep_freed_memory']

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt
# Bytes: what is freed at the end of the heap is returned above the one, and what has a mapping of its own, above the
# other, always.
_MOST_KEPT, _LARGEST = 2**31 - 1, 2**30


def keep_freed_memory() -> bool:
    """Let this process keep the memory of freed tensors for the next ones; returns whether the C library is told.

    glibc returns large pieces to the system, and every page of the next tensor is a fault again, which is a fifth of a
    training step of msvit_10_384. The scripts in recipes/ call this. It is for a process that runs a model again and
    again, and holds on to what it needed most.

    On other C libraries than glibc nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
        return bool(mallopt(_TRIM_THRESHOLD, _MOST_KEPT) and mallopt(_MMAP_THRESHOLD, _LARGEST))
    except (AttributeError, OSError, TypeError):  # macOS, musl; Windows has no library without a name
        return False
