"""The budget of bytes that a depot may write to a tier in a day: an SSD wears out by writes."""

from __future__ import annotations

from collections.abc import Callable

DAY_SECONDS = 86_400.0
BURST_SECONDS = 3_600.0


class WriteBudget:
    """Bytes that may be written now. A day's bytes are spread evenly; an hour's share may be spent at once.

    `bytes_per_day` 0 is no limit. `clock` is in seconds. A chunk that exceeds an hour's share passes if it is full.
    """

    def __init__(self, bytes_per_day: int, clock: Callable[[], float]) -> None:
        self._bytes_per_second = bytes_per_day / DAY_SECONDS
        self._burst_bytes = self._bytes_per_second * BURST_SECONDS
        self._clock = clock
        self._left_bytes = self._burst_bytes
        self._time = clock()

    def take(self, num_bytes: int) -> bool:
        """Spend bytes. Return whether they were there; if not, nothing is spent."""
        if not self._bytes_per_second:
            return True
        now = self._clock()
        earned = (now - self._time) * self._bytes_per_second
        self._left_bytes = min(self._burst_bytes, self._left_bytes + earned)
        self._time = now
        if self._left_bytes < min(num_bytes, self._burst_bytes):
            return False
        self._left_bytes -= num_bytes  # below zero after a chunk larger than the burst: it is earned back
        return True
