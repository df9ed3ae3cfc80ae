"""Whether the depot lives and takes work, for threads that must not touch the state of its event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import StrEnum
from time import monotonic

TICK_SECONDS = 0.5
ALIVE_SECONDS = 10.0  # without a tick; the depot's longest step takes some 50 ms


class Phase(StrEnum):
    """What the depot does."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"


class Vitals:
    """The depot's phase, and when its event loop last ran.

    The loop assigns these two attributes. A thread only reads them, which is atomic, and asks the loop nothing: so it
    gets an answer also while the loop hangs. Made on the event loop, which ticks until `stop`.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self.phase = Phase.STARTING
        self._clock = clock
        self._last_tick = clock()
        self._timer: asyncio.TimerHandle | None = None
        self._tick()

    def __repr__(self) -> str:
        return f"<Vitals {self.phase}, ticked {self._clock() - self._last_tick:.1f} s ago>"

    def stop(self) -> None:
        """Tick no more. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def why_not_alive(self) -> str:
        """Return why the process should be restarted. Empty: it works. For any thread."""
        seconds = self._clock() - self._last_tick
        return f"the event loop has not run for {seconds:.1f} s" if seconds > ALIVE_SECONDS else ""

    def why_not_ready(self) -> str:
        """Return why the depot takes no work. Empty: it does. For any thread."""
        match self.phase:
            case Phase.STARTING:
                return "starting: the depot does not take calls yet"
            case Phase.DRAINING:
                return "draining: the depot finishes its work and takes no new work"
        return self.why_not_alive()

    def _tick(self) -> None:
        self._last_tick = self._clock()
        self._timer = asyncio.get_running_loop().call_later(TICK_SECONDS, self._tick)
