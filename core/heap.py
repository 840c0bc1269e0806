"""Memory that is freed stays with the process, so that the next training step need not be given it afresh."""

from __future__ import annotations

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
KEPT = 2**30  # bytes that may lie free at the heap's end
MAPPED = 2**25  # bytes from which on a block is a mapping of its own, given back when freed: glibc's own upper limit


def keep_freed_memory() -> bool:
    """Has glibc's ``malloc`` keep up to 1 GiB that was freed, instead of 64 MiB at most.

    All activations of a step are free at its end. Given back, each of their pages is faulted in and filled with zeros
    again in the next one, which in a small network takes up to a quarter of the time. Blocks from 32 MiB on are given
    back as before.

    Returns:
        Whether it was done: not with another C library, nor where the environment has settings of malloc
        (``MALLOC_TRIM_THRESHOLD_``, ``MALLOC_MMAP_THRESHOLD_``, ``GLIBC_TUNABLES``).
    """
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and mallopt(M_MMAP_THRESHOLD, MAPPED) and mallopt(M_TRIM_THRESHOLD, KEPT))
