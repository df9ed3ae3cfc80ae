"""Threads of the host that copy transfers piece by piece."""

from __future__ import annotations

import concurrent.futures
import ctypes
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from kernels.transfer import Phase, PhaseTime, Transfer

# A thread that copies would keep a core for all of its time slice, 3 ms and more, while the event loop waits for one.
_YIELD_SECONDS = 1e-3
_sched_yield = ctypes.CDLL(None).sched_yield  # releases the GIL, which os.sched_yield does not before Python 3.13

Piece = Callable[[], object]
"""Copies or reads a few MiB at most, without the GIL."""

SumUp = Callable[[], NDArray[np.uint64]]
"""Returns the checksums of a transfer's chunks."""


class HostTransfer(Transfer):
    """A transfer that `num_threads` threads copy, piece by piece.

    The last one of them carries out `later` when all other pieces are done. Then `checksums` are what `sum_up` returns.
    """

    def __init__(self, pieces: Iterator[Piece], num_threads: int, later: Iterator[Piece], sum_up: SumUp) -> None:
        super().__init__()
        self._pieces = pieces
        self._num_threads = num_threads
        self._later = later
        self._sum_up = sum_up
        self._copying_since: float | None = None

    def copy_piece(self) -> bool:
        """Copy the next piece. Return False if there is none. The thread must not call this again then."""
        piece, is_last = self._next_piece()
        if piece is None:
            if is_last:
                self._end()
            return False
        try:
            piece()
        except BaseException as error:
            self.stop(error)
        return True

    def _next_piece(self) -> tuple[Piece | None, bool]:
        """Return the next piece, or None for a thread that is done, and whether this is the last such thread."""
        with self._lock:
            piece = None
            try:
                if self._error is None:
                    piece = next(self._pieces, None)
                    if piece is None and self._num_threads == 1:
                        self._pieces, self._later = self._later, iter(())
                        piece = next(self._pieces, None)
            except BaseException as error:
                self._error = error
            if piece is None:
                self._num_threads -= 1
            elif self._copying_since is None:
                self._copying_since = time.monotonic()
            return piece, self._num_threads == 0

    def _end(self) -> None:
        self._pieces = self._later = iter(())  # pieces that were not copied still refer to the memory
        try:
            if self._error is None:
                self.checksums = self._sum_up()
        except BaseException as error:
            self.stop(error)
        self._settle(self._times(time.monotonic()))

    def _times(self, end: float) -> tuple[PhaseTime, ...]:
        copying_since = end if self._copying_since is None else self._copying_since
        waited_seconds = copying_since - self._started_at
        waiting = PhaseTime(Phase.WAIT, 0.0, waited_seconds)
        if self._copying_since is None:
            return (waiting,)
        return waiting, PhaseTime(Phase.COPY, waited_seconds, end - copying_since)


def _no_checksums() -> NDArray[np.uint64]:
    return np.zeros(0, np.uint64)


class CopyPool:
    """Threads that copy pieces of transfers round robin, so that a short transfer need not wait for a long one.

    `yield_core` lets other threads run.
    """

    def __init__(self, name: str, num_threads: int, yield_core: Callable[[], object] = _sched_yield) -> None:
        self._yield_core = yield_core
        self._queue: SimpleQueue[HostTransfer | None] = SimpleQueue()
        self._transfers: set[HostTransfer] = set()
        self._is_closed = False
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{index}", daemon=True) for index in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def start(
        self,
        pieces: Iterator[Piece],
        later: Iterable[Piece] = (),
        sum_up: SumUp = _no_checksums,
    ) -> HostTransfer:
        """Start to carry out `pieces`. Several threads advance the iterator, one at a time.

        When all of them are done, one thread carries out `later`, and calls `sum_up`, which makes the checksums.
        """
        transfer = HostTransfer(pieces, len(self._threads), iter(later), sum_up)
        with self._lock:
            if self._is_closed:
                raise RuntimeError("the backend is closed")
            self._transfers.add(transfer)
        transfer.future.add_done_callback(lambda _: self._forget(transfer))
        for _ in self._threads:
            self._queue.put(transfer)
        return transfer

    def close(self) -> None:
        """Cancel what runs, wait for its end, then end the threads."""
        with self._lock:
            self._is_closed = True
            running = list(self._transfers)
        for transfer in running:
            transfer.cancel()
        concurrent.futures.wait([transfer.future for transfer in running])
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _forget(self, transfer: HostTransfer) -> None:
        with self._lock:
            self._transfers.discard(transfer)

    def _work(self) -> None:
        yielded_at = time.thread_time()
        while (transfer := self._queue.get()) is not None:
            if transfer.copy_piece():
                self._queue.put(transfer)
            ran_until = time.thread_time()
            if ran_until - yielded_at >= _YIELD_SECONDS:
                self._yield_core()
                yielded_at = ran_until
