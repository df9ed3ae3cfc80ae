"""Transfers: chunks on their way between an engine's blocks and L1, piece by piece on threads of their own."""

from __future__ import annotations

import concurrent.futures
import ctypes
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from kernels.errors import TransferCancelled
from kernels.phases import Phase, PhaseTime

# A thread that copies would keep a core for all of its time slice, 3 ms and more, while the event loop waits for one.
_YIELD_SECONDS = 1e-3
_yield_core = ctypes.CDLL(None).sched_yield  # lets go of the GIL, which os.sched_yield does not before Python 3.13

Piece = Callable[[], object]
"""Copies a few MiB at most, and lets go of the GIL meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChunkCopy:
    """One chunk to copy: where it is in L1, and the engine's blocks that hold its tokens.

    ``block_ids`` has an array for each group, of the blocks of the chunk's last tokens: at most
    ``chunk_size / block_size``. Where there are fewer, the tokens before them are copied neither way.
    """

    l1_offset_bytes: int
    block_ids: tuple[NDArray[np.int64], ...]


class Transfer:
    """Pieces that are being copied; `future` is done only when no thread touches their memory any more.

    From then on `steps` has what the time went into.
    """

    def __init__(self, pieces: Iterator[Piece], num_turns: int) -> None:
        self.future: Future[None] = Future()
        self.steps: tuple[PhaseTime, ...] = ()
        # A running future refuses Future.cancel(). Cancelling it, as asyncio.wrap_future does, would make it done
        # while threads still write.
        self.future.set_running_or_notify_cancel()
        self._pieces = pieces
        self._num_turns = num_turns
        self._started_at = time.monotonic()
        self._copying_since: float | None = None
        self._error: BaseException | None = None
        self._lock = threading.Lock()

    def cancel(self) -> None:
        """Makes the threads stop after the pieces they are at; the future then raises TransferCancelled."""
        self._stop(TransferCancelled("the transfer was cancelled"))

    def take_turn(self) -> bool:
        """Copies one piece, or gives the turn up for good if there is nothing left to do."""
        piece = self._next_piece()
        if piece is None:
            with self._lock:
                self._num_turns -= 1
                is_last = self._num_turns == 0
            if is_last:
                self._settle()
            return False
        try:
            piece()
        except BaseException as error:
            self._stop(error)
        return True

    def _next_piece(self) -> Piece | None:
        with self._lock:
            if self._error is not None:
                return None
            try:
                piece = next(self._pieces, None)
            except BaseException as error:
                self._error = error
                return None
            if piece is not None and self._copying_since is None:
                self._copying_since = time.monotonic()
            return piece

    def _stop(self, error: BaseException) -> None:
        with self._lock:
            if self._error is None:
                self._error = error

    def _settle(self) -> None:
        self._pieces = iter(())  # those not carried out still hold on to the memory
        self.steps = self._times(time.monotonic())
        if self._error is None:
            self.future.set_result(None)
        else:
            self.future.set_exception(self._error)

    def _times(self, end: float) -> tuple[PhaseTime, ...]:
        copying_since = end if self._copying_since is None else self._copying_since
        waited_seconds = copying_since - self._started_at
        waiting = PhaseTime(Phase.WAIT, 0.0, waited_seconds)
        if self._copying_since is None:
            return (waiting,)
        return waiting, PhaseTime(Phase.COPY, waited_seconds, end - copying_since)


class CopyPool:
    """Threads that take turns at the transfers given to them, so that a short one need not wait for a long one."""

    def __init__(self, name: str, num_threads: int) -> None:
        self._turns: SimpleQueue[Transfer | None] = SimpleQueue()
        self._transfers: set[Transfer] = set()
        self._is_closed = False
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{index}", daemon=True) for index in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def start(self, pieces: Iterator[Piece]) -> Transfer:
        """Begins to carry out ``pieces``, which is advanced from several threads, one at a time."""
        transfer = Transfer(pieces, len(self._threads))
        with self._lock:
            if self._is_closed:
                raise RuntimeError("the backend is closed")
            self._transfers.add(transfer)
        transfer.future.add_done_callback(lambda _: self._forget(transfer))
        for _ in self._threads:
            self._turns.put(transfer)
        return transfer

    def _forget(self, transfer: Transfer) -> None:
        with self._lock:
            self._transfers.discard(transfer)

    def close(self) -> None:
        """Cancels what is running, waits until it stopped, then ends the threads."""
        with self._lock:
            self._is_closed = True
            running = list(self._transfers)
        for transfer in running:
            transfer.cancel()
        concurrent.futures.wait([transfer.future for transfer in running])
        for _ in self._threads:
            self._turns.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        yielded_at = time.thread_time()
        while (transfer := self._turns.get()) is not None:
            if transfer.take_turn():
                self._turns.put(transfer)
            ran_until = time.thread_time()
            if ran_until - yielded_at >= _YIELD_SECONDS:
                _yield_core()
                yielded_at = ran_until
