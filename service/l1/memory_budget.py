"""The memory that is left for pages that are about to be made, of which two never count on the same."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kvdepot.memory.available import MemoryLeft, memory_left, not_enough

KEPT_BYTES = 128 << 20
"""Left alone: page tables, and what gRPC takes meanwhile."""


class MemoryBudget:
    """Sets memory aside, from any thread. ``l1_missing_bytes`` tells what L1 will still take."""

    def __init__(self, l1_missing_bytes: Callable[[], int], left: Callable[[], MemoryLeft] = memory_left) -> None:
        self._l1_missing_bytes = l1_missing_bytes
        self._left = left
        self._reserved_bytes = 0
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<MemoryBudget {self._reserved_bytes} bytes reserved>"

    @contextmanager
    def reserve(self, size_bytes: int) -> Iterator[None]:
        """Set memory aside while the block runs, in which its pages are made.

        Raises: OSError with ENOMEM and both numbers if so much is not left.
        """
        with self._lock:
            memory = self._left()
            left_bytes = memory.left_bytes - self._l1_missing_bytes() - self._reserved_bytes - KEPT_BYTES
            if size_bytes > left_bytes:
                raise not_enough(size_bytes, max(0, left_bytes), memory.place)
            self._reserved_bytes += size_bytes
        try:
            yield
        finally:
            with self._lock:
                self._reserved_bytes -= size_bytes
