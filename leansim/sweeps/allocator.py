"""Has a process of our own keep the memory it frees, for its next schedule."""

from __future__ import annotations

import ctypes
import gc

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc, malloc.h
_KEPT_BYTES = 256 * 2**20


def keep_memory() -> None:
    """Keep freed memory instead of giving it back to the system, where the C library can be told to.

    By default glibc returns arrays from 128 kB up, and having every page of the next one mapped anew
    takes three quarters of the time to plan and price a big schedule. For processes that do nothing
    but simulate: a library must not decide this for its caller. What is loaded stays, too: Python's
    collector need not go through it again and again (a fortieth of the time).
    """
    gc.freeze()
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or another system
        return
    mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
