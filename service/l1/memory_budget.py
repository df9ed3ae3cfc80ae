"""The memory budget: two calls that make pages at the same time never count on the same free memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kvdepot.memory.available import MemoryLeft, memory_left, not_enough

KEPT_BYTES = 128 << 20
"""Free memory that is never reserved, for page tables and gRPC."""


class MemoryBudget:
    """The reserved memory, for any thread. `l1_missing_bytes` returns the bytes that L1 will still take."""

    def __init__(self, l1_missing_bytes: Callable[[], int], left: Callable[[], MemoryLeft] = memory_left) -> None:
        self._l1_missing_bytes = l1_missing_bytes
        self._left = left
        self._reserved_bytes = 0
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<MemoryBudget {self._reserved_bytes} bytes reserved>"

    @contextmanager
    def reserve(self, size_bytes: int) -> Iterator[None]:
        """Reserve memory while the block runs and makes its pages.

        If too little is left, the error is ENOMEM, with both numbers.

        Raises: OSError.
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
