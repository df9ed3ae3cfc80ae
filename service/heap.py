"""The C heap keeps what messages leave behind, for the next ones."""

from __future__ import annotations

import ctypes

# glibc's names and numbers (malloc.h).
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3

KEPT_BYTES = 16 << 20
MAPPED_BYTES = 4 << 20


def keep_freed_memory() -> None:
    """Give up to 16 MiB at the end of a heap back to the kernel only when they are exceeded; allocations of 4 MiB too.

    By default a message of 1 MiB may be mapped anew each time, and to touch its pages takes longer than to copy it.
    Another libc than glibc is left as it is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)
