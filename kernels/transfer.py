"""A transfer: chunks on their way between an engine's blocks and L1."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from kernels.errors import TransferCancelled


class Direction(StrEnum):
    """Which way the bytes go: a store copies from L0 to L1, a retrieve from L1 to L0."""

    STORE = "store"
    RETRIEVE = "retrieve"


class Phase(StrEnum):
    """A phase of a transfer.

    It waits for the engine's event and for other transfers. Then kernels gather or scatter blocks, and the copy engine
    or the host's threads copy.
    """

    WAIT = "wait"
    GATHER = "gather"
    SCATTER = "scatter"
    COPY = "copy"


@dataclass(frozen=True, slots=True)
class PhaseTime:
    """One phase of a transfer, from its first begin to its last end, counted from the transfer's start.

    Phases overlap where they form a pipeline. A phase may pause while other transfers are served.
    """

    name: Phase
    start_seconds: float
    duration_seconds: float


class Transfer:
    """A running copy of chunks. `future` is done only when nothing touches the transfer's memory.

    `phases` then has the time of each phase. If the transfer succeeded, `checksums[copy]` is the kvsum64 of the whole
    chunk, as it was read or written, for each copy that asked for it; it is 0 for the others.
    """

    def __init__(self) -> None:
        self.future: Future[None] = Future()
        # A running future refuses Future.cancel(). asyncio.wrap_future calls that, and a cancelled future would be
        # done while bytes are still written.
        self.future.set_running_or_notify_cancel()
        self.phases: tuple[PhaseTime, ...] = ()
        self.checksums: NDArray[np.uint64] = np.zeros(0, np.uint64)
        self._started_at = time.monotonic()
        self._error: BaseException | None = None
        self._lock = threading.Lock()

    @property
    def is_stopped(self) -> bool:
        """Whether the transfer was stopped, so that nothing more of it begins."""
        return self._error is not None

    def cancel(self) -> None:
        """Stop soon. `future` then raises TransferCancelled."""
        self.stop(TransferCancelled("the transfer was cancelled"))

    def stop(self, error: BaseException) -> None:
        """Stop soon. `future` then raises the error of the first such call."""
        with self._lock:
            if self._error is None:
                self._error = error

    def _settle(self, phases: tuple[PhaseTime, ...]) -> None:
        """Make `future` done."""
        self.phases = phases
        if self._error is None:
            self.future.set_result(None)
        else:
            self.future.set_exception(self._error)
