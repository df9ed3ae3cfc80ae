"""A transfer over CUDA streams, as whoever asked for it sees it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future

from kernels.cuda.routes import Moves
from kernels.errors import TransferCancelled


class CudaTransfer:
    """Chunks on their way. `future` is done only when the streams have passed all that was issued for them."""

    def __init__(self, moves: Moves, ready_event: bytes, wake: Callable[[], None]) -> None:
        self.future: Future[None] = Future()
        # A running future refuses Future.cancel(), which would make it done while the device still writes.
        self.future.set_running_or_notify_cancel()
        self.moves = moves
        self.ready_event = ready_event
        self._wake = wake
        self._error: Exception | None = None
        self._lock = threading.Lock()

    @property
    def is_stopped(self) -> bool:
        """Whether nothing more is to be issued."""
        return self._error is not None

    def cancel(self) -> None:
        """Issues nothing more; the future then raises TransferCancelled."""
        self.stop(TransferCancelled("the transfer was cancelled"))

    def stop(self, error: Exception) -> None:
        """Issues nothing more; the future then raises the first error that the transfer was stopped with."""
        with self._lock:
            if self._error is None:
                self._error = error
        self._wake()

    def settle(self) -> None:
        """Makes the future done."""
        if self._error is None:
            self.future.set_result(None)
        else:
            self.future.set_exception(self._error)
