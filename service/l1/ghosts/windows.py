"""Counts by time: what was counted in the last minutes, hours, or since the start."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

K = TypeVar("K", bound=Hashable)

MINUTE_SECONDS = 60.0
NUM_MINUTES = 60
NUM_HOURS = 24

Counts = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Interval(Generic[K]):
    """What was counted from `start` on, until the next interval began."""

    start: float
    counts: Mapping[K, npt.NDArray[np.float32]]


class Windows(Generic[K]):
    """The counts of each key in an hour of minutes, and in a day of hours before it. Times are monotonic seconds.

    A minute without a call is part of the one before. A key without counts in an interval takes no memory there.
    """

    def __init__(self, now: float) -> None:
        self.start = now
        self._begun = now
        self._before: dict[K, Counts] = {}  # the totals when the present minute began
        self._minutes: deque[_Interval[K]] = deque()
        self._hours: deque[_Interval[K]] = deque()

    def __repr__(self) -> str:
        return f"<Windows of {len(self._minutes)} minutes and {len(self._hours)} hours>"

    def is_over(self, now: float) -> bool:
        """Return whether the present minute is over."""
        return now >= self._begun + MINUTE_SECONDS

    def begin_minute(self, totals: Mapping[K, Sequence[float]], now: float) -> None:
        """Begin another minute. `totals` are those since the start."""
        self._minutes.append(_Interval(self._begun, {key: each.astype(np.float32) for key, each in self._open(totals)}))
        self._before = {key: np.array(each) for key, each in totals.items()}
        self._begun = now
        if len(self._minutes) > NUM_MINUTES:
            self._end_minute(self._minutes.popleft())

    def since(
        self, window_seconds: float, totals: Mapping[K, Sequence[float]], now: float
    ) -> tuple[float, dict[K, Counts]]:
        """Return the counts of the last seconds, and from when on they are. They are of whole minutes or hours.

        The present minute always counts. If the window reaches to the start, the counts are all that there ever were.
        """
        from_time = now - window_seconds
        if from_time <= self.start:
            return self.start, {key: np.array(each) for key, each in totals.items()}
        found = dict(self._open(totals))
        begun = self._begun
        for interval in (*reversed(self._minutes), *reversed(self._hours)):
            if interval.start < from_time:
                break
            begun = interval.start
            for key, counts in interval.counts.items():
                found[key] = found[key] + counts if key in found else counts.astype(np.float64)
        return begun, found

    def _open(self, totals: Mapping[K, Sequence[float]]) -> Iterator[tuple[K, Counts]]:
        for key, each in totals.items():
            counts = np.array(each)
            if key in self._before:
                counts -= self._before[key]
            if counts.any():
                yield key, counts

    def _end_minute(self, minute: _Interval[K]) -> None:
        last = self._hours[-1] if self._hours else None
        if last is not None and minute.start < last.start + NUM_MINUTES * MINUTE_SECONDS:
            both = dict(last.counts)
            for key, counts in minute.counts.items():
                both[key] = both[key] + counts if key in both else counts
            self._hours[-1] = _Interval(last.start, both)
            return
        self._hours.append(minute)
        if len(self._hours) > NUM_HOURS:
            self._hours.popleft()
