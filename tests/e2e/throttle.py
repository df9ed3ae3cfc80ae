"""A throttle on transfers, for tests that act in the middle of one."""

from __future__ import annotations

import threading

from kernels.host.block_views import Blocks, Bytes
from kernels.host.streaming_copy import best_copy

PIECE_SECONDS = 0.002


class Throttle:
    """A copy for a server. While it is on, each piece takes 2 ms longer. A long prompt has thousands of pieces."""

    def __init__(self) -> None:
        self._copy = best_copy()
        self._released = threading.Event()
        self._released.set()

    def slow_down(self) -> None:
        """Slow down running and later transfers. They can still be cancelled."""
        self._released.clear()

    def release(self) -> None:
        """Let all transfers run."""
        self._released.set()

    def __call__(self, to: Blocks, source: Blocks, foreign: range) -> None:
        """Copy, as `Copy` does."""
        self._released.wait(PIECE_SECONDS)
        self._copy(to, source, foreign)

    def with_checksum(self, to: Blocks, source: Blocks, foreign: range, chunk_address: int) -> int:
        """Copy, as `Copy.with_checksum` does."""
        self._released.wait(PIECE_SECONDS)
        return self._copy.with_checksum(to, source, foreign, chunk_address)

    def checksum(self, rows: Bytes, chunk_offset_bytes: int) -> int:
        """Sum, as `Copy.checksum` does."""
        return self._copy.checksum(rows, chunk_offset_bytes)
