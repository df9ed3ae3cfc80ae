"""The C heap: keeps the memory of freed messages for the next ones, and gives large amounts back to the kernel."""

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
    """Keep up to 16 MiB of freed memory at the end of a heap, and map only allocations of 4 MiB or more by themselves.

    By default each message of 1 MiB may be mapped anew, and touching its pages takes longer than copying it. On a
    libc other than glibc this does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)


async def give_back_freed_memory(num_left_behind: Callable[[], int]) -> None:
    """Give freed memory back to the kernel every ten seconds, if `num_left_behind` has changed. Never return.

    `num_left_behind` counts RPCs that may have left freed memory. glibc gives back the end of a heap by itself, but not
    free memory between two allocations. A trim gives that back; it takes milliseconds, in a thread.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        return
    before = num_left_behind()
    while True:
        await asyncio.sleep(TRIM_SECONDS)
        if (count := num_left_behind()) != before:
            before = count
            await asyncio.to_thread(trim, KEPT_BYTES)
