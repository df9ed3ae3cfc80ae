"""The buckets of the last hour: seconds for five minutes, ten seconds for the whole hour."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from enum import IntEnum
from itertools import islice

from telemetry.activity.bucket import Bucket, Gauges


class Resolution(IntEnum):
    """The length of a bucket, in seconds."""

    SECOND = 1
    TEN_SECONDS = 10


KEPT = {Resolution.SECOND: 300, Resolution.TEN_SECONDS: 360}
"""The number of buckets that are kept of each length."""


class Series:
    """The buckets of the whole depot or of one tenant. Buckets in which nothing was counted or sampled are left out."""

    def __init__(self) -> None:
        self._open: dict[Resolution, Bucket | None] = dict.fromkeys(Resolution)
        self._last_gauges: Gauges | None = None
        self._complete: dict[Resolution, deque[Bucket]] = {each: deque(maxlen=kept) for each, kept in KEPT.items()}

    def __repr__(self) -> str:
        return f"<Series of {len(self._complete[Resolution.SECOND])} seconds>"

    def current(self, now: float) -> Bucket:
        """Return the bucket of this second. `now` is in seconds since the epoch, and never goes back."""
        bucket = self._open[Resolution.SECOND]
        if bucket is None or now >= bucket.start_time + 1:
            self.complete(now)
            bucket = self._open[Resolution.SECOND] = Bucket(float(int(now)))
            bucket.gauges = self._last_gauges  # until the next sample, which may be late
        return bucket

    def complete(self, now: float) -> None:
        """Complete the buckets that end at or before `now`. They do not change any more."""
        second = self._open[Resolution.SECOND]
        if second is not None and now >= second.start_time + 1:
            self._open[Resolution.SECOND] = None
            self._last_gauges = second.gauges
            self._complete[Resolution.SECOND].append(second)
            start_time = second.start_time - second.start_time % Resolution.TEN_SECONDS
            self._complete_ten(start_time)
            ten = self._open[Resolution.TEN_SECONDS]
            if ten is None:
                ten = self._open[Resolution.TEN_SECONDS] = Bucket(start_time)
            ten.add(second)
        self._complete_ten(now)

    def read(self, resolution: Resolution, after: float) -> Sequence[Bucket]:
        """Return the complete buckets that start later than `after`, oldest first."""
        buckets = self._complete[resolution]
        first = bisect_right(buckets, after, key=lambda bucket: bucket.start_time)
        return list(islice(buckets, first, None))

    def _complete_ten(self, now: float) -> None:
        ten = self._open[Resolution.TEN_SECONDS]
        if ten is not None and now >= ten.start_time + Resolution.TEN_SECONDS:
            self._open[Resolution.TEN_SECONDS] = None
            self._complete[Resolution.TEN_SECONDS].append(ten)
