"""When operations of a session ran, and when none did: that time was the engine's own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Span(NamedTuple):
    """A stretch of time, in seconds from the session's start."""

    start_seconds: float
    end_seconds: float

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.end_seconds - self.start_seconds


def gaps(operations: Iterable[Span], duration_seconds: float) -> list[Span]:
    """The stretches of a session in which no operation ran, in order; operations may overlap and be in any order.

    What an operation took beyond the session's end does not count.
    """
    found = []
    covered_seconds = 0.0
    for start_seconds, end_seconds in sorted(operations):
        gap_end_seconds = min(start_seconds, duration_seconds)
        if gap_end_seconds > covered_seconds:
            found.append(Span(covered_seconds, gap_end_seconds))
        covered_seconds = max(covered_seconds, end_seconds)
    if covered_seconds < duration_seconds:
        found.append(Span(covered_seconds, duration_seconds))
    return found
