"""A brake on transfers, for tests of what happens in the middle of one."""

from __future__ import annotations

import threading

import pytest

import kernels.host.backend
from kernels.host.block_views import Blocks
from kernels.host.streaming_copy import Copy

PIECE_SECONDS = 0.002


class Brake:
    """While it is on, every piece of every host transfer takes 2 ms more: a long prompt has thousands of them."""

    def __init__(self) -> None:
        self._released = threading.Event()
        self._released.set()

    def pull(self) -> None:
        """Slow down all transfers, which can still be cancelled."""
        self._released.clear()

    def release(self) -> None:
        """Let everything run."""
        self._released.set()

    def wait(self) -> None:
        """What a thread does at each piece."""
        self._released.wait(PIECE_SECONDS)


def install(brake: Brake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the brake on the depots that this process starts later."""
    best_copy = kernels.host.backend.best_copy

    def braked_copy() -> Copy:
        copy = best_copy()

        def copied(to: Blocks, source: Blocks, foreign: range) -> None:
            brake.wait()
            copy(to, source, foreign)

        return copied

    monkeypatch.setattr(kernels.host.backend, "best_copy", braked_copy)
