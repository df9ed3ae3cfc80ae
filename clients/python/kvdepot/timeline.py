"""The time of a session, divided between its operations and the engine's own work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Span(NamedTuple):
    """A stretch of time, in seconds from the session's start."""

    start_seconds: float
    end_seconds: float

    @property
    def seconds(self) -> float:
        """The length of the span."""
        return self.end_seconds - self.start_seconds

    def gigabytes_per_second(self, num_bytes: int) -> float | None:
        """Return the rate at which bytes moved in the span, in units of 10^9. None: no bytes moved."""
        return num_bytes / self.seconds / 1e9 if num_bytes and self.seconds > 0 else None


@dataclass(frozen=True, slots=True)
class Timeline:
    """A divided session. `gaps` are the spans without an operation, in order; `engine_seconds` is their sum."""

    gaps: list[Span]
    depot_seconds: float
    engine_seconds: float


def timeline(operations: Sequence[Span], duration_seconds: float, num_dropped_operations: int = 0) -> Timeline:
    """Divide a session's time. Operations may overlap and be in any order.

    Time after the session's end does not count. If operations were dropped, time after the last kept one does not count
    either, because it is unknown.
    """
    if num_dropped_operations:
        duration_seconds = min(duration_seconds, max((each.end_seconds for each in operations), default=0.0))
    gaps = []
    covered_seconds = 0.0
    for start_seconds, end_seconds in sorted(operations):
        gap_end_seconds = min(start_seconds, duration_seconds)
        if gap_end_seconds > covered_seconds:
            gaps.append(Span(covered_seconds, gap_end_seconds))
        covered_seconds = max(covered_seconds, end_seconds)
    if covered_seconds < duration_seconds:
        gaps.append(Span(covered_seconds, duration_seconds))
    engine_seconds = sum(gap.seconds for gap in gaps)
    return Timeline(gaps, duration_seconds - engine_seconds, engine_seconds)
