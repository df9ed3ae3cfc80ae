"""A throttle on transfers, for tests that act in the middle of one."""

from __future__ import annotations

import threading

import pytest

import kernels.host.backend
from kernels.host.block_views import Blocks
from kernels.host.streaming_copy import Copy, best_copy

PIECE_SECONDS = 0.002


class Throttle:
    """Adds 2 ms to every piece of every host transfer while it is on. A long prompt has thousands of pieces."""

    def __init__(self) -> None:
        self._released = threading.Event()
        self._released.set()

    def slow_down(self) -> None:
        """Slow down running and later transfers. They can still be cancelled."""
        self._released.clear()

    def release(self) -> None:
        """Let all transfers run."""
        self._released.set()

    def wait(self) -> None:
        """Delay the calling thread by one piece's time while the throttle is on."""
        self._released.wait(PIECE_SECONDS)


def install(throttle: Throttle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Throttle the depots that this process starts afterwards."""

    def throttled_copy() -> Copy:
        copy = best_copy()

        def copied(to: Blocks, source: Blocks, foreign: range) -> None:
            throttle.wait()
            copy(to, source, foreign)

        return copied

    monkeypatch.setattr(kernels.host.backend, "best_copy", throttled_copy)
