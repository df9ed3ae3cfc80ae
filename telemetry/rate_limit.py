"""A limit on how often the same thing is said, which counts what it held back."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


@dataclass(slots=True)
class _Window:
    start: float
    num_admitted: int = 0
    num_held_back: int = 0


class RateLimit(Generic[Key]):
    """Admits ``limit`` per key and period.

    Keys are never forgotten, there have to be few of them; or only the last ``max_keys`` that were new are remembered.
    """

    def __init__(self, limit: int, period_seconds: float, *, max_keys: int | None = None) -> None:
        if limit < 1:
            raise ValueError(f"a limit of {limit} admits nothing")
        self._limit = limit
        self._period_seconds = period_seconds
        self._max_keys = max_keys
        self._windows: dict[Key, _Window] = {}

    def admit(self, key: Key, now: float) -> int | None:
        """How many were held back since one was last admitted; None if this one is held back too."""
        window = self._windows.get(key)
        if window is None:
            if len(self._windows) == self._max_keys:
                del self._windows[next(iter(self._windows))]
            window = self._windows[key] = _Window(now)
        elif now - window.start >= self._period_seconds:
            window.start, window.num_admitted = now, 0
        if window.num_admitted >= self._limit:
            window.num_held_back += 1
            return None
        window.num_admitted += 1
        num_held_back, window.num_held_back = window.num_held_back, 0
        return num_held_back

    def untold(self) -> dict[Key, int]:
        """What was held back and not told of by ``admit``."""
        return {key: window.num_held_back for key, window in self._windows.items() if window.num_held_back}
