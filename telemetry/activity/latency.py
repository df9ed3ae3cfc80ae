"""Buckets of durations with bounds in a geometric row, so that a few dozen hold microseconds and half a minute."""

from __future__ import annotations

from bisect import bisect_left

BOUNDS_SECONDS = tuple(20e-6 * 2 ** (step / 4) for step in range(81))  # 20 µs to 21 s, each 19 % above the last
NUM_BUCKETS = len(BOUNDS_SECONDS) + 1  # the last one has no bound


def bucket_of(duration_seconds: float) -> int:
    """Return the bucket of a duration. Bucket i holds durations up to `BOUNDS_SECONDS[i]`."""
    return bisect_left(BOUNDS_SECONDS, duration_seconds)
