"""The C heap: it keeps what messages leave behind for the next ones, and gives back what many of them left."""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Callable

# glibc's names and numbers (malloc.h).
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3

KEPT_BYTES = 16 << 20
MAPPED_BYTES = 4 << 20
TRIM_SECONDS = 10.0


def keep_freed_memory() -> None:
    """Give up to 16 MiB at the end of a heap back to the kernel only when they are exceeded; allocations of 4 MiB too.

    By default a message of 1 MiB may be mapped anew each time, and to touch its pages takes longer than to copy it.
    Another libc than glibc is left as it is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)


async def give_back_freed_memory(num_left_behind: Callable[[], int]) -> None:
    """Give freed memory back to the kernel every ten seconds, for ever, if `num_left_behind` has changed meanwhile.

    That is a count of what may have left memory behind. glibc gives back the end of a heap by itself. Memory that is
    free between two pieces in use stays with the process until it is trimmed, which takes milliseconds in a thread.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        return
    before = num_left_behind()
    while True:
        await asyncio.sleep(TRIM_SECONDS)
        if (now := num_left_behind()) != before:
            before = now
            await asyncio.to_thread(trim, KEPT_BYTES)
