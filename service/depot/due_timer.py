"""A timer for many things that end at times of their own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

MIN_DELAY_SECONDS = 0.01
"""It is called so much later at least. Some things stay overdue for a while: a session that runs an operation does."""


class DueTimer:
    """Calls `on_due` at the earliest of the moments that it was given since the last call. They are monotonic seconds.

    `on_due` says again when the next thing is due. Only the event loop uses it.
    """

    def __init__(self, on_due: Callable[[], None]) -> None:
        self._on_due = on_due
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0

    def __repr__(self) -> str:
        return "<DueTimer>" if self._timer is None else f"<DueTimer, due at {self._due:.3f}>"

    def call_by(self, moment: float) -> None:
        """Have `on_due` called when this moment has come."""
        if self._timer is not None:
            if self._due <= moment:
                return
            self._timer.cancel()
        delay_seconds = max(moment - time.monotonic(), MIN_DELAY_SECONDS)
        self._due = time.monotonic() + delay_seconds
        self._timer = asyncio.get_running_loop().call_later(delay_seconds, self._call)

    def stop(self) -> None:
        """Stop it for good."""
        if self._timer is not None:
            self._timer.cancel()

    def _call(self) -> None:
        self._timer = None
        self._on_due()
