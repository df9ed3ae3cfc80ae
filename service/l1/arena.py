"""The memory of L1: one mapping, whose pages are made in the background before stores need them."""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
import threading
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

from kvdepot.memory.available import check_memory
from service.units import format_size

logger = logging.getLogger(__name__)

POPULATE_PIECE_BYTES = 16 << 20
MADV_POPULATE_WRITE = 23
MAP_HUGETLB = 0x40000
HUGE_PAGE_BYTES = 2 << 20
BACKGROUND_NICENESS = 10


class HugePages(StrEnum):
    """The kind of pages of L1."""

    NONE = "none"
    TRANSPARENT = "transparent"
    RESERVED = "reserved"


class MemoryUnavailable(Exception):
    """The machine lacks the memory for an L1 of this size."""


class Arena:
    """L1's bytes, as the writable `view`. A thread of low priority makes zeroed pages, lowest address first.

    The first touch of a page costs about twenty times its copy, so pages are made before a store needs them. The
    machine and each cgroup around the process must have the memory.

    Raises: MemoryUnavailable.
    """

    def __init__(self, size_bytes: int, huge_pages: HugePages = HugePages.TRANSPARENT) -> None:
        if huge_pages is not HugePages.RESERVED:
            try:
                check_memory(size_bytes)
            except OSError as error:
                raise MemoryUnavailable(f"L1 does not fit: {error.strerror}") from error
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        if huge_pages is HugePages.RESERVED:
            flags |= MAP_HUGETLB
            size_bytes = -(-size_bytes // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
        try:
            self._map = mmap.mmap(-1, size_bytes, flags=flags)
        except (OSError, OverflowError) as error:
            raise MemoryUnavailable(
                f"mapping {format_size(size_bytes)} with huge pages {huge_pages}: {error}"
            ) from error
        if huge_pages is HugePages.TRANSPARENT:
            self._map.madvise(mmap.MADV_HUGEPAGE)
        self.view = memoryview(self._map)
        self._is_reserved = huge_pages is HugePages.RESERVED
        self.populated_bytes = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def missing_bytes(self) -> int:
        """An upper bound of the memory that L1 will still take. Stores make pages as well as the thread."""
        if self._is_reserved or self.populated_bytes == len(self._map):
            return 0
        return max(0, len(self._map) - max(self.populated_bytes, _anonymous_bytes()))

    def start_populating(self, populated: Callable[[int, int], None] = lambda offset_bytes, size_bytes: None) -> None:
        """Begin to make the pages. The thread calls `populated(offset_bytes, size_bytes)` after each piece."""
        self._thread = threading.Thread(target=self._populate, args=(populated,), name="kvdepot-populate", daemon=True)
        self._thread.start()

    def stop_populating(self) -> None:
        """Stop making pages. The memory is freed with the last reference to `view`."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _populate(self, populated: Callable[[int, int], None]) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), BACKGROUND_NICENESS)
        madvise = ctypes.CDLL(None, use_errno=True).madvise
        madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        for offset_bytes in range(0, len(self._map), POPULATE_PIECE_BYTES):
            if self._stop.is_set():
                return
            piece_bytes = min(POPULATE_PIECE_BYTES, len(self._map) - offset_bytes)
            if madvise(address + offset_bytes, piece_bytes, MADV_POPULATE_WRITE) != 0:
                # Linux before 5.14, or a cgroup at its limit: stores make the pages as they come.
                logger.warning("populating L1 stopped: %s", os.strerror(ctypes.get_errno()))
                return
            self.populated_bytes = offset_bytes + piece_bytes
            populated(offset_bytes, piece_bytes)


def _anonymous_bytes() -> int:
    """Return the bytes of this process's anonymous memory, with all of L1's pages."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:")), 0)
