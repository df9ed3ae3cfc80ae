"""How late the event loop is: a timer that notes when it should have been called, and when it was."""

from __future__ import annotations

import asyncio
from time import monotonic

from telemetry.metrics import definitions as definitions
from telemetry.metrics.instruments import Distribution

PERIOD_SECONDS = 0.1


class LoopLag:
    """Ten times a second; a loop that is held up for longer is seen once, with all of it."""

    def __init__(self) -> None:
        self.lag = Distribution(definitions.EVENT_LOOP_LAG)
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin, on the running event loop."""
        self._due = monotonic() + PERIOD_SECONDS
        self._timer = asyncio.get_running_loop().call_later(PERIOD_SECONDS, self._note)

    def stop(self) -> None:
        """End; idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _note(self) -> None:
        self.lag.observe((), max(0.0, monotonic() - self._due))
        self.start()
