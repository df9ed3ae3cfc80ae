"""A limit on log lines, so that what goes wrong in every call does not fill the disk."""

from __future__ import annotations

import logging
import threading
from time import monotonic

from telemetry.rate_limit import RateLimit

LINES = 5
PERIOD_SECONDS = 60.0


class LineThrottle(logging.Filter):
    """Lets few records of one place in the code through; the next one has ``num_suppressed``.

    Of warnings and what is worse, our own and that of libraries, such as an exporter whose collector is down. Lines
    of events have a limit of their own.
    """

    def __init__(self, lines: int = LINES, period_seconds: float = PERIOD_SECONDS) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._limit = RateLimit[tuple[str, int]](lines, period_seconds)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record may be logged."""
        if record.levelno < logging.WARNING or hasattr(record, "event"):
            return True
        with self._lock:
            num_suppressed = self._limit.admit((record.pathname, record.lineno), monotonic())
        if num_suppressed:
            record.num_suppressed = num_suppressed
        return num_suppressed is not None
