"""Memory that large requests leave behind, given back to the system."""

import contextlib
import ctypes

# From glibc's malloc.h.
_M_MMAP_THRESHOLD = -3
_LARGE_BYTES = 1 << 20


def give_back_large_buffers() -> None:
    """Let every buffer of a megabyte or more go back to the system when it is freed.

    By default glibc raises its own limit to the size of the largest buffer it has freed, and keeps
    later ones of that size in the heap of each thread. A body of 40 MB is copied several times, in
    several threads. Call this once in a process; a C library without `mallopt` is left as it is.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
