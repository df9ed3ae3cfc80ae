"""A limit on how often an event is logged, with counts of the suppressed ones."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


@dataclass(slots=True)
class _Window:
    start: float
    num_admitted: int = 0
    num_suppressed: int = 0


class RateLimit(Generic[Key]):
    """A limit of `limit` events per key and period. It counts the others as suppressed.

    It remembers all keys, or the last `max_keys` new ones.
    """

    def __init__(self, limit: int, period_seconds: float, *, max_keys: int | None = None) -> None:
        if limit < 1:
            raise ValueError(f"a limit of {limit} admits nothing")
        self._limit = limit
        self._period_seconds = period_seconds
        self._max_keys = max_keys
        self._windows: dict[Key, _Window] = {}

    def admit(self, key: Key, now: float) -> int | None:
        """Return how many were suppressed since the last admitted one, or None if this one is suppressed."""
        window = self._windows.get(key)
        if window is None:
            if len(self._windows) == self._max_keys:
                del self._windows[next(iter(self._windows))]
            window = self._windows[key] = _Window(now)
        elif now - window.start >= self._period_seconds:
            window.start, window.num_admitted = now, 0
        if window.num_admitted >= self._limit:
            window.num_suppressed += 1
            return None
        window.num_admitted += 1
        num_suppressed, window.num_suppressed = window.num_suppressed, 0
        return num_suppressed

    def suppressed(self) -> dict[Key, int]:
        """Return the suppressed numbers that `admit` has not returned."""
        return {key: window.num_suppressed for key, window in self._windows.items() if window.num_suppressed}
