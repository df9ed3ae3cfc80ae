"""A limit on log lines, so that an error of every call does not fill the disk."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from time import monotonic

from telemetry.rate_limit import RateLimit

LINES = 5
PERIOD_SECONDS = 60.0


class LineThrottle(logging.Filter):
    """A limit on the warnings and errors of one line of code. The next record has `num_suppressed`.

    It applies to our records and to those of libraries, such as an exporter whose collector is down. Lines of events
    have their own limit.
    """

    def __init__(
        self, lines: int = LINES, period_seconds: float = PERIOD_SECONDS, clock: Callable[[], float] = monotonic
    ) -> None:
        super().__init__()
        self._clock = clock
        self._lock = threading.Lock()
        self._limit = RateLimit[tuple[str, int]](lines, period_seconds)

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record may be logged."""
        if record.levelno < logging.WARNING or hasattr(record, "event"):
            return True
        with self._lock:
            num_suppressed = self._limit.admit((record.pathname, record.lineno), self._clock())
        if num_suppressed:
            record.num_suppressed = num_suppressed
        return num_suppressed is not None
