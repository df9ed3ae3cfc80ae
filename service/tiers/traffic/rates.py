"""The measured rate of a tier, and the bounds that follow from it."""

from __future__ import annotations

WEIGHT = 0.2
"""Of a new measurement."""

READ_SECONDS = 0.5
"""Of any read, so that a busy machine kills no I/O worker that reads at its usual rate."""
MAX_READ_SECONDS = 2.0
SLOWEST_SHARE = 0.25
"""Of the measured rate: slower than this is too slow."""
FIRST_BATCH_BYTES = 8 << 20
"""Of a batch while nothing is measured."""


class Rate:
    """Bytes a second of jobs that succeeded, those of newer jobs with more weight. None before the first one."""

    def __init__(self) -> None:
        self._bytes = 0.0
        self._seconds = 0.0

    def note(self, num_bytes: int, seconds: float) -> None:
        """Note a job. One without bytes says nothing."""
        if num_bytes <= 0 or seconds <= 0:
            return
        weight = WEIGHT if self._seconds else 1.0
        # Two averages, not one of rates: a small job takes little time, so its low rate weighs little.
        self._bytes += weight * (num_bytes - self._bytes)
        self._seconds += weight * (seconds - self._seconds)

    @property
    def bytes_per_second(self) -> float | None:
        """The rate of one I/O worker."""
        return self._bytes / self._seconds if self._seconds else None

    def seconds_for(self, num_bytes: float) -> float | None:
        """Return how long one I/O worker needs for bytes. None: nothing was measured."""
        rate = self.bytes_per_second
        return num_bytes / rate if rate else None

    def read_bound_seconds(self, num_bytes: int) -> float:
        """Return the time after which a read of so many bytes is given up."""
        usual = self.seconds_for(num_bytes)
        if usual is None:
            return MAX_READ_SECONDS
        return min(READ_SECONDS + usual / SLOWEST_SHARE, MAX_READ_SECONDS)

    def batch_bytes(self, max_bytes: int, seconds: float) -> int:
        """Return the bytes of a batch that is done within `seconds` even at the slowest rate, at most `max_bytes`."""
        rate = self.bytes_per_second
        if rate is None:
            return min(max_bytes, FIRST_BATCH_BYTES)
        return min(max_bytes, int(seconds * SLOWEST_SHARE * rate))
