"""A transfer over CUDA streams."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from kernels.copies import Copies
from kernels.transfer import Phase, PhaseTime, Transfer


class CudaTransfer(Transfer):
    """A transfer whose `future` is done only when the streams have passed all that was issued for it.

    `begun` and `ended` say when each phase first began and last ended, on the host's monotonic clock, in seconds.
    A device that failed reports no end. `wake` wakes the worker that carries the transfer out.
    """

    def __init__(self, copies: Copies, ready_event: bytes, wake: Callable[[], None]) -> None:
        super().__init__()
        self.begun: dict[Phase, float] = {}
        self.ended: dict[Phase, float] = {}
        self.copies = copies
        self.ready_event = ready_event
        self._wake = wake

    def stop(self, error: BaseException) -> None:
        """Stop, and wake the worker."""
        super().stop(error)
        self._wake()

    def settle(self, checksums: NDArray[np.uint64] | None = None) -> None:
        """Make `future` done. A transfer that succeeded has checksums."""
        if checksums is not None:
            self.checksums = checksums
        self._settle(self._times(time.monotonic()))

    def _times(self, settled_at: float) -> tuple[PhaseTime, ...]:
        ended = {name: self.ended.get(name, max(settled_at, begin)) for name, begin in self.begun.items()}
        first_begin = min(self.begun.values(), default=settled_at)
        worked_seconds = max(ended.values(), default=settled_at) - first_begin
        # The clocks of host and device differ a little, so all phases are shifted into the transfer's life.
        latest_seconds = max(0.0, settled_at - self._started_at - worked_seconds)
        waited_seconds = min(max(0.0, first_begin - self._started_at), latest_seconds)
        return (
            PhaseTime(Phase.WAIT, 0.0, waited_seconds),
            *(
                PhaseTime(name, waited_seconds + (begin - first_begin), ended[name] - begin)
                for name, begin in self.begun.items()
            ),
        )
