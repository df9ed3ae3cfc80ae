"""A transfer over CUDA streams, as whoever asked for it sees it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from kernels.cuda.batch import Moves
from kernels.errors import TransferCancelled
from kernels.phases import Phase, PhaseTime


class CudaTransfer:
    """Chunks on their way. `future` is done only when the streams have passed all that was issued for them.

    From then on `steps` has what the time went into. ``begun`` and ``ended`` have when the first work of a kind began
    and the last one ended, on the host's monotonic clock; a device that failed does not tell the end.
    """

    def __init__(self, moves: Moves, ready_event: bytes, wake: Callable[[], None]) -> None:
        self.future: Future[None] = Future()
        # A running future refuses Future.cancel(), which would make it done while the device still writes.
        self.future.set_running_or_notify_cancel()
        self.steps: tuple[PhaseTime, ...] = ()
        self.begun: dict[Phase, float] = {}
        self.ended: dict[Phase, float] = {}
        self.moves = moves
        self.ready_event = ready_event
        self._wake = wake
        self._started_at = time.monotonic()
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
        self.steps = self._times(time.monotonic())
        if self._error is None:
            self.future.set_result(None)
        else:
            self.future.set_exception(self._error)

    def _times(self, settled_at: float) -> tuple[PhaseTime, ...]:
        ended = {name: self.ended.get(name, max(settled_at, begin)) for name, begin in self.begun.items()}
        first_begin = min(self.begun.values(), default=settled_at)
        worked_seconds = max(ended.values(), default=settled_at) - first_begin
        # The clocks of the host and of the device are not joined perfectly; all is shifted into the transfer's life.
        latest_seconds = max(0.0, settled_at - self._started_at - worked_seconds)
        waited_seconds = min(max(0.0, first_begin - self._started_at), latest_seconds)
        return (
            PhaseTime(Phase.WAIT, 0.0, waited_seconds),
            *(
                PhaseTime(name, waited_seconds + (begin - first_begin), ended[name] - begin)
                for name, begin in self.begun.items()
            ),
        )
